"""Observing a model from inside: values leave it as outputs of its pure functions.

A layer that is observed going forward returns :class:`ObservedCache` in place of its cache, and one
that is observed going backward :class:`ObservedGrads` in place of its gradients. Combinators pass
both on like any cache and any gradients. So observing works under jit, vmap and scan, and in
composites of any depth. A combinator that computes with its parts' gradients takes the observations
out first (:func:`split_observed`) and puts them back afterwards (:func:`join_observed`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from fbp.errors import InputError, did_you_mean
from fbp.layer import (
    Array,
    Cache,
    Grads,
    Key,
    Layer,
    Params,
    Shape,
    exchange,
    join_path,
)

Observations = dict[str, Any]  # by the layer's path


class ObservedCache(NamedTuple):
    """A layer's cache, and what was observed in its forward pass."""

    cache: Cache
    observed: Observations


class ObservedGrads(NamedTuple):
    """A layer's gradients, and what was observed in its backward pass."""

    grads: Grads
    observed: Observations


class Position(NamedTuple):
    """A layer inside a model.

    Attributes:
        path: the keys that lead to it, joined by ``/``; ``model`` for a model without parts.
        layer: the layer itself.
        repeats: the counts of the ``repeat``s around it, outermost first. Its parameters, and
            observations of it, have one more leading axis for each.
        delta_scale: the factor by which the deltas inside it are larger than the cost's own.
    """

    path: str
    layer: Layer
    repeats: tuple[int, ...] = ()
    delta_scale: float | Array = 1


def positions(model: Layer) -> list[Position]:
    """Return all layers inside a model in its order, each composite before its parts.

    The model itself is left out if it is a composite. So is a composite that only wraps one part
    under the same path (``repeat``, ``recompute``, ``precision``, ``tie``): its part stands for it.
    """
    return list(_walk(Position("", model)))


def _walk(position: Position) -> Iterator[Position]:
    path, layer, repeats, scale = position
    if layer.rebuild is None:
        yield position._replace(path=path or "model")
        return
    if path and not _is_wrapper(layer):
        yield position
    if layer.kind == "repeat":
        repeats = (*repeats, layer.wiring.repeats)
    for key, part in layer.parts.items():
        inside = Position(join_path(path, key), part, repeats, scale * layer.wiring.delta_scale)
        yield from _walk(inside)


def _is_wrapper(layer: Layer) -> bool:
    return set(layer.parts) == {""}


def leaf_paths(model: Layer) -> list[str]:
    """Return the paths of the layers that have no parts, in the model's order."""
    return [place.path for place in positions(model) if place.layer.rebuild is None]


def default_paths(model: Layer) -> list[str]:
    """Return the paths of all layers but chains, whose output is that of their last part."""
    return [place.path for place in positions(model) if place.layer.kind != "chain"]


def check_paths(model: Layer, paths: Iterable[str]) -> list[str]:
    """Return the paths, or raise InputError for one that names no layer of the model."""
    if isinstance(paths, str):
        raise InputError(f"paths: expected a list of paths, got {paths!r}; write [{paths!r}]")
    valid = [place.path for place in positions(model)]
    for path in (chosen := list(paths)):
        if path not in valid:
            raise InputError(f"no layer at path {path!r}; {did_you_mean(path, valid)}")
    return chosen


def exchange_at(
    model: Layer,
    functions: Callable[[Position, Layer], dict[str, Any]],
    paths: Sequence[str],
) -> Layer:
    """Return the model with some functions of the layers at ``paths`` made anew.

    Args:
        model: any layer.
        functions: ``(position, layer) -> {name: function}``; see :func:`fbp.layer.exchange`.
        paths: of leaves and composites.
    """
    chosen = set(paths)
    by_path = {place.path: place for place in positions(model) if place.path in chosen}

    def rebuilt(layer: Layer, path: str) -> Layer:
        if layer.rebuild is None:
            place = by_path.get(path or "model")
            return (
                layer if place is None else exchange(layer, lambda inner: functions(place, inner))
            )
        parts = {key: rebuilt(part, join_path(path, key)) for key, part in layer.parts.items()}
        layer = layer.rebuild(parts)
        if path in by_path and not _is_wrapper(layer):
            return exchange(layer, lambda inner: functions(by_path[path], inner))
        return layer

    return rebuilt(model, "")


def observe_forward(
    model: Layer,
    observe: Callable[..., Any],
    paths: Sequence[str],
) -> Callable[..., tuple[Any, Observations]]:
    """Return the model's forward pass with what ``observe`` sees at each of some layers.

    Args:
        model: any layer; ``recompute`` inside it has no effect here.
        observe: ``(position, params, x, y, cache, key) -> value``, a pytree.
        paths: of the layers to observe.

    Returns:
        A function ``(params, x, *, key=None) -> (y, {path: value})``. Inside ``repeat`` values have
        one more leading axis, with one entry for each copy.
    """

    def functions(place: Position, layer: Layer) -> dict[str, Any]:
        def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
            y, cache = layer.forward(params, x, key=key)
            value = observe(place, params, x, y, cache, key)
            return y, ObservedCache(cache, {place.path: value})

        return {"forward": forward}

    observed = exchange_at(without(model, "recompute"), functions, paths)

    def run(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Observations]:
        y, cache = observed.forward(params, x, key=key)
        seen = _collect(cache)
        return y, {path: seen[path] for path in paths}

    return run


def _collect(cache: Cache) -> Observations:
    is_observed = lambda node: isinstance(node, ObservedCache)
    seen: Observations = {}
    for node in jax.tree.leaves(cache, is_leaf=is_observed):
        if is_observed(node):
            seen |= node.observed | _collect(node.cache)
    return seen


def without(model: Layer, kind: str) -> Layer:
    """Return the model with the part itself in place of each composite of a kind that wraps one."""
    if model.rebuild is None:
        return model
    if model.kind == kind:
        return without(model.parts[""], kind)
    parts = {key: without(part, kind) for key, part in model.parts.items()}
    if all(part is model.parts[key] for key, part in parts.items()):
        return model  # nothing to leave out, so nothing to rebuild
    return model.rebuild(parts)


def split_observed(grads: Grads) -> tuple[Grads, Observations]:
    """Return the gradients alone, and what was observed at the layers inside, by path."""
    is_observed = lambda node: isinstance(node, ObservedGrads)
    nodes, structure = jax.tree.flatten(grads, is_leaf=is_observed)
    seen: Observations = {}
    plain = []
    for node in nodes:
        if is_observed(node):
            seen |= node.observed
            node, inside = split_observed(node.grads)
            seen |= inside
        plain.append(node)
    return jax.tree.unflatten(structure, plain), seen


def join_observed(grads: Grads, observed: Observations) -> Grads:
    """Return the gradients with observations beside them; the inverse of :func:`split_observed`."""
    return ObservedGrads(grads, observed) if observed else grads


class LayerParams(NamedTuple):
    """The parameters of one layer inside a model's.

    Attributes:
        position: the layer and its path.
        params: its parameters, stacked along ``len(position.repeats)`` leading axes.
        path: the path of these parameters among the model's; empty for a model without parts.
    """

    position: Position
    params: Params
    path: str


def layer_params(model: Layer, params: Params) -> list[LayerParams]:
    """Return the parameters of each layer without parts, in the model's order.

    Args:
        model: any layer.
        params: its parameters, arrays or their shapes. A layer whose parameters are another's
            (see :func:`fbp.tie`) has ``()``.
    """
    leaves = []
    for place in positions(model):
        if place.layer.rebuild is None:
            path = "" if model.rebuild is None or _wraps_leaf(model) else place.path
            leaves.append(LayerParams(place, entry(params, path), path))
    return leaves


def _wraps_leaf(model: Layer) -> bool:
    """Whether the model is a leaf inside wrappers alone, such as ``repeat(dense(3), 2)``."""
    while model.rebuild is not None and _is_wrapper(model):
        model = model.parts[""]
    return model.rebuild is None


def entry(params: Params, path: str) -> Params:
    """Return the subtree at a path of nested tuples and dictionaries.

    Raises:
        InputError: if nothing is there.
    """
    for key in path.split("/") if path else ():
        try:
            if not isinstance(params, dict) and not key.isdigit():
                raise KeyError(key)
            params = params[key] if isinstance(params, dict) else params[int(key)]
        except (KeyError, IndexError, ValueError, TypeError):
            raise InputError(f"the model has no parameters at {path!r}") from None
    return params


def with_entry(params: Params, path: str, value: Params) -> Params:
    """Return the tree with another subtree at a path."""
    if not path:
        return value
    head, _, rest = path.partition("/")
    key: Any = head if isinstance(params, dict) else int(head)
    new = with_entry(params[key], rest, value)
    if isinstance(params, dict):
        return {**params, key: new}
    return (*params[:key], new, *params[key + 1 :])


def nontrainable_paths(model: Layer, params: Params) -> list[str]:
    """Return the paths of the parameters that are filled from data and not learned."""
    return [
        join_path(path, name)
        for place, own, path in layer_params(model, params)
        for name in place.layer.nontrainable
        if isinstance(own, dict) and name in own
    ]


def initial_shapes(layer: Layer, shape: Shape) -> tuple[Params, Shape]:
    """Return the shapes of a layer's parameters, and its output's shape; nothing is computed."""
    out_shapes = []

    def init(key: Key) -> Params:
        params, out_shape = layer.init(key, shape)
        out_shapes.append(out_shape)
        return params

    return jax.eval_shape(init, jax.random.key(0)), out_shapes[0]
