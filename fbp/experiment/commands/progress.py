"""What a user sees while a run trains: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from fbp.experiment.runner.build import Experiment

_LINE_SECONDS = 5.0  # between plain lines, where the output is not a terminal


def shown(values: dict[str, float]) -> str:
    """The numbers worth watching, in one short text."""
    parts = []
    for key in (
        "loss",
        "train_loss",
        "validation_loss",
        "accuracy",
        "train_accuracy",
        "validation_accuracy",
    ):
        if key in values:
            name = key.replace("_", " ").replace("validation", "val")
            parts.append(
                f"{name} {values[key]:.2%}" if "accuracy" in key else f"{name} {values[key]:.4g}"
            )
    if "examples_per_second" in values:
        parts.append(f"{values['examples_per_second']:,.0f} examples/s")
    return "  ".join(parts)


def _watched(values: dict[str, float]) -> str:
    """The same few numbers all the time, so that a bar beside them stands still."""
    keys = ["loss", "validation_accuracy" if "validation_accuracy" in values else "validation_loss"]
    return shown({key: values[key] for key in keys if key in values})


class Bar:
    """A progress bar on a terminal; a line every few seconds elsewhere."""

    def __init__(self, label: str):
        self.label, self.console = label, Console(stderr=True)
        self.progress: Progress | None = None
        self.task: Any = None
        self.steps = self.epochs = 0
        self.last_line = 0.0
        self.last: dict[str, float] = {}

    def begin(self, experiment: Experiment) -> None:
        """Training is about to compile and start."""
        self.steps, self.epochs = (
            experiment.steps,
            -(-experiment.steps // experiment.steps_per_epoch),
        )
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[shown]}"),
                console=self.console,
            )
            self.progress.start()
            self.task = self.progress.add_task(self.label, total=self.steps, shown="compiling ...")

    def advance(self, step: int, epoch: int, latest: dict[str, float]) -> None:
        """So many steps are done."""
        evaluated = "validation_loss" in latest
        self.last |= latest
        with contextlib.suppress(OSError):  # whoever reads this may go away; training goes on
            if self.progress:
                text = f"epoch {epoch}/{self.epochs}  {_watched(self.last)}"
                self.progress.update(self.task, completed=step, shown=text)
            elif step == self.steps or time.monotonic() - self.last_line >= _LINE_SECONDS:
                if step == self.steps and not evaluated:
                    return  # the epoch's own numbers follow at once
                self.last_line = time.monotonic()
                line = f"{self.label}: epoch {epoch}/{self.epochs} step {step}/{self.steps}  {shown(latest)}"
                print(line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Something that the user should know."""
        with contextlib.suppress(OSError):
            if self.progress:
                self.progress.console.print(text, markup=False, highlight=False)
            else:
                print(f"fbp: {self.label}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Training is over, well or not."""
        if self.progress:
            with contextlib.suppress(OSError):
                self.progress.stop()
            self.progress = None


def results_table(rows: dict[str, dict[str, float]]) -> Table:
    """The last metrics of one run or several, part by part."""
    table = Table()
    several = len(rows) > 1
    if several:
        table.add_column("run")
    table.add_column("part")
    names = [
        n
        for n in ("loss", "accuracy", "absolute_error", "r2")
        if any(f"test_{n}" in r for r in rows.values())
    ]
    names = names or ["loss"]
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for run, values in rows.items():
        for i, part in enumerate(("train", "validation", "test")):
            cells = [_cell(name, values.get(f"{part}_{name}")) for name in names]
            if any(cells):
                table.add_row(*([run if i == 0 else ""] if several else []), part, *cells)
    return table


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2%}" if name == "accuracy" else f"{value:.4g}"
