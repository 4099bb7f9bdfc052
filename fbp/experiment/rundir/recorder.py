"""Writes each metric to the journal exactly once, also across a resume; and a run's start and end.

A run that died has metrics in its journal beyond the checkpoint from which it is resumed. Those
steps are taken again; their metrics are compared with the journal's and not written a second time.
So each resume checks itself.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fbp.experiment.config import references
from fbp.experiment.rundir import environment, layout, repository, tags, trust_store
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.journal_lines import MetricsLine, StepsLine
from fbp.experiment.rundir.metric_table import is_timing
from fbp.experiment.rundir.series import metrics_digest, nonfinite, read_series


class Mismatch(NamedTuple):
    """The first value of a resumed run that is not the one the journal has."""

    key: str
    step: int

    def __str__(self) -> str:
        return f"{self.key} at step {self.step}"


def record_start(
    journal: Journal,
    *,
    code_folder: Path,
    run_tags: Mapping[str, str],
    backend_check: dict[str, Any] | None = None,
    names: Iterable[str] = (),
    with_diff: bool = True,
    **line: Any,
) -> str:
    """Write the environment among a run's artifacts, and the first line of its journal.

    Which of the user's own code the run begins with is remembered outside of the run's folder, see
    :mod:`.trust_store`.

    Args:
        journal: the run's.
        code_folder: a folder inside the git repository of which the commit is recorded: where the
            user stands, or where a file of the user's own lies.
        run_tags: tags beside those of the environment, `tags.SOURCE_NAME` among them.
        backend_check: see :func:`fbp.experiment.rundir.environment.describe`.
        names: all names in the configuration; references to the user's own code are among them.
        with_diff: whether uncommitted changes of the code are recorded.
        line: for :meth:`Journal.start`.

    Returns:
        Why the user's own code cannot be remembered; empty if it can, or if there is none.
    """
    git = repository.git(code_folder, with_diff=with_diff)
    own_code = references.code_files(names)
    environment.write(layout.artifacts(journal.folder), git, backend_check, own_code)
    problem = trust_store.remember(journal.folder, names)
    texts = {
        name: text.encode("utf-8", "replace").decode()  # a file's name may be any bytes
        for name, text in run_tags.items()
    }
    journal.start(
        tags={**environment.run_tags(git), **texts},
        config=trust_store.config_digest(layout.config(journal.folder)),
        **line,
    )
    return problem


class Recorder:
    """Writes metrics that the journal does not have yet.

    Not safe between threads nor between processes: its owner locks it.

    Args:
        journal: the run's.
        step: the step from which a resumed run goes on; what the journal has from there on is
            compared, and not written again.

    Attributes:
        latest: the newest value of each metric that is not by layer.
        first_mismatch: where a resumed run first gave another value than before; None if nowhere.
    """

    def __init__(self, journal: Journal, step: int = 0):
        self.journal = journal
        self.latest: dict[str, float] = {}
        self.first_mismatch: Mismatch | None = None
        self._recorded_steps = {
            key: series.where(series.steps >= step)
            for key, series in read_series(journal.folder, [StepsLine]).items()
        }
        self._recorded = {
            (key, int(recorded_step)): float(value)
            for key, series in read_series(journal.folder, [MetricsLine]).items()
            for recorded_step, value in zip(series.steps, series.values, strict=True)
            if recorded_step >= step
        }

    def metrics(self, step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Write metrics of one step; return them as Python's numbers."""
        numbers = {key: float(value) for key, value in values.items()}
        new = {key: value for key, value in numbers.items() if (key, step) not in self._recorded}
        if new:
            self.journal.metrics(step, new)
        for key in numbers.keys() - new.keys():
            if not is_timing(key):
                self._compare(key, step, self._recorded[key, step], numbers[key])
        self.latest |= {key: value for key, value in numbers.items() if "/" not in key}
        return numbers

    def steps(self, first_step: int, columns: Mapping[str, np.ndarray]) -> None:
        """Write a chunk of per-step metrics.

        Args:
            first_step: the step of the first row.
            columns: one number for each step, by the metric's name.
        """
        steps = np.arange(first_step, first_step + len(next(iter(columns.values()))))
        is_new = np.ones(len(steps), bool)
        for key, series in self._recorded_steps.items():
            again = series.where(np.isin(series.steps, steps))
            is_new[again.steps - first_step] = False
            for step, value in zip(again.steps, again.values, strict=True):
                self._compare(key, int(step), float(value), float(columns[key][step - first_step]))
        gaps = np.flatnonzero(np.diff(steps[is_new]) > 1) + 1
        for chunk in np.split(steps[is_new], gaps):
            if len(chunk):
                rows = slice(chunk[0] - first_step, chunk[-1] - first_step + 1)
                part = {key: column[rows] for key, column in columns.items()}
                self.journal.steps(int(chunk[0]), part)

    def end(
        self, status: str, message: str = "", run_tags: Mapping[str, str] | None = None
    ) -> None:
        """Write the tags that describe the whole run, and the journal's end.

        Args:
            status: FINISHED, FAILED or KILLED.
            message: why it did not finish.
            run_tags: further tags.
        """
        series = read_series(self.journal.folder)
        values = {
            tags.METRICS_DIGEST: metrics_digest(series),
            tags.NONFINITE: nonfinite(series),
            tags.RESUME_DIFFERS: str(self.first_mismatch or ""),
            **(run_tags or {}),
        }
        self.journal.tags({key: value for key, value in values.items() if value})
        self.journal.end(status, message)

    def _compare(self, key: str, step: int, recorded: float, value: float) -> None:
        same = recorded == value or (math.isnan(recorded) and math.isnan(value))
        if not same and (self.first_mismatch is None or step < self.first_mismatch.step):
            self.first_mismatch = Mismatch(key, step)
