"""How strongly each layer learns, and where a signal vanishes, explodes or dies."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp._backprop import backpropagate, path_of, tap, untap, value_and_grad
from fbp._observation import Position, leaf_paths, observe_forward, positions
from fbp.errors import InputError
from fbp.layer import Array, Cache, Key, Layer, Loss, Optimizer, Params, require_layer, require_loss
from fbp.optimizers.norms import plain_norm

_COUPLING = ("batch_norm",)  # kinds of layers that mix the examples of a batch in training


class LayerNorms(NamedTuple):
    """Euclidean norms at one step, by path.

    Attributes:
        delta_norm: of dC/d(output), for every layer that has no parts.
        gradient_norm: of dC/dparameter, for every parameter.
        update_norm: of the optimizer's update of each parameter.
        update_ratio: update_norm / norm of the parameter; about 1e-3 is usual for Adam-like rules.
    """

    delta_norm: dict[str, Array]
    gradient_norm: dict[str, Array]
    update_norm: dict[str, Array]
    update_ratio: dict[str, Array]


def layer_norms(model: Layer, loss: Loss, optimizer: Optimizer) -> Callable[..., LayerNorms]:
    """Return a function for the norms by layer at one point of training; it takes no step.

    Args:
        model: any layer.
        loss: its loss.
        optimizer: whose updates are measured.

    Returns:
        ``(params, opt_state, x, y, key=None) -> LayerNorms``; jit it. Inside ``repeat`` a norm has
        one entry for each copy.
    """
    require_layer("layer_norms", model)
    require_loss("layer_norms", loss)
    run = backpropagate(tap(model, plain_norm, paths=leaf_paths(model)), loss)

    def norms(
        params: Params, opt_state: Any, x: Any, y: Array, key: Key | None = None
    ) -> LayerNorms:
        grads, delta_norms = untap(run(params, x, y, key).grads)
        updates, _ = optimizer.update(grads, opt_state, params)
        return norms_of(LayerTensors({}, delta_norms, grads, updates), params, leaf_paths(model))

    return norms


class LayerTensors(NamedTuple):
    """What has a norm at one step.

    Attributes:
        deltas: dC/d(output) by path, of layers whose deltas are small.
        delta_norms: the norm of dC/d(output) by path, of the other layers.
        grads: dC/dparams.
        updates: the optimizer's.
    """

    deltas: dict[str, Any]
    delta_norms: dict[str, Array]
    grads: Params
    updates: Params


def layer_tensors(model: Layer, loss: Loss, optimizer: Optimizer) -> Callable[..., LayerTensors]:
    """Return a function for what :func:`layer_norms` measures, which compiles faster.

    Small deltas and all gradients and updates are returned as they are; :func:`norms_of` measures
    them. Their norms take XLA far longer to compile than the backward pass.

    Args:
        model: any layer.
        loss: its loss.
        optimizer: whose updates are measured.

    Returns:
        ``(params, opt_state, x, y, key=None) -> LayerTensors``; jit it.
    """
    require_layer("layer_tensors", model)
    require_loss("layer_tensors", loss)
    leaves = [place for place in positions(model) if place.layer.rebuild is None]
    repeated = [place.path for place in leaves if place.repeats]
    single = [place.path for place in leaves if not place.repeats]

    def norm_if_large(delta: Any) -> Any:
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(delta))
        return delta if size <= _SMALL_DELTA else _Norm(plain_norm(delta))

    tapped = tap(tap(model, plain_norm, paths=repeated), norm_if_large, paths=single)
    run = backpropagate(tapped, loss)

    def tensors(
        params: Params, opt_state: Any, x: Any, y: Array, key: Key | None = None
    ) -> LayerTensors:
        grads, observed = untap(run(params, x, y, key).grads)
        updates, _ = optimizer.update(grads, opt_state, params)
        norms = {path: observed.pop(path) for path in repeated if path in observed}
        for path, value in list(observed.items()):
            if isinstance(value, _Norm):
                norms[path] = observed.pop(path).value
        return LayerTensors(observed, norms, grads, updates)

    return tensors


_SMALL_DELTA = 2**18
"""Bytes up to which a delta is returned by :func:`layer_tensors`."""


class _Norm(NamedTuple):
    """Marks a norm among deltas, which may be tuples themselves."""

    value: Array


def update_ratio(update_norm: Array, weight_norm: Array) -> Array:
    """Return the update's norm by the parameter's, 0 for a parameter of zeros.

    Biases start at zero, and the ratio has no meaning there.
    """
    ratio = update_norm / jnp.maximum(weight_norm, 1e-30)
    return jnp.where(weight_norm > 0, ratio, 0)


def norms_of(
    tensors: LayerTensors,
    params: Params,
    paths: Sequence[str],
    norm: Callable[[Any], Array] = plain_norm,
    ratio: Callable[[Array, Array], Array] = update_ratio,
) -> LayerNorms:
    """Return the norms of what :func:`layer_tensors` returns.

    Args:
        tensors: deltas, gradients, and updates.
        params: the parameters.
        paths: of the layers without parts, in the model's order.
        norm: the Euclidean norm of an array, jitted or not.
        ratio: :func:`update_ratio`, jitted or not.
    """

    def norms(tree: Any) -> dict[str, Array]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {path_of(keys): norm(leaf) for keys, leaf in leaves}

    measured = tensors.delta_norms | {path: norm(d) for path, d in tensors.deltas.items()}
    delta_norm = {path: measured[path] for path in paths if path in measured}
    update_norm, weight_norm = norms(tensors.updates), norms(params)
    ratios = {path: ratio(update_norm[path], weight_norm[path]) for path in update_norm}
    return LayerNorms(delta_norm, norms(tensors.grads), update_norm, ratios)


def as_metrics(norms: LayerNorms) -> dict[str, Any]:
    """Return each norm under a name of its own, such as ``delta_norm/PATH``.

    Norms inside ``repeat`` are named ``.../0``, ``.../1`` and so on, one for each copy. Also
    accepts ShapeDtypeStructs; the values are then None.
    """
    values = {
        f"{name}/{path}": value
        for name, by_path in norms._asdict().items()
        for path, value in by_path.items()
    }
    for path in [path for path, value in values.items() if value.ndim]:
        value = values.pop(path)
        shapes_only = isinstance(value, jax.ShapeDtypeStruct)
        copies = [None] * value.size if shapes_only else list(value.ravel())
        values |= {f"{path}/{i}": copy for i, copy in enumerate(copies)}
    return values


def per_example_gradient_norms(model: Layer, loss: Loss) -> Callable[..., Array]:
    """Return a function for the norm of each example's own gradient, over all parameters.

    With a key, each example draws its own random numbers.

    Args:
        model: a layer that treats the examples of a batch alone.
        loss: its loss.

    Returns:
        ``(params, x (B, ...), y, key=None) -> (B,)``.

    Raises:
        InputError: if an example has no gradient of its own: if the loss couples examples or, when
            called with a key, if a layer such as ``batch_norm`` does.
    """
    require_layer("per_example_gradient_norms", model)
    if require_loss("per_example_gradient_norms", loss).coupled:
        raise InputError(
            f"per_example_gradient_norms: the loss {loss.name!r} couples the examples of a batch, "
            "so that none has a gradient of its own"
        )
    run = value_and_grad(model, loss)
    coupling = [place for place in positions(model) if place.layer.kind in _COUPLING]

    def norms(params: Params, x: Array, y: Array, key: Key | None = None) -> Array:
        def of_example(x: Array, y: Array, key: Key | None) -> Array:
            _, grads = run(params, x[None], y[None], key)
            return plain_norm(grads)

        if key is None:
            return jax.vmap(lambda x, y: of_example(x, y, None))(x, y)
        if coupling:
            raise InputError(
                f"per_example_gradient_norms: layer {coupling[0].path} {coupling[0].layer.name} "
                "couples the examples of a batch in training, so that none has a gradient of its "
                "own; pass no key"
            )
        return jax.vmap(of_example)(x, y, jax.random.split(key, jax.tree.leaves(x)[0].shape[0]))

    return norms


def dead_units(model: Layer) -> Callable[..., dict[str, Any]]:
    """Return a function for the share of each layer's units whose output is 0 for every example.

    A relu unit that is dead on all the data gets no delta and cannot recover.

    Args:
        model: any layer.

    Returns:
        ``(params, x) -> {path: share}`` for every layer that has no parts. A layer with several
        outputs has a tuple of shares; inside ``repeat`` there is a share for each copy.
    """
    require_layer("dead_units", model)

    def shares(
        place: Position, params: Params, x: Any, y: Any, cache: Cache, key: Key | None
    ) -> Any:
        return jax.tree.map(lambda output: (output == 0).all(axis=0).mean(), y)

    run = observe_forward(model, shares, leaf_paths(model))
    return lambda params, x: run(params, x)[1]
