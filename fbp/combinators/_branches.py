"""Layers side by side on the same input."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fbp.combinators._chain import chain
from fbp.combinators._parts import (
    add_deltas,
    call_part,
    check_count,
    combine_incremental,
    split_keys,
)
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
    array_to_shape,
    require_layer,
    shape_to_array,
)
from fbp.layers import identity

Combine = Literal["sum", "concatenate"]


def residual(*layers: Layer, shortcut: Layer | None = None) -> Layer:
    """Return ``y = body(x) + shortcut(x)``: delta also reaches x undiminished (He et al., 2016).

    Args:
        layers: the body, one layer or several in a chain.
        shortcut: the layer beside the body; the identity by default, a ``dense`` if widths differ.

    Returns:
        A layer with parameters ``{"body": ..., "shortcut": ...}``.

    Raises:
        InputError: if something else than a layer is given.
    """
    for i, layer in enumerate(layers):
        require_layer(f"residual: place {i}", layer)
    if shortcut is not None:
        require_layer("residual: shortcut", shortcut)
    body = layers[0] if len(layers) == 1 else chain(*layers)
    parts = {"body": body, "shortcut": shortcut or identity()}
    branches = _Branches(
        parts,
        "sum",
        pack=lambda values: dict(zip(parts, values, strict=True)),
        unpack=lambda params: [params[part] for part in parts],
    )
    return branches.layer(
        kind="residual",
        name=f"residual({body.name})",
        rebuild=lambda parts: residual(parts["body"], shortcut=parts["shortcut"]),
    )


def parallel(*layers: Layer, combine: Combine = "sum") -> Layer:
    """Run layers side by side on the same input; sum or concatenate their outputs.

    The deltas that the branches send back to the common input are added.

    Args:
        layers: at least one.
        combine: ``"sum"``, or ``"concatenate"`` along the last axis.

    Returns:
        A layer whose parameters are a tuple with one entry per branch.

    Raises:
        InputError: if something else than layers is given, or ``combine`` is none of the two.
    """
    if combine not in ("sum", "concatenate"):
        raise InputError(f"parallel: combine must be 'sum' or 'concatenate', got {combine!r}")
    if not layers:
        raise InputError("parallel: expected at least one layer, got none")
    for i, layer in enumerate(layers):
        require_layer(f"parallel: place {i}", layer)
    parts = {str(i): layer for i, layer in enumerate(layers)}
    return _Branches(parts, combine, pack=tuple, unpack=list).layer(
        kind="parallel",
        name=f"parallel({', '.join(layer.name for layer in layers)})",
        rebuild=lambda parts: parallel(*parts.values(), combine=combine),
    )


def bidirectional(make: Callable[..., Layer], features: int, **options: Any) -> Layer:
    """Read a sequence forwards and backwards, outputs side by side: ``2 * features`` wide.

    Schuster and Paliwal (1997), *Bidirectional recurrent neural networks*.

    Args:
        make: ``rnn``, ``lstm`` or ``gru``.
        features: the width of the state in each direction.
        options: those of ``make``, except ``reverse`` and ``with_state``.

    Raises:
        InputError: if ``make`` is no factory of recurrent layers, or a state is asked for.
    """
    if isinstance(make, Layer) or not callable(make):
        raise InputError(f"bidirectional: expected rnn, lstm or gru, not called, got {make}")
    if options.get("with_state"):
        raise InputError("bidirectional: with_state is not possible, a sequence has two ends")
    try:
        forwards, backwards = make(features, **options), make(features, reverse=True, **options)
    except TypeError as error:
        raise InputError(f"bidirectional: expected rnn, lstm or gru ({error})") from None
    return parallel(forwards, backwards, combine="concatenate")


class _Branches(NamedTuple):
    """Layers side by side.

    Attributes:
        parts: the layers by key.
        combine: how their outputs are combined.
        pack: from the branches' parameters in order to the composite's.
        unpack: the inverse of ``pack``.
    """

    parts: Mapping[str, Layer]
    combine: Combine
    pack: Callable[[Iterable[Any]], Any]
    unpack: Callable[[Any], list[Any]]

    def layer(
        self, *, kind: str, name: str, rebuild: Callable[[Mapping[str, Layer]], Layer]
    ) -> Layer:
        """Return the composite."""
        edges = tuple(edge for part in self.parts for edge in ((IN, part), (part, OUT)))
        return Layer(
            self.init,
            self.forward,
            self.backward,
            kind=kind,
            name=name,
            parts=self.parts,
            rebuild=rebuild,
            wiring=Wiring(edges, "+" if self.combine == "sum" else "concatenate"),
            incremental=combine_incremental(list(self.parts.values()), self.incremental),
        )

    def join(self, outputs: Sequence[Array]) -> Array:
        """Combine the branches' outputs."""
        if self.combine == "sum":
            return functools.reduce(jnp.add, outputs)
        return jnp.concatenate(list(outputs), axis=-1)

    def init(self, key: Key, shape: Shape) -> tuple[Params, Shape]:
        branches = []
        for i, (part, layer) in enumerate(self.parts.items()):
            branch_key = jax.random.fold_in(key, i)
            branches.append(call_part(part, layer, layer.init, branch_key, shape))
        out_shapes = [out_shape for _, out_shape in branches]
        out_shape = _output_shape(list(self.parts), out_shapes, self.combine, shape)
        return self.pack(params for params, _ in branches), out_shape

    def forward(self, params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        check_count(params, len(self.parts), "a composite")
        keys = split_keys(key, len(self.parts))
        results = [
            call_part(part, layer, layer.forward, layer_params, x, key=layer_key)
            for (part, layer), layer_params, layer_key in zip(
                self.parts.items(), self.unpack(params), keys, strict=True
            )
        ]
        outputs = [y for y, _ in results]
        widths: tuple[Array, ...] = ()
        if self.combine == "concatenate":
            widths = tuple(shape_to_array(y.shape[-1:]) for y in outputs)
        return self.join(outputs), (self.pack(cache for _, cache in results), widths)

    def backward(self, params: Params, cache: Cache, delta: Array) -> tuple[Any, Grads]:
        caches, widths = cache
        deltas = [delta] * len(self.parts)
        if self.combine == "concatenate":
            ends = list(itertools.accumulate(array_to_shape(width)[0] for width in widths))
            deltas = jnp.split(delta, ends[:-1], axis=-1)
        results = [
            layer.backward(layer_params, layer_cache, branch_delta)
            for layer, layer_params, layer_cache, branch_delta in zip(
                self.parts.values(), self.unpack(params), self.unpack(caches), deltas, strict=True
            )
        ]
        grads = self.pack(grads for _, grads in results)
        return add_deltas(input_delta for input_delta, _ in results), grads

    def incremental(self, forms: Sequence[IncrementalForward]) -> IncrementalForward:
        """Return the incremental form; its state is the tuple of the branches'."""

        def start(batch: int, shape: Shape) -> Any:
            return tuple(form.start(batch, shape) for form in forms)

        def step(params: Params, x: Array, state: Any) -> tuple[Array, Any]:
            results = [
                form.step(branch_params, x, branch_state)
                for form, branch_params, branch_state in zip(
                    forms, self.unpack(params), state, strict=True
                )
            ]
            return self.join([y for y, _ in results]), tuple(new for _, new in results)

        return IncrementalForward(start, step)


def _output_shape(
    names: Sequence[str], shapes: Sequence[Shape], combine: Combine, in_shape: Shape
) -> Shape:
    """Return the shape of the combined outputs, or raise ShapeError if the branches do not fit."""
    alike = shapes if combine == "sum" else [shape[:-1] for shape in shapes]
    if len(set(alike)) != 1:
        allowed = (
            "must give the same shape" if combine == "sum" else "may differ in the last axis only"
        )
        each = ", ".join(f"{name}: {shape}" for name, shape in zip(names, shapes, strict=True))
        raise ShapeError(
            f"branches of a {combine} {allowed}, got {each} for an input of {in_shape}"
        )
    if combine == "sum":
        return shapes[0]
    if not shapes[0]:
        raise ShapeError("branches to concatenate must have at least one axis, got shape ()")
    return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
