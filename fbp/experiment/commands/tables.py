"""Tables of runs, for terminals and as Markdown: the output of ``fbp runs`` and ``fbp show``.

Their texts may come from anybody; a table shows them as they are, and as nothing else.
"""

import re
import time
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from fbp import _neutral
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
_MAX_RUN_COLUMNS = 8  # of more runs, each is a row in a report
_MIN_COLUMNS = 2  # of a narrow table
_MINUTE, _HOUR = 60, 3600


class Rows(NamedTuple):
    """A table of text.

    Attributes:
        title: a line above it; none if empty.
        columns: their names.
        cells: row by row.
        has_run_columns: whether each column but the first is that of a run. Such a table can be
            turned, so that the runs are its rows.
    """

    title: str
    columns: list[str]
    cells: list[list[str]]
    has_run_columns: bool = False

    def rich(self) -> Table:
        """Return the table for a terminal; columns of numbers are right-aligned."""
        title = _terminal(self.title) if self.title else None
        table = Table(title=title, title_justify="left")
        for column, cells in zip(self.columns, zip(*self.cells, strict=True), strict=True):
            numbers = all(_NUMBER.fullmatch(cell) for cell in cells)
            justify: Literal["right", "left"] = "right" if numbers else "left"
            table.add_column(_terminal(column), justify=justify, overflow="fold")
        for row in self.cells:
            table.add_row(*map(_terminal, row))
        return table

    def markdown(self) -> str:
        """Return the table as Markdown, under its title as a heading."""
        if self.has_run_columns and len(self.columns) > _MAX_RUN_COLUMNS + 1:
            return self.turned().markdown()
        escaped = [list(map(_neutral.markdown, line)) for line in (self.columns, *self.cells)]
        lines = [escaped[0], ["---"] * len(self.columns), *escaped[1:]]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## {_neutral.markdown(self.title)}\n\n{body}\n" if self.title else f"{body}\n"

    def turned(self) -> "Rows":
        """Return the table with its rows as columns; only one with a column for each run."""
        _, *runs = self.columns
        names = [row[0] for row in self.cells]
        cells = [[run, *(row[i] for row in self.cells)] for i, run in enumerate(runs, 1)]
        return Rows(self.title, ["run", *names], cells)

    def width(self) -> int:
        """Return how many columns of a terminal the table needs."""
        columns = zip(self.columns, *self.cells, strict=True)
        return 1 + sum(max(map(_width, column)) + _BORDER for column in columns)

    def fitted(self, width: int) -> "Rows":
        """Return the table so that, if possible, each of its rows fits on one line.

        Of a table with a column for each run, the runs become the rows; then their names are
        shortened, and columns are left out, the last ones first. The title says how many.

        Args:
            width: of the terminal, in columns.
        """
        if self.width() <= width or not self.has_run_columns:
            return self
        table = self.turned()
        if table.width() > width:
            table = table._replace(
                cells=[[_shortened(row[0], width), *row[1:]] for row in table.cells]
            )
        count = len(table.columns)
        while table.width() > width and len(table.columns) > _MIN_COLUMNS:
            table = table._replace(
                columns=table.columns[:-1], cells=[row[:-1] for row in table.cells]
            )
        if len(table.columns) == count:
            return table
        shown, every = len(table.columns) - 1, count - 1
        return table._replace(title=f"{self.title}: {shown} of {every}; all are in the report")


def _terminal(text: str) -> Text:
    """Return a text that rich shows as it is: no markup, no control characters."""
    return Text(_neutral.line(text))


def _width(text: str) -> int:
    return cell_len(_neutral.line(text))


def number(value: float | None) -> str:
    """Return `value` with five significant digits; empty for None."""
    return "" if value is None else f"{value:.5g}"


def local_time(milliseconds: int) -> str:
    """Return a time (milliseconds since 1970) in this machine's time zone, to the minute.

    Of a time that no calendar has, the number is returned.
    """
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(milliseconds / 1000))
    except (ValueError, OverflowError, OSError):
        return str(milliseconds)


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


def by_interest(names: Iterable[str]) -> list[str]:
    """Return names of metrics and params, those first that a reader looks for first."""
    order = {name: i for i, name in enumerate((*_METRICS, *_PARAMS))}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


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
    return _table(columns)


def choose_columns(runs: Sequence[RecordedRun], required: Sequence[tuple[str, str]]) -> _Columns:
    """Return the params and metrics to show: `required` ones, usual metrics, differing params."""
    recorded = {name for run in runs for name in run.metrics if not name.startswith(MACHINE)}
    usual = [name for name in _METRICS if name in recorded]
    metrics = usual or sorted(recorded)[:_MAX_OTHER_METRICS]
    params = differing([run.params for run in runs])
    params = [name for name in params if name not in ("name", "description")]
    return _Columns(
        [name for kind, name in required if kind == "params"] + by_interest(params)[:_MAX_PARAMS],
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
        if _table(columns).width() <= width:
            break
        columns.pop(name, None)
    return columns


def _table(columns: dict[str, list[str]]) -> Rows:
    return Rows("", list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def _shortened(name: str, width: int | None) -> str:
    """Shorten a name to a third of `width`; its last four characters, which identify it, stay."""
    name = _neutral.line(name)
    longest = max(_MIN_NAME_WIDTH, (width or 0) // 3)
    if width is None or cell_len(name) <= longest:
        return name
    end = set_cell_size(name[-5:], 5).rstrip()
    return f"{set_cell_size(name, longest - 6).rstrip()}…{end}"


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
