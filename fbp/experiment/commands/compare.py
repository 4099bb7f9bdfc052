"""Runs side by side: what differs in them and in what they reached, with pictures. What ``fbp compare`` does."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

from fbp.errors import InputError
from fbp.experiment.commands.tables import Rows, differing, number
from fbp.experiment.figures import plots
from fbp.experiment.rundir.journal import Series, is_timing
from fbp.experiment.tracking import mlflow_runs
from fbp.experiment.tracking.mlflow_runs import Recorded, Runs

_RESAMPLES = 10_000
_FEW = 5  # with fewer values, resampling them cannot show how far the mean may lie
_RESULTS = ("train_", "validation_", "test_", "best_")
_DATA = "fbp.data_fingerprint"  # a tag
_WITHOUT_MEANING = (
    "name",
    "description",
    "tracking_experiment",
)  # differences that change no result


class Comparison(NamedTuple):
    """The tables of a comparison, and the files that were written."""

    tables: list[Rows]
    files: list[Path]


def compare(runs: Runs, names: Sequence[str], folder: Path) -> Comparison:
    """Compare runs, and write ``report.md`` with its pictures into a folder.

    Args:
        runs: the store.
        names: the runs' ids or names; one with runs under it stands for these.
        folder: where the report goes; made if it is not there.

    Raises:
        InputError: where a run does not exist, or there is only one.
    """
    found = [
        run for name in names for run in (lambda run: runs.children(run) or [run])(runs.find(name))
    ]
    every = [runs.read(run) for run in {run.info.run_id: run for run in found}.values()]
    if len(every) < 2:
        raise InputError(
            "compare: expected two different runs or more (or one with runs under it), got one"
        )
    labels = _labels(every)
    tables = [_configuration(every, labels), _metrics(every, labels), *_over_seeds(every)]
    folder.mkdir(parents=True, exist_ok=True)
    series = {label: runs.series(run) for label, run in zip(labels, every, strict=True)}
    pictures = _draw(every, series, folder)
    report = folder / "report.md"
    report.write_text(
        "\n".join(
            [
                f"# Comparison of {len(labels)} runs\n",
                *(table.markdown() for table in tables),
                *(f"![{path.stem.replace('_', ' ')}]({path.name})\n" for path in pictures),
            ]
        ),
        encoding="utf-8",
    )
    return Comparison(tables, [report, *pictures])


def _labels(every: Sequence[Recorded]) -> list[str]:
    names = [run.name for run in every]
    return [
        f"{run.name} {run.run_id[:6]}" if names.count(run.name) > 1 else run.name for run in every
    ]


def _configuration(every: Sequence[Recorded], labels: list[str]) -> Rows:
    different = [
        name for name in differing([run.params for run in every]) if name not in _WITHOUT_MEANING
    ]
    cells = [[name, *(run.params.get(name, "") for run in every)] for name in different]
    tags = {
        "git commit": "mlflow.source.git.commit",
        "device": "fbp.device",
        "jax": "fbp.jax",
        "data": _DATA,
    }
    for title, tag in tags.items():
        values = [run.tags.get(tag, "")[:12] for run in every]
        if len(set(values)) > 1:
            cells.append([title, *values])
    return Rows("what differs", ["", *labels], cells or [["nothing", *[""] * len(labels)]])


def _metrics(every: Sequence[Recorded], labels: list[str]) -> Rows:
    names = sorted({name for run in every for name in run.metrics if "/" not in name})
    cells = []
    for name in names:
        first = every[0].metrics.get(name)
        row = [name, number(first)]
        for run in every[1:]:
            value = run.metrics.get(name)
            gap = (
                f" ({value - first:+.3g})"
                if value is not None and first is not None and value != first
                else ""
            )
            row.append(number(value) + gap)
        cells.append(row)
    return Rows("final metrics, and the difference to the first run", ["metric", *labels], cells)


def bootstrap(values: Sequence[float], share: float = 0.95) -> tuple[float, float]:
    """A percentile interval for the mean (Efron, 1979, "Bootstrap methods: another look at the jackknife").

    The resamples are drawn from a fixed seed: the same values give the same interval.
    """
    numbers = np.asarray(values, np.float64)
    drawn = np.random.default_rng(0).choice(numbers, (_RESAMPLES, len(numbers))).mean(axis=1)
    low, high = np.quantile(drawn, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _over_seeds(every: Sequence[Recorded]) -> list[Rows]:
    """For runs that differ in nothing but their seed: mean, standard deviation and interval of each result.

    A seed counts once: of runs that are the same again, such as reproductions, the first.
    """
    groups: dict[tuple[tuple[str, str], ...], dict[str, Recorded]] = {}
    for run in every:
        same = {
            key: value
            for key, value in run.params.items()
            if key not in ("seed", *_WITHOUT_MEANING)
        }
        same[_DATA] = run.tags.get(_DATA, "")
        groups.setdefault(tuple(sorted(same.items())), {}).setdefault(
            run.params.get("seed", ""), run
        )
    several = [group for group in groups.values() if len(group) > 1]
    different = [
        name
        for name in differing([next(iter(group.values())).params for group in several])
        if name != "seed"
    ]
    tables = []
    for group in several:
        runs = list(group.values())
        names = sorted(
            {
                name
                for run in runs
                for name in run.metrics
                if name.startswith(_RESULTS) and not is_timing(name)
            }
        )
        cells = []
        for name in names:
            values = [
                run.metrics[name] for run in runs if np.isfinite(run.metrics.get(name, np.nan))
            ]
            if len(values) > 1:
                low, high = bootstrap(values)
                middle, spread = (
                    number(float(np.mean(values))),
                    number(float(np.std(values, ddof=1))),
                )
                cells.append([name, str(len(values)), middle, spread, f"{low:.5g} to {high:.5g}"])
        which = ", ".join(
            f"{key}={runs[0].params.get(key, '')}"
            for key in different
            if key not in _WITHOUT_MEANING
        )
        seeds = ", ".join(sorted(group, key=lambda seed: (len(seed), seed)))
        title = f"over the seeds {seeds} of {runs[0].params.get('name', runs[0].experiment)} {which}".strip()
        if len(group) < _FEW:
            title += f" (a bootstrap interval of fewer than {_FEW} runs is too narrow)"
        columns = [
            "metric",
            "runs",
            "mean",
            "standard deviation",
            "95 % bootstrap interval of the mean",
        ]
        tables.append(Rows(title, columns, cells))
    return tables


def _draw(
    every: Sequence[Recorded], series: dict[str, dict[str, Series]], folder: Path
) -> list[Path]:
    maps = {
        label: (series[label], mlflow_runs.layers(run))
        for label, run in zip(series, every, strict=True)
    }
    with matplotlib.rc_context(plots.STYLE):
        figures = {
            "learning_curves": plots.compared_curves(series),
            "delta_norms": plots.delta_norms(maps),
        }
        written = []
        for name, figure in figures.items():
            if figure is not None:
                figure.savefig(folder / f"{name}.png", bbox_inches="tight")
                written.append(folder / f"{name}.png")
    return written
