"""Transforms for any optimizer's chain: clipping, penalties, accumulation, averaging."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp._arguments import checked
from fbp._serialization import serializable
from fbp.layer import Array, Grads, Optimizer, Params
from fbp.optimizers.base import (
    bias_correction,
    global_norm,
    stateless,
    zeros_like,
)
from fbp.optimizers.masks import Mask, apply_where


@checked
def clip_by_value(limit: float | Array) -> Optimizer:
    """Return the transform that clips each number of the gradient to ``[-limit, limit]``.

    Args:
        limit: the largest absolute value.
    """
    return stateless(
        lambda grads, params: jax.tree.map(lambda g: jnp.clip(g, -limit, limit), grads)
    )


@checked
def clip_by_norm(limit: float | Array) -> Optimizer:
    """Return the transform that scales each parameter's gradient down to a norm of ``limit``.

    Args:
        limit: the largest Euclidean norm.
    """
    return stateless(
        lambda grads, params: jax.tree.map(
            lambda g: g * _shrink(global_norm(g), limit).astype(g.dtype), grads
        )
    )


@checked
def clip_by_global_norm(limit: float | Array) -> Optimizer:
    """Return the transform that scales all gradients down to a common norm of ``limit``.

    Pascanu, Mikolov and Bengio (2013), *On the difficulty of training recurrent neural networks*.

    Args:
        limit: the largest Euclidean norm of all gradients together.
    """

    def update(grads: Grads, params: Params) -> Grads:
        factor = _shrink(global_norm(grads), limit)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)

    return stateless(update)


@checked
def adaptive_grad_clip(limit: float | Array, epsilon: float | Array = 1e-3) -> Optimizer:
    """Return the transform that limits each unit's gradient relative to the unit's weights.

    A unit is a column of a weight ``(..., in, out)`` (its norm over all axes but the last), or a
    whole bias. Brock et al. (2021), *High-performance large-scale image recognition without
    normalization*.

    Args:
        limit: the largest norm of a unit's gradient, in norms of its weights.
        epsilon: the least norm that a unit's weights count with.
    """

    def norms(tensor: Array) -> Array:
        axes = tuple(range(tensor.ndim - 1)) if tensor.ndim >= 2 else None
        return jnp.sqrt((tensor * tensor).sum(axis=axes, keepdims=tensor.ndim >= 2))

    def clipped(g: Array, w: Array) -> Array:
        return g * _shrink(norms(g), limit * jnp.maximum(norms(w), epsilon))

    return stateless(lambda grads, params: jax.tree.map(clipped, grads, params))


def _shrink(norm: Array, limit: float | Array) -> Array:
    """Return the factor that brings ``norm`` down to ``limit``; 1 if it is smaller."""
    return jnp.where(norm > limit, limit / jnp.where(norm > limit, norm, 1), 1)


@checked
def l2(strength: float | Array, mask: Mask = None) -> Optimizer:
    """Return ``u = g + strength w``, the gradient of the penalty ``strength/2 |w|^2``.

    Put it before the rule, which then scales the penalty as it scales the gradient;
    :func:`decoupled_weight_decay` is the same transform after the rule. Nielsen's lambda, of the
    penalty lambda/(2n) |w|^2 over n training examples, is ``strength = lambda / n``.

    Args:
        strength: of the penalty.
        mask: ``params -> tree of booleans``, True for what is penalized; weights by default (see
            :func:`weights_only`).
    """
    return _add_weights(strength, mask)


@checked
def l1(strength: float | Array, mask: Mask = None) -> Optimizer:
    """Return ``u = g + strength sign(w)``, the gradient of the penalty ``strength |w|_1``.

    Args:
        strength: of the penalty.
        mask: ``params -> tree of booleans``, True for what is penalized; weights by default (see
            :func:`weights_only`).
    """
    return stateless(
        lambda grads, params: apply_where(
            mask, params, lambda g, w: g + strength * jnp.sign(w), grads, params
        )
    )


@checked
def decoupled_weight_decay(strength: float | Array, mask: Mask = None) -> Optimizer:
    """Return ``u = g + strength w`` to be put after the rule and before the learning rate.

    The step then takes ``learning_rate strength w`` off each weight, whatever the rule does to its
    gradient; before the rule the same transform is :func:`l2`. With plain gradient descent the two
    are equal. Loshchilov and Hutter (2019), *Decoupled weight decay regularization*.

    Args:
        strength: of the decay, in units of the learning rate.
        mask: ``params -> tree of booleans``, True for what decays; weights by default (see
            :func:`weights_only`).
    """
    return _add_weights(strength, mask)


def _add_weights(strength: float | Array, mask: Mask) -> Optimizer:
    """Return ``u = g + strength w``, for :func:`l2` and :func:`decoupled_weight_decay`."""
    return stateless(
        lambda grads, params: apply_where(
            mask, params, lambda g, w: g + strength * w, grads, params
        )
    )


@serializable
class AccumulateState(NamedTuple):
    """The state of :func:`accumulate`.

    Attributes:
        step: micro-batches since the last step of the inner optimizer, int32.
        mean: their gradients' mean so far, each weighted by 1 / every.
        inner: the inner optimizer's state.
    """

    step: Array
    mean: Grads
    inner: Any


@checked
def accumulate(optimizer: Optimizer, every: int) -> Optimizer:
    """Return an optimizer that steps once on the mean gradient of several micro-batches.

    Args:
        optimizer: what takes the step.
        every: number of micro-batches; the updates of all but the last are 0.
    """

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


@serializable
class EMAState(NamedTuple):
    """The state of :func:`average_parameters`.

    Attributes:
        step: number of updates so far, int32.
        mean: the running average of the parameters, not yet corrected for its start at 0.
        correction: ``1 - decay^step``.
    """

    step: Array
    mean: Params
    correction: Array


@checked
def average_parameters(decay: float | Array) -> Optimizer:
    """Return a transform that keeps an exponential moving average of the parameters.

    Put it last in a chain, and read the average with :func:`averaged`. After each update
    ``mean = decay mean + (1 - decay) params``, corrected by ``1 - decay^t``. Updates are unchanged.

    Args:
        decay: of the average.
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
    """Return the averaged parameters that an optimizer's state holds.

    Args:
        state: of an optimizer with :func:`average_parameters` in it.
        params: returned if the state holds no average, or before the first step.
    """
    is_average = lambda node: isinstance(node, EMAState)
    averages = [node for node in jax.tree.leaves(state, is_leaf=is_average) if is_average(node)]
    if not averages:
        return params
    average = averages[0]
    has_stepped = average.step > 0
    return jax.tree.map(
        lambda m, p: jnp.where(has_stepped, m / average.correction.astype(m.dtype), p),
        average.mean,
        params,
    )
