"""The algorithm: forward, output error, backward. And the bridge to JAX's own differentiation, both ways.

No function here but :func:`from_function` calls autodiff.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from fbp.errors import ShapeError
from fbp.layer import Array, Cache, Grads, Init, Key, Layer, Loss, Params, Shape, Tapped, map_layers


class BackpropResult(NamedTuple):
    """All that one forward and one backward pass give; what is not used costs nothing under jit.

    Attributes:
        cost: the mean (or seeded) cost of the batch, a scalar.
        output: what the model answered, ``(B, ...)``, or a tuple of such where it has several outputs.
        output_delta: dC/d(output), equation (1), the seed included.
        input_delta: dC/dx, or None where x has no derivative.
        grads: dC/dparams, with the structure of params.
    """

    cost: Array
    output: Array
    output_delta: Array
    input_delta: Any
    grads: Grads


class GradientFunction(Protocol):
    """The call that value_and_grad and deltas share."""

    def __call__(
        self, params: Params, x: Any, y: Array, key: Key | None = None, *, seed: Array | None = None
    ) -> Any: ...


def backpropagate(model: Layer, loss: Loss) -> Callable[..., BackpropResult]:
    """One forward and one backward pass, and all that they give.

    Returns:
        A function ``(params, x (B, ...), y, key=None, *, seed=None) -> BackpropResult``. ``seed (B,)`` is dC/dC_i, how much
        each example's cost counts: 1/B by default (the mean). A mask is ``mask / mask.sum()``, sample weights likewise.
    """

    def run(
        params: Params, x: Any, y: Array, key: Key | None = None, *, seed: Array | None = None
    ) -> BackpropResult:
        output, cache = model.forward(params, x, key=key)
        costs = loss.value(output, y)
        output_delta = loss.delta(
            output, y
        )  # equation (1); sigma' follows in the last activation's backward
        if seed is None:
            cost, output_delta = (
                costs.mean(),
                jax.tree.map(lambda d: d * (1 / costs.shape[0]), output_delta),
            )
        else:
            if seed.shape != costs.shape:
                raise ShapeError(
                    f"seed expects one number per example, shape {costs.shape}, got {seed.shape}"
                )
            cost = (seed * costs).sum()
            output_delta = jax.tree.map(
                lambda d: d * seed.reshape(-1, *[1] * (d.ndim - 1)).astype(d.dtype), output_delta
            )
        input_delta, grads = model.backward(params, cache, output_delta)
        return BackpropResult(cost, output, output_delta, input_delta, _in_dtypes_of(params, grads))

    return run


def _in_dtypes_of(params: Params, grads: Grads) -> Grads:
    """Each gradient in its parameter's dtype (a tapped model's gradients are left as they are)."""
    if jax.tree.structure(params) != jax.tree.structure(grads):  # type: ignore[operator]
        return grads
    return jax.tree.map(lambda p, g: g.astype(p.dtype), params, grads)


def value_and_grad(model: Layer, loss: Loss) -> GradientFunction:
    """The cost and its gradient by hand-written backpropagation; called like ``jax.value_and_grad``'s result.

    Returns:
        A function ``(params, x (B, ...), y, key=None, *, seed=None) -> (cost, grads)``; see :func:`backpropagate`.

    >>> import jax, jax.numpy as jnp, fbp
    >>> model = fbp.layers.dense(1)
    >>> params = {"w": jnp.array([[2.0]]), "b": jnp.array([0.0])}
    >>> cost, grads = value_and_grad(model, fbp.losses.quadratic)(params, jnp.array([[3.0]]), jnp.array([[5.0]]))
    >>> float(cost), float(grads["w"][0, 0]), float(grads["b"][0])   # a - y = 1, so C = 1/2, dC/dw = 3, dC/db = 1
    (0.5, 3.0, 1.0)
    """
    run = backpropagate(model, loss)

    def cost_and_grads(
        params: Params, x: Any, y: Array, key: Key | None = None, *, seed: Array | None = None
    ) -> tuple[Array, Grads]:
        result = run(params, x, y, key, seed=seed)
        return result.cost, result.grads

    return cost_and_grads


def tap(model: Layer, observe: Callable[[Array], Any] = lambda delta: delta) -> Layer:
    """The same model, whose backward also returns ``observe(delta)`` of every layer, in place, as :class:`Tapped` gradients.

    It stays a pure function: what is observed travels as an output, so this works under jit, vmap and scan.
    Take the two apart with :func:`untap`.
    """

    def tapped(path: str, layer: Layer) -> Layer:
        def backward(params: Params, cache: Cache, delta: Array) -> tuple[Any, Grads]:
            input_delta, grads = layer.backward(params, cache, delta)
            return input_delta, Tapped(grads, observe(delta))

        return layer._replace(backward=backward)

    return map_layers(tapped, model)


def untap(grads: Grads) -> tuple[Grads, dict[str, Any]]:
    """The gradients of a tapped model, and what was observed at each layer by its path."""
    is_tapped = lambda node: isinstance(node, Tapped)
    leaves, structure = jax.tree_util.tree_flatten_with_path(grads, is_leaf=is_tapped)
    observed = {path_of(keys) or "model": node.observed for keys, node in leaves}
    return jax.tree.unflatten(structure, [node.grads for _, node in leaves]), observed


def path_of(keys: Any) -> str:
    """A JAX key path written as ``a/b/0``."""
    return str(jax.tree_util.keystr(keys, simple=True, separator="/"))


def deltas(model: Layer, loss: Loss) -> GradientFunction:
    """Every layer's output delta by its path: dC/d(output of the layer), the delta of the four equations at each z.

    Returns:
        A function ``(params, x, y, key=None, *, seed=None) -> {path: delta}``.

    >>> import jax, jax.numpy as jnp, fbp
    >>> model = fbp.chain(fbp.layers.dense(4), fbp.layers.sigmoid(), fbp.layers.dense(2))
    >>> params, _ = model.init(jax.random.key(0), (3,))
    >>> flatten_by_path = deltas(model, fbp.losses.softmax_cross_entropy)(params, jnp.ones((5, 3)), jnp.zeros(5, int))
    >>> {path: delta.shape for path, delta in flatten_by_path.items()}
    {'0': (5, 4), '1': (5, 4), '2': (5, 2)}
    """
    run = backpropagate(tap(model), loss)

    def flatten_by_path(
        params: Params, x: Any, y: Array, key: Key | None = None, *, seed: Array | None = None
    ) -> dict[str, Array]:
        return untap(run(params, x, y, key, seed=seed).grads)[1]

    return flatten_by_path


def replace_deltas(model: Layer, f: Callable[[str, Array], Array]) -> Layer:
    """The same model, in which each layer's backward works with ``f(path, delta)`` in place of the delta that arrives.

    Clip deltas, add noise to them, stop them or scale them, layer by layer:

    >>> import jax.numpy as jnp, fbp
    >>> model = fbp.chain(fbp.layers.dense(4), fbp.layers.relu(), fbp.layers.dense(2))
    >>> clipped = replace_deltas(model, lambda path, delta: jnp.clip(delta, -0.1, 0.1))
    """

    def replaced(path: str, layer: Layer) -> Layer:
        def backward(params: Params, cache: Cache, delta: Array) -> tuple[Any, Grads]:
            return layer.backward(params, cache, f(path, delta))

        return layer._replace(backward=backward)

    return map_layers(replaced, model)


def as_function(layer: Layer) -> Callable[..., Any]:
    """``f(params, x, key=None) -> y`` whose derivative under ``jax.grad`` is the layer's hand-written backward pass.

    Use it inside a Flax or Equinox model, or anywhere else that JAX differentiates once.
    """

    @jax.custom_vjp
    def function(params: Params, x: Any, key: Key | None) -> Any:
        return layer.forward(params, x, key=key)[0]

    def forward(params: Params, x: Any, key: Key | None) -> tuple[Any, Any]:
        y, cache = layer.forward(params, x, key=key)
        return y, (params, cache)

    def backward(kept: Any, delta: Any) -> tuple[Grads, Any, None]:
        params, cache = kept
        input_delta, grads = layer.backward(params, cache, delta)
        return grads, input_delta, None

    function.defvjp(forward, backward)
    return lambda params, x, key=None: function(params, x, key)


def from_function(f: Callable[[Params, Any], Any], init: Init | None = None) -> Layer:
    """Any JAX function ``f(params, x) -> y`` as a layer, by ``jax.vjp``: the escape hatch.

    Args:
        f: the function, on a batch.
        init: ``(key, shape) -> (params, out_shape)``; by default no parameters, and the output's shape as ``f`` tells it.
    """

    def shape_only(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), jax.eval_shape(
            f, (), jax.ShapeDtypeStruct((1, *shape), jnp.result_type(float))
        ).shape[1:]

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        return f(params, x), (params, x)

    def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        _, pull_back = jax.vjp(f, *cache)
        grads, input_delta = pull_back(delta)
        return None if _has_no_derivative(cache[1]) else input_delta, grads

    return Layer(init or shape_only, forward, backward, name=getattr(f, "__name__", "function"))


def _has_no_derivative(x: Any) -> bool:
    return not jnp.issubdtype(x.dtype, jnp.inexact)


def count_parameters(params: Params) -> int:
    """How many numbers a pytree of arrays (or of their shapes) holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
