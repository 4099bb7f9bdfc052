"""Losses on numbers: squared, absolute, Huber, log-cosh, and on log-rates: Poisson."""

import math

import jax.numpy as jnp

from fbp._arguments import checked
from fbp.layer import Array, Loss
from fbp.losses._targets import count_positions, flat_rows, mean_over_positions, same_shape


def _squared_value(output: Array, target: Array) -> Array:
    error = output - same_shape("mean_squared_error", output, target)
    return flat_rows(error * error).mean(axis=1)


def _squared_delta(output: Array, target: Array) -> Array:
    error = output - same_shape("mean_squared_error", output, target)
    return error * (2 / max(math.prod(error.shape[1:]), 1))


mean_squared_error = Loss(
    _squared_value,
    _squared_delta,
    name="mean_squared_error",
    summary="mean of (a - y)^2 over an example's outputs, no factor 1/2",
)
"""``C = mean_k (a_k - y_k)^2`` over the K numbers of an example; delta = 2/K (a - y)."""


def _quadratic_value(output: Array, target: Array) -> Array:
    error = output - same_shape("quadratic", output, target)
    return 0.5 * flat_rows(error * error).sum(axis=1)


quadratic = Loss(
    _quadratic_value,
    lambda output, target: output - same_shape("quadratic", output, target),
    name="quadratic",
    summary="the textbook's 1/2 sum of (a - y)^2; delta = a - y",
)
"""The quadratic cost ``C = 1/2 sum_k (a_k - y_k)^2``; delta = a - y. Nielsen (2015), chapter 1."""


def _absolute_value(output: Array, target: Array) -> Array:
    error = output - same_shape("mean_absolute_error", output, target)
    return flat_rows(jnp.abs(error)).mean(axis=1)


def _absolute_delta(output: Array, target: Array) -> Array:
    error = output - same_shape("mean_absolute_error", output, target)
    return jnp.sign(error) / max(math.prod(error.shape[1:]), 1)


mean_absolute_error = Loss(
    _absolute_value,
    _absolute_delta,
    name="mean_absolute_error",
    summary="mean of |a - y| over an example's outputs",
)
"""``C = mean_k |a_k - y_k|``; delta = sign(a - y)/K, 0 at the kink."""


@checked
def huber(threshold: float = 1.0) -> Loss:
    """Return half the squared error up to ``threshold``, linear beyond it. Huber (1964).

    ``C = mean_k [ e^2/2 if |e| <= threshold else threshold (|e| - threshold/2) ]``;
    delta = clip(e, +-threshold)/K.

    Args:
        threshold: the size of an error from which on the cost is linear, above 0.

    Returns:
        The loss.
    """

    def value(output: Array, target: Array) -> Array:
        error = jnp.abs(output - same_shape("huber", output, target))
        inner = jnp.minimum(error, threshold)
        return flat_rows(inner * (error - 0.5 * inner)).mean(axis=1)

    def delta(output: Array, target: Array) -> Array:
        error = output - same_shape("huber", output, target)
        return jnp.clip(error, -threshold, threshold) / max(math.prod(error.shape[1:]), 1)

    return Loss(value, delta, name="huber")


def _log_cosh_value(output: Array, target: Array) -> Array:
    error = jnp.abs(output - same_shape("log_cosh", output, target))
    return flat_rows(error + jnp.log1p(0.5 * jnp.expm1(-2 * error))).mean(axis=1)


def _log_cosh_delta(output: Array, target: Array) -> Array:
    error = output - same_shape("log_cosh", output, target)
    return jnp.tanh(error) / max(math.prod(error.shape[1:]), 1)


log_cosh = Loss(
    _log_cosh_value,
    _log_cosh_delta,
    name="log_cosh",
    summary="mean of log cosh(a - y): quadratic near 0, linear far out",
)
"""``C = mean_k log cosh(a_k - y_k)``; delta = tanh(a - y)/K: smooth everywhere."""


def _poisson_value(output: Array, target: Array) -> Array:
    return mean_over_positions(jnp.exp(output) - same_shape("poisson", output, target) * output)


def _poisson_delta(output: Array, target: Array) -> Array:
    return (jnp.exp(output) - same_shape("poisson", output, target)) / count_positions(output)


poisson = Loss(
    _poisson_value,
    _poisson_delta,
    name="poisson",
    targets="counts",
    inverse_link=jnp.exp,
    summary="sum of exp(z) - y z for counts y and log-rates z",
)
"""``C = sum_k exp(z_k) - y_k z_k``, without the constant log y!; delta = exp(z) - y."""
