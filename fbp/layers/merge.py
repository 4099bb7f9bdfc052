"""Where branches meet: layers with several inputs, for :func:`fbp.graph`. The input is a tuple, and so is the input delta."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from fbp.errors import ShapeError
from fbp.layer import Array, Cache, Grads, Key, Layer, Params, Shape, array_to_shape, shape_to_array

Arrays = tuple[Array, ...]


def _merge(
    name: str,
    shape_of: Callable[[Sequence[Shape]], Shape],
    there: Callable[[Arrays], tuple[Array, Cache]],
    back: Callable[[Cache, Array], Arrays],
) -> Layer:
    def init(key: Key, shape: Any) -> tuple[Params, Shape]:
        return (), shape_of(_several(name, shape))

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Array, Cache]:
        shape_of([part.shape[1:] for part in _several(name, x)])  # raises where they do not fit
        if len({part.shape[0] for part in x}) != 1:
            raise ShapeError(
                f"{name} expects inputs of one batch, got {', '.join(str(part.shape) for part in x)}"
            )
        return there(tuple(x))

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Any, Grads]:
        return back(cache, delta), ()

    return Layer(init, forward, backward, name=name)


def _several(name: str, parts: Any) -> Any:
    if not isinstance(parts, tuple | list) or not parts or isinstance(parts[0], int):
        raise ShapeError(f"{name} expects several inputs, got one")
    return parts


def _alike(name: str, shapes: Sequence[Shape]) -> Shape:
    if len(set(map(tuple, shapes))) != 1:
        raise ShapeError(f"{name} expects inputs of one shape, got {', '.join(map(str, shapes))}")
    return tuple(shapes[0])


def add() -> Layer:
    """The sum of its inputs, all of one shape; each gets the delta as it is."""
    return _merge(
        "add",
        lambda shapes: _alike("add", shapes),
        lambda x: (functools.reduce(jnp.add, x), tuple(shape_to_array(()) for _ in x)),
        lambda cache, delta: (delta,) * len(cache),
    )


def multiply() -> Layer:
    """The product of its inputs, all of one shape: a gate. The cache is the inputs."""

    def back(cache: Cache, delta: Array) -> Arrays:
        others = [cache[:i] + cache[i + 1 :] for i in range(len(cache))]
        return tuple(functools.reduce(jnp.multiply, other, delta) for other in others)

    return _merge(
        "multiply",
        lambda shapes: _alike("multiply", shapes),
        lambda x: (functools.reduce(jnp.multiply, x), x),
        back,
    )


def concatenate() -> Layer:
    """Its inputs side by side along the last axis; each gets its part of the delta."""

    def shape_of(shapes: Sequence[Shape]) -> Shape:
        if not all(shapes) or len({tuple(shape[:-1]) for shape in shapes}) != 1:
            raise ShapeError(
                f"concatenate expects inputs that differ in the last axis only, got {', '.join(map(str, shapes))}"
            )
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def back(cache: Cache, delta: Array) -> Arrays:
        widths = [array_to_shape(token)[0] for token in cache]
        return tuple(jnp.split(delta, list(itertools.accumulate(widths))[:-1], axis=-1))

    return _merge(
        "concatenate",
        shape_of,
        lambda x: (
            jnp.concatenate(x, axis=-1),
            tuple(shape_to_array(part.shape[-1:]) for part in x),
        ),
        back,
    )
