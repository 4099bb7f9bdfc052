"""The same layer computed otherwise: with less memory, or in another dtype."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp._arguments import checked
from fbp._observation import join_observed, split_observed
from fbp.combinators._parts import combine_incremental, is_floating
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
def recompute(layer: Layer) -> Layer:
    """Keep only the layer's input; backward runs the forward pass again. Chen et al. (2016).

    Gradient checkpointing: one more forward pass in place of the memory of all the caches inside.

    Args:
        layer: any layer.

    Returns:
        A layer with the same parameters.

    Raises:
        InputError: if ``layer`` is not a layer.
    """
    require_layer("recompute", layer)

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        return layer.forward(params, x, key=key)[0], (x, key)

    def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        # without the barrier XLA would recognize the first forward pass and keep its caches
        (x, key), delta = jax.lax.optimization_barrier((cache, delta))
        _, layer_cache = layer.forward(params, x, key=key)
        return layer.backward(params, layer_cache, delta)

    return Layer(
        layer.init,
        forward,
        backward,
        kind="recompute",
        name=f"recompute({layer.name})",
        parts={"": layer},
        rebuild=lambda parts: recompute(parts[""]),
        incremental=layer.incremental,
    )


@checked
def precision(
    layer: Layer, compute: Any = jnp.bfloat16, *, loss_scale: float | Array | None = None
) -> Layer:
    """Compute a layer in another dtype; parameters, gradients, output and input delta keep theirs.

    Micikevicius et al. (2018), *Mixed precision training*.

    Args:
        layer: any layer.
        compute: the dtype inside, such as ``jnp.bfloat16`` or ``jnp.float16``.
        loss_scale: the factor by which deltas are multiplied inside, and gradients divided outside,
            so that small ones do not vanish. 2^15 by default for float16, whose range is small; 1
            for other dtypes. Deltas that are observed or replaced inside are without this factor.

    Returns:
        A layer with the same parameters, in their own dtype (float32).

    Raises:
        InputError: if ``layer`` is not a layer.
    """
    require_layer("precision", layer)
    default_scale = 2.0**15 if compute == jnp.float16 else None
    scale = default_scale if loss_scale is None else loss_scale

    cast = _Cast(layer, compute, scale)
    return Layer(
        layer.init,
        cast.forward,
        cast.backward,
        kind="precision",
        name=f"precision({layer.name}, {jnp.dtype(compute).name})",
        parts={"": layer},
        rebuild=lambda parts: precision(parts[""], compute, loss_scale=loss_scale),
        wiring=Wiring(((IN, ""), ("", OUT)), delta_scale=1 if scale is None else scale),
        incremental=combine_incremental([layer], lambda forms: cast.incremental(forms[0])),
    )


class _Cast(NamedTuple):
    """A layer, the dtype that it is computed in, and the factor of its deltas."""

    layer: Layer
    compute: Any
    scale: float | Array | None

    def narrow(self, tree: Any) -> Any:
        """Cast real numbers to the dtype inside."""
        return _cast_floating(tree, self.compute)

    def widen(self, leaf: Array, dtype: Any) -> Array:
        """Undo the cast and the loss scale of a gradient or a delta."""
        wide = leaf.astype(dtype)
        return wide if self.scale is None else wide / self.scale

    def forward(self, params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        y, cache = self.layer.forward(self.narrow(params), self.narrow(x), key=key)
        return _cast_floating(y, _common_dtype((params, x))), cache

    def backward(self, params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        scaled = delta
        if self.scale is not None:
            scaled = jax.tree.map(lambda d: d * jnp.asarray(self.scale, d.dtype), delta)
        input_delta, grads = self.layer.backward(self.narrow(params), cache, self.narrow(scaled))
        grads, observed = split_observed(grads)
        outer = jax.tree.leaves(delta)[0].dtype
        input_delta = jax.tree.map(lambda d: self.widen(d, outer), input_delta)
        grads = jax.tree.map(lambda g, p: self.widen(g, p.dtype), grads, params)
        return input_delta, join_observed(grads, observed)

    def incremental(self, form: IncrementalForward) -> IncrementalForward:
        def start(batch: int, shape: Shape) -> Any:
            return self.narrow(form.start(batch, shape))

        def step(params: Params, x: Array, state: Any) -> tuple[Array, Any]:
            y, new_state = form.step(self.narrow(params), self.narrow(x), state)
            return _cast_floating(y, _common_dtype((params, x))), self.narrow(new_state)

        return IncrementalForward(start, step)


def _common_dtype(tree: Any) -> Any:
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(tree) if is_floating(leaf)]
    return jnp.result_type(*dtypes) if dtypes else jnp.float32


def _cast_floating(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if is_floating(leaf) else leaf, tree)
