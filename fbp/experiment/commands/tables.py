"""Tables of runs, for terminals and as Markdown: the output of ``fbp runs`` and ``fbp show``."""

import re
import time
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from fbp.experiment.rundir import tags
from fbp.experiment.rundir.metric_table import MACHINE
from fbp.experiment.tracking.run_reader import RecordedRun, RunReader

_METRICS = (  # shown if a run has them, best known first
    "test_accuracy", "validation_accuracy", "test_r2", "test_loss", "validation_loss", "train_loss",
)  # fmt: skip
_PARAMS = (  # in the order of their interest
    "seed", "data_name", "model_name", "model_hidden", "optimizer_name", "optimizer_learning_rate",
    "training_batch_size", "training_epochs", "training_steps", "loss_name", "schedule_name",
)  # fmt: skip
_MAX_PARAMS = 4  # differing parameters in a list of runs
_MAX_OTHER_METRICS = 3  # if a list of runs has none of _METRICS
_MIN_NAME_WIDTH = 20
_NUMBER = re.compile(r"|[-+]?(nan|inf|[\d.,]+(e[-+]?\d+)?)( \(.*\)| to .*)?")
_BORDER = 3  # columns between two cells
_MINUTE, _HOUR = 60, 3600


class Rows(NamedTuple):
    """A table of text: its title, the names of its columns, and its cells row by row."""

    title: str
    columns: list[str]
    cells: list[list[str]]

    def rich(self) -> Table:
        """Return the table for a terminal; columns of numbers are right-aligned."""
        table = Table(title=self.title or None, title_justify="left")
        for column, cells in zip(self.columns, zip(*self.cells, strict=True), strict=True):
            numbers = all(_NUMBER.fullmatch(cell) for cell in cells)
            table.add_column(column, justify="right" if numbers else "left", overflow="fold")
        for row in self.cells:
            table.add_row(*(cell.replace("[", "\\[") for cell in row))
        return table

    def markdown(self) -> str:
        """Return the table as Markdown, under its title as a heading."""
        lines = [self.columns, ["---"] * len(self.columns), *self.cells]
        escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        body = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
        return f"## {self.title}\n\n{body}\n" if self.title else f"{body}\n"


def number(value: float | None) -> str:
    """Return `value` with five significant digits; empty for None."""
    return "" if value is None else f"{value:.5g}"


def local_time(milliseconds: int) -> str:
    """Return a time (milliseconds since 1970) in this machine's time zone, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(milliseconds / 1000))


def duration(start: int, end: int | None) -> str:
    """Return the time from `start` to `end` (milliseconds) as text; empty while running."""
    if end is None:
        return ""
    seconds = (end - start) / 1000
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE:.1f} min" if seconds < 2 * _HOUR else f"{seconds / _HOUR:.1f} h"


def differing(params: Sequence[dict[str, str]]) -> list[str]:
    """Return the sorted names whose values are not equal in all of `params`."""
    names = sorted(set().union(*params)) if params else []
    return [name for name in names if len({values.get(name) for values in params}) > 1]


def names_in_filter(condition: str, sort: Sequence[str]) -> list[tuple[str, str]]:
    """Return the metrics and params that a filter and sort keys name, as (kind, name) pairs."""
    pattern = r"\b(metrics|params)\.(?:`([^`]+)`|([\w./\-]+))"
    matches = re.findall(pattern, " ".join([condition, *sort]))
    return [(kind, quoted or plain) for kind, quoted, plain in matches]


class _Columns(NamedTuple):
    """The params and metrics that a list of runs shows, each in order."""

    params: list[str]
    metrics: list[str]


def runs_table(
    runs: Sequence[RecordedRun],
    required: Sequence[tuple[str, str]],
    width: int | None,
) -> Rows:
    """Return a table with one row per run: how it ended, its results, and the differing params.

    Args:
        runs: the runs.
        required: (kind, name) pairs that are always shown, see :func:`names_in_filter`.
        width: of the terminal, in characters; None for no limit. The least important columns are
            left out and long names shortened until each row fits on one line.
    """
    chosen = choose_columns(runs, required)
    columns = cells(runs, chosen, width)
    if width:
        shown_always = [name for _, name in required]
        droppable = [name for name in columns_to_drop_first(chosen) if name not in shown_always]
        columns = drop_until_fits(columns, droppable, width)
    return Rows("", list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def choose_columns(runs: Sequence[RecordedRun], required: Sequence[tuple[str, str]]) -> _Columns:
    """Return the params and metrics to show: `required` ones, usual metrics, differing params."""
    recorded = {name for run in runs for name in run.metrics if not name.startswith(MACHINE)}
    usual = [name for name in _METRICS if name in recorded]
    metrics = usual or sorted(recorded)[:_MAX_OTHER_METRICS]
    params = differing([run.params for run in runs])
    params = [name for name in params if name not in ("name", "description")]
    params.sort(key=lambda name: (_PARAMS.index(name) if name in _PARAMS else len(_PARAMS), name))
    return _Columns(
        [name for kind, name in required if kind == "params"] + params[:_MAX_PARAMS],
        [name for kind, name in required if kind == "metrics"] + metrics,
    )


def cells(runs: Sequence[RecordedRun], chosen: _Columns, width: int | None) -> dict[str, list[str]]:
    """Return the cells of each column of a list of runs, by the column's name."""
    names = {run.run_id: _shortened(run.name, width) for run in runs}
    parents = [run.parent_id for run in runs]
    columns = {
        "run": [names[run.run_id] for run in runs],
        "id": [run.run_id[:8] for run in runs],
        "part of": [names.get(parent, parent[:8]) for parent in parents],
        "experiment": [run.experiment for run in runs],
        "status": [run.status for run in runs],
        "started": [local_time(run.start) for run in runs],
        "duration": [duration(run.start, run.end) for run in runs],
    }
    if not any(parents):
        del columns["part of"]
    columns |= {name: [run.params.get(name, "") for run in runs] for name in chosen.params}
    return columns | {
        name: [number(run.metrics.get(name)) for run in runs] for name in chosen.metrics
    }


def columns_to_drop_first(chosen: _Columns) -> list[str]:
    """Return the columns that a narrow terminal can do without, least important first."""
    best, others = chosen.metrics[:1], chosen.metrics[1:]
    details = ["duration", "started", "experiment", *reversed(others), *reversed(chosen.params)]
    return [*details, "part of", *best, "status"]


def drop_until_fits(
    columns: dict[str, list[str]], droppable: Sequence[str], width: int
) -> dict[str, list[str]]:
    """Return `columns` without the first names of `droppable`, as few as needed to fit `width`."""
    columns = dict(columns)
    for name in droppable:
        if 1 + sum(max(map(len, [key, *column])) + _BORDER for key, column in columns.items()) <= (
            width
        ):
            break
        columns.pop(name, None)
    return columns


def _shortened(name: str, width: int | None) -> str:
    """Shorten a name to a third of `width`; its last four characters, which identify it, stay."""
    longest = max(_MIN_NAME_WIDTH, (width or 0) // 3)
    if width is None or len(name) <= longest:
        return name
    return f"{name[: longest - 6]}…{name[-5:]}"


def run_tables(runs: RunReader, run: RecordedRun) -> list[Rows]:
    """Return the tables of one run: identity, configuration, data, metrics, and its child runs.

    Args:
        runs: the store.
        run: the run.
    """
    identity = [
        ["name", run.name],
        ["id", run.run_id],
        ["experiment", run.experiment],
        ["status", run.status],
        ["started", local_time(run.start)],
        ["duration", duration(run.start, run.end)],
        ["artifacts", run.artifact_uri],
    ]
    identity += [
        [name.removeprefix("fbp.").removeprefix("mlflow."), run.tags[name]]
        for name in sorted(run.tags)
        if _is_shown(name)
    ]
    params = [[name, text] for name, text in sorted(run.params.items()) if text != "None"]
    data = [[name, digest] for name, digest in run.datasets]
    metrics = [
        [name, number(value)] for name, value in sorted(run.metrics.items()) if "/" not in name
    ]
    children = [[child.name, child.status] for child in runs.children(run)]
    tables = [
        Rows("run", ["", "value"], identity),
        Rows("configuration (without keys that are not set)", ["key", "value"], params),
        Rows("data", ["part", "digest"], data),
        Rows("metrics (last values)", ["metric", "value"], metrics),
        Rows("child runs", ["run", "status"], children),
    ]
    return [table for table in tables if table.cells]


def _is_shown(tag: str) -> bool:
    if tag.startswith("fbp."):
        return tag != tags.FOLDER
    return tag in (tags.GIT_COMMIT, tags.SOURCE_NAME)
