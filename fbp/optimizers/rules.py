"""The rules that give an update its direction and scale, before the learning rate.

g is the gradient, t counts from 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fbp._serialization import serializable
from fbp.layer import Array, Grads, Optimizer, Params
from fbp.optimizers.base import bias_correction, stateless
from fbp.optimizers.norms import norms_of_each, root
from fbp.optimizers.protocol import transform, zeros_like


@serializable
class MomentumState(NamedTuple):
    """The state of :func:`accumulate_momentum`.

    Attributes:
        velocity: v.
    """

    velocity: Grads


@serializable
class AdagradState(NamedTuple):
    """The state of :func:`scale_by_adagrad`.

    Attributes:
        squares: G, the sum of squared gradients.
    """

    squares: Grads


@serializable
class AdadeltaState(NamedTuple):
    """The state of :func:`scale_by_adadelta`.

    Attributes:
        squares: running average of the squared gradients.
        updates: running average of the squared updates.
    """

    squares: Grads
    updates: Grads


@serializable
class RMSState(NamedTuple):
    """The state of :func:`scale_by_rms`.

    Attributes:
        squares: running average of the squared gradients.
        mean: running average of the gradients; empty unless the rule is centered.
    """

    squares: Grads
    mean: Grads


@serializable
class AdamState(NamedTuple):
    """The state of :func:`scale_by_adam`.

    Attributes:
        step: number of updates so far, int32.
        mean: m, the first moment.
        squares: v, the second moment.
    """

    step: Array
    mean: Grads
    squares: Grads


@serializable
class AMSGradState(NamedTuple):
    """The state of :func:`scale_by_amsgrad`.

    Attributes:
        step: number of updates so far, int32.
        mean: m, the first moment.
        squares: v, the second moment.
        largest: the largest v so far.
    """

    step: Array
    mean: Grads
    squares: Grads
    largest: Grads


@serializable
class LionState(NamedTuple):
    """The state of :func:`scale_by_lion`.

    Attributes:
        mean: m, the momentum.
    """

    mean: Grads


def accumulate_momentum(momentum: float | Array, *, nesterov: bool = False) -> Optimizer:
    """Return the rule ``v = momentum v + g``, ``u = v``.

    Args:
        momentum: share of the velocity that each step keeps.
        nesterov: look ahead, ``u = g + momentum v``.
    """

    def update(grads: Grads, state: MomentumState, params: Params) -> tuple[Grads, MomentumState]:
        velocity = jax.tree.map(lambda v, g: momentum * v + g, state.velocity, grads)
        if not nesterov:
            return velocity, MomentumState(velocity)
        return jax.tree.map(lambda v, g: g + momentum * v, velocity, grads), MomentumState(velocity)

    return transform(
        "accumulate_momentum",
        lambda params: MomentumState(zeros_like(params)),
        update,
        state=MomentumState,
    )


def scale_by_adagrad(initial: float | Array, epsilon: float | Array) -> Optimizer:
    """Return the rule ``G = G + g^2``, ``u = g / (sqrt(G) + epsilon)``.

    Args:
        initial: G before the first step.
        epsilon: added to the root.
    """

    def init(params: Params) -> AdagradState:
        return AdagradState(jax.tree.map(lambda z: jnp.full_like(z, initial), zeros_like(params)))

    def update(grads: Grads, state: AdagradState, params: Params) -> tuple[Grads, AdagradState]:
        squares = jax.tree.map(lambda s, g: s + g * g, state.squares, grads)
        return jax.tree.map(
            lambda s, g: g / (root(_finite(s)) + epsilon), squares, grads
        ), AdagradState(squares)

    return transform("scale_by_adagrad", init, update, state=AdagradState)


def scale_by_adadelta(decay: float | Array, epsilon: float | Array) -> Optimizer:
    """Return the rule ``u = g sqrt(E[u^2] + epsilon) / sqrt(E[g^2] + epsilon)``.

    Args:
        decay: of the running averages E.
        epsilon: added under both roots.
    """

    def update(grads: Grads, state: AdadeltaState, params: Params) -> tuple[Grads, AdadeltaState]:
        squares = _average(state.squares, grads, decay, power=2)
        updates = jax.tree.map(
            lambda s, d, g: g * jnp.sqrt(d + epsilon) / jnp.sqrt(_finite(s) + epsilon),
            squares,
            state.updates,
            grads,
        )
        return updates, AdadeltaState(squares, _average(state.updates, updates, decay, power=2))

    return transform(
        "scale_by_adadelta",
        lambda params: AdadeltaState(zeros_like(params), zeros_like(params)),
        update,
        state=AdadeltaState,
    )


def scale_by_rms(
    decay: float | Array, epsilon: float | Array, *, centered: bool = False
) -> Optimizer:
    """Return the rule ``u = g / (sqrt(E[g^2]) + epsilon)``.

    Args:
        decay: of the running averages E.
        epsilon: added to the root.
        centered: use the variance ``E[g^2] - E[g]^2`` in place of ``E[g^2]``.
    """

    def init(params: Params) -> RMSState:
        return RMSState(zeros_like(params), zeros_like(params) if centered else ())

    def update(grads: Grads, state: RMSState, params: Params) -> tuple[Grads, RMSState]:
        squares = _average(state.squares, grads, decay, power=2)
        if not centered:
            return jax.tree.map(
                lambda s, g: g / (root(_finite(s)) + epsilon), squares, grads
            ), RMSState(squares, ())
        mean = _average(state.mean, grads, decay)
        updates = jax.tree.map(
            lambda s, m, g: g / (root(_finite(jnp.maximum(s - m * m, 0))) + epsilon),
            squares,
            mean,
            grads,
        )
        return updates, RMSState(squares, mean)

    return transform("scale_by_rms", init, update, state=RMSState)


def scale_by_adam(
    beta1: float | Array, beta2: float | Array, epsilon: float | Array, *, nesterov: bool = False
) -> Optimizer:
    """Return the rule ``u = m^ / (sqrt(v^) + epsilon)``.

    The moments are corrected for bias: ``m^ = m/(1 - beta1^t)``, ``v^ = v/(1 - beta2^t)``.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root.
        nesterov: look ahead, ``m^ = beta1 m/(1 - beta1^{t+1}) + (1 - beta1) g/(1 - beta1^t)``.
    """

    def init(params: Params) -> AdamState:
        return AdamState(jnp.zeros((), jnp.int32), zeros_like(params), zeros_like(params))

    def update(grads: Grads, state: AdamState, params: Params) -> tuple[Grads, AdamState]:
        count = state.step + 1
        mean = _average(state.mean, grads, beta1)
        squares = _average(state.squares, grads, beta2, power=2)
        unbias1, unbias2 = bias_correction(beta1, count), bias_correction(beta2, count)
        ahead = bias_correction(beta1, count + 1)

        def step(m: Array, v: Array, g: Array) -> Array:
            corrected = (
                beta1 * m / _as(ahead, m) + (1 - beta1) * g / _as(unbias1, g)
                if nesterov
                else m / _as(unbias1, m)
            )
            return corrected / (root(_finite(v) / _as(unbias2, v)) + epsilon)

        return jax.tree.map(step, mean, squares, grads), AdamState(count, mean, squares)

    return transform("scale_by_adam", init, update, state=AdamState)


def scale_by_amsgrad(
    beta1: float | Array, beta2: float | Array, epsilon: float | Array
) -> Optimizer:
    """Return the rule ``u = m^ / (sqrt(max v / (1 - beta2^t)) + epsilon)``.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root.
    """

    def init(params: Params) -> AMSGradState:
        return AMSGradState(
            jnp.zeros((), jnp.int32), zeros_like(params), zeros_like(params), zeros_like(params)
        )

    def update(grads: Grads, state: AMSGradState, params: Params) -> tuple[Grads, AMSGradState]:
        count = state.step + 1
        mean = _average(state.mean, grads, beta1)
        squares = _average(state.squares, grads, beta2, power=2)
        largest = jax.tree.map(jnp.maximum, state.largest, squares)
        unbias1, unbias2 = bias_correction(beta1, count), bias_correction(beta2, count)
        updates = jax.tree.map(
            lambda m, v: m / _as(unbias1, m) / (root(_finite(v) / _as(unbias2, v)) + epsilon),
            mean,
            largest,
        )
        return updates, AMSGradState(count, mean, squares, largest)

    return transform("scale_by_amsgrad", init, update, state=AMSGradState)


def scale_by_lion(beta1: float | Array, beta2: float | Array) -> Optimizer:
    """Return the rule ``u = sign(beta1 m + (1 - beta1) g)``, then ``m = beta2 m + (1 - beta2) g``.

    Args:
        beta1: share of the momentum in the update.
        beta2: decay of the momentum.
    """

    def update(grads: Grads, state: LionState, params: Params) -> tuple[Grads, LionState]:
        updates = jax.tree.map(
            lambda m, g: jnp.sign(beta1 * m + (1 - beta1) * g), state.mean, grads
        )
        return updates, LionState(_average(state.mean, grads, beta2))

    return transform(
        "scale_by_lion",
        lambda params: LionState(zeros_like(params)),
        update,
        state=LionState,
    )


def scale_by_trust_ratio() -> Optimizer:
    """Return the rule ``u = g |w| / |g|``, tensor by tensor; the ratio is 1 if a norm is 0."""

    def update(grads: Grads, params: Params) -> Grads:
        leaves, structure = jax.tree.flatten(grads)
        norms = norms_of_each(leaves), norms_of_each(jax.tree.leaves(params))
        scaled = [
            g * _as(_ratio(weight.value, update.value), g)
            for g, update, weight in zip(leaves, *norms, strict=True)
        ]
        return jax.tree.unflatten(structure, scaled)

    return stateless("scale_by_trust_ratio", update, needs_params=True)


def _ratio(weight: Array, update: Array) -> Array:
    is_defined = (weight > 0) & (update > 0)
    return jnp.where(is_defined, weight / jnp.where(is_defined, update, 1), 1)


def _average(average: Grads, new: Grads, decay: float | Array, power: int = 1) -> Grads:
    """Return ``decay average + (1 - decay) new^power``."""
    return jax.tree.map(lambda a, n: decay * a + (1 - decay) * n**power, average, new)


def _finite(squares: Array) -> Array:
    """Return sums of squares; NaN for those that have overflowed.

    An infinite root would divide the gradient to 0, so that its parameter stood still for ever
    without a word.
    """
    return jnp.where(squares < jnp.inf, squares, jnp.nan)


def _as(scalar: Array, like: Array) -> Array:
    return scalar.astype(like.dtype)
