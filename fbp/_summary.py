"""A table of a model's layers: shapes, parameters, bytes and floating-point operations."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp._backprop import count_parameters, path_of
from fbp.layer import Cache, Key, Layer, Params, Shape, map_layers


class LayerRow(NamedTuple):
    """One layer: its path, name, how often it stands there (more than once inside ``repeat``) and output shape; then, for all
    its copies together, counts of parameters, of their and the cache's bytes for one example, and of floating-point
    operations of the forward and backward pass for one example, as XLA counts them. All as in training."""

    path: str
    name: str
    copies: int
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


def _copies(layer: Layer, path: str = "", times: int = 1) -> dict[str, int]:
    """How often each layer stands in the model, by its path."""
    if layer.rebuild is None:
        return {path or "model": times}
    found: dict[str, int] = {}
    for key, part in layer.parts.items():
        found |= _copies(part, "/".join(filter(None, (path, key))), times * layer.wiring.repeats)
    return found


def layer_rows(model: Layer, shape: Shape, dtype: Any = jnp.float32) -> list[LayerRow]:
    """A row for each layer of a model for one example of ``shape``; nothing is computed, only traced."""
    rows: dict[str, LayerRow] = {}
    counted: dict[Any, tuple[int, int]] = {}  # one layer may stand in many places
    copies = _copies(model)

    def observed(path: str, layer: Layer) -> Layer:
        def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
            y, cache = layer.forward(params, x, key=key)
            rows[path] = _row(
                path, layer, copies[path], params, x, y, cache, counted
            )  # recompute comes by twice
            return y, cache

        return layer._replace(forward=forward)

    watched = map_layers(observed, model)
    params, _ = jax.eval_shape(lambda key: (model.init(key, shape)[0], 0), jax.random.key(0))
    example = jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s), dtype), shape, is_leaf=_is_shape)
    jax.eval_shape(
        lambda params, x, key: watched.forward(params, x, key=key),
        params,
        example,
        jax.random.key(0),
    )
    owned = _owned(params)
    return [rows[path]._replace(**owned(path)) for path in layer_names(model) if path in rows]


def _owned(params: Params) -> Callable[[str], dict[str, Any]]:
    """What a layer has for itself, by its path: shared parameters count once."""
    leaves = [(path_of(keys), leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(params)]

    def of(path: str) -> dict[str, Any]:
        own = [leaf for place, leaf in leaves if path == "model" or place.startswith(f"{path}/")]
        return {"parameters": count_parameters(own), "parameter_bytes": _bytes(own)}

    return of


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(size, int) for size in node)


def _row(
    path: str,
    layer: Layer,
    copies: int,
    params: Params,
    x: Any,
    y: Any,
    cache: Cache,
    counted: dict[Any, tuple[int, int]],
) -> LayerRow:
    params, x, delta, kept = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, x, y, cache)
    )
    same = id(layer), str((params, x, delta, kept))
    if same not in counted:
        forward = _flops(lambda params, x: layer.forward(params, x)[0], params, x)
        counted[same] = forward, _flops(layer.backward, params, kept, delta)
    return LayerRow(
        path,
        layer.name,
        copies,
        y.shape[1:],
        0,
        0,
        copies * _bytes(kept),
        *(copies * count for count in counted[same]),
    )


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _flops(function: Any, *shapes: Any) -> int:
    analysis = jax.jit(function).lower(*shapes).cost_analysis() or {}
    return round(analysis.get("flops", 0))


def as_text(rows: list[LayerRow]) -> str:
    """The table with its totals, for a terminal or a file."""
    cells: list[tuple[str, ...]] = [
        (
            "layer",
            "name",
            "copies",
            "output",
            "parameters",
            "bytes",
            "cache bytes",
            "forward FLOPs",
            "backward FLOPs",
        )
    ]
    for row in rows:
        sizes = " x ".join(map(str, row.shape))
        cells.append(
            (row.path, row.name, str(row.copies), sizes, *(f"{count:,}" for count in row[4:]))
        )
    totals = (f"{sum(column):,}" for column in zip(*(row[4:] for row in rows), strict=True))
    cells.append(("total", "", "", "", *totals))
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 4 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    note = (
        "per example, as XLA counts: the body of a loop over time counts once; the same cache may serve two layers and is "
        "counted in both"
    )
    return "\n".join(
        [lines[0], "-" * len(lines[0]), *lines[1:-1], "-" * len(lines[0]), lines[-1], note]
    )
