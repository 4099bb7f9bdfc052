"""Tokens and positions as vectors."""

import math

import jax.numpy as jnp

from fbp import initializers
from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Cache, Grads, Initializer, Key, Layer, Params, Shape


def embedding(vocabulary: int, features: int, *, weights: Initializer | None = None) -> Layer:
    """A row of a table for each token: ``(B, ...)`` integers to ``(B, ..., features)``.

    The backward pass adds each delta to its token's row (a scatter-add); tokens have no delta, so the input delta is None.
    Tokens must lie in ``[0, vocabulary)``: they are checked where the data is read.

    Args:
        vocabulary: how many tokens there are.
        features: the width of a row.
        weights: initializer of the table; normal with deviation 0.02 by default (Radford et al., 2019).

    Returns:
        A layer with parameters ``{"w": (vocabulary, features)}``. Its cache is its input.
    """
    if vocabulary < 1 or features < 1:
        raise InputError(f"embedding: vocabulary and features must be at least 1, got {vocabulary} and {features}")
    draw = weights or initializers.small_normal(0.02)

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return {"w": draw(key, (vocabulary, features), jnp.result_type(float))}, (*shape, features)

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ShapeError(f"embedding expects whole numbers as tokens, got {x.dtype}")
        return params["w"][x], x

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[None, Grads]:
        table = jnp.zeros((vocabulary, features), delta.dtype)
        return None, {"w": table.at[cache.reshape(-1)].add(delta.reshape(-1, features))}

    return Layer(init, forward, backward, name=f"embedding({vocabulary}, {features})")


def learned_positions(context: int, *, weights: Initializer | None = None) -> Layer:
    """Adds a learned vector for each position: ``(B, T, F) -> (B, T, F)`` for T up to ``context``.

    Parameters ``{"w": (context, F)}``. Caches nothing.
    """
    if context < 1:
        raise InputError(f"learned_positions: context must be at least 1, got {context}")
    draw = weights or initializers.small_normal(0.02)

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        check_context("learned_positions", shape, context)
        return {"w": draw(key, (context, shape[-1]), jnp.result_type(float))}, shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        check_context("learned_positions", x.shape[1:], context)
        return x + params["w"][: x.shape[1]], ()

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        used = delta.sum(axis=0)
        return delta, {"w": jnp.zeros_like(params["w"], dtype=delta.dtype).at[: used.shape[0]].set(used)}

    return Layer(init, forward, backward, name=f"learned_positions({context})")


def sinusoidal_positions() -> Layer:
    """Adds ``sin`` and ``cos`` of the position at wavelengths from 2 pi to 20,000 pi. Vaswani et al. (2017). No parameters."""

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        _check_sequence("sinusoidal_positions", shape)
        return (), shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        _check_sequence("sinusoidal_positions", x.shape[1:])
        angles = _angles(x.shape[1], -(-x.shape[-1] // 2))
        waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(x.shape[1], -1)[:, : x.shape[-1]]
        return x + waves.astype(x.dtype), ()

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        return delta, ()

    return Layer(init, forward, backward, name="sinusoidal_positions")


def _angles(positions: int, pairs: int) -> Array:
    """``position / 10000^(i / pairs)``, ``(positions, pairs)``."""
    rates = jnp.exp(-math.log(10000.0) * jnp.arange(pairs) / pairs)
    return jnp.arange(positions)[:, None] * rates


def _check_sequence(kind: str, shape: Shape) -> None:
    if len(shape) != 2:
        raise ShapeError(f"{kind} expects examples of shape (T, F), got {shape}")


def check_context(kind: str, shape: Shape, context: int) -> None:
    """ShapeError unless an example is a sequence of vectors of at most ``context`` positions."""
    _check_sequence(kind, shape)
    if shape[0] > context:
        raise ShapeError(f"{kind} expects at most {context} positions (the context), got a sequence of {shape[0]}")
