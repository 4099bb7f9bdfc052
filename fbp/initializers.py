"""Initial parameters: factories of ``(key, shape, dtype) -> array``, over ``jax.nn.initializers``.

``shape`` is a weight's ``(..., in, out)``. A variance-scaling initializer keeps the variance of
activations (fan in), of deltas (fan out) or of both (the average) from layer to layer. Which one
fits depends on the activation that follows; :func:`for_activation` returns it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers as jax_initializers

from fbp._arguments import checked
from fbp.layer import Array, Initializer, Key, Shape


@checked
def small_normal(scale: float = 0.01) -> Initializer:
    """Return normal numbers with mean 0: the textbook's "small random values".

    ``scale=1.0`` is the first initialization of Nielsen (2015), *Neural Networks and Deep
    Learning*, chapter 1.

    Args:
        scale: the standard deviation.
    """
    return jax_initializers.normal(scale)


def zeros() -> Initializer:
    """Return zeros: right for biases, wrong for weights, whose neurons would all stay equal."""
    return lambda key, shape, dtype=float: jnp.zeros(shape, dtype)


def ones() -> Initializer:
    """Return ones; for scales of normalization layers."""
    return lambda key, shape, dtype=float: jnp.ones(shape, dtype)


@checked
def constant(value: float) -> Initializer:
    """Return ``value`` everywhere.

    Args:
        value: a number.
    """
    return lambda key, shape, dtype=float: jnp.full(shape, value, dtype)


def glorot_uniform() -> Initializer:
    """Return uniform numbers with variance 2/(in + out), for sigmoid and tanh; "Xavier".

    Glorot and Bengio (2010), *Understanding the difficulty of training deep feedforward networks*.
    """
    return jax_initializers.glorot_uniform()


def glorot_normal() -> Initializer:
    """Return truncated normal numbers with variance 2/(in + out). Glorot and Bengio (2010)."""
    return jax_initializers.glorot_normal()


def he_uniform() -> Initializer:
    """Return uniform numbers with variance 2/in, for relu and its relatives; "Kaiming".

    He et al. (2015), *Delving deep into rectifiers*.
    """
    return jax_initializers.he_uniform()


def he_normal() -> Initializer:
    """Return truncated normal numbers with variance 2/in, for relu and its relatives.

    He et al. (2015), *Delving deep into rectifiers*.
    """
    return jax_initializers.he_normal()


def lecun_uniform() -> Initializer:
    """Return uniform numbers with variance 1/in. LeCun et al. (1998), *Efficient BackProp*."""
    return jax_initializers.lecun_uniform()


def lecun_normal() -> Initializer:
    """Return truncated normal numbers with variance 1/in, for selu or no activation.

    Klambauer et al. (2017), *Self-normalizing neural networks*.
    """
    return jax_initializers.lecun_normal()


def scaled_normal() -> Initializer:
    """Return normal numbers, not truncated, with standard deviation 1/sqrt(in).

    ``in`` counts each place of a kernel's window, as in all initializers. The better weights of
    Nielsen (2015), *Neural Networks and Deep Learning*, chapter 3.
    """

    def initialize(key: Key, shape: Shape, dtype: Any = float) -> Array:
        fan_in = jnp.asarray(math.prod(shape[:-1]), dtype)
        return jax.random.normal(key, shape, dtype) / jnp.sqrt(fan_in)

    return initialize


@checked
def scaled(initializer: Initializer, factor: float) -> Initializer:
    """Return the numbers of another initializer times a factor.

    Args:
        initializer: the other one.
        factor: a number.
    """
    return lambda key, shape, dtype=float: (
        initializer(key, shape, dtype) * jnp.asarray(factor, dtype)
    )


@checked
def orthogonal(scale: float = 1.0) -> Initializer:
    """Return a random orthogonal matrix times ``scale``. Saxe, McClelland and Ganguli (2014).

    Args:
        scale: the singular values.
    """
    draw = jax_initializers.orthogonal(scale)

    def initialize(key: Key, shape: Shape, dtype: Any = float) -> Array:
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        wide = jnp.promote_types(dtype, jnp.float32)  # the decomposition needs that
        return draw(key, shape, wide).astype(dtype)

    return initialize


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


@checked
def for_activation(kind: str) -> Initializer:
    """Return the initializer that suits weights before an activation.

    Args:
        kind: of the activation, such as ``relu``; glorot_uniform suits all that are not known.
    """
    return _DEFAULTS.get(kind, glorot_uniform)()
