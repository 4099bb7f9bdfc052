"""Layers that only move numbers: each backward is the inverse move. Caches hold shapes only."""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from fbp._arguments import checked
from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Cache, Layer, Shape, array_to_shape, parameterless, shape_to_array


def flatten() -> Layer:
    """Return the layer ``(B, ...) -> (B, F)``."""
    return _shape_layer(
        "flatten",
        lambda shape: (math.prod(shape),),
        lambda x: x.reshape(x.shape[0], math.prod(x.shape[1:])),
        lambda delta, shape: delta.reshape(delta.shape[0], *shape),
    )


@checked
def reshape(shape: Sequence[int]) -> Layer:
    """Return the layer ``(B, ...) -> (B, *shape)``.

    Args:
        shape: one example's new shape; one size may be -1 and follows from the others.

    Raises:
        InputError: if a size is less than 1, or more than one is -1.
        ShapeError: if the input has another number of elements.
    """
    target = tuple(shape)
    if sum(n == -1 for n in target) > 1 or any(n < 1 and n != -1 for n in target):
        raise InputError(f"reshape: expected sizes of at least 1, and at most one -1, got {target}")

    def out_shape(shape: Shape) -> Shape:
        count, fixed = math.prod(shape), math.prod(n for n in target if n != -1)
        if count % fixed or (-1 not in target and count != fixed):
            raise ShapeError(f"reshape to {target} does not fit an input of shape {shape}")
        return tuple(count // fixed if n == -1 else n for n in target)

    return _shape_layer(
        "reshape",
        out_shape,
        lambda x: x.reshape(x.shape[0], *out_shape(x.shape[1:])),
        lambda delta, shape: delta.reshape(delta.shape[0], *shape),
        "x".join(map(str, target)),
    )


@checked
def transpose(order: Sequence[int]) -> Layer:
    """Return an example's axes (without the batch's) in another order.

    Args:
        order: the axes of the input in the order of the output, counted from 0.

    Raises:
        InputError: if ``order`` does not hold each axis once.
        ShapeError: if the input has another number of axes.
    """
    order = tuple(order)
    if sorted(order) != list(range(len(order))):
        raise InputError(
            f"transpose: expected each axis from 0 to {len(order) - 1} once, got {order}"
        )
    inverse = tuple(order.index(i) for i in range(len(order)))

    def out_shape(shape: Shape) -> Shape:
        if len(shape) != len(order):
            raise ShapeError(
                f"transpose of {len(order)} axes does not fit an input of shape {shape}"
            )
        return tuple(shape[i] for i in order)

    return _shape_layer(
        "transpose",
        out_shape,
        lambda x: x.transpose(0, *(i + 1 for i in order)),
        lambda delta, shape: delta.transpose(0, *(i + 1 for i in inverse)),
        ", ".join(map(str, order)),
    )


@checked
def pad(widths: Sequence[tuple[int, int]]) -> Layer:
    """Return the input with zeros before and after each spatial axis.

    Args:
        widths: a pair (before, after) for each spatial axis: two pairs for (B, H, W, C).

    Raises:
        InputError: if a width is negative.
        ShapeError: if the input has another number of axes.
    """
    widths = _check_widths("pad", widths, "use crop to make it smaller")

    def out_shape(shape: Shape) -> Shape:
        _check_spatial("pad", shape, widths)
        return (*(n + a + b for n, (a, b) in zip(shape, widths, strict=False)), shape[-1])

    def backward(delta: Array, shape: Shape) -> Array:
        inner = (slice(a, a + n) for n, (a, _) in zip(shape, widths, strict=False))
        return delta[(slice(None), *inner)]

    return _shape_layer(
        "pad",
        out_shape,
        lambda x: jnp.pad(x, [(0, 0), *widths, (0, 0)]),
        backward,
        _widths_text(widths),
    )


@checked
def crop(widths: Sequence[tuple[int, int]]) -> Layer:
    """Return the input without some positions before and after each spatial axis.

    Args:
        widths: a pair (before, after) of counts to remove for each spatial axis.

    Raises:
        InputError: if a width is negative.
        ShapeError: if the input has another number of axes, or nothing is left of it.
    """
    widths = _check_widths("crop", widths, "use pad to make it larger")

    def out_shape(shape: Shape) -> Shape:
        _check_spatial("crop", shape, widths)
        sizes = [n - a - b for n, (a, b) in zip(shape, widths, strict=False)]
        if any(n < 1 for n in sizes):
            raise ShapeError(f"crop of {widths} leaves nothing of an input of shape {shape}")
        return (*sizes, shape[-1])

    def forward(x: Array) -> Array:
        inner = (slice(a, n - b) for n, (a, b) in zip(x.shape[1:], widths, strict=False))
        return x[(slice(None), *inner)]

    return _shape_layer(
        "crop",
        out_shape,
        forward,
        lambda delta, shape: jnp.pad(delta, [(0, 0), *widths, (0, 0)]),
        _widths_text(widths),
    )


@checked
def upsample(factor: int) -> Layer:
    """Return each position repeated along each spatial axis (nearest neighbour).

    Args:
        factor: number of copies along an axis.

    Raises:
        InputError: if ``factor`` is less than 1.
        ShapeError: if the input has no spatial axis.
    """

    def out_shape(shape: Shape) -> Shape:
        if len(shape) < 2:
            raise ShapeError(
                f"upsample expects examples with positions and channels, (..., C), got {shape}"
            )
        return (*(n * factor for n in shape[:-1]), shape[-1])

    def forward(x: Array) -> Array:
        split = [part for n in x.shape[1:-1] for part in (n, 1)]
        repeated = [part for n in x.shape[1:-1] for part in (n, factor)]
        batch, channels = x.shape[0], x.shape[-1]
        wide = jnp.broadcast_to(x.reshape(batch, *split, channels), (batch, *repeated, channels))
        return wide.reshape(batch, *out_shape(x.shape[1:]))

    def backward(delta: Array, shape: Shape) -> Array:
        repeated = [part for n in shape[:-1] for part in (n, factor)]
        blocks = delta.reshape(delta.shape[0], *repeated, shape[-1])
        return blocks.sum(axis=tuple(range(2, 2 * len(shape) - 1, 2)))

    return _shape_layer("upsample", out_shape, forward, backward, str(factor))


def _shape_layer(
    kind: str,
    out_shape: Callable[[Shape], Shape],
    forward: Callable[[Array], Array],
    backward: Callable[[Array, Shape], Array],
    arguments: str = "",
) -> Layer:
    """Return a layer from a move and its transpose ``backward(delta, one example's shape)``."""

    def checked_forward(x: Array) -> tuple[Array, Cache]:
        out_shape(x.shape[1:])  # raises if the move is impossible
        return forward(x), shape_to_array(x.shape[1:])

    return parameterless(
        kind,
        checked_forward,
        lambda cache, delta: backward(delta, array_to_shape(cache)),
        out_shape,
        name=f"{kind}({arguments})" if arguments else kind,
        incremental=None,
    )


def _check_widths(
    kind: str, widths: Sequence[tuple[int, int]], hint: str
) -> tuple[tuple[int, int], ...]:
    """Return the pairs as tuples; raise InputError if a width is negative."""
    pairs = tuple((low, high) for low, high in widths)
    if any(n < 0 for pair in pairs for n in pair):
        raise InputError(f"{kind}: expected pairs of at least 0, got {pairs}; {hint}")
    return pairs


def _widths_text(widths: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{a}+{b}" for a, b in widths)


def _check_spatial(kind: str, shape: Shape, widths: Sequence[tuple[int, int]]) -> None:
    if len(shape) != len(widths) + 1:
        raise ShapeError(
            f"{kind} with {len(widths)} pairs expects {len(widths)} spatial axes and channels, "
            f"got {shape}"
        )
