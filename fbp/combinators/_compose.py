"""Combinators: layers made of layers. Each derives its backward pass from its parts' backward passes alone.

A composite's parameters, caches and gradients are the parts', under the parts' keys: a tuple for :func:`chain`, a
dictionary for :func:`residual`. A path such as ``3/body/0`` names a part in messages, in :func:`fbp.deltas` and in
the charts of a run.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp

from fbp.errors import InputError, ShapeError
from fbp.layer import (
    IN,
    OUT,
    STATISTICS,
    Array,
    Cache,
    Grads,
    Key,
    Layer,
    Params,
    Shape,
    Tapped,
    Wiring,
    array_to_shape,
    shape_to_array,
)
from fbp.layers import identity

T = TypeVar("T")


def call_part(part: str, layer: Layer, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a part's function; a shape error inside it tells where it happened."""
    try:
        return function(*args, **kwargs)
    except ShapeError as error:
        raise error.inside(part if layer.parts else f"{part} ({layer.name})") from None


def split_keys(key: Key | None, count: int) -> list[Key | None]:
    """A key for each of ``count`` parts; none where there is none."""
    return [None if key is None else jax.random.fold_in(key, i) for i in range(count)]


def _expect(params: Params, count: int, kind: str) -> None:
    if len(params) != count:
        raise ShapeError(
            f"{kind} of {count} layers expects parameters for {count}, got {len(params)}"
        )


def _check_layer(place: int, layer: Any) -> None:
    if not isinstance(layer, Layer):
        hint = "; call it" if callable(layer) else ""
        raise InputError(
            f"chain: expected a Layer in place {place}, got {getattr(layer, '__name__', layer)!r}{hint}"
        )


def chain(*layers: Layer) -> Layer:
    """Layers one after another; the parameters are a tuple with one entry per layer.

    Forward stores every layer's cache, backward passes delta from the last layer to the first: the algorithm itself.

    >>> import jax, fbp
    >>> model = chain(fbp.layers.dense(30), fbp.layers.sigmoid(), fbp.layers.dense(10))
    >>> params, shape = model.init(jax.random.key(0), (784,))
    >>> shape, len(params)
    ((10,), 3)
    """

    for i, layer in enumerate(layers):
        _check_layer(i, layer)

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        params = []
        for i, layer in enumerate(layers):
            layer_params, shape = call_part(
                str(i), layer, layer.init, jax.random.fold_in(key, i), shape
            )
            params.append(layer_params)
        return tuple(params), shape

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        _expect(params, len(layers), "a chain")
        caches = []
        for i, (layer, layer_params, layer_key) in enumerate(
            zip(layers, params, split_keys(key, len(layers)), strict=True)
        ):
            x, cache = call_part(str(i), layer, layer.forward, layer_params, x, key=layer_key)
            caches.append(cache)
        return x, tuple(caches)

    def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        grads = []
        for layer, layer_params, layer_cache in zip(
            reversed(layers), reversed(params), reversed(cache), strict=True
        ):
            if delta is None:  # what comes before has no derivative: whole numbers, such as tokens
                layer_grads = jax.tree.map(jnp.zeros_like, layer_params)
            else:
                delta, layer_grads = layer.backward(layer_params, layer_cache, delta)
            grads.append(layer_grads)
        return delta, tuple(reversed(grads))

    return Layer(
        init,
        forward,
        backward,
        name=f"chain({', '.join(layer.name for layer in layers)})",
        parts={str(i): layer for i, layer in enumerate(layers)},
        rebuild=lambda parts: chain(*parts.values()),
    )


def residual(*layers: Layer, shortcut: Layer | None = None) -> Layer:
    """``y = body(x) + shortcut(x)``: the delta reaches x undiminished beside the body (He et al., 2016).

    Args:
        layers: the body, one layer or several in a chain.
        shortcut: what x passes on its way around; the identity by default, a ``dense`` where the widths differ.

    Returns:
        A layer with parameters ``{"body": ..., "shortcut": ...}``.
    """
    parts = {
        "body": layers[0] if len(layers) == 1 else chain(*layers),
        "shortcut": shortcut or identity(),
    }
    return _branches(
        parts,
        combine="sum",
        pack=lambda values: dict(zip(parts, values, strict=True)),
        unpack=lambda params: [params[part] for part in parts],
        name=f"residual({parts['body'].name})",
        rebuild=lambda parts: residual(parts["body"], shortcut=parts["shortcut"]),
    )


def parallel(*layers: Layer, combine: Literal["sum", "concatenate"] = "sum") -> Layer:
    """Layers side by side on the same input, their outputs summed or concatenated along the last axis.

    The deltas that the branches send back to the common input add up.

    Returns:
        A layer whose parameters are a tuple with one entry per branch.
    """
    if combine not in ("sum", "concatenate"):
        raise InputError(f"parallel: combine must be 'sum' or 'concatenate', got {combine!r}")
    if not layers:
        raise InputError("parallel: expected at least one layer, got none")
    return _branches(
        {str(i): layer for i, layer in enumerate(layers)},
        combine=combine,
        pack=tuple,
        unpack=list,
        name=f"parallel({', '.join(layer.name for layer in layers)})",
        rebuild=lambda parts: parallel(*parts.values(), combine=combine),
    )


def _branches(
    parts: Mapping[str, Layer],
    *,
    combine: Literal["sum", "concatenate"],
    pack: Callable[[Iterable[Any]], Any],
    unpack: Callable[[Any], list[Any]],
    name: str,
    rebuild: Callable[[Mapping[str, Layer]], Layer],
) -> Layer:
    """The common form of residual and parallel; ``pack`` and ``unpack`` give parameters their structure."""

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        keys = [jax.random.fold_in(key, i) for i in range(len(parts))]
        drawn = [
            call_part(part, layer, layer.init, k, shape)
            for (part, layer), k in zip(parts.items(), keys, strict=True)
        ]
        shapes = [out_shape for _, out_shape in drawn]
        alike = shapes if combine == "sum" else [out_shape[:-1] for out_shape in shapes]
        if len(set(alike)) != 1:
            allowed = (
                "must give the same shape"
                if combine == "sum"
                else "may differ in the last axis only"
            )
            given = ", ".join(
                f"{part}: {out_shape}" for part, out_shape in zip(parts, shapes, strict=True)
            )
            raise ShapeError(
                f"branches of a {combine} {allowed}, got {given} for an input of {shape}"
            )
        params = pack(params for params, _ in drawn)
        if combine == "sum":
            return params, shapes[0]
        if not shapes[0]:
            raise ShapeError(
                "branches that are concatenated must have at least one axis, got shape ()"
            )
        return params, (*shapes[0][:-1], sum(out_shape[-1] for out_shape in shapes))

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        _expect(params, len(parts), name.split("(")[0])
        results = [
            call_part(part, layer, layer.forward, layer_params, x, key=layer_key)
            for (part, layer), layer_params, layer_key in zip(
                parts.items(), unpack(params), split_keys(key, len(parts)), strict=True
            )
        ]
        outputs = [y for y, _ in results]
        caches = pack(cache for _, cache in results)
        if combine == "sum":
            return functools.reduce(jnp.add, outputs), (caches, ())
        return jnp.concatenate(outputs, axis=-1), (
            caches,
            tuple(shape_to_array(y.shape[-1:]) for y in outputs),
        )

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Any, Grads]:
        caches, tokens = cache
        if combine == "sum":
            deltas = [delta] * len(parts)
        else:
            widths = [array_to_shape(token)[0] for token in tokens]
            deltas = jnp.split(delta, list(itertools.accumulate(widths))[:-1], axis=-1)
        results = [
            layer.backward(layer_params, layer_cache, branch_delta)
            for layer, layer_params, layer_cache, branch_delta in zip(
                parts.values(), unpack(params), unpack(caches), deltas, strict=True
            )
        ]
        return add_deltas(input_delta for input_delta, _ in results), pack(
            grads for _, grads in results
        )

    edges = tuple(edge for part in parts for edge in ((IN, part), (part, OUT)))
    wiring = Wiring(edges, "+" if combine == "sum" else "concatenate")
    return Layer(init, forward, backward, name=name, parts=parts, rebuild=rebuild, wiring=wiring)


def add_deltas(deltas: Iterable[Any]) -> Any:
    """The sum of what several consumers send back to one value; None (no derivative) where none sends any."""
    present = [delta for delta in deltas if delta is not None]
    if present and isinstance(present[0], tuple):
        return tuple(add_deltas(parts) for parts in zip(*present, strict=True))
    return functools.reduce(jnp.add, present) if present else None


def bidirectional(make: Callable[..., Layer], features: int, **options: Any) -> Layer:
    """``make(features)`` forwards and backwards over the same sequence, outputs side by side: ``2 * features`` wide.

    ``make`` is ``rnn``, ``lstm`` or ``gru``; ``options`` are theirs, but for ``reverse`` and ``carry``. Schuster and Paliwal
    (1997).
    """
    if options.get("carry"):
        raise InputError(
            "bidirectional: carry makes no sense where the sequence is read from both ends"
        )
    return parallel(
        make(features, **options), make(features, reverse=True, **options), combine="concatenate"
    )


def repeat(layer: Layer, times: int, unroll: int = 1) -> Layer:
    """``times`` copies of a layer one after another, as one scan over their stacked parameters.

    Compile time does not grow with depth. Backward is a scan the other way, over the same stack of parameters and caches.

    Args:
        layer: what is repeated; it keeps the shape of its input.
        times: how often.
        unroll: copies in one turn of the scan's loop. ``times`` compiles as long as a chain does, and runs as fast.

    Returns:
        A layer whose parameters are the part's, with one more axis of length ``times`` in front.

    Raises:
        ShapeError: where the layer changes the shape of its input.
    """
    if times < 1:
        raise InputError(f"repeat: times must be at least 1, got {times}")
    if unroll < 1:
        raise InputError(f"repeat: unroll must be at least 1, got {unroll}")

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        out_shapes = []

        def one(key: Key) -> Params:
            params, out_shape = call_part("0", layer, layer.init, key, shape)
            out_shapes.append(out_shape)
            return params

        params = jax.vmap(one)(jax.random.split(key, times))
        if out_shapes[0] != shape:
            raise ShapeError(
                f"repeat expects a layer that keeps the shape {shape}, but {layer.name} gives {out_shapes[0]}"
            )
        return params, shape

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        def step(x: Any, at: Any) -> tuple[Any, Cache]:
            layer_params, layer_key = at
            return layer.forward(layer_params, x, key=layer_key)

        keys = None if key is None else jax.random.split(key, times)
        return jax.lax.scan(step, x, (params, keys), length=times, unroll=min(unroll, times))

    def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        def step(delta: Any, at: Any) -> tuple[Any, Grads]:
            layer_params, layer_cache = at
            return layer.backward(layer_params, layer_cache, delta)

        return jax.lax.scan(
            step, delta, (params, cache), length=times, reverse=True, unroll=min(unroll, times)
        )

    return Layer(
        init,
        forward,
        backward,
        name=f"repeat({layer.name}, {times})",
        parts={"": layer},
        rebuild=lambda parts: repeat(parts[""], times, unroll),
        wiring=Wiring(((IN, ""), ("", OUT)), repeats=times),
    )


def recompute(layer: Layer) -> Layer:
    """The same layer, keeping only its input; backward runs the forward pass again. Chen et al. (2016).

    Gradient checkpointing: one more forward pass for the memory of all the caches inside.
    """

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        return layer.forward(params, x, key=key)[0], (x, key)

    def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        # without the barrier XLA would find that this was computed before, and keep it
        (x, key), delta = jax.lax.optimization_barrier((cache, delta))
        _, layer_cache = layer.forward(params, x, key=key)
        return layer.backward(params, layer_cache, delta)

    return Layer(
        layer.init,
        forward,
        backward,
        name=f"recompute({layer.name})",
        parts={"": layer},
        rebuild=lambda parts: recompute(parts[""]),
    )


def precision(
    layer: Layer, compute: Any = jnp.bfloat16, *, loss_scale: float | Array | None = None
) -> Layer:
    """The same layer computed in another dtype; parameters, gradients, output and input delta keep theirs (float32).

    Micikevicius et al. (2018), *Mixed precision training*.

    Args:
        layer: what to compute.
        compute: the dtype inside, such as ``jnp.bfloat16`` or ``jnp.float16``.
        loss_scale: what deltas are multiplied with inside and gradients divided by outside, so that small ones do not
            vanish; 2^15 by default for float16, whose range is small, 1 for other dtypes.
    """
    scale = loss_scale if loss_scale is not None else 2.0**15 if compute == jnp.float16 else None

    def inside(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(compute) if _is_floating(leaf) else leaf, tree)

    def outside(tree: Any, like: Any, unscale: bool = False) -> Any:
        def cast(leaf: Array, dtype: Any) -> Array:
            wide = leaf.astype(dtype)
            return wide / scale if unscale and scale is not None else wide

        return jax.tree.map(lambda leaf, old: cast(leaf, old.dtype), tree, like)

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        y, cache = layer.forward(inside(params), inside(x), key=key)
        wide = jnp.result_type(
            *(leaf.dtype for leaf in jax.tree.leaves((params, x)) if _is_floating(leaf))
        )
        return jax.tree.map(
            lambda leaf: leaf.astype(wide) if _is_floating(leaf) else leaf, y
        ), cache

    def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        scaled = (
            delta
            if scale is None
            else jax.tree.map(lambda d: d * jnp.asarray(scale, d.dtype), delta)
        )
        input_delta, grads = layer.backward(inside(params), cache, inside(scaled))
        wide = jax.tree.leaves(delta)[0]
        if input_delta is not None:
            input_delta = outside(
                input_delta, jax.tree.map(lambda _: wide, input_delta), unscale=True
            )
        return input_delta, outside(grads, params, unscale=True)

    return Layer(
        layer.init, forward, backward, name=f"precision({layer.name}, {jnp.dtype(compute).name})"
    )


def shared(model: Layer, same: Mapping[str, str]) -> Layer:
    """The same model, in which layers share their parameters: one entry, whose gradient is the sum over all that use it.

    Tied weights are the usual case (Press and Wolf, 2017): a language model whose logits come from its embedding's table.

    >>> import fbp
    >>> layers = fbp.layers.embedding(65, 32), fbp.layers.layer_norm(), fbp.layers.unembedding(65)
    >>> tied = shared(fbp.chain(*layers), {"2": "0"})

    Args:
        model: any composite.
        same: from the path of a layer to the path of the one whose parameters it uses. Paths are those that
            :func:`fbp.map_layers` and :func:`fbp.deltas` show.

    Returns:
        A layer with the model's parameters, but ``()`` at each path of ``same``.

    Raises:
        InputError: where the paths make no sense.
        ShapeError: where two layers that share have parameters of different shapes.
    """
    for path, source in same.items():
        if path == source or source in same:
            raise InputError(
                f"shared: {path!r} cannot use the parameters of {source!r}, which has none of its own"
            )

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        params, out_shape = model.init(key, shape)
        for path, source in same.items():
            given, needed = (
                jax.tree.map(jnp.shape, _entry(params, place)) for place in (source, path)
            )
            if given != needed:
                raise ShapeError(
                    f"shared: {path!r} needs parameters of shapes {needed}, but {source!r} has {given}"
                )
            for keys, _ in jax.tree_util.tree_leaves_with_path(_entry(params, path)):
                if getattr(keys[-1], "key", None) in STATISTICS:
                    raise InputError(
                        f"shared: {path!r} holds statistics of its own input, which cannot be shared"
                    )
            params = _with_entry(params, path, ())
        return params, out_shape

    def filled(params: Params) -> Params:
        for path, source in same.items():
            params = _with_entry(params, path, _entry(params, source))
        return params

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        return model.forward(filled(params), x, key=key)

    def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        input_delta, grads = model.backward(filled(params), cache, delta)
        for path, source in same.items():
            own, rest = _split_tapped(_entry(grads, path))
            grads = _with_entry(grads, source, _plus(_entry(grads, source), own))
            grads = _with_entry(grads, path, rest)
        return input_delta, grads

    return Layer(
        init,
        forward,
        backward,
        name=f"shared({model.name})",
        parts={"": model},
        rebuild=lambda parts: shared(parts[""], same),
    )


def _entry(params: Params, path: str) -> Params:
    """What stands at a path in nested tuples and dictionaries."""
    for part in path.split("/"):
        try:
            if not isinstance(params, dict) and not part.isdigit():
                raise KeyError(part)
            params = params[part] if isinstance(params, dict) else params[int(part)]
        except (KeyError, IndexError, ValueError, TypeError):
            raise InputError(f"shared: the model has no parameters at {path!r}") from None
    return params


def _with_entry(params: Params, path: str, entry: Params) -> Params:
    """The same tree with another entry at a path."""
    first, _, rest = path.partition("/")
    key: Any = first if isinstance(params, dict) else int(first)
    new = _with_entry(params[key], rest, entry) if rest else entry
    if isinstance(params, dict):
        return {**params, key: new}
    return (*params[:key], new, *params[key + 1 :])


def _is_tapped(node: Any) -> bool:
    return isinstance(node, Tapped)


def _split_tapped(grads: Grads) -> tuple[Grads, Grads]:
    """The gradients of a layer, and what is to stand in their place where they are counted elsewhere."""
    own = jax.tree.map(
        lambda node: node.grads if _is_tapped(node) else node, grads, is_leaf=_is_tapped
    )
    if not any(map(_is_tapped, jax.tree.leaves(grads, is_leaf=_is_tapped))):
        return own, ()
    return own, jax.tree.map(lambda node: Tapped((), node.observed), grads, is_leaf=_is_tapped)


def _plus(grads: Grads, more: Grads) -> Grads:
    """Both together, where the layers of the first may be tapped."""

    def add(node: Any, other: Any) -> Any:
        total = jax.tree.map(jnp.add, node.grads if _is_tapped(node) else node, other)
        return Tapped(total, node.observed) if _is_tapped(node) else total

    nodes, structure = jax.tree.flatten(grads, is_leaf=_is_tapped)
    others = structure.flatten_up_to(more)  # type: ignore[attr-defined]
    return jax.tree.unflatten(
        structure, [add(node, other) for node, other in zip(nodes, others, strict=True)]
    )


def _is_floating(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))
