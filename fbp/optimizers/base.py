"""What all transforms share: chaining, scaling, and the step from updates to new parameters."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from fbp._serialization import serializable
from fbp.layer import Array, Grads, Optimizer, Params
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


def stateless(update: Callable[[Grads, Params], Grads]) -> Optimizer:
    """Return a transform without a state.

    Args:
        update: ``(grads, params) -> updates``.
    """
    return Optimizer(
        lambda params: EmptyState(), lambda grads, state, params: (update(grads, params), state)
    )


def chain(*transforms: Optimizer) -> Optimizer:
    """Return transforms in sequence; the state is the tuple of their states.

    Args:
        transforms: each takes the updates of the one before it.
    """

    def init(params: Params) -> tuple[Any, ...]:
        return tuple(transform.init(params) for transform in transforms)

    def update(
        grads: Grads, state: tuple[Any, ...], params: Params
    ) -> tuple[Grads, tuple[Any, ...]]:
        new_state = []
        for transform, transform_state in zip(transforms, state, strict=True):
            grads, transform_state = transform.update(grads, transform_state, params)
            new_state.append(transform_state)
        return grads, tuple(new_state)

    return Optimizer(init, update)


def apply_updates(params: Params, updates: Grads) -> Params:
    """Return ``params + updates``, each in its parameter's dtype.

    Args:
        params: the parameters.
        updates: a tree of the same structure.
    """
    return jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)


def scale(factor: float | Array) -> Optimizer:
    """Return the transform ``u = factor g``.

    Args:
        factor: a number, which may be traced.
    """
    return stateless(lambda grads, params: jax.tree.map(lambda g: factor * g, grads))


def scale_by_learning_rate(learning_rate: Scalar) -> Optimizer:
    """Return the transform ``u = -learning_rate g``.

    Args:
        learning_rate: a number, a traced number, or a schedule of the update's count.
    """
    if not callable(learning_rate):
        return scale(-learning_rate)

    def update(grads: Grads, state: ScheduleState, params: Params) -> tuple[Grads, ScheduleState]:
        rate = jnp.asarray(learning_rate(state.step))
        return jax.tree.map(lambda g: (-rate).astype(g.dtype) * g, grads), ScheduleState(
            state.step + 1
        )

    return Optimizer(lambda params: ScheduleState(jnp.zeros((), jnp.int32)), update)


def bias_correction(decay: float | Array, step: Array) -> Array:
    """Return ``1 - decay^step``, Adam's bias correction, accurate for a decay close to 1 too.

    Args:
        decay: of a running average that started at 0.
        step: number of updates, from 1.
    """
    log_decay = (
        math.log(decay)
        if isinstance(decay, float) and decay > 0
        else jnp.log(jnp.asarray(decay, jnp.result_type(float)))
    )
    return -jnp.expm1(step * log_decay)


def zeros_like(params: Params) -> Any:
    """Return a tree of zeros with the shapes and dtypes of ``params``."""
    return jax.tree.map(jnp.zeros_like, params)


def global_norm(tree: Any) -> Array:
    """Return the Euclidean norm of all the numbers of a tree, or of one array.

    Args:
        tree: arrays of any shapes.
    """
    return jnp.sqrt(
        sum((jnp.vdot(leaf, leaf).real for leaf in jax.tree.leaves(tree)), start=jnp.zeros(()))
    )
