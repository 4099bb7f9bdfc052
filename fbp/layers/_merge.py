"""Layers with several inputs, for :func:`fbp.graph`: the input is a tuple, and so is its delta."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from fbp.errors import ShapeError
from fbp.layer import Array, Cache, Layer, Shape, array_to_shape, parameterless, shape_to_array

Arrays = tuple[Array, ...]


def add() -> Layer:
    """Return the sum of the inputs, all of one shape; each gets the delta as it is."""
    return _merge(
        "add",
        lambda shapes: _require_one_shape("add", shapes),
        lambda x: (functools.reduce(jnp.add, x), tuple(shape_to_array(()) for _ in x)),
        lambda cache, delta: (delta,) * len(cache),
    )


def multiply() -> Layer:
    """Return the product of the inputs, all of one shape: a gate. The cache is the inputs."""

    def backward(cache: Cache, delta: Array) -> Arrays:
        others = [cache[:i] + cache[i + 1 :] for i in range(len(cache))]
        return tuple(functools.reduce(jnp.multiply, other, delta) for other in others)

    return _merge(
        "multiply",
        lambda shapes: _require_one_shape("multiply", shapes),
        lambda x: (functools.reduce(jnp.multiply, x), x),
        backward,
    )


def concatenate() -> Layer:
    """Return the inputs side by side along the last axis; each gets its part of the delta."""

    def out_shape(shapes: Sequence[Shape]) -> Shape:
        if not all(shapes) or len({tuple(shape[:-1]) for shape in shapes}) != 1:
            raise ShapeError(
                "concatenate expects inputs that differ in the last axis only, "
                f"got {', '.join(map(str, shapes))}"
            )
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def forward(x: Arrays) -> tuple[Array, Cache]:
        widths = tuple(shape_to_array(part.shape[-1:]) for part in x)
        return jnp.concatenate(x, axis=-1), widths

    def backward(cache: Cache, delta: Array) -> Arrays:
        widths = [array_to_shape(width)[0] for width in cache]
        return tuple(jnp.split(delta, list(itertools.accumulate(widths))[:-1], axis=-1))

    return _merge("concatenate", out_shape, forward, backward)


def _merge(
    kind: str,
    out_shape: Callable[[Sequence[Shape]], Shape],
    forward: Callable[[Arrays], tuple[Array, Cache]],
    backward: Callable[[Cache, Array], Arrays],
) -> Layer:
    """Return a layer of several inputs that ``out_shape`` checks."""

    def checked_forward(x: Any) -> tuple[Array, Cache]:
        out_shape([part.shape[1:] for part in _require_several(kind, x)])
        if len({part.shape[0] for part in x}) != 1:
            raise ShapeError(
                f"{kind} expects inputs of one batch, "
                f"got {', '.join(str(part.shape) for part in x)}"
            )
        return forward(tuple(x))

    return parameterless(
        kind, checked_forward, backward, lambda shapes: out_shape(_require_several(kind, shapes))
    )


def _require_several(kind: str, parts: Any) -> Any:
    if not isinstance(parts, tuple | list) or not parts or isinstance(parts[0], int):
        raise ShapeError(f"{kind} expects several inputs, got one")
    return parts


def _require_one_shape(kind: str, shapes: Sequence[Shape]) -> Shape:
    if len(set(map(tuple, shapes))) != 1:
        raise ShapeError(f"{kind} expects inputs of one shape, got {', '.join(map(str, shapes))}")
    return tuple(shapes[0])
