"""What a run has shown: metrics on their way into its journal, each of them once, also over a resume.

A run that died has metrics in its journal beyond the checkpoint from which it goes on. Those steps are taken again; what
they give is compared with what the journal has, and not written twice. So a resume proves itself.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fbp.experiment.rundir import journal
from fbp.experiment.rundir.journal import Journal, Series, is_timing


class Record:
    """Writes metrics that the journal does not have yet.

    Attributes:
        latest: the newest value of each metric that is not by layer.
        differing: the first (metric, step) at which a resumed run gave another value than before, None where none did.
    """

    def __init__(self, writer: Journal, step: int = 0):
        """``step``: from where a resumed run goes on; what the journal has there and later is not written again."""
        self.journal = writer
        self.latest: dict[str, float] = {}
        self.differing: tuple[str, int] | None = None
        self._known_steps = {
            key: Series(*(column[series.steps >= step] for column in series))
            for key, series in journal.history(writer.folder, ["steps"]).items()
        }
        self._known = {
            (key, int(at)): float(value)
            for key, series in journal.history(writer.folder, ["metrics"]).items()
            for at, value in zip(series.steps, series.values, strict=True)
            if at >= step
        }

    def metrics(self, step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Metrics of one step; returns them as numbers."""
        numbers = {key: float(value) for key, value in values.items()}
        new = {key: value for key, value in numbers.items() if (key, step) not in self._known}
        if new:
            self.journal.write("metrics", step=step, values=new)
        for key in numbers.keys() - new.keys():
            if not is_timing(key):
                self._compare(key, step, self._known[key, step], numbers[key])
        self.latest |= {key: value for key, value in numbers.items() if "/" not in key}
        return numbers

    def steps(self, first: int, columns: Mapping[str, np.ndarray]) -> None:
        """A chunk of per-step metrics, from step ``first`` on."""
        steps = np.arange(first, first + len(next(iter(columns.values()))))
        new = np.ones(len(steps), bool)
        for key, series in self._known_steps.items():
            here = np.isin(series.steps, steps)
            new[series.steps[here] - first] = False
            for step, value in zip(series.steps[here], series.values[here], strict=True):
                self._compare(key, int(step), float(value), float(columns[key][step - first]))
        for part in np.split(
            steps[new], np.flatnonzero(np.diff(steps[new]) > 1) + 1
        ):  # without gaps
            if len(part):
                rows = slice(part[0] - first, part[-1] - first + 1)
                self.journal.steps(
                    int(part[0]), {key: column[rows] for key, column in columns.items()}
                )

    def _compare(self, key: str, step: int, before: float, now: float) -> None:
        same = before == now or (math.isnan(before) and math.isnan(now))
        if not same and (self.differing is None or step < self.differing[1]):
            self.differing = key, step
