"""Tokens and positions as vectors."""

import math

import jax.numpy as jnp

from fbp import initializers
from fbp.errors import InputError, ShapeError
from fbp.layer import (
    Array,
    Cache,
    Grads,
    IncrementalForward,
    Initializer,
    Key,
    Layer,
    Params,
    Shape,
)


def embedding(vocabulary: int, features: int, *, weights: Initializer | None = None) -> Layer:
    """A row of a table for each token: ``(B, ...)`` integers to ``(B, ..., features)``.

    The backward pass adds each delta to its token's row (a scatter-add); tokens have no delta, so the input delta is None.
    Tokens must lie in ``[0, vocabulary)``: they are checked where the data is read; one that does not gives a row of NaN.

    Args:
        vocabulary: how many tokens there are.
        features: the width of a row.
        weights: initializer of the table; normal with deviation 0.02 by default (Radford et al., 2019).

    Returns:
        A layer with parameters ``{"w": (vocabulary, features)}``. Its cache is its input.
    """
    if vocabulary < 1 or features < 1:
        raise InputError(
            f"embedding: vocabulary and features must be at least 1, got {vocabulary} and {features}"
        )
    draw = weights or initializers.small_normal(0.02)

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return {"w": draw(key, (vocabulary, features), jnp.result_type(float))}, (*shape, features)

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ShapeError(f"embedding expects whole numbers as tokens, got {x.dtype}")
        return jnp.asarray(params["w"]).at[x].get(mode="fill", wrap_negative_indices=False), x

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[None, Grads]:
        wide = jnp.promote_types(delta.dtype, jnp.float32)  # a sum over many tokens
        rows = delta.reshape(-1, features).astype(wide)
        table = jnp.zeros((vocabulary, features), wide)
        table = table.at[cache.reshape(-1)].add(rows, mode="drop", wrap_negative_indices=False)
        return None, {"w": table.astype(delta.dtype)}

    return Layer(init, forward, backward, name=f"embedding({vocabulary}, {features})")


def unembedding(vocabulary: int, *, weights: Initializer | None = None) -> Layer:
    """An embedding's table read the other way: ``(B, ..., F) -> (B, ..., vocabulary)`` logits ``x w^T``.

    Made to share its table with an :func:`embedding` (Press and Wolf, 2017), by :func:`fbp.tie`.

    Returns:
        A layer with parameters ``{"w": (vocabulary, F)}``. Its cache is its input.
    """
    if vocabulary < 1:
        raise InputError(f"unembedding: vocabulary must be at least 1, got {vocabulary}")
    draw = weights or initializers.small_normal(0.02)

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if not shape:
            raise ShapeError(
                "unembedding expects an input with at least one axis besides the batch, got shape ()"
            )
        return {"w": draw(key, (vocabulary, shape[-1]), jnp.result_type(float))}, (
            *shape[:-1],
            vocabulary,
        )

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        if x.shape[-1] != params["w"].shape[1]:
            raise ShapeError(
                f"unembedding expects {params['w'].shape[1]} features, got an input of shape {x.shape}"
            )
        return x @ params["w"].T, x

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        rows = delta.reshape(-1, vocabulary)
        return delta @ params["w"], {"w": rows.T @ cache.reshape(-1, cache.shape[-1])}

    return Layer(init, forward, backward, name=f"unembedding({vocabulary})")


def learned_positions(context: int | None = None, *, weights: Initializer | None = None) -> Layer:
    """Adds a learned vector for each position: ``(B, T, F) -> (B, T, F)`` for T up to ``context``.

    Args:
        context: the most positions; by default as many as the examples have that the parameters are drawn for.
        weights: initializer of the vectors; normal with deviation 0.02 by default.

    Returns:
        A layer with parameters ``{"w": (context, F)}``. Caches nothing.

    Raises:
        ShapeError: for a sequence that is longer.
    """
    if context is not None and context < 1:
        raise InputError(f"learned_positions: context must be at least 1, got {context}")
    draw = weights or initializers.small_normal(0.02)

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        _check_sequence("learned_positions", shape)
        most = context or shape[0]
        _check_context(shape, most)
        return {"w": draw(key, (most, shape[-1]), jnp.result_type(float))}, shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        _check_sequence("learned_positions", x.shape[1:])
        _check_context(x.shape[1:], params["w"].shape[0])
        if x.shape[-1] != params["w"].shape[1]:
            raise ShapeError(
                f"learned_positions expects {params['w'].shape[1]} features, got an input of shape {x.shape}"
            )
        return x + params["w"][: x.shape[1]], ()

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        used = delta.sum(axis=0)
        return delta, {
            "w": jnp.zeros_like(params["w"], dtype=delta.dtype).at[: used.shape[0]].set(used)
        }

    def step(params: Params, x: Array, at: Array) -> tuple[Array, Array]:
        return x + params["w"][at], at + 1

    name = f"learned_positions({context})" if context else "learned_positions"
    return Layer(
        init,
        forward,
        backward,
        name=name,
        incremental=IncrementalForward(_first, step, limited=True),
    )


def sinusoidal_positions() -> Layer:
    """Adds ``sin`` and ``cos`` of the position at wavelengths from 2 pi to 20,000 pi. Vaswani et al. (2017). No parameters."""

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        _check_sequence("sinusoidal_positions", shape)
        return (), shape

    def waves(x: Array, first: Array | int) -> Array:
        turn = angles(x.shape[1], -(-x.shape[-1] // 2), first)
        both = jnp.stack([jnp.sin(turn), jnp.cos(turn)], axis=-1)
        return both.reshape(x.shape[1], -1)[:, : x.shape[-1]].astype(x.dtype)

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        _check_sequence("sinusoidal_positions", x.shape[1:])
        return x + waves(x, 0), ()

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        return delta, ()

    def step(params: Params, x: Array, at: Array) -> tuple[Array, Array]:
        return x + waves(x, at), at + 1

    return Layer(
        init,
        forward,
        backward,
        name="sinusoidal_positions",
        incremental=IncrementalForward(_first, step),
    )


def _first(batch: int, shape: Shape) -> Array:
    return jnp.zeros((), jnp.int32)


def angles(positions: int, pairs: int, first: Array | int = 0) -> Array:
    """``position / 10000^(i / pairs)``, ``(positions, pairs)``, positions counted from ``first``."""
    rates = jnp.exp(-math.log(10000.0) * jnp.arange(pairs) / pairs)
    return (first + jnp.arange(positions))[:, None] * rates


def _check_sequence(kind: str, shape: Shape) -> None:
    if len(shape) != 2:
        raise ShapeError(f"{kind} expects examples of shape (T, F), got {shape}")


def _check_context(shape: Shape, context: int) -> None:
    if shape[0] > context:
        raise ShapeError(
            f"learned_positions expects at most {context} positions (the context), got a sequence of {shape[0]}"
        )
