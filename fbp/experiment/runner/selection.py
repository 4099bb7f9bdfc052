"""The best evaluation of a run by any metric, and early stopping if none was better for long."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from fbp.experiment.config.schema import SelectionSection
from fbp.experiment.rundir import metric_table
from fbp.layer import Params
from fbp.training import Metric


class Best(NamedTuple):
    """The best evaluation so far.

    Attributes:
        value: the value of the selected metric.
        step: the step of the evaluation.
        metrics: all losses and metrics of that evaluation by name.
        params: the parameters that were evaluated.
        evaluations_since: the number of evaluations after it.
    """

    value: float
    step: int
    metrics: dict[str, float]
    params: Params
    evaluations_since: int = 0

    def facts(self) -> dict[str, Any]:
        """Return all but the parameters, as JSON's types."""
        return {key: value for key, value in self._asdict().items() if key != "params"}


def goal(section: SelectionSection, observed: Mapping[str, Metric]) -> Literal["max", "min"]:
    """Return the better direction: as configured, as the metric says itself, or by its name.

    Args:
        section: the configuration's section `selection`.
        observed: the experiment's metrics by name.
    """
    if section.goal:
        return section.goal
    _, _, name = section.metric.partition("_")  # without "validation_" or "train_"
    higher_is_better = getattr(observed.get(name), "higher_is_better", None)
    if higher_is_better is None:
        return metric_table.better(section.metric)
    return "max" if higher_is_better else "min"


def update(
    section: SelectionSection,
    observed: Mapping[str, Metric],
    best: Best | None,
    step: int,
    metrics: dict[str, float],
    params: Params,
) -> Best | None:
    """Return the best evaluation after one more.

    Args:
        section: the configuration's section `selection`.
        observed: the experiment's metrics by name.
        best: the best evaluation before; None if there is none.
        step: the step of the new evaluation.
        metrics: its losses and metrics; NaN is never better.
        params: the parameters that were evaluated.
    """
    value = metrics[section.metric]
    sign = 1 if goal(section, observed) == "max" else -1
    is_better = best is None or sign * (value - best.value) > section.min_delta
    if not math.isnan(value) and is_better:
        parts = ("train_", "validation_")
        means = {key: number for key, number in metrics.items() if key.startswith(parts)}
        return Best(value, step, means, params)
    return best and best._replace(evaluations_since=best.evaluations_since + 1)


def should_stop(section: SelectionSection, best: Best | None) -> bool:
    """Return whether none of the last `patience` evaluations was better."""
    if section.patience is None or best is None:
        return False
    return best.evaluations_since >= section.patience
