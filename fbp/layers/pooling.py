"""Pooling: one number for each window of an image (B, H, W, C) or sequence (B, T, C), channel by channel."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from fbp.errors import ShapeError
from fbp.layer import Array, Cache, Grads, Key, Layer, Params, Shape, array_to_shape, shape_to_array
from fbp.layers.convolution import Padding, Window, window_of


def max_pool(
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Layer:
    """The largest of each window. The first of equals, in row-major order, gets the whole delta.

    The cache is the place of the largest in its window, one byte for each output (for windows up to 256 places).

    Args:
        window: the window's size; one number stands for all spatial axes.
        stride: how far it moves; its own size by default.
        padding: as in ``conv2d``; padding never wins.
    """

    def forward(moving: Window, x: Array) -> tuple[Array, Cache]:
        lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
        places = moving.places(x, fill=lowest)
        largest, winner = (
            places[0],
            jnp.zeros(places[0].shape, jnp.uint8 if len(places) <= 256 else jnp.int32),
        )
        for k, place in enumerate(places[1:], start=1):
            better = (place > largest) | (place != place)  # NaN wins, so that it is seen
            largest, winner = (
                jnp.where(better, place, largest),
                jnp.where(better, k, winner).astype(winner.dtype),
            )
        return largest, winner

    def backward(moving: Window, winner: Any, delta: Array, shape: Shape) -> Array:
        return spread(
            moving, [jnp.where(winner == k, delta, 0) for k in range(math.prod(moving.size))], shape
        )

    return _pool("max_pool", window, stride, padding, forward, backward)


def avg_pool(
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Layer:
    """The mean of each window; padding does not count. The cache holds only the shape and the counts.

    Args:
        window: the window's size; one number stands for all spatial axes.
        stride: how far it moves; its own size by default.
        padding: as in ``conv2d``.
    """

    def forward(moving: Window, x: Array) -> tuple[Array, Cache]:
        wide = jnp.promote_types(x.dtype, jnp.float32)  # a sum over many places
        inside: Any = sum(moving.places(jnp.ones((1, *x.shape[1:-1], 1), wide)))
        total: Any = sum(moving.places(x.astype(wide)))
        mean = total / inside
        return mean.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else mean, inside

    def backward(moving: Window, inside: Any, delta: Array, shape: Shape) -> Array:
        share = (delta / inside).astype(delta.dtype)
        if moving.tiles(shape[1:-1]):
            return spread_tiles(moving, share, shape)
        return spread(moving, [share] * math.prod(moving.size), shape)

    return _pool("avg_pool", window, stride, padding, forward, backward)


def _pool(kind: str, size: Any, stride: Any, padding: Padding, pool: Any, back: Any) -> Layer:
    """A pooling layer from ``pool(window, x) -> (y, kept)`` and ``back(window, kept, delta, shape of x) -> input delta``."""

    def window_for(shape: Shape) -> Window:
        rank = len(shape) - 1
        if rank not in (1, 2):
            raise ShapeError(f"{kind} expects examples of shape (H, W, C) or (T, C), got {shape}")
        return window_of(kind, rank, size, size if stride is None else stride, 1, padding)

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), (*window_for(shape).output(shape[:-1]), shape[-1])

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        y, kept = pool(window_for(x.shape[1:]), x)
        return y, (shape_to_array(x.shape[1:]), kept)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        token, kept = cache
        shape = array_to_shape(token)
        return back(window_for(shape), kept, delta, (delta.shape[0], *shape)), ()

    text = size if isinstance(size, int) else "x".join(map(str, size))
    return Layer(init, forward, backward, name=f"{kind}({text})")


def spread(window: Window, parts: Sequence[Array], shape: Shape) -> Array:
    """The transpose of :meth:`Window.places`: each place's part back to where it came from, overlaps added up."""
    pads = window.pads(shape[1:-1])
    total = None
    for place, part in zip(itertools.product(*map(range, window.size)), parts, strict=True):
        config = [(0, 0, 0)]
        for n, k, d, s, (low, _), count in zip(
            shape[1:-1], place, window.dilation, window.stride, pads, part.shape[1:-1], strict=True
        ):
            before = k * d - low
            config.append((before, n - before - ((count - 1) * s + 1), s - 1))
        moved = lax.pad(part, jnp.zeros((), part.dtype), [*config, (0, 0, 0)])
        total = moved if total is None else total + moved
    assert total is not None
    return total


def spread_tiles(window: Window, part: Array, shape: Shape) -> Array:
    """:func:`spread` of the same part for every place, where windows lie side by side: written once, nothing is added up."""
    rank = len(window.size)
    tiled = [
        n for pair in zip(part.shape[1:-1], window.size, strict=True) for n in pair
    ]  # (B, H', kh, W', kw, C)
    whole = jnp.broadcast_to(
        jnp.expand_dims(part, [2 * axis + 2 for axis in range(rank)]), (shape[0], *tiled, shape[-1])
    )
    covered = [n * k for n, k in zip(part.shape[1:-1], window.size, strict=True)]
    left = [(0, n - m) for n, m in zip(shape[1:-1], covered, strict=True)]
    return jnp.pad(whole.reshape(shape[0], *covered, shape[-1]), [(0, 0), *left, (0, 0)])


def global_avg_pool() -> Layer:
    """The mean over all positions: ``(B, ..., C) -> (B, C)``. The cache holds only the shape."""

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        _check_positions("global_avg_pool", shape)
        return (), shape[-1:]

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        _check_positions("global_avg_pool", x.shape[1:])
        return x.mean(axis=tuple(range(1, x.ndim - 1))), shape_to_array(x.shape[1:])

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        shape = array_to_shape(cache)
        share = (delta / math.prod(shape[:-1])).reshape(
            delta.shape[0], *[1] * (len(shape) - 1), shape[-1]
        )
        return jnp.broadcast_to(share, (delta.shape[0], *shape)), ()

    return Layer(init, forward, backward, name="global_avg_pool")


def global_max_pool() -> Layer:
    """The largest over all positions: ``(B, ..., C) -> (B, C)``; the first of equals gets the delta. The cache is its place."""

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        _check_positions("global_max_pool", shape)
        return (), shape[-1:]

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        _check_positions("global_max_pool", x.shape[1:])
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        winner = rows.argmax(axis=1, keepdims=True)
        return jnp.take_along_axis(rows, winner, axis=1)[:, 0], (
            shape_to_array(x.shape[1:]),
            winner,
        )

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        token, winner = cache
        shape = array_to_shape(token)
        rows = jnp.zeros((delta.shape[0], math.prod(shape[:-1]), shape[-1]), delta.dtype)
        rows = jnp.put_along_axis(
            rows, winner, delta[:, None], axis=1, inplace=False, mode="promise_in_bounds"
        )
        return rows.reshape(-1, *shape), ()

    return Layer(init, forward, backward, name="global_max_pool")


def _check_positions(kind: str, shape: Shape) -> None:
    if len(shape) < 2:
        raise ShapeError(
            f"{kind} expects examples with positions and channels, (..., C), got {shape}"
        )
