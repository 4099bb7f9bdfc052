"""Transforms for any optimizer's chain: clipping, weight penalties, accumulation, averaging of parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp.layer import Array, Grads, Optimizer, Params
from fbp.optimizers.base import (
    Mask,
    bias_correction,
    global_norm,
    stateless,
    where_mask,
    zeros_like,
)


def clip_by_value(limit: float | Array) -> Optimizer:
    """Each number of the gradient into ``[-limit, limit]``."""
    return stateless(
        lambda grads, params: jax.tree.map(lambda g: jnp.clip(g, -limit, limit), grads)
    )


def clip_by_norm(limit: float | Array) -> Optimizer:
    """Each parameter's gradient scaled down to a norm of at most ``limit``."""
    return stateless(
        lambda grads, params: jax.tree.map(
            lambda g: g * _shrink(jnp.linalg.norm(g.ravel()), limit), grads
        )
    )


def clip_by_global_norm(limit: float | Array) -> Optimizer:
    """All gradients scaled down together to a norm of at most ``limit``. Pascanu, Mikolov and Bengio (2013)."""

    def update(grads: Grads, params: Params) -> Grads:
        factor = _shrink(global_norm(grads), limit)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)

    return stateless(update)


def adaptive_grad_clip(limit: float | Array, epsilon: float | Array = 1e-3) -> Optimizer:
    """Each unit's gradient scaled down to at most ``limit`` times the norm of the unit's weights. Brock et al. (2021).

    A unit is a column of a weight ``(..., in, out)`` (its norm over all axes but the last), or a whole bias.
    ``epsilon`` is the least norm a unit's weights are taken to have.
    """

    def norms(tensor: Array) -> Array:
        axes = tuple(range(tensor.ndim - 1)) if tensor.ndim >= 2 else None
        return jnp.sqrt((tensor * tensor).sum(axis=axes, keepdims=tensor.ndim >= 2))

    def clipped(g: Array, w: Array) -> Array:
        return g * _shrink(norms(g), limit * jnp.maximum(norms(w), epsilon))

    return stateless(lambda grads, params: jax.tree.map(clipped, grads, params))


def _shrink(norm: Array, limit: float | Array) -> Array:
    """The factor that brings ``norm`` down to ``limit``, 1 where it is there already."""
    return jnp.where(norm > limit, limit / jnp.where(norm > limit, norm, 1), 1)


def l2(strength: float | Array, mask: Mask = None) -> Optimizer:
    """``g + strength w``: the gradient of the penalty ``strength/2 |w|^2``; put it before the rule. Weights only by default.

    Nielsen's lambda, for the penalty lambda/(2n) |w|^2 over n training examples, is ``strength = lambda / n``.
    """
    return stateless(
        lambda grads, params: where_mask(mask, params, lambda g, w: g + strength * w, grads, params)
    )


def l1(strength: float | Array, mask: Mask = None) -> Optimizer:
    """``g + strength sign(w)``: the gradient of the penalty ``strength |w|_1``. Weights only by default."""
    return stateless(
        lambda grads, params: where_mask(
            mask, params, lambda g, w: g + strength * jnp.sign(w), grads, params
        )
    )


def decoupled_weight_decay(strength: float | Array, mask: Mask = None) -> Optimizer:
    """``u + strength w``, put after the rule and before the learning rate. Loshchilov and Hutter (2019)."""
    return l2(strength, mask)


class AccumulateState(NamedTuple):
    """Micro-batches seen, the running mean of their gradients, and the inner optimizer's state."""

    step: Array
    mean: Grads
    inner: Any


def accumulate(optimizer: Optimizer, every: int) -> Optimizer:
    """Average the gradients of ``every`` micro-batches, then take one step of ``optimizer``; updates are 0 in between."""

    def init(params: Params) -> AccumulateState:
        return AccumulateState(jnp.zeros((), jnp.int32), zeros_like(params), optimizer.init(params))

    def update(
        grads: Grads, state: AccumulateState, params: Params
    ) -> tuple[Grads, AccumulateState]:
        mean = jax.tree.map(lambda m, g: m + g / every, state.mean, grads)

        def step() -> tuple[Grads, AccumulateState]:
            updates, inner = optimizer.update(mean, state.inner, params)
            return updates, AccumulateState(jnp.zeros((), jnp.int32), zeros_like(mean), inner)

        def wait() -> tuple[Grads, AccumulateState]:
            return zeros_like(mean), AccumulateState(state.step + 1, mean, state.inner)

        return jax.lax.cond(state.step + 1 >= every, step, wait)

    return Optimizer(init, update)


class EMAState(NamedTuple):
    """The count of updates, the average of the parameters (not yet corrected for its start at 0), and the correction."""

    step: Array
    mean: Params
    correction: Array


def average_parameters(decay: float | Array) -> Optimizer:
    """Keep an exponential moving average of the parameters: last in a chain; read it with :func:`averaged`.

    ``mean = decay mean + (1 - decay) params`` after each update, corrected by ``1 - decay^t``. The updates pass unchanged.
    """

    def init(params: Params) -> EMAState:
        return EMAState(
            jnp.zeros((), jnp.int32), zeros_like(params), jnp.ones((), jnp.result_type(float))
        )

    def update(grads: Grads, state: EMAState, params: Params) -> tuple[Grads, EMAState]:
        mean = jax.tree.map(
            lambda m, p, u: decay * m + (1 - decay) * (p + u), state.mean, params, grads
        )
        step = state.step + 1
        return grads, EMAState(step, mean, bias_correction(decay, step))

    return Optimizer(init, update)


def averaged(state: Any, params: Params) -> Params:
    """The averaged parameters that an optimizer's state holds; ``params`` where it holds none (or no step was taken)."""
    is_average = lambda node: isinstance(node, EMAState)
    found = [node for node in jax.tree.leaves(state, is_leaf=is_average) if is_average(node)]
    if not found:
        return params
    average = found[0]
    begun = average.step > 0
    return jax.tree.map(
        lambda m, p: jnp.where(begun, m / average.correction.astype(m.dtype), p),
        average.mean,
        params,
    )
