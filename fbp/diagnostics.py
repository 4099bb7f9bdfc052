"""What the deltas tell: how strongly each layer learns, and where a signal vanishes, explodes or dies."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp._backprop import backpropagate, path_of, tap, untap, value_and_grad
from fbp.layer import Array, Cache, Key, Layer, Loss, Optimizer, Params, map_layers


class LayerNorms(NamedTuple):
    """Euclidean norms at one step, by path.

    Attributes:
        delta_norm: of dC/d(output), for every layer.
        gradient_norm: of dC/dparameter, for every parameter.
        update_norm: of what the optimizer would add to the parameter.
        update_ratio: update_norm / norm of the parameter; about 1e-3 is usual for Adam-like rules.
    """

    delta_norm: dict[str, Array]
    gradient_norm: dict[str, Array]
    update_norm: dict[str, Array]
    update_ratio: dict[str, Array]


def norm(tensor: Array) -> Array:
    """The Euclidean norm of all numbers of an array."""
    return jnp.sqrt(jnp.vdot(tensor, tensor).real)


def layer_norms(model: Layer, loss: Loss, optimizer: Optimizer) -> Callable[..., LayerNorms]:
    """The norms by layer at one point of training, without taking the step.

    Returns:
        A function ``(params, opt_state, x, y, key=None) -> LayerNorms``; jit it.
    """
    run = backpropagate(tap(model, norm), loss)

    def diagnosis(
        params: Params, opt_state: Any, x: Any, y: Array, key: Key | None = None
    ) -> LayerNorms:
        grads, delta_norm = untap(run(params, x, y, key).grads)
        updates, _ = optimizer.update(grads, opt_state, params)
        update_norm, weight_norm = _norms(updates), _norms(params)
        ratio = {
            path: update_norm[path] / jnp.maximum(weight_norm[path], 1e-30) for path in update_norm
        }
        # biases start at zero, where the ratio has no meaning
        ratio = {path: jnp.where(weight_norm[path] > 0, value, 0) for path, value in ratio.items()}
        return LayerNorms(delta_norm, _norms(grads), update_norm, ratio)

    return diagnosis


def as_metrics(found: LayerNorms) -> dict[str, Any]:
    """Each norm under a name of its own, ``delta_norm/PATH``; inside a ``repeat``, ``.../0`` and on, one for each copy.

    Of shapes, such as ``jax.eval_shape`` gives, too: then None under each name.
    """
    values = {
        f"{kind}/{path}": value
        for kind, norms in found._asdict().items()
        for path, value in norms.items()
    }
    for path in [path for path, value in values.items() if value.ndim]:
        value = values.pop(path)
        copies = (
            [None] * value.size if isinstance(value, jax.ShapeDtypeStruct) else list(value.ravel())
        )
        values |= {f"{path}/{i}": copy for i, copy in enumerate(copies)}
    return values


def _norms(tree: Any) -> dict[str, Array]:
    return {path_of(keys): norm(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def per_example_gradient_norms(model: Layer, loss: Loss) -> Callable[..., Array]:
    """``(params, x (B, ...), y, key=None) -> (B,)``: the norm of each example's own gradient, over all parameters."""
    one = value_and_grad(model, loss)

    def norms(params: Params, x: Array, y: Array, key: Key | None = None) -> Array:
        def of_example(x: Array, y: Array) -> Array:
            _, grads = one(params, x[None], y[None], key)
            return jnp.sqrt(sum(jnp.vdot(leaf, leaf).real for leaf in jax.tree.leaves(grads)))

        return jax.vmap(of_example)(x, y)

    return norms


def dead_units(model: Layer) -> Callable[..., dict[str, Array]]:
    """``(params, x) -> {path: share}``: for each layer, the share of its units whose output is 0 for every example.

    A relu unit that is dead on all the data gets no delta and cannot recover.
    """

    def shares(params: Params, x: Any) -> dict[str, Array]:
        found: dict[str, Array] = {}

        def watched(path: str, layer: Layer) -> Layer:
            def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
                y, cache = layer.forward(params, x, key=key)
                found[path] = (y == 0).all(axis=0).mean()
                return y, cache

            return layer._replace(forward=forward)

        map_layers(watched, model).forward(params, x)
        return found

    return shares
