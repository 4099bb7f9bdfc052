"""Losses from other losses, from functions, and smoothed targets."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fbp._arguments import checked
from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Loss, TargetKind, identity, require_loss


def smooth_labels(target: Array, classes: int, smoothing: float) -> Array:
    """Return targets ``(1 - smoothing) onehot + smoothing / classes``. Szegedy et al. (2016).

    Args:
        target: integer labels of any shape, or rows of floats ``(..., classes)``. A negative label
            gives a row of zeros.
        classes: the number of classes.
        smoothing: the share that is spread over all classes, from 0 to 1.

    Returns:
        Float array ``(..., classes)``.
    """
    if jnp.issubdtype(target.dtype, jnp.integer):
        target = jax.nn.one_hot(target.astype(jnp.int32), classes)
    return target * (1 - smoothing) + target.sum(axis=-1, keepdims=True) * (smoothing / classes)


def weighted(*parts: tuple[Loss, float]) -> Loss:
    """Return the weighted sum of losses, ``weighted((loss, weight), ...)``.

    Args:
        parts: pairs of a loss and its weight. If the output is a tuple, each part takes one entry
            of output and target. If the output is one array, every part takes all of it.

    Returns:
        The loss. Its delta is a tuple exactly if the output is one.

    Raises:
        InputError: if there are no parts, or if the parts take targets of different kinds and the
            output is one array.
    """
    if not parts:
        raise InputError("weighted: expected at least one pair (loss, weight), got none")
    for part in parts:
        if isinstance(part, Loss) or not isinstance(part, tuple) or len(part) != 2:
            raise InputError(f"weighted: expected pairs (loss, weight), got {part!r}")
    losses = [require_loss("weighted", loss) for loss, _ in parts]
    targets = {loss.targets for loss in losses}
    links = {loss.inverse_link for loss in losses}

    def per_part(output: Any, target: Any) -> list[tuple[Loss, float, Array, Array]]:
        if not isinstance(output, tuple):
            if len(targets) > 1:
                raise InputError(
                    f"weighted: expected losses that take the same targets, got "
                    f"{', '.join(f'{loss.name} ({loss.targets})' for loss in losses)}"
                )
            return [(loss, weight, output, target) for loss, weight in parts]
        if not isinstance(target, tuple | list) or not len(parts) == len(output) == len(target):
            counts = [len(x) if isinstance(x, tuple | list) else 1 for x in (output, target)]
            raise ShapeError(
                f"weighted of {len(parts)} losses expects as many outputs and targets, got "
                f"{counts[0]} and {counts[1]}"
            )
        return [
            (loss, weight, a, y) for (loss, weight), a, y in zip(parts, output, target, strict=True)
        ]

    def value(output: Any, target: Any) -> Array:
        costs = [weight * loss.value(a, y) for loss, weight, a, y in per_part(output, target)]
        return functools.reduce(jnp.add, costs)

    def delta(output: Any, target: Any) -> Any:
        deltas = [weight * loss.delta(a, y) for loss, weight, a, y in per_part(output, target)]
        return tuple(deltas) if isinstance(output, tuple) else functools.reduce(jnp.add, deltas)

    return Loss(
        value,
        delta,
        name="weighted",
        targets=losses[0].targets,
        takes_probabilities=any(loss.takes_probabilities for loss in losses),
        inverse_link=losses[0].inverse_link if len(links) == 1 else identity,
        coupled=any(loss.coupled for loss in losses),
    )


@checked
def from_function(
    function: Callable[[Any, Any], Array],
    *,
    name: str | None = None,
    targets: TargetKind = "numbers",
    takes_probabilities: bool = False,
    inverse_link: Callable[[Any], Any] = identity,
    coupled: bool = False,
    summary: str | None = None,
) -> Loss:
    """Return a loss from any JAX function; its delta comes from ``jax.vjp``.

    Args:
        function: maps outputs ``(B, ...)`` and targets to one cost per example, ``(B,)``.
        name: the name in messages and tables; that of the function by default.
        targets: the targets that it takes, see :class:`fbp.Loss`.
        takes_probabilities: whether outputs must lie between 0 and 1.
        inverse_link: the function that makes outputs readable; the identity by default.
        coupled: whether a cost depends on other examples of the batch; then delta is the
            derivative of the sum of all costs.
        summary: one line about it; the first line of the function's docstring by default.

    Returns:
        The loss, which ``fbp.check_gradients`` checks like any other.

    Raises:
        ShapeError: when the loss is called, if the function does not give float costs ``(B,)``.

    >>> import jax.numpy as jnp
    >>> quartic = from_function(lambda output, target: ((output - target) ** 4).sum(axis=1))
    >>> print(quartic.delta(jnp.array([[2.0]]), jnp.array([[1.0]])))   # 4 (a - y)^3
    [[4.]]
    """
    title = str(name or getattr(function, "__name__", "loss"))
    first_line = (function.__doc__ or "").strip().partition("\n")[0]

    def value(output: Any, target: Any) -> Array:
        return _checked_costs(title, function(output, target), output)

    def delta(output: Any, target: Any) -> Any:
        costs, pull_back = jax.vjp(lambda a: value(a, target), output)
        return pull_back(jnp.ones_like(costs))[0]

    return Loss(
        value,
        delta,
        name=title,
        targets=targets,
        takes_probabilities=takes_probabilities,
        inverse_link=inverse_link,
        coupled=coupled,
        summary=first_line if summary is None else summary,
    )


def _checked_costs(name: str, costs: Any, output: Any) -> Array:
    """Return ``costs``; raise ShapeError unless they are one float per example of ``output``."""
    examples = jax.tree.leaves(output)[0].shape[0]
    is_array = isinstance(costs, jax.Array)
    if is_array and costs.shape == (examples,) and jnp.issubdtype(costs.dtype, jnp.floating):
        return costs
    received = f"{costs.dtype} of shape {costs.shape}" if is_array else type(costs).__name__
    raise ShapeError(
        f"loss {name!r}: expected a function that gives one cost per example, floats of "
        f"shape ({examples},), got {received}"
    )
