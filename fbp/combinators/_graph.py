"""A model as a computational graph: layers by name, each told where its input comes from.

Forward visits the nodes in topological order. Backward visits them in the opposite order; the delta at a node's output is the
sum of what all its consumers send back: the chain rule on a graph (Bauer, 1974; Goodfellow, Bengio and Courville, 2016,
*Deep Learning*, chapter 6.5).
"""

import graphlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fbp.combinators._compose import add_deltas, call_part, split_keys
from fbp.errors import InputError, ShapeError
from fbp.layer import IN, OUT, Cache, Grads, Key, Layer, Params, Wiring

Node = tuple[Any, ...]  # (layer, name of its input, names of further inputs ...)


def graph(
    nodes: Mapping[str, Node],
    *,
    inputs: str | Sequence[str] = "x",
    outputs: str | Sequence[str] | None = None,
) -> Layer:
    """A directed acyclic graph of layers.

    >>> import fbp
    >>> from fbp.layers import add, dense, relu
    >>> model = graph(
    ...     {
    ...         "hidden": (fbp.chain(dense(8), relu()), "x"),
    ...         "left": (dense(4), "hidden"),
    ...         "right": (dense(4), "hidden"),
    ...         "sum": (add(), "left", "right"),
    ...     }
    ... )

    Args:
        nodes: from a node's name to ``(layer, input, ...)``, the names of other nodes or of ``inputs``. A layer with several
            inputs, such as ``fbp.layers.concatenate()``, gets them as a tuple, in this order. The nodes may stand in any order.
        inputs: what comes from outside. Several names: the graph's input is a tuple, and so are its shape and its input delta.
        outputs: the nodes whose outputs leave the graph, the last one by default. Several names: the output is a tuple, and
            so is the delta that is expected.

    Returns:
        A layer whose parameters are a dictionary with one entry per node.

    Raises:
        InputError: for a cycle, an input that does not exist, a node or an input that leads to no output.
    """
    sources = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    wanted = (
        _last(nodes)
        if outputs is None
        else (outputs,)
        if isinstance(outputs, str)
        else tuple(outputs)
    )
    several_in, several_out = (
        not isinstance(inputs, str),
        not (outputs is None or isinstance(outputs, str)),
    )
    if len(set(sources)) != len(sources):
        raise InputError(f"graph: expected different names of inputs, got {', '.join(sources)}")
    layers, reads = _read(nodes, sources)
    order = _ordered(reads, sources)
    _check_use(reads, sources, wanted)

    def named_inputs(x: Any, what: str) -> dict[str, Any]:
        if not several_in:
            return {sources[0]: x}
        if not isinstance(x, tuple | list) or len(x) != len(sources):
            given = f"{len(x)} parts" if isinstance(x, tuple | list) else "one"
            raise ShapeError(
                f"a graph with the inputs {', '.join(sources)} expects {what} for each in a tuple, got {given}"
            )
        return dict(zip(sources, x, strict=True))

    def gathered(values: Mapping[str, Any], name: str) -> Any:
        found = tuple(values[source] for source in reads[name])
        return found if len(found) > 1 else found[0]

    def result(values: Mapping[str, Any]) -> Any:
        return tuple(values[name] for name in wanted) if several_out else values[wanted[0]]

    def init(key: Key, shape: Any) -> tuple[Params, Any]:
        shapes = named_inputs(shape, "a shape")
        params = {}
        for name, node_key in zip(order, split_keys(key, len(order)), strict=True):
            drawn = call_part(
                name, layers[name], layers[name].init, node_key, gathered(shapes, name)
            )
            params[name], shapes[name] = drawn
        return {name: params[name] for name in layers}, result(shapes)

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        if set(params) != set(layers):
            raise ShapeError(
                f"a graph expects parameters for {', '.join(layers)}, got {', '.join(params)}"
            )
        values, caches = named_inputs(x, "an array"), {}
        for name, node_key in zip(order, split_keys(key, len(order)), strict=True):
            layer = layers[name]
            values[name], caches[name] = call_part(
                name, layer, layer.forward, params[name], gathered(values, name), key=node_key
            )
        return result(values), caches

    def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        arrived: dict[str, list[Any]] = {name: [] for name in (*sources, *layers)}
        for name, one in zip(wanted, delta if several_out else (delta,), strict=True):
            arrived[name].append(one)
        grads = {}
        for name in reversed(order):
            total = add_deltas(arrived[name])
            if total is None:  # what follows has no derivative: whole numbers, such as tokens
                grads[name] = jax.tree.map(jnp.zeros_like, params[name])
                continue
            input_delta, grads[name] = layers[name].backward(params[name], cache[name], total)
            parts = (
                input_delta if len(reads[name]) > 1 and input_delta is not None else [input_delta]
            )
            for source, part in itertools.zip_longest(reads[name], parts):
                arrived[source].append(part)
        deltas = tuple(add_deltas(arrived[name]) for name in sources)
        return (deltas if several_in else deltas[0]), {name: grads[name] for name in layers}

    edges = [
        (IN if source in sources else source, name) for name in order for source in reads[name]
    ]
    return Layer(
        init,
        forward,
        backward,
        name=f"graph({len(layers)} nodes)",
        parts={name: layers[name] for name in order},
        rebuild=lambda parts: graph(
            {name: (parts[name], *reads[name]) for name in layers},
            inputs=inputs,
            outputs=wanted if several_out else wanted[0],
        ),
        wiring=Wiring((*edges, *((name, OUT) for name in wanted)), join=""),
    )


def _last(nodes: Mapping[str, Node]) -> tuple[str, ...]:
    if not nodes:
        raise InputError("graph: expected at least one node, got none")
    return (list(nodes)[-1],)


def _read(
    nodes: Mapping[str, Node], sources: tuple[str, ...]
) -> tuple[dict[str, Layer], dict[str, tuple[str, ...]]]:
    """The layers, and what each reads, by name."""
    layers, reads = {}, {}
    for name, node in nodes.items():
        if not isinstance(name, str) or not name or "/" in name or name in sources:
            raise InputError(
                f"graph: {name!r} cannot be the name of a node: expected a text without /, that is no input"
            )
        if not (isinstance(node, tuple | list) and len(node) > 1 and isinstance(node[0], Layer)):
            raise InputError(f"graph: node {name!r}: expected (layer, input, ...), got {node!r}")
        layers[name], reads[name] = node[0], tuple(node[1:])
        for source in reads[name]:
            if source not in nodes and source not in sources:
                raise InputError(
                    f"graph: node {name!r} reads {source!r}, which is neither a node nor an input; there are "
                    f"{', '.join((*sources, *nodes))}"
                )
    return layers, reads


def _check_use(
    reads: Mapping[str, tuple[str, ...]], sources: tuple[str, ...], wanted: tuple[str, ...]
) -> None:
    """InputError unless every output is a node, and every input and node leads to an output."""
    for name in wanted:
        if name not in reads:
            raise InputError(f"graph: the output {name!r} is no node; there are {', '.join(reads)}")
    used, ahead = set[str](), list(wanted)
    while ahead:
        name = ahead.pop()
        if name not in used:
            used.add(name)
            ahead += reads.get(name, ())
    for name in (*sources, *reads):
        if name not in used:
            kind = "input" if name in sources else "node"
            raise InputError(
                f"graph: the {kind} {name!r} leads to no output ({', '.join(wanted)}); connect or remove it"
            )


def _ordered(reads: Mapping[str, tuple[str, ...]], sources: tuple[str, ...]) -> tuple[str, ...]:
    """The nodes, each after what it reads."""
    try:
        order = graphlib.TopologicalSorter(reads).static_order()
        return tuple(name for name in order if name not in sources)
    except graphlib.CycleError as error:
        raise InputError(
            f"graph: a cycle: {' -> '.join(reversed(error.args[1]))}; remove one of its edges"
        ) from None
