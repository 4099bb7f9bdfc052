"""The algorithm: forward, output error, backward; and the bridge to JAX's own differentiation.

No function here but :func:`from_function` calls autodiff.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fbp._observation import (
    ObservedGrads,
    Position,
    check_paths,
    default_paths,
    exchange_at,
    join_observed,
    leaf_paths,
    split_observed,
)
from fbp.errors import InputError, ShapeError
from fbp.layer import (
    Array,
    Cache,
    Grads,
    Init,
    Key,
    Layer,
    Loss,
    Params,
    Shape,
    require_layer,
    require_loss,
)
from fbp.losses._targets import labelled_examples, over_labelled

Result = TypeVar("Result", covariant=True)


class BackpropResult(NamedTuple):
    """Results of one forward and one backward pass. jit eliminates the fields you do not use.

    Attributes:
        cost: the mean (or weighted) cost of the batch, a scalar.
        output: the model's output, ``(B, ...)``, or a tuple if it has several.
        output_delta: dC/d(output), equation (1), ``cost_weights`` included.
        input_delta: dC/dx, or None if x has no derivative.
        grads: dC/dparams, with the structure of params.
    """

    cost: Array
    output: Any
    output_delta: Any
    input_delta: Any
    grads: Grads


class GradientFunction(Protocol[Result]):
    """The call that :func:`backpropagate`, :func:`value_and_grad` and :func:`deltas` return."""

    def __call__(
        self,
        params: Params,
        x: Any,
        y: Any,
        key: Key | None = None,
        *,
        cost_weights: Array | None = None,
    ) -> Result:
        """Compute on a batch ``x (B, ...)`` with targets ``y (B, ...)``.

        Args:
            params: the model's parameters.
            x: the inputs.
            y: the targets, as the loss takes them.
            key: for layers that draw random numbers; None means evaluation.
            cost_weights: ``(B,)``, so that the total cost is ``sum(cost_weights * C_i)``. None
                stands for the mean over the examples that have a target, 1/B each if all
                have; weights of 1 give the sum.
        """
        ...


def backpropagate(model: Layer, loss: Loss) -> GradientFunction[BackpropResult]:
    """Return a function that runs one forward and one backward pass and returns all they give.

    Args:
        model: any layer.
        loss: a pair of value and delta, see :class:`fbp.Loss`.

    Returns:
        ``(params, x (B, ...), y, key=None, *, cost_weights=None) -> BackpropResult``, see
        :class:`GradientFunction`.

    Raises:
        ShapeError: when called, if ``cost_weights`` does not have shape ``(B,)``.
    """
    require_layer("backpropagate", model)
    require_loss("backpropagate", loss)

    def run(
        params: Params,
        x: Any,
        y: Any,
        key: Key | None = None,
        *,
        cost_weights: Array | None = None,
    ) -> BackpropResult:
        output, cache = model.forward(params, x, key=key)
        costs = loss.value(output, y)
        if not costs.shape[0]:
            raise ShapeError("a batch needs at least one example, got none")
        # equation (1); the factor sigma' follows in the last activation's backward
        output_delta = loss.delta(output, y)
        if cost_weights is None:
            labelled = labelled_examples(loss, y)
            # the cost of an example without a target is 0
            cost, share = costs.mean(), 1 / costs.shape[0]
            output_delta = jax.tree.map(lambda d: d * share, output_delta)
            if labelled is not None:
                factor = over_labelled(labelled)
                cost = cost * jnp.asarray(factor, cost.dtype)
                output_delta = jax.tree.map(
                    lambda d: d * jnp.asarray(factor, d.dtype), output_delta
                )
        else:
            weights = _checked_weights(loss, cost_weights, costs)
            cost = jnp.where(weights == 0, 0, weights * costs).sum()
            output_delta = jax.tree.map(lambda d: _weigh(d, weights), output_delta)
        input_delta, grads = model.backward(params, cache, output_delta)
        grads = _in_dtypes_of(params, grads)
        return BackpropResult(cost, output, output_delta, input_delta, grads)

    return run


def _weigh(delta: Array, weights: Array) -> Array:
    """Return each example's delta times its weight; a weight of 0 leaves out whatever is there."""
    weights = weights.reshape(-1, *[1] * (delta.ndim - 1)).astype(delta.dtype)
    return jnp.where(weights == 0, 0, delta * weights)


def _checked_weights(loss: Loss, cost_weights: Any, costs: Array) -> Array:
    if loss.coupled:
        raise InputError(
            f"cost_weights: the loss {loss.name!r} couples the examples of a batch, so that its "
            "delta is that of the sum of all costs; weigh them inside the loss"
        )
    if not isinstance(cost_weights, jax.Array | np.ndarray):
        raise InputError(
            f"cost_weights expects an array of shape {costs.shape}, got "
            f"{type(cost_weights).__name__}"
        )
    if cost_weights.shape != costs.shape:
        raise ShapeError(
            f"cost_weights expects one number per example, shape {costs.shape}, got "
            f"{cost_weights.shape}"
        )
    return jnp.asarray(cost_weights)


def _in_dtypes_of(params: Params, grads: Grads) -> Grads:
    """Cast each gradient to its parameter's dtype."""
    plain, observed = split_observed(grads)
    if jax.tree.structure(params) != jax.tree.structure(plain):  # type: ignore[operator]
        return grads
    return join_observed(jax.tree.map(lambda p, g: g.astype(p.dtype), params, plain), observed)


def value_and_grad(model: Layer, loss: Loss) -> GradientFunction[tuple[Array, Grads]]:
    """Return a function for the cost and its gradient, by hand-written backpropagation.

    It is called like the result of ``jax.value_and_grad``.

    Args:
        model: any layer.
        loss: a pair of value and delta, see :class:`fbp.Loss`.

    Returns:
        ``(params, x (B, ...), y, key=None, *, cost_weights=None) -> (cost, grads)``, see
        :class:`GradientFunction`.

    >>> import jax, jax.numpy as jnp, fbp
    >>> model = fbp.layers.dense(1)
    >>> params = {"w": jnp.array([[2.0]]), "b": jnp.array([0.0])}
    >>> x, y = jnp.array([[3.0]]), jnp.array([[5.0]])
    >>> cost, grads = value_and_grad(model, fbp.losses.quadratic)(params, x, y)
    >>> float(cost), float(grads["w"][0, 0]), float(grads["b"][0])   # a - y = 1, so dC/dw = 3
    (0.5, 3.0, 1.0)
    """
    require_layer("value_and_grad", model)
    run = backpropagate(model, require_loss("value_and_grad", loss))

    def cost_and_grads(
        params: Params,
        x: Any,
        y: Any,
        key: Key | None = None,
        *,
        cost_weights: Array | None = None,
    ) -> tuple[Array, Grads]:
        result = run(params, x, y, key, cost_weights=cost_weights)
        return result.cost, result.grads

    return cost_and_grads


def tap(
    model: Layer,
    observe: Callable[[Any], Any] = lambda delta: delta,
    *,
    paths: Sequence[str] | None = None,
) -> Layer:
    """Return the model with a backward pass that also returns ``observe(delta)`` of its layers.

    The observations travel beside the gradients, as outputs of a pure function, so this works under
    jit, vmap and scan. Separate the two with :func:`untap`. Inside ``repeat`` an observation has
    one more leading axis, with an entry for each copy.

    Args:
        model: any layer.
        observe: from a layer's output delta, an array (or a tuple for a layer with several
            outputs), to any pytree of arrays.
        paths: of the layers to observe; by default all of them, composites such as a residual block
            too, but not a chain, whose output is that of its last layer. A composite that wraps one
            part, such as ``repeat``, is observed at that part.

    Raises:
        InputError: if a path names no layer.
    """
    require_layer("tap", model)

    def functions(place: Position, layer: Layer) -> dict[str, Any]:
        def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
            input_delta, grads = layer.backward(params, cache, delta)
            value = observe(_scaled(delta, 1 / place.delta_scale, place))
            return input_delta, ObservedGrads(grads, {place.path: value})

        return {"backward": backward}

    return exchange_at(model, functions, _chosen(model, paths))


def _chosen(model: Layer, paths: Sequence[str] | None) -> list[str]:
    if paths is None:
        return default_paths(model)
    return check_paths(model, paths)


def _scaled(delta: Any, factor: Any, place: Position) -> Any:
    """Multiply a delta inside a loss-scaled ``precision`` by ``factor``, in float32 or wider."""
    if isinstance(place.delta_scale, int) and place.delta_scale == 1:
        return delta

    def scaled(d: Array) -> Array:
        wide = jnp.promote_types(d.dtype, jnp.float32)
        return d.astype(wide) * factor

    return jax.tree.map(scaled, delta)


def untap(grads: Grads) -> tuple[Grads, dict[str, Any]]:
    """Separate a tapped model's gradients from what was observed.

    Args:
        grads: the gradients that a model made by :func:`tap` returns.

    Returns:
        The gradients with the structure of the parameters, and the observations by path.
    """
    return split_observed(grads)


def path_of(keys: Any) -> str:
    """Return a JAX key path as ``a/b/0``."""
    return str(jax.tree_util.keystr(keys, simple=True, separator="/"))


def deltas(
    model: Layer, loss: Loss, *, paths: Sequence[str] | None = None
) -> GradientFunction[dict[str, Any]]:
    """Return a function for every layer's output delta by path: the delta of the four equations.

    Args:
        model: any layer.
        loss: a pair of value and delta, see :class:`fbp.Loss`.
        paths: of the layers whose deltas are wanted; by default all, see :func:`tap`.

    Returns:
        ``(params, x, y, key=None, *, cost_weights=None) -> {path: dC/d(output)}``. Layers whose
        output has no derivative are left out.

    Raises:
        InputError: if a path names no layer; the message has the nearest that exist.

    >>> import jax, jax.numpy as jnp, fbp
    >>> model = fbp.chain(fbp.layers.dense(4), fbp.layers.sigmoid(), fbp.layers.dense(2))
    >>> params, _ = model.init(jax.random.key(0), (3,))
    >>> x, y = jnp.ones((5, 3)), jnp.zeros(5, int)
    >>> by_path = deltas(model, fbp.losses.softmax_cross_entropy)(params, x, y)
    >>> {path: delta.shape for path, delta in by_path.items()}
    {'0': (5, 4), '1': (5, 4), '2': (5, 2)}
    """
    chosen = _chosen(require_layer("deltas", model), paths)
    require_loss("deltas", loss)
    run = backpropagate(tap(model, paths=chosen), loss)

    def by_path(
        params: Params,
        x: Any,
        y: Any,
        key: Key | None = None,
        *,
        cost_weights: Array | None = None,
    ) -> dict[str, Any]:
        _, observed = untap(run(params, x, y, key, cost_weights=cost_weights).grads)
        return {path: observed[path] for path in chosen if path in observed}

    return by_path


def replace_deltas(
    model: Layer, f: Callable[[str, Any], Any], *, paths: Sequence[str] | None = None
) -> Layer:
    """Return the model with a backward pass that uses ``f(path, delta)`` in place of each delta.

    Clip deltas, add noise to them, stop them or scale them, layer by layer:

    >>> import jax.numpy as jnp, fbp
    >>> model = fbp.chain(fbp.layers.dense(4), fbp.layers.relu(), fbp.layers.dense(2))
    >>> clipped = replace_deltas(model, lambda path, delta: jnp.clip(delta, -0.1, 0.1))

    Args:
        model: any layer.
        f: from a layer's path and its output delta to another delta of the same shape.
        paths: of the layers whose deltas are replaced; by default those without parts. A composite
            such as a residual block is replaced only if it is named.

    Raises:
        InputError: if a path names no layer.
        ShapeError: when the backward pass runs, if ``f`` returns another shape.
    """
    require_layer("replace_deltas", model)

    def functions(place: Position, layer: Layer) -> dict[str, Any]:
        def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
            new = f(place.path, _scaled(delta, 1 / place.delta_scale, place))
            _check_replacement(place.path, new, delta)
            new = _scaled(new, place.delta_scale, place)
            new = jax.tree.map(lambda n, d: n.astype(d.dtype), new, delta)
            return layer.backward(params, cache, new)

        return {"backward": backward}

    chosen = leaf_paths(model) if paths is None else check_paths(model, paths)
    return exchange_at(model, functions, chosen)


def _check_replacement(path: str, new: Any, delta: Any) -> None:
    """Raise ShapeError unless ``new`` can take the place of ``delta``."""

    def shapes(tree: Any) -> Any:
        return jax.tree.map(jnp.shape, tree)

    if jax.tree.structure(new) != jax.tree.structure(delta) or shapes(new) != shapes(delta):  # type: ignore[operator]
        raise ShapeError(
            f"replace_deltas expects f to return a delta of shape {shapes(delta)}, got "
            f"{'None' if new is None else shapes(new)}",
            (path,),
        )


def as_function(layer: Layer) -> Callable[..., Any]:
    """Return ``f(params, x, key=None) -> y`` whose VJP is the layer's hand-written backward pass.

    Use it inside a Flax or Equinox model, or anywhere JAX uses reverse mode, nested too. Forward
    mode (``jax.jvp``) raises JAX's TypeError.

    Args:
        layer: any layer.
    """
    require_layer("as_function", layer)

    @jax.custom_vjp
    def function(params: Params, x: Any, key: Key | None) -> Any:
        return layer.forward(params, x, key=key)[0]

    def forward(params: Params, x: Any, key: Key | None) -> tuple[Any, Any]:
        y, cache = layer.forward(params, x, key=key)
        return y, (params, cache)

    def backward(residuals: Any, delta: Any) -> tuple[Grads, Any, None]:
        params, cache = residuals
        input_delta, grads = layer.backward(params, cache, delta)
        return grads, input_delta, None

    function.defvjp(forward, backward)
    return lambda params, x, key=None: function(params, x, key)


def from_function(f: Callable[[Params, Any], Any], init: Init | None = None) -> Layer:
    """Return any JAX function ``f(params, x) -> y`` as a layer, by ``jax.vjp``: the escape hatch.

    Args:
        f: the function, on a batch: an array, or a tuple of arrays as nodes of a graph take it.
        init: ``(key, shape) -> (params, out_shape)``. By default the layer has no parameters, and
            the output's shape is that of ``f`` on one example.
    """

    def shape_only(key: Key, shape: Shape) -> tuple[Params, Shape]:
        def example(shape: Shape) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((1, *shape), jnp.result_type(float))

        has_several = bool(shape) and isinstance(shape[0], tuple)
        x: Any = tuple(map(example, shape)) if has_several else example(shape)  # type: ignore[arg-type]
        return (), jax.tree.map(lambda y: y.shape[1:], jax.eval_shape(f, (), x))

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        return f(params, x), (params, x)

    def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        x, (_, pull_back) = cache[1], jax.vjp(f, *cache)
        grads, input_delta = pull_back(delta)
        if isinstance(x, tuple):
            return tuple(map(_delta_or_none, x, input_delta)), grads
        return _delta_or_none(x, input_delta), grads

    return Layer(
        init or shape_only,
        forward,
        backward,
        kind="function",
        name=getattr(f, "__name__", "function"),
    )


def _delta_or_none(x: Array, delta: Array) -> Array | None:
    """Return ``delta``, or None if x holds integers, which have none."""
    return delta if jnp.issubdtype(x.dtype, jnp.inexact) else None


def count_parameters(params: Params) -> int:
    """Return how many numbers a pytree of arrays (or of their shapes) holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
