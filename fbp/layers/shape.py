"""Layers that only move numbers: each backward is the inverse move. Caches hold shapes only."""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Cache, Grads, Key, Layer, Params, Shape, array_to_shape, shape_to_array


def _move(
    name: str,
    shape_of: Callable[[Shape], Shape],
    there: Callable[[Array], Array],
    back: Callable[[Array, Shape], Array],
) -> Layer:
    """A layer from the move ``there(x)`` and its transpose ``back(delta, example's shape)``."""

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), shape_of(shape)

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        shape_of(x.shape[1:])  # raises where the move is impossible
        return there(x), shape_to_array(x.shape[1:])

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        return back(delta, array_to_shape(cache)), ()

    return Layer(init, forward, backward, name=name)


def flatten() -> Layer:
    """``(B, ...) -> (B, F)``."""
    return _move(
        "flatten",
        lambda shape: (math.prod(shape),),
        lambda x: x.reshape(x.shape[0], -1),
        lambda delta, shape: delta.reshape(-1, *shape),
    )


def reshape(shape: Sequence[int]) -> Layer:
    """``(B, ...) -> (B, *shape)``; one size may be -1 and follows from the others."""
    target = tuple(shape)
    if sum(n == -1 for n in target) > 1 or any(n < 1 and n != -1 for n in target):
        raise InputError(f"reshape: expected sizes of at least 1, and at most one -1, got {target}")

    def shape_of(given: Shape) -> Shape:
        count, known = math.prod(given), math.prod(n for n in target if n != -1)
        if count % known or (-1 not in target and count != known):
            raise ShapeError(f"reshape to {target} does not fit an input of shape {given}")
        return tuple(count // known if n == -1 else n for n in target)

    return _move(
        f"reshape({'x'.join(map(str, target))})",
        shape_of,
        lambda x: x.reshape(x.shape[0], *shape_of(x.shape[1:])),
        lambda delta, given: delta.reshape(-1, *given),
    )


def transpose(order: Sequence[int]) -> Layer:
    """The axes of an example (without the batch's) in another order, counted from 0."""
    order = tuple(order)
    if sorted(order) != list(range(len(order))):
        raise InputError(
            f"transpose: expected each axis from 0 to {len(order) - 1} once, got {order}"
        )
    inverse = tuple(order.index(i) for i in range(len(order)))

    def shape_of(shape: Shape) -> Shape:
        if len(shape) != len(order):
            raise ShapeError(
                f"transpose of {len(order)} axes does not fit an input of shape {shape}"
            )
        return tuple(shape[i] for i in order)

    return _move(
        f"transpose({', '.join(map(str, order))})",
        shape_of,
        lambda x: x.transpose(0, *(i + 1 for i in order)),
        lambda delta, shape: delta.transpose(0, *(i + 1 for i in inverse)),
    )


def pad(widths: Sequence[tuple[int, int]]) -> Layer:
    """Zeros before and after each spatial axis: a pair for each, ``(B, H, W, C)`` with two pairs."""
    widths = tuple((before, after) for before, after in widths)
    if any(n < 0 for pair in widths for n in pair):
        raise InputError(
            f"pad: expected pairs of at least 0, got {widths}; use crop to make it smaller"
        )

    def shape_of(shape: Shape) -> Shape:
        _check_spatial("pad", shape, widths)
        return (*(n + a + b for n, (a, b) in zip(shape, widths, strict=False)), shape[-1])

    return _move(
        f"pad({', '.join(f'{a}+{b}' for a, b in widths)})",
        shape_of,
        lambda x: jnp.pad(x, [(0, 0), *widths, (0, 0)]),
        lambda delta, shape: delta[
            (slice(None), *(slice(a, a + n) for n, (a, _) in zip(shape, widths, strict=False)))
        ],
    )


def crop(widths: Sequence[tuple[int, int]]) -> Layer:
    """Takes so many positions away before and after each spatial axis: a pair for each."""
    widths = tuple((before, after) for before, after in widths)
    if any(n < 0 for pair in widths for n in pair):
        raise InputError(
            f"crop: expected pairs of at least 0, got {widths}; use pad to make it larger"
        )

    def shape_of(shape: Shape) -> Shape:
        _check_spatial("crop", shape, widths)
        sizes = [n - a - b for n, (a, b) in zip(shape, widths, strict=False)]
        if any(n < 1 for n in sizes):
            raise ShapeError(f"crop of {widths} leaves nothing of an input of shape {shape}")
        return (*sizes, shape[-1])

    return _move(
        f"crop({', '.join(f'{a}+{b}' for a, b in widths)})",
        shape_of,
        lambda x: x[
            (
                slice(None),
                *(slice(a, n - b) for n, (a, b) in zip(x.shape[1:], widths, strict=False)),
            )
        ],
        lambda delta, shape: jnp.pad(delta, [(0, 0), *widths, (0, 0)]),
    )


def _check_spatial(kind: str, shape: Shape, widths: tuple[tuple[int, int], ...]) -> None:
    if len(shape) != len(widths) + 1:
        raise ShapeError(
            f"{kind} with {len(widths)} pairs expects {len(widths)} spatial axes and channels, got {shape}"
        )


def upsample(factor: int) -> Layer:
    """Each position repeated ``factor`` times along each spatial axis (nearest neighbour)."""
    if factor < 1:
        raise InputError(f"upsample: factor must be at least 1, got {factor}")

    def shape_of(shape: Shape) -> Shape:
        if len(shape) < 2:
            raise ShapeError(
                f"upsample expects examples with positions and channels, (..., C), got {shape}"
            )
        return (*(n * factor for n in shape[:-1]), shape[-1])

    def there(x: Array) -> Array:
        split = [part for n in x.shape[1:-1] for part in (n, 1)]
        repeated = [part for n in x.shape[1:-1] for part in (n, factor)]
        batch, channels = x.shape[0], x.shape[-1]
        wide = jnp.broadcast_to(x.reshape(batch, *split, channels), (batch, *repeated, channels))
        return wide.reshape(batch, *shape_of(x.shape[1:]))

    def back(delta: Array, shape: Shape) -> Array:
        repeated = [part for n in shape[:-1] for part in (n, factor)]
        blocks = delta.reshape(-1, *repeated, shape[-1])
        return blocks.sum(axis=tuple(range(2, 2 * len(shape) - 1, 2)))

    return _move(f"upsample({factor})", shape_of, there, back)
