"""The best evaluation of a run by any metric, and when to stop because none has been better for long."""

import math
from typing import NamedTuple

from fbp.experiment.config.schema import SelectionSection
from fbp.layer import Params

_HIGHER_IS_BETTER = ("accuracy", "r2", "examples_per_second")


class Best(NamedTuple):
    """The best evaluation so far.

    Attributes:
        value: of the metric.
        step: when.
        shown: all losses and metrics of that evaluation.
        params: the parameters then.
        waited: how many evaluations there were since.
    """

    value: float
    step: int
    shown: dict[str, float]
    params: Params
    waited: int = 0


def goal(selection: SelectionSection) -> str:
    """``max`` or ``min``: as configured, or as the metric's name tells."""
    return selection.goal or ("max" if selection.metric.endswith(_HIGHER_IS_BETTER) else "min")


def updated(
    selection: SelectionSection,
    best: Best | None,
    step: int,
    shown: dict[str, float],
    params: Params,
) -> Best | None:
    """The best after one more evaluation; a value that is not a number is never better."""
    value = shown[selection.metric]
    sign = 1 if goal(selection) == "max" else -1
    if not math.isnan(value) and (
        best is None or sign * (value - best.value) > selection.min_delta
    ):
        losses = {
            key: number
            for key, number in shown.items()
            if key.startswith(("train_", "validation_"))
        }
        return Best(value, step, losses, params)
    return best and best._replace(waited=best.waited + 1)


def exhausted(selection: SelectionSection, best: Best | None) -> bool:
    """Whether to stop: nothing was better for ``patience`` evaluations."""
    return selection.patience is not None and best is not None and best.waited >= selection.patience
