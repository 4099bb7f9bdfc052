"""Tied weights: layers of a model that share their parameters."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp._observation import (
    check_paths,
    entry,
    join_observed,
    nontrainable_paths,
    split_observed,
    with_entry,
)
from fbp.combinators._parts import combine_incremental
from fbp.errors import InputError, ShapeError, prefixed_by
from fbp.layer import (
    Array,
    Cache,
    Grads,
    IncrementalForward,
    Key,
    Layer,
    Params,
    Shape,
    require_layer,
)


def tie(model: Layer, sources: Mapping[str, str]) -> Layer:
    """Let layers of a model share parameters: one entry, whose gradient is the sum over all users.

    Press and Wolf (2017), *Using the output embedding to improve language models*: the logits of a
    language model are computed with its embedding's table.

    >>> import fbp
    >>> layers = fbp.layers.embedding(65, 32), fbp.layers.layer_norm(), fbp.layers.unembedding(65)
    >>> tied = tie(fbp.chain(*layers), {"2": "0"})

    Args:
        model: any composite.
        sources: from the path of a layer to the path of the layer whose parameters it uses. The
            paths are those of :func:`fbp.map_layers` and :func:`fbp.deltas`.

    Returns:
        A layer with the model's parameters, but ``()`` at each key of ``sources``.

    Raises:
        InputError: if a path names nothing, or a source has no parameters of its own.
        ShapeError: if two layers that share have parameters of different shapes.
    """
    require_layer("tie", model)
    with prefixed_by("tie"):
        check_paths(model, [*sources, *sources.values()])
    for path, source in sources.items():
        if path == source or source in sources:
            raise InputError(
                f"tie: {path!r} cannot use the parameters of {source!r}, which has none of its own"
            )

    tied = _Tied(model, dict(sources))
    return Layer(
        tied.init,
        tied.forward,
        tied.backward,
        kind="tie",
        name=f"tie({model.name})",
        parts={"": model},
        rebuild=lambda parts: tie(parts[""], sources),
        incremental=combine_incremental([model], lambda forms: tied.incremental(forms[0])),
    )


class _Tied(NamedTuple):
    """A model, and from the path of a layer to that of the layer whose parameters it uses."""

    model: Layer
    sources: dict[str, str]

    def init(self, key: Key, shape: Shape) -> tuple[Params, Shape]:
        params, out_shape = self.model.init(key, shape)
        nontrainable = nontrainable_paths(self.model, params)
        for path, source in self.sources.items():
            shapes, needed = (jax.tree.map(jnp.shape, _entry(params, p)) for p in (source, path))
            if shapes != needed:
                raise ShapeError(
                    f"tie: {path!r} needs parameters of shapes {needed}, but {source!r} has "
                    f"{shapes}"
                )
            if any(f"{name}/".startswith(f"{path}/") for name in nontrainable):
                raise InputError(
                    f"tie: {path!r} holds statistics of its own input, which cannot be shared"
                )
        for path in self.sources:
            params = with_entry(params, path, ())
        return params, out_shape

    def fill(self, params: Params) -> Params:
        """Return the model's parameters, with the shared ones at each of their places."""
        for path, source in self.sources.items():
            params = with_entry(params, path, _entry(params, source))
        return params

    def forward(self, params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        return self.model.forward(self.fill(params), x, key=key)

    def backward(self, params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        input_delta, grads = self.model.backward(self.fill(params), cache, delta)
        grads, observed = split_observed(grads)
        for path, source in self.sources.items():
            total = jax.tree.map(jnp.add, entry(grads, source), entry(grads, path))
            grads = with_entry(with_entry(grads, source, total), path, ())
        return input_delta, join_observed(grads, observed)

    def incremental(self, form: IncrementalForward) -> IncrementalForward:
        def step(params: Params, x: Array, state: Any) -> tuple[Array, Any]:
            return form.step(self.fill(params), x, state)

        return form._replace(step=step)


def _entry(params: Params, path: str) -> Params:
    try:
        return entry(params, path)
    except InputError as error:
        raise InputError(f"tie: {error}") from None
