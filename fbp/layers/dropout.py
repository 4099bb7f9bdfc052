"""Randomness in training only: dropout and stochastic depth. Without a key (evaluation) both are the identity."""

import jax
import jax.numpy as jnp

from fbp.layer import Array, Cache, Grads, Key, Layer, Params, Shape


def dropout(rate: float | Array) -> Layer:
    """Each number is dropped with probability ``rate``; the others are divided by ``1 - rate``, so the mean stays.

    Srivastava et al. (2014), in the inverted form. The cache is the mask, one byte for each number.

    Args:
        rate: the share that is dropped, at least 0 and less than 1.
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        if key is None:
            return x, ()
        kept = jax.random.bernoulli(key, 1 - rate, x.shape)
        return _scaled(x, kept, rate), kept

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        return (delta, ()) if isinstance(cache, tuple) else (_scaled(delta, cache, rate), ())

    return Layer(
        init,
        forward,
        backward,
        name=f"dropout({rate})" if isinstance(rate, float | int) else "dropout",
    )


def stochastic_depth(rate: float | Array) -> Layer:
    """Whole examples are dropped with probability ``rate``, the others divided by ``1 - rate``; last in a residual's body.

    Huang et al. (2016), *Deep networks with stochastic depth*. The cache is the mask, one byte for each example.
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        if key is None:
            return x, ()
        kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0], *[1] * (x.ndim - 1)))
        return _scaled(x, kept, rate), kept

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        return (delta, ()) if isinstance(cache, tuple) else (_scaled(delta, cache, rate), ())

    name = f"stochastic_depth({rate})" if isinstance(rate, float | int) else "stochastic_depth"
    return Layer(init, forward, backward, name=name)


def _scaled(x: Array, kept: Array, rate: float | Array) -> Array:
    return jnp.where(kept, x / jnp.asarray(1 - rate, x.dtype), 0)
