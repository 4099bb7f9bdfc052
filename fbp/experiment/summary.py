"""A table of a model's layers: shapes, parameters, bytes and floating-point operations."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp.gradient import count_parameters
from fbp.layer import Cache, Key, Layer, Params, Shape, map_layers


class LayerRow(NamedTuple):
    """One layer: its path, name and output shape; counts of parameters and of their and its cache's bytes for one example;
    floating-point operations of its forward and backward pass for one example, as XLA counts them."""

    path: str
    name: str
    shape: Shape
    parameters: int
    parameter_bytes: int
    cache_bytes: int
    forward_flops: int
    backward_flops: int


def layer_names(model: Layer) -> dict[str, str]:
    """The name of each layer by its path, in the order of the model."""
    names: dict[str, str] = {}

    def note(path: str, layer: Layer) -> Layer:
        names[path] = layer.name
        return layer

    map_layers(note, model)
    return names


def layer_rows(model: Layer, shape: Shape, dtype: Any = jnp.float32) -> list[LayerRow]:
    """A row for each layer of a model for one example of ``shape``; nothing is computed, only traced."""
    rows: list[LayerRow] = []

    def observed(path: str, layer: Layer) -> Layer:
        def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
            y, cache = layer.forward(params, x, key=key)
            rows.append(_row(path, layer, params, x, y, cache))
            return y, cache

        return layer._replace(forward=forward)

    watched = map_layers(observed, model)
    params, _ = jax.eval_shape(lambda key: (model.init(key, shape)[0], 0), jax.random.key(0))
    jax.eval_shape(watched.forward, params, jax.ShapeDtypeStruct((1, *shape), dtype))
    return rows


def _row(path: str, layer: Layer, params: Params, x: Any, y: Any, cache: Cache) -> LayerRow:
    params, x, delta, kept = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, x, y, cache)
    )
    return LayerRow(
        path,
        layer.name,
        y.shape[1:],
        count_parameters(params),
        _bytes(params),
        _bytes(kept),
        _flops(lambda params, x: layer.forward(params, x)[0], params, x),
        _flops(layer.backward, params, kept, delta),
    )


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _flops(function: Any, *shapes: Any) -> int:
    analysis = jax.jit(function).lower(*shapes).cost_analysis() or {}
    return round(analysis.get("flops", 0))


def as_text(rows: list[LayerRow]) -> str:
    """The table with its totals, for a terminal or a file."""
    cells: list[tuple[str, ...]] = [
        ("layer", "name", "output", "parameters", "bytes", "cache bytes", "forward FLOPs", "backward FLOPs")
    ]
    for row in rows:
        cells.append((row.path, row.name, " x ".join(map(str, row.shape)), *(f"{count:,}" for count in row[3:])))
    totals = (f"{sum(column):,}" for column in zip(*(row[3:] for row in rows), strict=True))
    cells.append(("total", "", "", *totals))
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    note = "per example; the same cache may serve two layers and is counted in both"
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:-1], "-" * len(lines[0]), lines[-1], note])
