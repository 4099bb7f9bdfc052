"""A comparison of runs: configurations, results, statistics over seeds, and plots.

This is the work of ``fbp compare``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fbp import _neutral
from fbp.errors import InputError, listed
from fbp.experiment.commands import missing
from fbp.experiment.commands.tables import Rows, by_interest, differing, number
from fbp.experiment.commands.verdict import shortened
from fbp.experiment.figures import curves, norms
from fbp.experiment.figures.draw import drawing
from fbp.experiment.rundir import tags
from fbp.experiment.rundir.metric_table import is_timing
from fbp.experiment.rundir.repository import UNKNOWN
from fbp.experiment.rundir.series import Series
from fbp.experiment.tracking.run_reader import RecordedRun, RunReader

_RESAMPLES = 10_000
_MIN_FOR_BOOTSTRAP = 5  # fewer values give an interval that is too narrow
_RESULTS = ("train_", "validation_", "test_", "best_")  # beginnings of metrics of the whole run
_WITHOUT_EFFECT = ("name", "description", "tracking_experiment")  # params that change no result
_SHORT_DIGEST = 12
_SHORT_ID = 6
_MAX_NOTES = 10


class Comparison(NamedTuple):
    """A comparison.

    Attributes:
        tables: its tables.
        files: those that were written.
        notes: a line for each run that lacks some of its artifacts.
    """

    tables: list[Rows]
    files: list[Path]
    notes: list[str]


def compare(runs: RunReader, names: Sequence[str], folder: Path) -> Comparison:
    """Compare runs, and write ``report.md`` with its plots into a folder.

    Args:
        runs: the store.
        names: the runs' ids or names; a run with child runs stands for its children.
        folder: of the report; created if it does not exist.

    Returns:
        The tables, and the paths of the report and its plots.

    Raises:
        InputError: if a run does not exist, or if fewer than two different runs are named.
    """
    selected = [run for name in names for run in expand(runs, runs.find(name))]
    records = list({run.run_id: run for run in selected}.values())
    if len(records) < 2:
        raise InputError(
            "compare: expected at least two different runs (or one that has child runs), got one"
        )
    labels = _labels(records)
    statistics = [seed_statistics(group) for group in groups_by_seed(records)]
    tables = [
        _differences(records, labels),
        _final_metrics(records, labels),
        *(statistic.table(_distinguishing_params(statistics)) for statistic in statistics),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    series = {label: runs.series(run) for label, run in zip(labels, records, strict=True)}
    layers = {label: runs.layers(run) for label, run in zip(labels, records, strict=True)}
    plot_files = _draw(series, layers, folder)
    report = folder / "report.md"
    notes = _notes(runs, records)
    report.write_text(_report(labels, tables, plot_files, notes), encoding="utf-8")
    return Comparison(tables, [report, *plot_files], notes)


def _notes(runs: RunReader, records: Sequence[RecordedRun]) -> list[str]:
    """Return a line for each run that lacks some of its artifacts, of the first few."""
    absent = {run.run_id: missing.missing_artifacts(runs, run) for run in records}
    lines = [
        missing.message(runs, run, absent[run.run_id]) for run in records if absent[run.run_id]
    ]
    return shortened(lines, _MAX_NOTES)


def expand(runs: RunReader, run: RecordedRun) -> list[RecordedRun]:
    """Return the children of `run`, or `run` itself if it has none."""
    return runs.children(run) or [run]


def _report(
    labels: Sequence[str],
    tables: Sequence[Rows],
    plot_files: Sequence[Path],
    notes: Sequence[str],
) -> str:
    """Return the comparison as Markdown."""
    images = (f"![{path.stem.replace('_', ' ')}]({path.name})\n" for path in plot_files)
    head = f"# Comparison of {len(labels)} runs\n"
    remarks = (f"{_neutral.markdown(note)}\n" for note in notes)
    return "\n".join([head, *remarks, *(table.markdown() for table in tables), *images])


def _labels(records: Sequence[RecordedRun]) -> list[str]:
    """Return the runs' names, followed by the beginning of their ids if they are not unique."""
    names = [run.name for run in records]
    return [
        f"{run.name} {run.run_id[:_SHORT_ID]}" if names.count(run.name) > 1 else run.name
        for run in records
    ]


def _differences(records: Sequence[RecordedRun], labels: list[str]) -> Rows:
    """Return the params, code, device and data in which the runs differ."""
    params = by_interest(differing([run.params for run in records]))
    rows = [
        [name, *(run.params.get(name, "") for run in records)]
        for name in params
        if name not in _WITHOUT_EFFECT
    ]
    sources = {
        "git commit": tags.GIT_COMMIT,
        "uncommitted changes": tags.GIT_DIRTY,
        "device": tags.DEVICE,
        "jax": tags.JAX,
        "data": tags.DATA_FINGERPRINT,
    }
    for title, tag in sources.items():
        values = [run.tags.get(tag, "")[:_SHORT_DIGEST] for run in records]
        if len(set(values)) > 1 or UNKNOWN in values:  # two unknown ones may be the same, or not
            rows.append([title, *values])
    cells = rows or [["none", *[""] * len(labels)]]
    return Rows("differences", ["", *labels], cells, has_run_columns=True)


def _final_metrics(records: Sequence[RecordedRun], labels: list[str]) -> Rows:
    """Return the last value of each metric, and its difference to that of the first run."""
    names = by_interest({name for run in records for name in run.metrics if "/" not in name})
    rows = []
    for name in names:
        reference = records[0].metrics.get(name)
        values = [run.metrics.get(name) for run in records[1:]]
        rows.append(
            [name, number(reference), *(_with_difference(value, reference) for value in values)]
        )
    title = "final metrics (difference to the first run)"
    return Rows(title, ["metric", *labels], rows, has_run_columns=True)


def _with_difference(value: float | None, reference: float | None) -> str:
    if value is None or reference is None or value == reference:
        return number(value)
    return f"{number(value)} ({value - reference:+.3g})"


def bootstrap(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return a bootstrap percentile interval for the mean.

    The resampling uses a fixed seed: equal values give the same interval. After Efron (1979),
    "Bootstrap methods: another look at the jackknife".

    Args:
        values: the sample.
        confidence: of the interval, between 0 and 1. Default: 0.95.

    Returns:
        The interval's ends, ``(low, high)``.
    """
    sample = np.asarray(values, np.float64)
    resampled = np.random.default_rng(0).choice(sample, (_RESAMPLES, len(sample)))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(resampled.mean(axis=1), tails)
    return float(low), float(high)


def groups_by_seed(records: Sequence[RecordedRun]) -> list[dict[str, RecordedRun]]:
    """Return groups of runs with equal configuration and data but different seeds.

    Args:
        records: the runs.

    Returns:
        Groups of at least two runs, each by seed. Of several runs with the same seed, such as
        reproductions, a group contains the first.
    """
    groups: dict[tuple[tuple[str, str], ...], dict[str, RecordedRun]] = {}
    for run in records:
        key = {
            name: text
            for name, text in run.params.items()
            if name not in ("seed", *_WITHOUT_EFFECT)
        }
        key[tags.DATA_FINGERPRINT] = run.tags.get(tags.DATA_FINGERPRINT, "")
        group = groups.setdefault(tuple(sorted(key.items())), {})
        group.setdefault(run.params.get("seed", ""), run)
    return [group for group in groups.values() if len(group) > 1]


class SeedStatistics(NamedTuple):
    """Statistics of runs that differ only in their seed.

    Attributes:
        seeds: the seeds, in order.
        name, params: the experiment's name and the configuration of the first run.
        rows: cells of each metric: name, number of runs, mean, standard deviation, interval.
    """

    seeds: list[str]
    name: str
    params: dict[str, str]
    rows: list[list[str]]

    def table(self, distinguishing: Sequence[str]) -> Rows:
        """Return the statistics as a table; its title has the values of `distinguishing` params."""
        setting = ", ".join(f"{key}={self.params.get(key, '')}" for key in distinguishing)
        title = f"over the seeds {listed(self.seeds)} of {self.name} {setting}".strip()
        title += "; bootstrap interval of the mean"
        if len(self.seeds) < _MIN_FOR_BOOTSTRAP:
            title += f" (too narrow with fewer than {_MIN_FOR_BOOTSTRAP} runs)"
        columns = ["metric", "runs", "mean", "std. dev.", "95 % interval"]
        return Rows(title, columns, self.rows)


def seed_statistics(group: dict[str, RecordedRun]) -> SeedStatistics:
    """Return mean, standard deviation and bootstrap interval of each result over the seeds.

    Args:
        group: runs by seed, see :func:`groups_by_seed`.
    """
    runs = list(group.values())
    names = {name for run in runs for name in run.metrics if name.startswith(_RESULTS)}
    rows = []
    for name in sorted(names):
        values = [run.metrics[name] for run in runs if np.isfinite(run.metrics.get(name, np.nan))]
        if is_timing(name) or len(values) < 2:
            continue
        low, high = bootstrap(values)
        mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
        interval = f"{low:.5g} to {high:.5g}"
        rows.append([name, str(len(values)), number(mean), number(deviation), interval])
    seeds = sorted(group, key=lambda seed: (len(seed), seed))
    params = runs[0].params
    return SeedStatistics(seeds, params.get("name", runs[0].experiment), params, rows)


def _distinguishing_params(statistics: Sequence[SeedStatistics]) -> list[str]:
    """Return the params, other than the seed, in which groups differ from each other."""
    names = differing([statistic.params for statistic in statistics])
    return [name for name in names if name not in ("seed", *_WITHOUT_EFFECT)]


def _draw(
    series: dict[str, dict[str, Series]], layers: dict[str, dict[str, str]], folder: Path
) -> list[Path]:
    """Write the plots of the learning curves and delta norms; return those that have content."""
    maps = {label: norms.norm_map(series[label], layers[label]) for label in series}
    written = []
    with drawing():
        figures = {
            "learning_curves": curves.compared_curves(series),
            "delta_norms": norms.delta_norms(maps),
        }
        for name, figure in figures.items():
            if figure is not None:
                figure.savefig(folder / f"{name}.png", bbox_inches="tight")
                written.append(folder / f"{name}.png")
    return written
