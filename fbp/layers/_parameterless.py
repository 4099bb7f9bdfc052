"""Layers without parameters, from a forward and a backward function of arrays."""

from collections.abc import Callable
from typing import Any

from fbp.layer import Cache, Grads, Incremental, Key, Layer, Params, Shape


def same_shape(shape: Any) -> Any:
    """Return ``shape``: the output has the shape of the input."""
    return shape


def parameterless(
    kind: str,
    forward: Callable[[Any], tuple[Any, Cache]],
    backward: Callable[[Cache, Any], Any],
    out_shape: Callable[[Any], Shape] = same_shape,
    *,
    name: str | None = None,
    incremental: Incremental = "positionwise",
) -> Layer:
    """Return a layer without parameters, which computes the same in training and evaluation.

    Args:
        kind: the layer's kind.
        forward: ``x (B, ...) -> (y, cache)``.
        backward: ``(cache, delta) -> input_delta``.
        out_shape: from one example's shape to its output's; raises ShapeError if it does not fit.
        name: the name to print; ``kind`` by default.
        incremental: as in :class:`fbp.Layer`.
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), out_shape(shape)

    def layer_forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        return forward(x)

    def layer_backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        return backward(cache, delta), ()

    return Layer(init, layer_forward, layer_backward, kind=kind, name=name, incremental=incremental)
