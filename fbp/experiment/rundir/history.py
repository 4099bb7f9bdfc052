"""The history among a run's artifacts: every point of every metric, and digests of checkpoints.

``steps.csv`` has the per-step metrics, ``metrics.csv`` all others, ``checkpoints.json`` the digests
of the parameters, ``layers.json`` the names of the model's layers. The shipper writes them from the
journal; `fbp reproduce` and `fbp compare` read them back, from wherever they were copied.
"""

import csv
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fbp import _neutral
from fbp.errors import InputError, first_line
from fbp.experiment.config import bounded
from fbp.experiment.rundir import journal, layout
from fbp.experiment.rundir.checkpoints import CheckpointDigests
from fbp.experiment.rundir.journal_lines import MetricsLine, StepsLine
from fbp.experiment.rundir.series import Series, read_series

_DAMAGES = (
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    StopIteration,
    csv.Error,
)


def write(folder: Path) -> None:
    """Write the history of a run among its artifacts.

    Args:
        folder: the run's.
    """
    target = layout.history(layout.artifacts(folder))
    target.mkdir(exist_ok=True)
    start = journal.read_start(folder)
    if start and start.layers:
        _write_json(target / layout.LAYER_NAMES, start.layers)
    digests = {
        step: {
            "params": line.params_digest,
            "state": line.state_digest,
            "tensors": line.tensors,
        }
        for step, line in sorted(journal.read_checkpoints(folder).items())
    }
    if digests:
        _write_json(target / layout.CHECKPOINT_DIGESTS, digests)
    per_step = read_series(folder, [StepsLine])
    if per_step:
        steps = next(iter(per_step.values())).steps
        table = np.column_stack([steps, *(series.values for series in per_step.values())])
        with open(target / layout.STEPS_CSV, "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            rows.writerow(["step", *map(_neutral.csv_cell, per_step)])
            np.savetxt(file, table, "%.9g", ",")
    others = read_series(folder, [MetricsLine])
    with open(target / layout.METRICS_CSV, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        rows.writerow(("key", "step", "time", "value"))
        for key in sorted(others):
            for step, value, time in zip(*others[key], strict=True):
                rows.writerow((_neutral.csv_cell(key), step, time, float(value)))


def _write_json(path: Path, content: Mapping[Any, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read(artifacts: Path) -> dict[str, Series]:
    """Return every metric of a history by name; empty if there is none, as while a run goes on.

    Args:
        artifacts: the folder of a run's artifacts.

    Raises:
        InputError: if the history is damaged.
    """
    folder = layout.history(artifacts)
    try:
        return {
            **_read_steps(folder / layout.STEPS_CSV),
            **_read_points(folder / layout.METRICS_CSV),
        }
    except _DAMAGES as error:
        raise InputError(
            f"the history among its artifacts is damaged ({first_line(error)})"
        ) from None


def _read_steps(path: Path) -> dict[str, Series]:
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, about a table without rows
        names = [_neutral.from_csv_cell(name) for name in next(csv.reader(file))]
        table = np.loadtxt(file, delimiter=",", ndmin=2)
    with np.errstate(invalid="ignore", over="ignore"):  # a step beyond int64 is refused below
        steps, values = table[:, 0].astype(np.int64), table.astype(np.float32).astype(np.float64)
    if len(names) != table.shape[1] or len(set(names)) != len(names):
        raise ValueError(f"{path.name} has {len(names)} names for {table.shape[1]} columns")
    if not np.array_equal(steps, table[:, 0]):
        raise ValueError(f"{path.name} has steps that are no whole numbers")
    unknown_times = np.zeros_like(steps)
    return {name: Series(steps, values[:, i], unknown_times) for i, name in enumerate(names[1:], 1)}


def _read_points(path: Path) -> dict[str, Series]:
    if not path.exists():
        return {}
    points: dict[str, list[tuple[int, float, int]]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            point = int(row["step"]), float(row["value"]), int(row["time"])
            points.setdefault(_neutral.from_csv_cell(row["key"]), []).append(point)
    series = {}
    for key, rows in points.items():
        steps, values, times = zip(*rows, strict=True)
        series[key] = Series(
            np.array(steps, np.int64), np.array(values, np.float64), np.array(times, np.int64)
        )
    return series


def read_layer_names(artifacts: Path) -> dict[str, str]:
    """Return the names of the model's layers by path; empty if they are absent or damaged."""
    try:
        path = layout.history(artifacts) / layout.LAYER_NAMES
        names = bounded.read_json(path)
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in names.items()} if isinstance(names, dict) else {}


def read_checkpoints(artifacts: Path) -> dict[int, CheckpointDigests]:
    """Return the digests of the parameters at each checkpoint, by step; empty if there are none.

    Raises:
        InputError: if the file is damaged.
    """
    path = layout.history(artifacts) / layout.CHECKPOINT_DIGESTS
    if not path.exists():
        return {}
    try:
        return {
            int(step): CheckpointDigests(
                int(step),
                str(entry["params"]),
                {str(key): str(text) for key, text in entry["tensors"].items()},
                str(entry["state"]),
            )
            for step, entry in bounded.read_json(path).items()
        }
    except _DAMAGES as error:
        raise InputError(
            f"{path.name} among its artifacts is damaged ({first_line(error)})"
        ) from None
