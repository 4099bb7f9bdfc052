"""Transforms for any optimizer's chain: clipping, penalties, accumulation, averaging."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp._arguments import checked
from fbp._serialization import serializable
from fbp.layer import Array, Grads, Optimizer, Params
from fbp.optimizers.base import apply_updates, bias_correction, stateless
from fbp.optimizers.masks import Mask, apply_where
from fbp.optimizers.norms import Norm, norm_of_all, norms_of_each, norms_of_units, widen
from fbp.optimizers.protocol import (
    call_update,
    check_gradients,
    check_same_tree,
    narrow,
    require_optimizer,
    transform,
    zeros_like,
)


@checked
def clip_by_value(limit: float | Array) -> Optimizer:
    """Return the transform that clips each number of the gradient to ``[-limit, limit]``.

    Args:
        limit: the largest absolute value.
    """
    return stateless(
        "clip_by_value",
        lambda grads, params: jax.tree.map(lambda g: jnp.clip(g, -limit, limit), grads),
    )


@checked
def clip_by_norm(limit: float | Array) -> Optimizer:
    """Return the transform that scales each parameter's gradient down to a norm of ``limit``.

    Args:
        limit: the largest Euclidean norm.
    """

    def update(grads: Grads, params: Params) -> Grads:
        leaves, structure = jax.tree.flatten(grads)
        norms = norms_of_each(leaves)
        clipped = [_clipped(g, norm, limit) for g, norm in zip(leaves, norms, strict=True)]
        return jax.tree.unflatten(structure, clipped)

    return stateless("clip_by_norm", update)


@checked
def clip_by_global_norm(limit: float | Array) -> Optimizer:
    """Return the transform that scales all gradients down to a common norm of ``limit``.

    Pascanu, Mikolov and Bengio (2013), *On the difficulty of training recurrent neural networks*.

    Args:
        limit: the largest Euclidean norm of all gradients together.
    """

    def update(grads: Grads, params: Params) -> Grads:
        norm = norm_of_all(jax.tree.leaves(grads))
        return jax.tree.map(lambda g: _clipped(g, norm, limit), grads)

    return stateless("clip_by_global_norm", update)


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

    def clipped(g: Array, w: Array) -> Array:
        weights = norms_of_units(w).value
        return _clipped(g, norms_of_units(g), limit * jnp.maximum(weights, epsilon))

    return stateless(
        "adaptive_grad_clip",
        lambda grads, params: jax.tree.map(clipped, grads, params),
        needs_params=True,
    )


def _clipped(g: Array, norm: Norm, limit: float | Array) -> Array:
    """Return a gradient brought down from ``norm`` to ``limit``; itself if its norm is smaller."""
    is_larger = norm.value > limit
    factor = jnp.where(is_larger, limit / jnp.where(is_larger, norm.scaled, 1), 1)
    unit = jnp.where(is_larger, norm.unit, 1)  # 1 unless squares left the range
    return g * unit.astype(g.dtype) * factor.astype(g.dtype)


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
    return _add("l2", strength, lambda w: w, mask)


@checked
def l1(strength: float | Array, mask: Mask = None) -> Optimizer:
    """Return ``u = g + strength sign(w)``, the gradient of the penalty ``strength |w|_1``.

    Args:
        strength: of the penalty.
        mask: ``params -> tree of booleans``, True for what is penalized; weights by default (see
            :func:`weights_only`).
    """
    return _add("l1", strength, jnp.sign, mask)


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
    return _add("decoupled_weight_decay", strength, lambda w: w, mask)


def _add(
    name: str, strength: float | Array, term: Callable[[Array], Array], mask: Mask
) -> Optimizer:
    """Return ``u = g + strength term(w)`` for what ``mask`` selects; nothing is added by 0."""
    if isinstance(strength, float | int) and strength == 0:
        return stateless(name, lambda grads, params: grads)
    change = lambda g, w: g + strength * term(widen(w))
    return stateless(
        name,
        lambda grads, params: apply_where(name, mask, params, change, grads, params),
        needs_params=True,
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

    The mean is at least float32 until it is complete.

    Args:
        optimizer: what takes the step. Further keyword arguments of ``update`` reach it with their
            values at the last micro-batch.
        every: number of micro-batches; the updates of all but the last are 0.
    """

    require_optimizer("accumulate", "optimizer", optimizer)

    def init(params: Params) -> AccumulateState:
        return AccumulateState(jnp.zeros((), jnp.int32), zeros_like(params), optimizer.init(params))

    def update(
        grads: Grads, state: AccumulateState, params: Params | None = None, **further: Any
    ) -> tuple[Grads, AccumulateState]:
        check_gradients("accumulate", grads, params)
        mean = jax.tree.map(lambda m, g: (m + widen(g) / every).astype(m.dtype), state.mean, grads)

        def step() -> tuple[Grads, AccumulateState]:
            gradient = narrow(mean, grads)
            updates, inner = call_update(optimizer, gradient, state.inner, params, further)
            done = AccumulateState(jnp.zeros((), jnp.int32), zeros_like(mean), inner)
            return narrow(updates, grads), done

        def wait() -> tuple[Grads, AccumulateState]:
            nothing = jax.tree.map(jnp.zeros_like, grads)
            return nothing, AccumulateState(state.step + 1, mean, state.inner)

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
    The average is at least float32.

    Args:
        decay: of the average.
    """

    def init(params: Params) -> EMAState:
        return EMAState(
            jnp.zeros((), jnp.int32), zeros_like(params), jnp.ones((), jnp.result_type(float))
        )

    def update(grads: Grads, state: EMAState, params: Params) -> tuple[Grads, EMAState]:
        new_params = apply_updates(params, grads)
        mean = jax.tree.map(lambda m, p: decay * m + (1 - decay) * widen(p), state.mean, new_params)
        step = state.step + 1
        return grads, EMAState(step, mean, bias_correction(decay, step))

    return transform("average_parameters", init, update, state=EMAState, needs_params=True)


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
    check_same_tree("averaged", "params", params, "the average", average.mean)
    has_stepped = average.step > 0

    def corrected(m: Array, p: Array) -> Array:
        mean = jnp.where(has_stepped, m / average.correction.astype(m.dtype), widen(p))
        return mean.astype(jnp.result_type(p))

    return jax.tree.map(corrected, average.mean, params)
