"""The display of a training run: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fbp import _neutral
from fbp.experiment.rundir.metric_table import as_text, measured

_SECONDS_BETWEEN_LINES = 5.0
_FIRST_LINE, _MAX_PAUSE = 5.0, 60.0  # seconds: when a line says what takes time, if no bar does
_MAX_METRICS = 3  # in a line: the loss, and the first of the others
_NOT_OBSERVED = ("examples_per_second", "gradient_norm", "learning_rate", "epoch")


def metrics_line(values: Mapping[str, float]) -> str:
    """Return the most important metrics as one short line."""
    parts = []
    observed = [key for key in values if key not in _NOT_OBSERVED and "/" not in key]
    names = (measured(values) or observed)[:_MAX_METRICS]
    for key in (f"{part}{name}" for name in names for part in ("", "train_", "validation_")):
        if key in values:
            name = key.replace("_", " ").replace("validation", "val")
            parts.append(f"{name} {as_text(key, values[key])}")
    speed = "examples_per_second"
    if speed in values:
        parts.append(f"{as_text(speed, values[speed])} examples/s")
    return "  ".join(parts)


def _bar_text(values: Mapping[str, float]) -> str:
    """Return always the same few metrics, so that the bar beside them does not move."""
    keys = ["loss", "validation_accuracy" if "validation_accuracy" in values else "validation_loss"]
    return metrics_line({key: values[key] for key in keys if key in values})


class Bar:
    """A progress bar on a terminal; a line every few seconds elsewhere.

    Args:
        label: the run's label.
    """

    def __init__(self, label: str):
        self.label, self.console = _neutral.line(label), Console(stderr=True)
        self.progress: Progress | None = None
        self.task: Any = None
        self.steps = self.epochs = 0
        self.line_time = 0.0
        self.task_line = _FIRST_LINE
        self.latest: dict[str, float] = {}

    def begin(self, steps: int, epochs: int) -> None:
        """Announce that training compiles and will take `steps` steps in `epochs` epochs."""
        self.steps, self.epochs = steps, epochs
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=16),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}", markup=False),
                console=self.console,
            )
            self.progress.start()
            self.task = self.progress.add_task(
                self.label, total=self.steps, metrics="compiling ..."
            )

    def advance(self, step: int, epoch: int, latest: dict[str, float]) -> None:
        """Show that training has reached `step`.

        Args:
            step: the number of steps that were taken.
            epoch: the epoch, counted from 1.
            latest: the newest value of each metric.
        """
        self.latest |= latest
        with contextlib.suppress(OSError):  # training goes on if nobody reads this any more
            if self.progress:
                text = f"epoch {epoch}/{self.epochs}  {_neutral.line(_bar_text(self.latest))}"
                self.progress.update(self.task, completed=step, metrics=text)
            else:
                self._print_line(step, epoch, latest)

    def _print_line(self, step: int, epoch: int, latest: dict[str, float]) -> None:
        is_last = step == self.steps
        if is_last and "validation_loss" not in latest:
            return  # the evaluation's metrics follow at once
        if is_last or time.monotonic() - self.line_time >= _SECONDS_BETWEEN_LINES:
            self.line_time = time.monotonic()
            position = f"epoch {epoch}/{self.epochs} step {step}/{self.steps}"
            line = f"{self.label}: {position}  {_neutral.line(metrics_line(latest))}"
            print(line, file=sys.stderr, flush=True)

    def working(self, task: str, seconds: float) -> None:
        """Show that a task, such as compiling a program, has taken so many seconds so far.

        Without a terminal, that is a line after 5, 10, 20, ... seconds, and then every minute.
        """
        text = f"{task}, {seconds:.0f} s"
        with contextlib.suppress(OSError):
            if self.progress:
                self.progress.update(self.task, metrics=text)
            elif seconds < _FIRST_LINE:
                self.task_line = _FIRST_LINE
            elif seconds >= self.task_line:
                self.task_line += min(self.task_line, _MAX_PAUSE)
                print(f"{self.label}: {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Show a message of one line to the user; it may quote texts from anybody."""
        text = _neutral.line(text)
        with contextlib.suppress(OSError):
            if self.progress:
                self.progress.console.print(text, markup=False, highlight=False)
            else:
                print(f"fbp: {self.label}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the display; training is over."""
        if self.progress:
            with contextlib.suppress(OSError):
                self.progress.stop()
            self.progress = None


def results_table(runs: Mapping[str, Mapping[str, float]]) -> Table:
    """Return the last metrics of one run or several, a row for each part of the data.

    Args:
        runs: metrics by name, for each run by its label.
    """
    table = Table()
    if len(runs) > 1:
        table.add_column("run")
    table.add_column("part")
    tested = (key for values in runs.values() for key in values if key.startswith("test_"))
    names = measured(tested)
    names = names or ["loss"]
    for metric in names:
        table.add_column(_cell(metric.replace("_", " ")), justify="right")
    for label, values in runs.items():
        name = label
        for part in ("train", "validation", "test"):
            keys = [f"{part}_{metric}" for metric in names]
            cells = [as_text(key, values[key]) if key in values else "" for key in keys]
            if any(cells):
                row, name = [name, part, *cells], ""
                table.add_row(*map(_cell, row if len(runs) > 1 else row[1:]))
    return table


def _cell(text: str) -> Text:
    """Return a text that rich shows as it is: no markup, no control characters."""
    return Text(_neutral.line(text))
