"""Which parameters weight decay and the penalties take."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np

from fbp.errors import ArgumentError
from fbp.layer import Layer, Params

Mask: TypeAlias = Callable[[Params], Any] | None
"""``params -> the same tree of booleans``, True for what decays; None for :func:`weights_only`."""


def weights_only(params: Params) -> Any:
    """Return the mask that needs no model: True for parameters with two axes or more.

    It sees arrays alone, so it takes the biases that :func:`fbp.repeat` stacks along a new axis for
    weights, and knows nothing of what a layer says of its parameters; :func:`decay_mask` does.

    Args:
        params: any tree of arrays.
    """
    return jax.tree.map(lambda leaf: np.ndim(leaf) >= 2, params)


def decay_mask(model: Layer) -> Callable[[Params], Any]:
    """Return the mask that asks each layer of a model.

    A parameter decays unless its layer names it in ``not_decayed``. A layer whose ``not_decayed``
    is None leaves out the parameters with fewer than two axes, not counting those that
    :func:`fbp.repeat` adds. Parameters that are not learned (``nontrainable``) never decay.

    Args:
        model: any layer.

    Returns:
        ``params -> tree of booleans``, for the ``mask`` of :func:`adamw`, :func:`lion`,
        :func:`lamb`, :func:`l1`, :func:`l2` and :func:`decoupled_weight_decay`.

    >>> import fbp, jax
    >>> model = fbp.chain(fbp.layers.dense(3), fbp.layers.layer_norm())
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> decay_mask(model)(params)[0]
    {'b': False, 'w': True}
    """
    return lambda params: _mask(model, params, stacked=0)


def _mask(layer: Layer, params: Params, stacked: int) -> Any:
    """Return the mask of a layer's parameters, which have ``stacked`` leading axes more."""
    if layer.rebuild is None:
        return _leaf_mask(layer, params, stacked)
    inside = stacked + (layer.kind == "repeat")
    if set(layer.parts) == {""}:  # the composite's parameters are its part's
        tree = _mask(layer.parts[""], params, inside)
    elif isinstance(params, dict):
        tree = {key: _mask(layer.parts[key], part, inside) for key, part in params.items()}
    else:
        tree = tuple(_mask(layer.parts[str(i)], part, inside) for i, part in enumerate(params))
    return _without((*(layer.not_decayed or ()), *layer.nontrainable), tree)


def _leaf_mask(layer: Layer, params: Params, stacked: int) -> Any:
    if layer.not_decayed is None:
        tree = jax.tree.map(lambda leaf: np.ndim(leaf) >= 2 + stacked, params)
    else:
        tree = _without(layer.not_decayed, jax.tree.map(lambda leaf: True, params))
    return _without(layer.nontrainable, tree)


def _without(names: tuple[str, ...], tree: Any) -> Any:
    """Return the mask with False for the named entries of a dictionary."""
    if not names or not isinstance(tree, dict):
        return tree
    return {
        name: jax.tree.map(lambda leaf: False, part) if name in names else part
        for name, part in tree.items()
    }


def apply_where(
    function: str, mask: Mask, params: Params, change: Callable[..., Any], *trees: Any
) -> Any:
    """Return the first tree, with ``change(leaf, ...)`` in place of its leaves if the mask holds.

    Args:
        function: the function that was called, for messages.
        mask: what to change.
        params: the parameters that the mask is asked about.
        change: from a leaf of each tree to the new leaf of the first.
        trees: trees with the structure of the parameters.

    Raises:
        ArgumentError: the mask gives anything but one boolean for each parameter.
    """
    selected = (mask or weights_only)(params)
    leaves, structure = jax.tree.flatten(selected)
    are_booleans = all(isinstance(leaf, bool | np.bool_) for leaf in leaves)
    if len({structure, jax.tree.structure(params)}) > 1 or not are_booleans:
        raise ArgumentError(
            function,
            "mask",
            "expected a function that returns one boolean for each parameter, in the structure of "
            "the parameters; decay_mask(model) is one",
        )
    return jax.tree.map(lambda m, *leaves: change(*leaves) if m else leaves[0], selected, *trees)
