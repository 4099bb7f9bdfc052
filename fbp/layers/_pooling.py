"""Pooling: one number per channel for each window of an image (B, H, W, C) or sequence."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from fbp._arguments import checked
from fbp._kernels import at_least_float32
from fbp.errors import ShapeError
from fbp.layer import Array, Cache, Layer, Shape, array_to_shape, parameterless, shape_to_array
from fbp.layers._window import Padding, Window, make_window


class _Pooling(NamedTuple):
    """The arguments of a pooling layer; the rank follows from its input."""

    kind: str
    size: int | Sequence[int]
    stride: int | Sequence[int] | None
    padding: Padding

    def window(self, shape: Shape) -> Window:
        """Return the window for examples of ``shape``."""
        rank = len(shape) - 1
        if rank not in (1, 2):
            raise ShapeError(
                f"{self.kind} expects examples of shape (H, W, C) or (T, C), got {shape}"
            )
        stride = self.size if self.stride is None else self.stride
        return make_window(self.kind, rank, self.size, stride=stride, padding=self.padding)


@checked
def max_pool(
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Layer:
    """Return the largest of each window.

    The first of equals, in row-major order, gets the whole delta. NaN wins, so that it is seen. The
    cache is the offset of the largest, one byte for each output (for windows up to 256 offsets).

    Args:
        window: the window's size; one number stands for all spatial axes.
        stride: distance between windows; the window's size by default.
        padding: as in ``conv2d``; padding is never the maximum.
    """

    def forward(window: Window, x: Array) -> tuple[Array, Cache]:
        lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
        largest, *others = window.patches(x, fill=lowest)
        winner = jnp.zeros(largest.shape, jnp.uint8 if len(others) < 256 else jnp.int32)
        for k, patch in enumerate(others, start=1):
            is_larger = (patch > largest) | (patch != patch)
            largest = jnp.where(is_larger, patch, largest)
            winner = jnp.where(is_larger, k, winner).astype(winner.dtype)
        return largest, winner

    def backward(window: Window, winner: Any, delta: Array, shape: Shape) -> Array:
        offsets = range(math.prod(window.size))
        return scatter_patches(window, [jnp.where(winner == k, delta, 0) for k in offsets], shape)

    return _pool(_Pooling("max_pool", window, stride, padding), forward, backward)


@checked
def avg_pool(
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Layer:
    """Return the mean of each window; padding does not count.

    The cache holds only the shape and the counts.

    Args:
        window: the window's size; one number stands for all spatial axes.
        stride: distance between windows; the window's size by default.
        padding: as in ``conv2d``.
    """

    def forward(window: Window, x: Array) -> tuple[Array, Cache]:
        wide = at_least_float32(x)  # a sum over many positions
        count: Any = sum(window.patches(jnp.ones((1, *x.shape[1:-1], 1), wide)))
        total: Any = sum(window.patches(x.astype(wide)))
        mean = total / count
        return mean.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else mean, count

    def backward(window: Window, count: Any, delta: Array, shape: Shape) -> Array:
        share = (delta / count).astype(delta.dtype)
        if window.is_non_overlapping(shape[1:-1]):
            return _repeat_in_windows(window, share, shape)
        return scatter_patches(window, [share] * math.prod(window.size), shape)

    return _pool(_Pooling("avg_pool", window, stride, padding), forward, backward)


def _pool(
    pooling: _Pooling,
    pool: Callable[[Window, Array], tuple[Array, Cache]],
    pool_backward: Callable[[Window, Any, Array, Shape], Array],
) -> Layer:
    """Return a pooling layer.

    ``pool`` maps ``(window, x)`` to ``(y, saved)``, ``pool_backward`` maps ``(window, saved, delta,
    shape of x)`` to the input delta.
    """

    def out_shape(shape: Shape) -> Shape:
        window = pooling.window(shape)
        _require_input_in_windows(pooling.kind, window, shape[:-1])
        return (*window.output(shape[:-1]), shape[-1])

    def forward(x: Array) -> tuple[Array, Cache]:
        window = pooling.window(x.shape[1:])
        _require_input_in_windows(pooling.kind, window, x.shape[1:-1])
        y, saved = pool(window, x)
        return y, (shape_to_array(x.shape[1:]), saved)

    def backward(cache: Cache, delta: Array) -> Array:
        shape_array, saved = cache
        shape = array_to_shape(shape_array)
        return pool_backward(pooling.window(shape), saved, delta, (delta.shape[0], *shape))

    size = pooling.size
    text = size if isinstance(size, int) else "x".join(map(str, size))
    return parameterless(
        pooling.kind,
        forward,
        backward,
        out_shape,
        name=f"{pooling.kind}({text})",
        incremental=None,
    )


def _require_input_in_windows(kind: str, window: Window, shape: Shape) -> None:
    """Raise ShapeError if a window lies in padding alone, where it has neither maximum nor mean."""
    sizes = zip(
        shape, window.size, window.stride, window.pads(shape), window.output(shape), strict=True
    )
    for n, size, stride, (before, _), count in sizes:
        if count and (before >= size or (count - 1) * stride - before >= n):
            raise ShapeError(
                f"{kind}: expected that each window holds a part of the input, but with this "
                f"padding one of size {size} lies in padding alone; pad by less than the window"
            )


def scatter_patches(window: Window, parts: Sequence[Array], shape: Shape) -> Array:
    """Transpose :meth:`Window.patches`: add each offset's part at its positions in the input.

    Args:
        window: the window.
        parts: an array (B, *output, C) for each offset.
        shape: the input's, (B, spatial..., C).
    """
    pads = window.pads(shape[1:-1])
    total = None
    for offset, part in zip(window.offsets(), parts, strict=True):
        config = [(0, 0, 0)]
        for n, k, d, s, (low, _), count in zip(
            shape[1:-1], offset, window.dilation, window.stride, pads, part.shape[1:-1], strict=True
        ):
            start = k * d - low
            config.append((start, n - start - ((count - 1) * s + 1), s - 1))
        moved = lax.pad(part, jnp.zeros((), part.dtype), [*config, (0, 0, 0)])
        total = moved if total is None else total + moved
    assert total is not None
    return total


def _repeat_in_windows(window: Window, part: Array, shape: Shape) -> Array:
    """Return :func:`scatter_patches` of one part for all offsets of windows that do not overlap.

    Each number is written once, and nothing is added up.
    """
    rank, positions = len(window.size), part.shape[1:-1]
    pairs = list(zip(positions, window.size, strict=True))
    expanded = jnp.expand_dims(part, [2 * axis + 2 for axis in range(rank)])
    split = [n for pair in pairs for n in pair]
    whole = jnp.broadcast_to(expanded, (shape[0], *split, shape[-1]))  # (B, H', kh, W', kw, C)
    covered = [n * k for n, k in pairs]
    rest = [(0, n - m) for n, m in zip(shape[1:-1], covered, strict=True)]
    return jnp.pad(whole.reshape(shape[0], *covered, shape[-1]), [(0, 0), *rest, (0, 0)])


def global_avg_pool() -> Layer:
    """Return the mean over all positions: ``(B, ..., C) -> (B, C)``. The cache is the shape."""

    def forward(x: Array) -> tuple[Array, Cache]:
        _channels("global_avg_pool", x.shape[1:])
        return x.mean(axis=tuple(range(1, x.ndim - 1))), shape_to_array(x.shape[1:])

    def backward(cache: Cache, delta: Array) -> Array:
        shape = array_to_shape(cache)
        share = (delta / math.prod(shape[:-1])).reshape(
            delta.shape[0], *[1] * (len(shape) - 1), shape[-1]
        )
        return jnp.broadcast_to(share, (delta.shape[0], *shape))

    return _global_pool("global_avg_pool", forward, backward)


def global_max_pool() -> Layer:
    """Return the largest over all positions: ``(B, ..., C) -> (B, C)``.

    The first of equals gets the delta. The cache is its position, and the shape.
    """

    def forward(x: Array) -> tuple[Array, Cache]:
        _channels("global_max_pool", x.shape[1:])
        rows = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
        winner = rows.argmax(axis=1, keepdims=True)
        largest = jnp.take_along_axis(rows, winner, axis=1)[:, 0]
        return largest, (shape_to_array(x.shape[1:]), winner)

    def backward(cache: Cache, delta: Array) -> Array:
        shape_array, winner = cache
        shape = array_to_shape(shape_array)
        rows = jnp.zeros((delta.shape[0], math.prod(shape[:-1]), shape[-1]), delta.dtype)
        rows = jnp.put_along_axis(
            rows, winner, delta[:, None], axis=1, inplace=False, mode="promise_in_bounds"
        )
        return rows.reshape(delta.shape[0], *shape)

    return _global_pool("global_max_pool", forward, backward)


def _global_pool(kind: str, forward: Any, backward: Any) -> Layer:
    return parameterless(
        kind, forward, backward, lambda shape: _channels(kind, shape), incremental=None
    )


def _channels(kind: str, shape: Shape) -> Shape:
    """Return ``(C,)``; raise ShapeError unless an example has positions and channels."""
    if len(shape) < 2:
        raise ShapeError(
            f"{kind} expects examples with positions and channels, (..., C), got {shape}"
        )
    return shape[-1:]
