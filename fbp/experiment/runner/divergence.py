"""What happens when the loss is no longer finite: back to finite parameters, and an explanation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fbp.layer import Params
from fbp.training import StepInfo, TrainState

_ADVICE = (
    "likely the steps are too large: lower optimizer.learning_rate or set "
    "optimizer.clip_global_norm"
)


class Diverged(Exception):
    """The loss is no longer a finite number."""


def is_finite(params: Params) -> bool:
    """Return whether every parameter is a finite number."""
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))


def rewind_to_finite(
    advance: Callable[[TrainState, int], tuple[TrainState, StepInfo, jax.Array]],
    state: TrainState,
    begin: int,
    end: int,
) -> tuple[TrainState, int] | None:
    """Find the last step in `[begin, end)` with finite parameters, recomputing from `state`.

    Args:
        advance: from a state and a number of steps to the state after them.
        state: the state at step `begin`.
        begin: the first step to consider.
        end: the step after the last one to consider.

    Returns:
        The state and its step; None if the parameters are finite at none of these steps.
    """
    for step in range(end - 1, begin - 1, -1):
        candidate, _, _ = advance(state, step - begin)
        if is_finite(candidate.params):
            return candidate, step
    return None


def explain_loss(info: StepInfo, step: int, epoch: int, learning_rate: float) -> str:
    """Return the message for a training loss that is not finite.

    Args:
        info: what was observed in the chunk that ends at `step`.
        step: the step whose loss is not finite.
        epoch: its epoch, counted from 1.
        learning_rate: the learning rate of that step.
    """
    norms = np.asarray(info.gradient_norm)
    norms = norms[np.isfinite(norms)]
    gradient = (
        f"the gradient's norm was last {norms[-1]:.3g}"
        if len(norms)
        else "the gradient was not finite either"
    )
    return (
        f"the loss became {info.cost[-1]} at step {step} (epoch {epoch}); {gradient}, "
        f"the learning rate {learning_rate:.3g}; {_ADVICE}"
    )


def explain_validation_loss(loss: float, step: int, learning_rate: float) -> str:
    """Return the message for a validation loss that is not finite, measured after `step`."""
    return (
        f"the validation loss became {loss} after step {step}; the learning rate was "
        f"{learning_rate:.3g}; {_ADVICE}"
    )
