"""What all transforms share: chaining, scaling, and the step from updates to new parameters."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from fbp._serialization import serializable
from fbp.errors import ArgumentError
from fbp.layer import Array, Grads, Optimizer, Params
from fbp.optimizers.protocol import call_update, check_same_tree, require_optimizer, transform
from fbp.schedules import Schedule

Scalar: TypeAlias = float | Array | Schedule
"""A number, a traced number, or a schedule of the update's count."""


@serializable
class EmptyState(NamedTuple):
    """The state of a transform that needs none."""


@serializable
class ScheduleState(NamedTuple):
    """The state of a transform that follows a schedule.

    Attributes:
        step: number of updates so far, int32.
    """

    step: Array


def stateless(
    name: str, update: Callable[[Grads, Params], Grads], *, needs_params: bool = False
) -> Optimizer:
    """Return a transform without a state.

    Args:
        name: the name of the transform in messages.
        update: ``(grads, params) -> updates``.
        needs_params: whether ``update`` reads the parameters.
    """
    return transform(
        name,
        lambda params: EmptyState(),
        lambda grads, state, params: (update(grads, params), state),
        state=EmptyState,
        needs_params=needs_params,
    )


def chain(*transforms: Optimizer) -> Optimizer:
    """Return transforms in sequence; the state is the tuple of their states.

    A transform of Optax may be among them. Keyword arguments of ``update``, such as the ``value``
    that Optax's ``polyak_sgd`` and ``reduce_on_plateau`` need, reach each transform that takes
    them; as in Optax, the others ignore them.

    Args:
        transforms: each takes the updates of the one before it.

    Raises:
        InputError: if one of them is no optimizer.
    """
    for place, each in enumerate(transforms):
        require_optimizer("chain", f"place {place}", each)

    def init(params: Params) -> tuple[Any, ...]:
        return tuple(each.init(params) for each in transforms)

    def update(
        grads: Grads, state: tuple[Any, ...], params: Params | None = None, **further: Any
    ) -> tuple[Grads, tuple[Any, ...]]:
        if type(state) is not tuple or len(state) != len(transforms):
            raise ArgumentError(
                "chain",
                "state",
                f"expected a tuple of {len(transforms)} states, as init(params) returns it, got "
                f"{type(state).__name__}; the order is update(grads, state, params)",
            )
        new_state = []
        for each, each_state in zip(transforms, state, strict=True):
            grads, each_state = call_update(each, grads, each_state, params, further)
            new_state.append(each_state)
        return grads, tuple(new_state)

    return Optimizer(init, update)


def apply_updates(params: Params, updates: Grads) -> Params:
    """Return ``params + updates``, each in its parameter's dtype.

    Args:
        params: the parameters.
        updates: a tree of the same structure.

    Raises:
        InputError: if the structures or the shapes differ.
    """
    check_same_tree("apply_updates", "updates", updates, "the parameters", params)
    return jax.tree.map(lambda p, u: p + jnp.asarray(u, jnp.result_type(p)), params, updates)


def scale(factor: float | Array) -> Optimizer:
    """Return the transform ``u = factor g``.

    Args:
        factor: a number, which may be traced.
    """
    return stateless("scale", lambda grads, params: jax.tree.map(lambda g: factor * g, grads))


def scale_by_learning_rate(learning_rate: Scalar) -> Optimizer:
    """Return the transform ``u = -learning_rate g``.

    Args:
        learning_rate: a number, a traced number, or a schedule of the update's count.
    """
    if not callable(learning_rate):
        return scale(-learning_rate)

    def update(grads: Grads, state: ScheduleState, params: Params) -> tuple[Grads, ScheduleState]:
        rate = _scheduled(learning_rate, state.step)
        return jax.tree.map(lambda g: (-rate).astype(g.dtype) * g, grads), ScheduleState(
            state.step + 1
        )

    return transform(
        "scale_by_learning_rate",
        lambda params: ScheduleState(jnp.zeros((), jnp.int32)),
        update,
        state=ScheduleState,
    )


def _scheduled(schedule: Schedule, step: Array) -> Array:
    """Return the value of a schedule, which must be one number."""
    value = schedule(step)
    is_number = isinstance(value, float | int | jax.Array | np.ndarray | np.number)
    if not is_number or jnp.shape(value) != ():
        shape = f" of shape {jnp.shape(value)}" if is_number else ""
        raise ArgumentError(
            "scale_by_learning_rate",
            "learning_rate",
            f"expected a schedule step -> number, got a function that returns "
            f"{type(value).__name__}{shape}; call the factory of a schedule",
        )
    return jnp.asarray(value)


def bias_correction(decay: float | Array, step: Array) -> Array:
    """Return ``1 - decay^step``, Adam's bias correction, accurate for a decay close to 1 too.

    Args:
        decay: of a running average that started at 0.
        step: number of updates, from 1.
    """
    if isinstance(decay, float) and decay > 0:
        return -jnp.expm1(step * math.log(decay))
    traced = jnp.asarray(decay, jnp.result_type(float))
    is_zero = traced == 0  # whose logarithm has no derivative
    log_decay = jnp.log(jnp.where(is_zero, 1, traced))
    return jnp.where(is_zero, 1 - traced, -jnp.expm1(step * log_decay))
