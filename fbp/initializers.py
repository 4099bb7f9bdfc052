"""How parameters start: factories of ``(key, shape, dtype) -> array``, thin over ``jax.nn.initializers``.

``shape`` is a weight's ``(..., in, out)``. A variance-scaling initializer keeps the variance of activations (fan in),
of deltas (fan out) or both (the average) from layer to layer; which one fits depends on the activation that follows:
:func:`for_activation` knows.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import initializers as jax_initializers

from fbp.layer import Array, Initializer, Key, Shape


def small_normal(scale: float = 0.01) -> Initializer:
    """The textbook's "small random values": normal with mean 0 and standard deviation ``scale``.

    ``scale=1.0`` is the first initialization of Nielsen (2015), *Neural Networks and Deep Learning*, chapter 1.
    """
    return jax_initializers.normal(scale)


def zeros() -> Initializer:
    """All zeros; right for biases, wrong for weights (every neuron of a layer would stay the same)."""
    return lambda key, shape, dtype=jnp.float32: jnp.zeros(shape, dtype)


def ones() -> Initializer:
    """All ones; for scales of normalization layers."""
    return lambda key, shape, dtype=jnp.float32: jnp.ones(shape, dtype)


def constant(value: float) -> Initializer:
    """All ``value``."""
    return lambda key, shape, dtype=jnp.float32: jnp.full(shape, value, dtype)


def glorot_uniform() -> Initializer:
    """Uniform with variance 2/(in + out), also named after Xavier; for sigmoid and tanh (Glorot and Bengio, 2010)."""
    return jax_initializers.glorot_uniform()


def glorot_normal() -> Initializer:
    """Normal (truncated) with variance 2/(in + out) (Glorot and Bengio, 2010)."""
    return jax_initializers.glorot_normal()


def he_uniform() -> Initializer:
    """Uniform with variance 2/in, also named after Kaiming; for relu and its relatives (He et al., 2015)."""
    return jax_initializers.he_uniform()


def he_normal() -> Initializer:
    """Normal (truncated) with variance 2/in; for relu and its relatives (He et al., 2015)."""
    return jax_initializers.he_normal()


def lecun_uniform() -> Initializer:
    """Uniform with variance 1/in (LeCun et al., 1998, *Efficient BackProp*)."""
    return jax_initializers.lecun_uniform()


def lecun_normal() -> Initializer:
    """Normal (truncated) with variance 1/in; for selu (Klambauer et al., 2017) and as a default without activation."""
    return jax_initializers.lecun_normal()


def scaled_normal() -> Initializer:
    """Normal, not truncated, with standard deviation 1/sqrt(in): the better weights of Nielsen (2015), chapter 3."""

    def initialize(key: Key, shape: Shape, dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.normal(key, shape, dtype) / jnp.sqrt(jnp.asarray(shape[-2], dtype))

    return initialize


def scaled(initializer: Initializer, factor: float) -> Initializer:
    """What ``initializer`` draws, times ``factor``."""
    return lambda key, shape, dtype=jnp.float32: (
        initializer(key, shape, dtype) * jnp.asarray(factor, dtype)
    )


def orthogonal(scale: float = 1.0) -> Initializer:
    """A random orthogonal matrix times ``scale`` (Saxe, McClelland and Ganguli, 2014)."""
    return jax_initializers.orthogonal(scale)


_DEFAULTS: dict[str, Callable[[], Initializer]] = {
    "relu": he_normal,
    "leaky_relu": he_normal,
    "elu": he_normal,
    "softplus": he_normal,
    "silu": he_normal,
    "gelu": he_normal,
    "maxout": he_normal,
    "selu": lecun_normal,
}


def for_activation(name: str) -> Initializer:
    """The initializer that suits weights before the activation ``name``; glorot_uniform where nothing better is known."""
    return _DEFAULTS.get(name, glorot_uniform)()
