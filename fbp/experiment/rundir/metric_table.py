"""What is known of each metric by its name: which direction is better, how to show it.

A name may begin with the part of the data: ``validation_accuracy`` is an ``accuracy``. A metric
that is not in the table is one of a user's own: smaller is better, five digits.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import fbp


class Metric(NamedTuple):
    """A metric.

    Attributes:
        better: whether larger (``max``) or smaller (``min``) values are better.
        format: the format specification that shows a value.
        timing: whether it measures time or the machine, so that no configuration determines it.
    """

    better: Literal["min", "max"] = "min"
    format: str = ".5g"
    timing: bool = False


MACHINE = "system/"
"""The prefix of metrics of the machine."""

_UNKNOWN = Metric()

METRICS = {
    metric.name: Metric("max" if metric.higher_is_better else "min", metric.format)
    for metric in vars(fbp.metrics).values()
    if isinstance(metric, fbp.metrics.Metric)
} | {
    "loss": Metric(format=".4g"),
    "r2": Metric("max", ".4g"),
    "examples_per_second": Metric("max", ",.0f", timing=True),
    "seconds": Metric(timing=True),
    "time": Metric(timing=True),
}


PARTS = ("train", "validation", "test")
"""The parts of the data; a metric of one has its name as prefix."""


def add(metrics: Mapping[str, fbp.metrics.Metric]) -> None:
    """Add an experiment's own metrics, by the name under which they are logged, to the table.

    The table of this process changes.
    """
    for name, metric in metrics.items():
        METRICS[name] = Metric("max" if metric.higher_is_better else "min", metric.format)


def measured(keys: Iterable[str]) -> list[str]:
    """Return the names of metrics with a value on a part of the data, `loss` first."""
    pairs = (key.partition("_") for key in keys)
    names = dict.fromkeys(name for part, _, name in pairs if part in PARTS)
    return sorted(names, key=lambda name: name != "loss")


def lookup(key: str) -> Metric:
    """Return what is known of a metric."""
    part, _, rest = key.partition("_")
    name = rest if part in PARTS else key
    matches = (metric for known, metric in METRICS.items() if name.endswith(f"_{known}"))
    return METRICS.get(name) or next(matches, _UNKNOWN)


def is_timing(key: str) -> bool:
    """Return whether a metric measures time or the machine, and so is not reproducible."""
    known = METRICS.get(key.removeprefix("best_"), _UNKNOWN)
    return known.timing or key.startswith(MACHINE)


def better(key: str) -> Literal["min", "max"]:
    """Return whether larger or smaller values of a metric are better."""
    return lookup(key).better


def as_text(key: str, value: float) -> str:
    """Return a metric's value as a person reads it."""
    return format(value, lookup(key).format)
