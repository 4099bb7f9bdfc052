"""Layers in sequence."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fbp._observation import initial_shapes
from fbp.combinators._parts import call_part, check_count, combine_incremental, split_keys
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


def chain(*layers: Layer) -> Layer:
    """Compose layers in sequence.

    Forward stores every layer's cache, backward passes delta from the last layer to the first:
    the algorithm of backpropagation itself.

    Args:
        layers: any number; none gives the identity. InputError is raised for anything else.

    Returns:
        A layer whose parameters are a tuple with one entry per layer.

    >>> import jax, fbp
    >>> model = chain(fbp.layers.dense(30), fbp.layers.sigmoid(), fbp.layers.dense(10))
    >>> params, shape = model.init(jax.random.key(0), (784,))
    >>> shape, len(params)
    ((10,), 3)
    """
    for i, layer in enumerate(layers):
        require_layer(f"chain: place {i}", layer)

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        params = []
        for i, layer in enumerate(layers):
            layer_key = jax.random.fold_in(key, i)
            layer_params, shape = call_part(str(i), layer, layer.init, layer_key, shape)
            params.append(layer_params)
        return tuple(params), shape

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        check_count(params, len(layers), "a chain")
        keys = split_keys(key, len(layers))
        caches = []
        for i, (layer, layer_params) in enumerate(zip(layers, params, strict=True)):
            x, cache = call_part(str(i), layer, layer.forward, layer_params, x, key=keys[i])
            caches.append(cache)
        return x, tuple(caches)

    def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        grads = []
        for layer, layer_params, layer_cache in zip(
            reversed(layers), reversed(params), reversed(cache), strict=True
        ):
            if delta is None:  # the layers before have no derivative: their outputs are integers
                layer_grads = jax.tree.map(jnp.zeros_like, layer_params)
            else:
                delta, layer_grads = layer.backward(layer_params, layer_cache, delta)
            grads.append(layer_grads)
        return delta, tuple(reversed(grads))

    return Layer(
        init,
        forward,
        backward,
        kind="chain",
        name=f"chain({', '.join(layer.name for layer in layers)})",
        parts={str(i): layer for i, layer in enumerate(layers)},
        rebuild=lambda parts: chain(*parts.values()),
        incremental=combine_incremental(layers, lambda forms: _incremental(layers, forms)),
    )


def _incremental(
    layers: Sequence[Layer], forms: Sequence[IncrementalForward]
) -> IncrementalForward:
    """Return the chain's incremental form; its state is the tuple of its parts' states."""

    def start(batch: int, shape: Shape) -> Any:
        states = []
        for layer, form in zip(layers, forms, strict=True):
            states.append(form.start(batch, shape))
            _, shape = initial_shapes(layer, shape)
        return tuple(states)

    def step(params: Params, x: Array, state: Any) -> tuple[Array, Any]:
        states = []
        for form, layer_params, layer_state in zip(forms, params, state, strict=True):
            x, new_state = form.step(layer_params, x, layer_state)
            states.append(new_state)
        return x, tuple(states)

    return IncrementalForward(start, step)
