"""The bit-for-bit comparison of a run with its reproduction; pure functions of what was read."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fbp.experiment.rundir.checkpoints import CheckpointDigests
from fbp.experiment.rundir.journal_lines import CheckpointLine
from fbp.experiment.rundir.metric_table import is_timing
from fbp.experiment.rundir.series import Series

Digests = CheckpointDigests | CheckpointLine

_MAX_TENSORS = 10  # of which differences are listed
_MAX_STEPS = 5  # of missing checkpoints that are listed


class Verdict(NamedTuple):
    """How a second run compares with the first.

    Attributes:
        values: number of metric values that were compared.
        checkpoints: number of checkpoints whose parameters were compared.
        differences: one line for each thing that differs; the first says where and by how much.
    """

    values: int
    checkpoints: int
    differences: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether no bit differs."""
        return not self.differences

    def with_differences(self, lines: Sequence[str]) -> "Verdict":
        """Return this verdict with more differences."""
        return self._replace(differences=(*self.differences, *lines))


class MetricDifference(NamedTuple):
    """A value that differs; sorted by step, then by metric."""

    step: int
    metric: str
    recorded: float
    reproduced: float | None

    def __str__(self) -> str:
        if self.reproduced is None:
            return f"{self.metric} was {self.recorded!r}, and is missing"
        gap = abs(self.reproduced - self.recorded)
        return f"{self.metric} was {self.recorded!r}, is {self.reproduced!r} (difference {gap:.3g})"


def compare_runs(
    recorded: Mapping[str, Series],
    reproduced: Mapping[str, Series],
    recorded_checkpoints: Mapping[int, Digests],
    reproduced_checkpoints: Mapping[int, Digests],
) -> Verdict:
    """Compare the metrics and checkpoints of two runs.

    The second run must have, to the bit, everything that the first one has; it may have more.

    Args:
        recorded: the first run's metrics by name. Metrics that measure time are ignored.
        reproduced: the second run's.
        recorded_checkpoints: digests of the first run's parameters by step.
        reproduced_checkpoints: digests of the second run's.

    Returns:
        The verdict.
    """
    metrics = {name: points for name, points in recorded.items() if not is_timing(name)}
    values = sum(len(points.steps) for points in metrics.values())
    common = sorted(set(recorded_checkpoints) & set(reproduced_checkpoints))
    lines = []
    differing = metric_differences(metrics, reproduced)
    if differing:
        earliest = min(differing, key=lambda difference: difference[:2])
        lines.append(
            f"first different metric, at step {earliest.step}: {earliest}; "
            f"{len(differing):,} of {values:,} values differ"
        )
    lines += checkpoint_differences(recorded_checkpoints, reproduced_checkpoints, common)
    if not values and not common:
        lines.append("there is nothing to compare: the record has neither metrics nor checkpoints")
    missing = sorted(set(recorded_checkpoints) - set(reproduced_checkpoints))
    if missing:
        steps = ", ".join(map(str, missing[:_MAX_STEPS]))
        lines.append(f"the second run has no checkpoint at step {steps}")
    return Verdict(values, len(common), tuple(lines))


def metric_differences(
    recorded: Mapping[str, Series], reproduced: Mapping[str, Series]
) -> list[MetricDifference]:
    """Return the values of `recorded` that `reproduced` does not have, or has with other bits."""
    differences = []
    for name, points in recorded.items():
        other = reproduced.get(name)
        value_at = {} if other is None else dict(zip(*_lists(other), strict=True))
        for step, value in zip(*_lists(points), strict=True):
            second = value_at.get(step)
            if second is None or not same_number(value, second):
                differences.append(MetricDifference(step, name, value, second))
    return differences


def _lists(points: Series) -> tuple[list[int], list[float]]:
    return points.steps.tolist(), points.values.tolist()


def checkpoint_differences(
    recorded: Mapping[int, Digests],
    reproduced: Mapping[int, Digests],
    common: Sequence[int],
) -> list[str]:
    """Return a line on the first of the `common` checkpoints whose parameters differ, if any."""
    previous = None
    for step in common:
        same_params = recorded[step].params_digest == reproduced[step].params_digest
        if same_params and recorded[step].state_digest != reproduced[step].state_digest:
            return [
                f"at the checkpoint of step {step}, the parameters are the same, but the optimizer "
                "state, the random key or the metrics since the last evaluation differ"
            ]
        if not same_params:
            digests, others = recorded[step].tensors, reproduced[step].tensors
            names = [name for name, digest in digests.items() if others.get(name) != digest]
            tensors = f"tensor {names[0]} first, {len(names)} of {len(digests)} in all"
            earlier = (
                "; that is the first checkpoint"
                if previous is None
                else f"; at step {previous} they were the same"
            )
            return [
                f"parameters first differ at the checkpoint of step {step}: "
                f"{tensors if names else 'all of them'}{earlier}"
            ]
        previous = step
    return []


def same_number(value: float, other: float) -> bool:
    """Return whether two numbers have equal bits; all NaNs count as equal."""
    if value != value and other != other:
        return True
    return np.float64(value).tobytes() == np.float64(other).tobytes()


def tensor_differences(
    recorded: Mapping[str, np.ndarray], reproduced: Mapping[str, np.ndarray]
) -> list[str]:
    """Return one line for each final parameter that differs, with the largest difference.

    Args:
        recorded: the first run's parameters by path.
        reproduced: the second run's.

    Returns:
        At most ten lines, and one that counts the rest.
    """
    lines = []
    for name, array in recorded.items():
        other = reproduced.get(name)
        if other is None or other.shape != array.shape:
            lines.append(f"{name} is missing or has another shape")
        elif other.tobytes() != array.tobytes():
            gap = np.abs(other.astype(np.float64) - array.astype(np.float64))
            largest = float(np.abs(array.astype(np.float64)).max())
            lines.append(
                f"at the end, {name} differs by at most {gap.max():.3g} "
                f"(its largest number is {largest:.3g})"
            )
    return shortened(lines, _MAX_TENSORS)


def shortened(lines: list[str], limit: int) -> list[str]:
    """Return the first `limit` lines, and one that counts the others."""
    return lines[:limit] + ([f"and {len(lines) - limit} more"] if len(lines) > limit else [])
