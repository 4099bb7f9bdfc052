"""One layer repeated in sequence, as a scan over depth."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp._arguments import checked
from fbp.combinators._parts import call_part, combine_incremental
from fbp.errors import ShapeError
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


@checked
def repeat(layer: Layer, times: int, *, unroll: int = 1) -> Layer:
    """Repeat a layer ``times`` times in sequence, as one scan over stacked parameters.

    Compile time does not grow with depth. Backward is a scan in the other direction, over the same
    stack of parameters and caches.

    Args:
        layer: the layer to repeat; it keeps the shape of its input.
        times: the number of copies, at least 1.
        unroll: copies in one iteration of the scan's loop. ``unroll=times`` compiles as long as a
            chain does, and runs as fast.

    Returns:
        A layer whose parameters are the part's, with one more axis of length ``times`` in front.

    Raises:
        InputError: if ``layer`` is not a layer, or a count is less than 1.
        ShapeError: if the layer changes the shape of its input.
    """
    require_layer("repeat", layer)
    repeated = _Repeated(layer, times, min(unroll, times))
    return Layer(
        repeated.init,
        repeated.forward,
        repeated.backward,
        kind="repeat",
        name=f"repeat({layer.name}, {times})",
        parts={"": layer},
        rebuild=lambda parts: repeat(parts[""], times, unroll=unroll),
        wiring=Wiring(((IN, ""), ("", OUT)), repeats=times),
        incremental=combine_incremental([layer], lambda forms: _incremental(forms[0], times)),
    )


class _Repeated(NamedTuple):
    """A layer, the number of its copies, and how many make one iteration of the loop."""

    layer: Layer
    times: int
    unroll: int

    def init(self, key: Key, shape: Shape) -> tuple[Params, Shape]:
        out_shapes = []

        def init_copy(key: Key) -> Params:
            params, out_shape = call_part("0", self.layer, self.layer.init, key, shape)
            out_shapes.append(out_shape)
            return params

        params = jax.vmap(init_copy)(jax.random.split(key, self.times))
        if out_shapes[0] != shape:
            raise ShapeError(
                f"repeat expects a layer that keeps the shape {shape}, but {self.layer.name} gives "
                f"{out_shapes[0]}"
            )
        return params, shape

    def forward(self, params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        def step(x: Any, copy: Any) -> tuple[Any, Cache]:
            layer_params, layer_key = copy
            return self.layer.forward(layer_params, x, key=layer_key)

        keys = None if key is None else jax.random.split(key, self.times)
        return jax.lax.scan(step, x, (params, keys), length=self.times, unroll=self.unroll)

    def backward(self, params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        def step(delta: Any, copy: Any) -> tuple[Any, Grads]:
            layer_params, layer_cache = copy
            return self.layer.backward(layer_params, layer_cache, delta)

        copies, unroll = (params, cache), self.unroll
        return jax.lax.scan(step, delta, copies, length=self.times, reverse=True, unroll=unroll)


def _incremental(form: IncrementalForward, times: int) -> IncrementalForward:
    """Return the incremental form of copies in sequence; their states are stacked."""

    def start(batch: int, shape: Shape) -> Any:
        state = form.start(batch, shape)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (times, *leaf.shape)), state)

    def step(params: Params, x: Array, state: Any) -> tuple[Array, Any]:
        def step_copy(x: Array, copy: Any) -> tuple[Array, Any]:
            copy_params, copy_state = copy
            return form.step(copy_params, x, copy_state)

        return jax.lax.scan(step_copy, x, (params, state), length=times)

    return IncrementalForward(start, step)
