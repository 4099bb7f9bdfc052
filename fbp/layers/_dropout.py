"""Randomness in training only: dropout and stochastic depth.

Without a key, in evaluation, both are the identity.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fbp._arguments import checked
from fbp.layer import Array, Cache, Grads, Key, Layer, Params, Shape


@checked
def dropout(rate: float | Array) -> Layer:
    """Return a layer that drops each number with probability ``rate``.

    The others are divided by ``1 - rate``, so that the mean stays. Srivastava et al. (2014), in the
    inverted form. The cache is the mask, one byte for each number.

    Args:
        rate: the share that is dropped, at least 0 and less than 1.
    """
    return _drop("dropout", rate, lambda shape: shape)


@checked
def stochastic_depth(rate: float | Array) -> Layer:
    """Return a layer that drops whole examples with probability ``rate``.

    The others are divided by ``1 - rate``. It belongs at the end of a residual's body. Huang et al.
    (2016), *Deep networks with stochastic depth*. The cache is the mask, one byte for each example.

    Args:
        rate: the share that is dropped, at least 0 and less than 1.
    """
    return _drop("stochastic_depth", rate, lambda shape: (shape[0], *[1] * (len(shape) - 1)))


def _drop(kind: str, rate: float | Array, mask_shape: Callable[[Shape], Shape]) -> Layer:
    """Return a layer that multiplies by a random mask of ``mask_shape(shape of x)``."""

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        if key is None:
            return x, ()
        mask = jax.random.bernoulli(key, 1.0 - rate, mask_shape(x.shape))
        return _masked(x, mask, rate), mask

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        is_evaluation = isinstance(cache, tuple)
        return (delta if is_evaluation else _masked(delta, cache, rate)), ()

    name = f"{kind}({rate})" if isinstance(rate, float | int) else kind
    return Layer(init, forward, backward, kind=kind, name=name)


def _masked(x: Array, mask: Array, rate: float | Array) -> Array:
    return jnp.where(mask, x / jnp.asarray(1 - rate, x.dtype), 0)
