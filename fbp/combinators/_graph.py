"""A model as a computational graph: layers by name, each with the names of its inputs.

Forward visits the nodes in topological order, backward in the opposite order. The delta at a node's
output is the sum of the deltas that all its consumers send back: the chain rule on a graph (Bauer,
1974; Goodfellow, Bengio and Courville, 2016, *Deep Learning*, chapter 6.5).
"""

import graphlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp._observation import initial_shapes
from fbp.combinators._parts import add_deltas, call_part, combine_incremental, split_keys
from fbp.errors import InputError, ShapeError
from fbp.layer import (
    IN,
    OUT,
    Array,
    Cache,
    Grads,
    IncrementalForward,
    Key,
    Layer,
    Params,
    Shape,
    Wiring,
    require_layer,
)

Node = tuple[Any, ...]  # (layer, name of its input, names of further inputs ...)


def graph(
    nodes: Mapping[str, Node],
    *,
    inputs: str | Sequence[str] = "x",
    outputs: str | Sequence[str] | None = None,
) -> Layer:
    """Compose layers as a directed acyclic graph.

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
        nodes: from a node's name to ``(layer, input, ...)``, the names of other nodes or of
            ``inputs``. A layer with several inputs, such as ``fbp.layers.concatenate()``, gets them
            as a tuple, in this order. The nodes may be given in any order.
        inputs: the name of the graph's input. With several names the input is a tuple, and so are
            its shape and its input delta.
        outputs: the nodes whose outputs leave the graph, the last one by default. With several
            names the output is a tuple, and so is the delta that backward expects.

    Returns:
        A layer whose parameters are a dictionary with one entry per node.

    Raises:
        InputError: for a cycle, an input that does not exist, or a node or input that leads to no
            output.
    """
    plan = _plan(nodes, inputs, outputs)

    def rebuild(parts: Mapping[str, Layer]) -> Layer:
        rebuilt = {name: (parts[name], *plan.reads[name]) for name in plan.layers}
        return graph(rebuilt, inputs=inputs, outputs=outputs or plan.outputs[0])

    parts = {name: plan.layers[name] for name in plan.order}
    return Layer(
        plan.init,
        plan.forward,
        plan.backward,
        kind="graph",
        name=f"graph({len(plan.layers)} nodes)",
        parts=parts,
        rebuild=rebuild,
        wiring=Wiring(plan.edges(), join=""),
        incremental=combine_incremental(
            list(parts.values()), lambda forms: _incremental(plan, forms)
        ),
    )


class _Plan(NamedTuple):
    """A checked graph, and its three functions.

    Attributes:
        layers: each node's layer.
        reads: the names of each node's inputs.
        order: the nodes' names in topological order.
        sources: the names of the graph's inputs.
        outputs: the names of the nodes whose outputs leave the graph.
        tuple_in, tuple_out: whether the graph's input and output are tuples.
    """

    layers: dict[str, Layer]
    reads: dict[str, tuple[str, ...]]
    order: tuple[str, ...]
    sources: tuple[str, ...]
    outputs: tuple[str, ...]
    tuple_in: bool
    tuple_out: bool

    def init(self, key: Key, shape: Any) -> tuple[Params, Any]:
        """Draw the parameters of each node; see :class:`fbp.Layer`."""
        shapes, params = self.named_inputs(shape, "a shape"), {}
        for name, node_key in zip(self.order, split_keys(key, len(self.order)), strict=True):
            layer, node_shape = self.layers[name], self.gather(shapes, name)
            params[name], shapes[name] = call_part(name, layer, layer.init, node_key, node_shape)
        return {name: params[name] for name in self.layers}, self.result(shapes)

    def forward(self, params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        """Compute the nodes in topological order; see :class:`fbp.Layer`."""
        self.check_params(params)
        values, caches = self.named_inputs(x, "an array"), {}
        for name, node_key in zip(self.order, split_keys(key, len(self.order)), strict=True):
            layer, x = self.layers[name], self.gather(values, name)
            values[name], caches[name] = call_part(
                name, layer, layer.forward, params[name], x, key=node_key
            )
        return self.result(values), caches

    def backward(self, params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        """Send deltas back through the nodes in the opposite order; see :class:`fbp.Layer`."""
        incoming: dict[str, list[Any]] = {name: [] for name in (*self.sources, *self.layers)}
        for name, output_delta in self.named_outputs(delta):
            incoming[name].append(output_delta)
        grads = {}
        for name in reversed(self.order):
            total = add_deltas(incoming[name])
            if total is None:  # all consumers read integers, which have no derivative
                grads[name] = jax.tree.map(jnp.zeros_like, params[name])
                continue
            input_delta, grads[name] = self.layers[name].backward(params[name], cache[name], total)
            several = len(self.reads[name]) > 1 and input_delta is not None
            parts = input_delta if several else [input_delta]
            for source, part in itertools.zip_longest(self.reads[name], parts):
                incoming[source].append(part)
        deltas = tuple(add_deltas(incoming[name]) for name in self.sources)
        input_deltas = deltas if self.tuple_in else deltas[0]
        return input_deltas, {name: grads[name] for name in self.layers}

    def named_inputs(self, x: Any, expected: str) -> dict[str, Any]:
        """Return the graph's input, or its shape, by the names of its sources."""
        if not self.tuple_in:
            return {self.sources[0]: x}
        if not isinstance(x, tuple | list) or len(x) != len(self.sources):
            count = f"{len(x)} parts" if isinstance(x, tuple | list) else "one"
            raise ShapeError(
                f"a graph with the inputs {', '.join(self.sources)} expects {expected} for each in "
                f"a tuple, got {count}"
            )
        return dict(zip(self.sources, x, strict=True))

    def named_outputs(self, delta: Any) -> list[tuple[str, Any]]:
        """Return the delta of each output, with the output's name."""
        return list(zip(self.outputs, delta if self.tuple_out else (delta,), strict=True))

    def gather(self, values: Mapping[str, Any], name: str) -> Any:
        """Return a node's input: one value, or a tuple of several."""
        sources = self.reads[name]
        if len(sources) == 1:
            return values[sources[0]]
        return tuple(values[source] for source in sources)

    def result(self, values: Mapping[str, Any]) -> Any:
        """Return the graph's output: one value, or a tuple of several."""
        if self.tuple_out:
            return tuple(values[name] for name in self.outputs)
        return values[self.outputs[0]]

    def check_params(self, params: Params) -> None:
        """Raise ShapeError unless there is an entry for each node."""
        if set(params) != set(self.layers):
            raise ShapeError(
                f"a graph expects parameters for {', '.join(self.layers)}, got {', '.join(params)}"
            )

    def edges(self) -> tuple[tuple[str, str], ...]:
        """Return the wiring as pairs of names."""
        inner = [
            (IN if source in self.sources else source, name)
            for name in self.order
            for source in self.reads[name]
        ]
        return (*inner, *((name, OUT) for name in self.outputs))


def _plan(
    nodes: Mapping[str, Node], inputs: str | Sequence[str], outputs: str | Sequence[str] | None
) -> _Plan:
    sources = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    if len(set(sources)) != len(sources):
        raise InputError(f"graph: expected different names of inputs, got {', '.join(sources)}")
    if not nodes:
        raise InputError("graph: expected at least one node, got none")
    if outputs is None:
        outputs = list(nodes)[-1]
    output_names = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    layers, reads = _read_nodes(nodes, sources)
    order = _topological_order(reads, sources)
    _check_use(reads, sources, output_names)
    tuple_in, tuple_out = not isinstance(inputs, str), not isinstance(outputs, str)
    return _Plan(layers, reads, order, sources, output_names, tuple_in, tuple_out)


def _read_nodes(
    nodes: Mapping[str, Node], sources: tuple[str, ...]
) -> tuple[dict[str, Layer], dict[str, tuple[str, ...]]]:
    """Return the layers, and the names of each node's inputs, by the node's name."""
    layers, reads = {}, {}
    for name, node in nodes.items():
        if not isinstance(name, str) or not name or "/" in name or name in sources:
            raise InputError(
                f"graph: {name!r} cannot be the name of a node: expected a text without / that is "
                "not an input's name"
            )
        if not isinstance(node, tuple | list) or isinstance(node, Layer) or len(node) < 2:
            raise InputError(f"graph: node {name!r}: expected (layer, input, ...), got {node!r}")
        layers[name] = require_layer(f"graph: node {name!r}", node[0])
        reads[name] = tuple(node[1:])
        for source in reads[name]:
            if source not in nodes and source not in sources:
                raise InputError(
                    f"graph: node {name!r} reads {source!r}, which is neither a node nor an input; "
                    f"there are {', '.join((*sources, *nodes))}"
                )
    return layers, reads


def _check_use(
    reads: Mapping[str, tuple[str, ...]], sources: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    """Raise InputError unless every output is a node, and every input and node leads to one."""
    for name in outputs:
        if name not in reads:
            raise InputError(f"graph: the output {name!r} is no node; there are {', '.join(reads)}")
    used, ahead = set[str](), list(outputs)
    while ahead:
        name = ahead.pop()
        if name not in used:
            used.add(name)
            ahead += reads.get(name, ())
    for name in (*sources, *reads):
        if name not in used:
            role = "input" if name in sources else "node"
            raise InputError(
                f"graph: the {role} {name!r} leads to no output ({', '.join(outputs)}); connect or "
                "remove it"
            )


def _topological_order(
    reads: Mapping[str, tuple[str, ...]], sources: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the nodes' names, each after those that it reads."""
    try:
        order = graphlib.TopologicalSorter(reads).static_order()
        return tuple(name for name in order if name not in sources)
    except graphlib.CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise InputError(f"graph: a cycle: {cycle}; remove one of its edges") from None


def _incremental(plan: _Plan, forms: Sequence[IncrementalForward]) -> IncrementalForward:
    """Return the graph's incremental form; its state is a dictionary of its nodes' states."""
    by_name = dict(zip(plan.order, forms, strict=True))

    def start(batch: int, shape: Shape) -> Any:
        shapes, states = plan.named_inputs(shape, "a shape"), {}
        for name in plan.order:
            node_shape = plan.gather(shapes, name)
            states[name] = by_name[name].start(batch, node_shape)
            _, shapes[name] = initial_shapes(plan.layers[name], node_shape)
        return states

    def step(params: Params, x: Array, state: Any) -> tuple[Array, Any]:
        values, states = plan.named_inputs(x, "an array"), {}
        for name in plan.order:
            values[name], states[name] = by_name[name].step(
                params[name], plan.gather(values, name), state[name]
            )
        return plan.result(values), states

    return IncrementalForward(start, step)
