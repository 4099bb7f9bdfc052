"""Tables of runs as text: for a terminal, and as Markdown. What ``fbp runs`` and ``fbp show`` print."""

import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.table import Table

from fbp.experiment.tracking.mlflow_runs import Recorded, Runs

_METRICS = (
    "test_accuracy",
    "validation_accuracy",
    "test_r2",
    "test_loss",
    "validation_loss",
    "train_loss",
)
_NUMBER = re.compile(r"|[-+]?(nan|inf|[\d.,]+(e[-+]?\d+)?)( \(.*\)| to .*)?")
_PARENT = "mlflow.parentRunId"
_PARAMS = (  # in the order in which they are worth showing
    "seed", "data_name", "model_name", "model_hidden", "optimizer_name", "optimizer_learning_rate", "training_batch_size",
    "training_epochs", "training_steps", "loss_name", "schedule_name",
)  # fmt: skip
_MOST_PARAMS = 4  # that differ, in a list of runs


class Rows(NamedTuple):
    """A table: its title, the names of its columns, and its cells."""

    title: str
    columns: list[str]
    cells: list[list[str]]

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title or None, title_justify="left")
        for column, cells in zip(self.columns, zip(*self.cells, strict=True), strict=True):
            numbers = all(_NUMBER.fullmatch(cell) for cell in cells)
            table.add_column(column, justify="right" if numbers else "left", overflow="fold")
        for row in self.cells:
            table.add_row(*(cell.replace("[", "\\[") for cell in row))
        return table

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.cells]
        body = "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        return f"## {self.title}\n\n{body}\n" if self.title else f"{body}\n"


def number(value: float | None) -> str:
    """Five digits, or nothing."""
    return "" if value is None else f"{value:.5g}"


def when(milliseconds: int) -> str:
    """A moment, in this machine's time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(milliseconds / 1000))


def duration(start: int, end: int | None) -> str:
    """How long a run took; empty while it goes on."""
    if end is None:
        return ""
    seconds = (end - start) / 1000
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def differing(params: Sequence[dict[str, str]]) -> list[str]:
    """The names whose values are not the same everywhere."""
    names = sorted(set().union(*params)) if params else []
    return [name for name in names if len({each.get(name) for each in params}) > 1]


def asked_for(condition: str, sort: Sequence[str]) -> list[tuple[str, str]]:
    """The metrics and params that a filter and an order name, as (kind, name)."""
    found = re.findall(
        r"\b(metrics|params)\.(?:`([^`]+)`|([\w./\-]+))", " ".join([condition, *sort])
    )
    return [(kind, quoted or plain) for kind, quoted, plain in found]


def list_of_runs(
    runs: Sequence[Any],
    experiments: dict[str, str],
    asked: Sequence[tuple[str, str]],
    width: int | None,
) -> Rows:
    """One row for each of MLflow's runs: what was asked about, what differs, and how it ended.

    Args:
        runs: MLflow's.
        experiments: their names by id.
        asked: what must be shown, see :func:`asked_for`.
        width: of the terminal, in characters: what matters least is left out, so that nothing is broken over lines, and long
            names are shortened.
    """
    there = {name for run in runs for name in run.data.metrics if not name.startswith("system/")}
    usual = [name for name in _METRICS if name in there]
    metrics = [name for kind, name in asked if kind == "metrics"] + (usual or sorted(there)[:3])
    others = [
        name
        for name in differing([run.data.params for run in runs])
        if name not in ("name", "description")
    ]
    others.sort(key=lambda name: (_PARAMS.index(name) if name in _PARAMS else len(_PARAMS), name))
    params = [name for kind, name in asked if kind == "params"] + others[:_MOST_PARAMS]
    names = {run.info.run_id: _shortened(run.info.run_name or "", width) for run in runs}
    columns: dict[str, list[str]] = {
        "run": [names[run.info.run_id] for run in runs],
        "id": [run.info.run_id[:8] for run in runs],
        "part of": [
            names.get(parent, parent[:8])
            for parent in (run.data.tags.get(_PARENT, "") for run in runs)
        ],
        "experiment": [experiments.get(run.info.experiment_id, "") for run in runs],
        "status": [run.info.status for run in runs],
        "began": [when(run.info.start_time) for run in runs],
        "took": [duration(run.info.start_time, run.info.end_time) for run in runs],
    }
    if not any(columns["part of"]):
        del columns["part of"]
    columns |= {name: [run.data.params.get(name, "") for run in runs] for name in params}
    columns |= {name: [number(run.data.metrics.get(name)) for run in runs] for name in metrics}
    first = [name for _, name in asked]
    least = [
        "took",
        "began",
        "experiment",
        *reversed(metrics[1:]),
        *reversed(params),
        "part of",
        *metrics[:1],
        "status",
    ]
    for name in [name for name in least if name not in first] if width else []:
        if sum(max(map(len, [key, *cells])) + 3 for key, cells in columns.items()) + 1 <= (
            width or 0
        ):
            break
        columns.pop(name, None)
    return Rows("", list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def _shortened(name: str, width: int | None) -> str:
    """A name in at most a third of the width; its last four letters, by which a run is found, stay."""
    most = max(20, (width or 0) // 3)
    return name if width is None or len(name) <= most else f"{name[: most - 6]}…{name[-5:]}"


def of_run(runs: Runs, found: Any, recorded: Recorded) -> list[Rows]:
    """All that matters of one run."""
    tags = recorded.tags
    facts = [
        ["name", recorded.name],
        ["id", recorded.run_id],
        ["experiment", recorded.experiment],
        ["status", recorded.status],
        ["began", when(recorded.start)],
        ["took", duration(recorded.start, recorded.end)],
        ["artifacts", found.info.artifact_uri],
    ]
    facts += [
        [name.removeprefix("fbp.").removeprefix("mlflow."), tags[name]]
        for name in sorted(tags)
        if _shown(name)
    ]
    data = [[entry.dataset.name, entry.dataset.digest] for entry in found.inputs.dataset_inputs]
    metrics = [
        [name, number(value)] for name, value in sorted(recorded.metrics.items()) if "/" not in name
    ]
    children = [[child.info.run_name, child.info.status] for child in runs.children(found)]
    tables = [
        Rows("run", ["", "value"], facts),
        Rows(
            "configuration (what is None is left out)",
            ["key", "value"],
            [[key, value] for key, value in sorted(recorded.params.items()) if value != "None"],
        ),
        Rows("data", ["part", "digest"], data),
        Rows("metrics, the last value of each", ["metric", "value"], metrics),
        Rows("runs under it", ["run", "status"], children),
    ]
    return [table for table in tables if table.cells]


def _shown(tag: str) -> bool:
    return (tag.startswith("fbp.") and tag != "fbp.folder") or tag in (
        "mlflow.source.git.commit",
        "mlflow.source.name",
    )
