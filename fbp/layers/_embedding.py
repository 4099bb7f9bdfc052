"""Tokens and positions as vectors."""

import math

import jax.numpy as jnp

from fbp import initializers
from fbp._arguments import checked
from fbp._kernels import at_least_float32
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


@checked
def embedding(vocabulary: int, features: int, *, weights: Initializer | None = None) -> Layer:
    """Return a row of a table for each token: ``(B, ...)`` integers to ``(B, ..., features)``.

    The backward pass adds each delta to its token's row (a scatter-add). Tokens have no delta, so
    the input delta is None. Tokens must lie in ``[0, vocabulary)``: they are checked when the data
    is read, and another token gives a row of NaN.

    Args:
        vocabulary: number of tokens.
        features: width of a row.
        weights: initializer of the table; normal with deviation 0.02 by default (Radford et al.,
            2019).

    Returns:
        A layer with parameters ``{"w": (vocabulary, features)}``. Its cache is its input.

    Raises:
        InputError: if ``vocabulary`` or ``features`` is less than 1.
        ShapeError: if the input is not integers.
    """
    draw = weights or initializers.small_normal(0.02)

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return {"w": draw(key, (vocabulary, features), jnp.result_type(float))}, (*shape, features)

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ShapeError(f"embedding expects whole numbers as tokens, got {x.dtype}")
        return jnp.asarray(params["w"]).at[x].get(mode="fill", wrap_negative_indices=False), x

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[None, Grads]:
        wide = at_least_float32(delta)  # a sum over many tokens
        rows = delta.reshape(-1, features).astype(wide)
        table = jnp.zeros((vocabulary, features), wide)
        table = table.at[cache.reshape(-1)].add(rows, mode="drop", wrap_negative_indices=False)
        return None, {"w": table.astype(delta.dtype)}

    return Layer(
        init, forward, backward, kind="embedding", name=f"embedding({vocabulary}, {features})"
    )


@checked
def unembedding(vocabulary: int, *, weights: Initializer | None = None) -> Layer:
    """Return the logits ``x w^T``: an embedding's table read the other way.

    It can share its table with an :func:`embedding` by :func:`fbp.tie` (Press and Wolf, 2017).

    Args:
        vocabulary: number of tokens.
        weights: initializer of the table; normal with deviation 0.02 by default.

    Returns:
        A layer from ``(B, ..., F)`` to ``(B, ..., vocabulary)`` with parameters
        ``{"w": (vocabulary, F)}``. Its cache is its input.

    Raises:
        InputError: if ``vocabulary`` is less than 1.
        ShapeError: if the input does not fit.
    """
    draw = weights or initializers.small_normal(0.02)

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if not shape:
            raise ShapeError(
                "unembedding expects an input with at least one axis besides the batch, "
                "got shape ()"
            )
        return {"w": draw(key, (vocabulary, shape[-1]), jnp.result_type(float))}, (
            *shape[:-1],
            vocabulary,
        )

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        if x.shape[-1] != params["w"].shape[1]:
            raise ShapeError(
                f"unembedding expects {params['w'].shape[1]} features, "
                f"got an input of shape {x.shape}"
            )
        return x @ params["w"].T, x

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        rows = delta.reshape(-1, vocabulary)
        return delta @ params["w"], {"w": rows.T @ cache.reshape(-1, cache.shape[-1])}

    return Layer(init, forward, backward, kind="unembedding", name=f"unembedding({vocabulary})")


@checked
def learned_positions(context: int | None = None, *, weights: Initializer | None = None) -> Layer:
    """Return the layer that adds a learned vector to each position, ``(B, T, F) -> (B, T, F)``.

    Args:
        context: largest T; that of the shape that ``init`` is called with by default.
        weights: initializer of the vectors; normal with deviation 0.02 by default.

    Returns:
        A layer with parameters ``{"w": (context, F)}``. It caches nothing.

    Raises:
        InputError: if ``context`` is less than 1.
        ShapeError: if a sequence is longer than ``context``, or does not fit.
    """
    if context is not None and context < 1:
        raise InputError(f"learned_positions: context must be at least 1, got {context}")
    draw = weights or initializers.small_normal(0.02)

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        _check_sequence("learned_positions", shape)
        positions = context or shape[0]
        _check_context(shape, positions)
        return {"w": draw(key, (positions, shape[-1]), jnp.result_type(float))}, shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        _check_sequence("learned_positions", x.shape[1:])
        _check_context(x.shape[1:], params["w"].shape[0])
        if x.shape[-1] != params["w"].shape[1]:
            raise ShapeError(
                f"learned_positions expects {params['w'].shape[1]} features, "
                f"got an input of shape {x.shape}"
            )
        return x + params["w"][: x.shape[1]], ()

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        rows = delta.sum(axis=0)
        zeros = jnp.zeros_like(params["w"], dtype=delta.dtype)
        return delta, {"w": zeros.at[: rows.shape[0]].set(rows)}

    def step(params: Params, x: Array, position: Array) -> tuple[Array, Array]:
        return x + params["w"][position], position + 1

    name = f"learned_positions({context})" if context else "learned_positions"
    return Layer(
        init,
        forward,
        backward,
        kind="learned_positions",
        name=name,
        incremental=IncrementalForward(_first_position, step, limited=True),
    )


def sinusoidal_positions() -> Layer:
    """Return the layer that adds ``sin`` and ``cos`` of the position, ``(B, T, F) -> (B, T, F)``.

    The wavelengths go from 2 pi to 20,000 pi. Vaswani et al. (2017). It has no parameters and
    caches nothing.

    Raises:
        ShapeError: if an example is not (T, F).
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        _check_sequence("sinusoidal_positions", shape)
        return (), shape

    def waves(x: Array, start: Array | int) -> Array:
        turn = angles(x.shape[1], -(-x.shape[-1] // 2), start)
        both = jnp.stack([jnp.sin(turn), jnp.cos(turn)], axis=-1)
        return both.reshape(x.shape[1], -1)[:, : x.shape[-1]].astype(x.dtype)

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        _check_sequence("sinusoidal_positions", x.shape[1:])
        return x + waves(x, 0), ()

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        return delta, ()

    def step(params: Params, x: Array, position: Array) -> tuple[Array, Array]:
        return x + waves(x, position), position + 1

    return Layer(
        init,
        forward,
        backward,
        kind="sinusoidal_positions",
        incremental=IncrementalForward(_first_position, step),
    )


def _first_position(batch: int, shape: Shape) -> Array:
    return jnp.zeros((), jnp.int32)


def angles(positions: int, pairs: int, start: Array | int = 0) -> Array:
    """Return ``position / 10000^(i / pairs)``, (positions, pairs), for positions from ``start``."""
    rates = jnp.exp(-math.log(10000.0) * jnp.arange(pairs) / pairs)
    return (start + jnp.arange(positions))[:, None] * rates


def _check_sequence(kind: str, shape: Shape) -> None:
    if len(shape) != 2:
        raise ShapeError(f"{kind} expects examples of shape (T, F), got {shape}")


def _check_context(shape: Shape, context: int) -> None:
    if shape[0] > context:
        raise ShapeError(
            f"learned_positions expects at most {context} positions (the context), "
            f"got a sequence of {shape[0]}"
        )
