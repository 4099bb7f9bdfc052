"""A table of a model's layers: shapes, parameters, bytes and floating-point operations."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp import _neutral
from fbp._backprop import count_parameters
from fbp._observation import (
    Position,
    initial_shapes,
    layer_params,
    leaf_paths,
    observe_forward,
    positions,
)
from fbp.layer import Cache, Key, Layer, Params, Shape, require_layer

_COLUMNS = (
    "layer",
    "name",
    "copies",
    "output",
    "params",
    "bytes",
    "cache",
    "fwd FLOPs",
    "bwd FLOPs",
)
_TEXT_COLUMNS = 4  # the columns on the left are aligned to the left
_NOTE = (
    "Bytes of parameters and cache, and FLOPs of both passes, for one example as XLA\n"
    "counts: the body of a loop over time once; a cache that layers share for each."
)


class LayerRow(NamedTuple):
    """One layer; counts are those of all its copies together, for one example in training.

    Attributes:
        path: where it is in the model.
        name: what it prints as.
        copies: how many there are, more than one inside ``repeat``.
        shape: of its output, without the batch axis; a tuple of shapes for several outputs.
        parameters: how many numbers it learns; tied parameters count once.
        parameter_bytes: their size.
        cache_bytes: the size of its cache.
        forward_flops, backward_flops: floating-point operations, as XLA counts them.
    """

    path: str
    name: str
    copies: int
    shape: Any
    parameters: int
    parameter_bytes: int
    cache_bytes: int
    forward_flops: int
    backward_flops: int


class Summary(NamedTuple):
    """The layers of a model; prints as a table with totals."""

    rows: tuple[LayerRow, ...]

    def __str__(self) -> str:
        cells: list[tuple[str, ...]] = [_COLUMNS]
        for row in self.rows:
            counts = (f"{count:,}" for count in row[_TEXT_COLUMNS:])
            name = _neutral.line(row.name)
            cells.append((row.path, name, str(row.copies), shape_text(row.shape), *counts))
        columns = zip(*(row[_TEXT_COLUMNS:] for row in self.rows), strict=True)
        cells.append(("total", "", "", "", *(f"{sum(column):,}" for column in columns)))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [_aligned(line, widths) for line in cells]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], _NOTE])


def _aligned(line: tuple[str, ...], widths: list[int]) -> str:
    cells = [
        cell.ljust(width) if i < _TEXT_COLUMNS else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def shape_text(shape: Any) -> str:
    """Return a shape as ``28 x 28 x 1``, several shapes separated by commas."""
    if shape and isinstance(shape[0], tuple | list):
        return ", ".join(map(shape_text, shape))
    return " x ".join(map(str, shape)) or "scalar"


def layer_names(model: Layer) -> dict[str, str]:
    """Return the name of each layer that has no parts by its path, in the model's order."""
    places = positions(model)
    return {place.path: place.layer.name for place in places if place.layer.rebuild is None}


def summarize(model: Layer, shape: Shape, dtype: Any = jnp.float32) -> Summary:
    """Return a table of the model's layers for one example; nothing is computed, only traced.

    Args:
        model: any layer.
        shape: one example's, without the batch axis; a tuple of shapes for several inputs.
        dtype: of the input; int32 for tokens.

    >>> import fbp
    >>> from fbp.layers import dense, relu
    >>> summary = fbp.summarize(fbp.chain(dense(3), relu()), (2,))
    >>> [(row.path, row.name, row.shape, row.parameters) for row in summary.rows]
    [('0', 'dense(3)', (3,), 9), ('1', 'relu', (3,), 0)]
    """
    require_layer("summarize", model)
    params, _ = initial_shapes(model, shape)
    paths = leaf_paths(model)
    run = observe_forward(model, _observe, paths)
    example = jax.tree.map(
        lambda sizes: jax.ShapeDtypeStruct((1, *sizes), dtype), shape, is_leaf=_is_shape
    )
    _, observed = jax.eval_shape(
        lambda params, x, key: run(params, x, key=key), params, example, jax.random.key(0)
    )
    own = {each.position.path: each.params for each in layer_params(model, params)}
    flops: dict[str, int] = {}
    rows = [
        _row(place, observed[place.path], own[place.path], flops)
        for place in positions(model)
        if place.path in observed
    ]
    return Summary(tuple(rows))


def _observe(
    place: Position, params: Params, x: Any, y: Any, cache: Cache, key: Key | None
) -> tuple[Params, Any, Any, Cache]:
    return params, x, y, cache


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(size, int) for size in node)


def _row(place: Position, observed: Any, own: Params, flops: dict[str, int]) -> LayerRow:
    stacked, copies = len(place.repeats), math.prod(place.repeats)
    params, x, y, cache = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[stacked:], leaf.dtype), observed
    )
    forward = _flops(flops, lambda params, x: place.layer.forward(params, x)[0], params, x)
    backward = _flops(flops, place.layer.backward, params, cache, y)
    return LayerRow(
        place.path,
        place.layer.name,
        copies,
        jax.tree.map(lambda leaf: leaf.shape[1:], y),
        count_parameters(own),
        _bytes(own),
        copies * _bytes(cache),
        copies * forward,
        copies * backward,
    )


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _flops(counted: dict[str, int], function: Any, *shapes: Any) -> int:
    """Return XLA's count of a function's floating-point operations.

    Args:
        counted: the counts of programs by their text; equal programs are lowered once.
        function: of arrays.
        shapes: those of its arguments.
    """
    traced = jax.jit(function).trace(*shapes)
    program = str(traced.jaxpr)
    if program not in counted:
        analysis = traced.lower().cost_analysis() or {}
        counted[program] = round(analysis.get("flops", 0))
    return counted[program]
