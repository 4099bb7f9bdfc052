"""What transforms share: chaining, masks, and the step from updates to new parameters."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp.layer import STATISTICS, Array, Grads, Optimizer, Params

Schedule = Callable[[Array], Array]  # step -> value
Scalar = float | Array | Schedule
Mask = Callable[[Params], Any] | None  # params -> the same tree of booleans

_NOT_DECAYED = ("b", "bh", "bq", "bkv", "bqkv", "bo", "bias", "scale", "offset", "g", *STATISTICS)


class EmptyState(NamedTuple):
    """The state of a transform that needs none."""


class ScheduleState(NamedTuple):
    """The state of a transform whose strength follows a schedule: how many updates there were."""

    step: Array


def stateless(update: Callable[[Grads, Params], Grads]) -> Optimizer:
    """A transform from ``(grads, params) -> updates`` alone."""
    return Optimizer(
        lambda params: EmptyState(), lambda grads, state, params: (update(grads, params), state)
    )


def chain(*transforms: Optimizer) -> Optimizer:
    """Transforms one after another; the state is the tuple of their states."""

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
    """``params + updates``, each in its parameter's dtype."""
    return jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)


def scale(factor: float | Array) -> Optimizer:
    """``u = factor g``."""
    return stateless(lambda grads, params: jax.tree.map(lambda g: factor * g, grads))


def scale_by_learning_rate(learning_rate: Scalar) -> Optimizer:
    """``u = -learning_rate g``, with the rate a number, a traced number, or a schedule of the update's count."""
    if not callable(learning_rate):
        return scale(-learning_rate)

    def update(grads: Grads, state: ScheduleState, params: Params) -> tuple[Grads, ScheduleState]:
        rate = jnp.asarray(learning_rate(state.step))
        return jax.tree.map(lambda g: (-rate).astype(g.dtype) * g, grads), ScheduleState(
            state.step + 1
        )

    return Optimizer(lambda params: ScheduleState(jnp.zeros((), jnp.int32)), update)


def bias_correction(decay: float | Array, step: Array) -> Array:
    """``1 - decay^step``, by which a running average that started at 0 is too small; exact also for decays near 1."""
    log = (
        math.log(decay)
        if isinstance(decay, float) and decay > 0
        else jnp.log(jnp.asarray(decay, jnp.result_type(float)))
    )
    return -jnp.expm1(step * log)


def weights_only(params: Params) -> Any:
    """The default mask of weight decay: True for weights, False for biases and for scales of normalization layers.

    A leaf counts as a bias or scale by its name (``b``, ``bias``, ``scale``, ``offset``) or because it has fewer than two axes.
    """

    def is_weight(path: Any, leaf: Array) -> bool:
        name = str(getattr(path[-1], "key", getattr(path[-1], "name", ""))) if path else ""
        return leaf.ndim >= 2 and name not in _NOT_DECAYED

    return jax.tree_util.tree_map_with_path(is_weight, params)


def where_mask(mask: Mask, params: Params, if_true: Callable[..., Array], *trees: Any) -> Any:
    """``if_true(leaf, ...)`` where the mask holds, the first tree's leaf elsewhere."""
    chosen = (mask or weights_only)(params)
    return jax.tree.map(lambda m, *leaves: if_true(*leaves) if m else leaves[0], chosen, *trees)


def zeros_like(params: Params) -> Any:
    """A tree of zeros with the shapes and dtypes of ``params``."""
    return jax.tree.map(jnp.zeros_like, params)


def global_norm(tree: Any) -> Array:
    """The Euclidean norm of all the numbers of a tree together."""
    return jnp.sqrt(
        sum((jnp.vdot(leaf, leaf).real for leaf in jax.tree.leaves(tree)), start=jnp.zeros(()))
    )
