"""Which parameters weight decay and the penalties take."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from fbp.layer import Array, Params

Mask: TypeAlias = Callable[[Params], Any] | None
"""``params -> the same tree of booleans``, True for what decays; None for :func:`weights_only`."""

_NOT_DECAYED = (
    "b",
    "bh",
    "bq",
    "bkv",
    "bqkv",
    "bo",
    "bias",
    "scale",
    "offset",
    "g",
    "mean",
    "variance",
)


def weights_only(params: Params) -> Any:
    """Return the default mask: True for weights, False for biases and scales.

    A leaf counts as a bias or scale by its name or because it has fewer than two axes.
    """

    def is_weight(path: Any, leaf: Array) -> bool:
        name = str(getattr(path[-1], "key", getattr(path[-1], "name", ""))) if path else ""
        return leaf.ndim >= 2 and name not in _NOT_DECAYED

    return jax.tree_util.tree_map_with_path(is_weight, params)


def apply_where(mask: Mask, params: Params, change: Callable[..., Array], *trees: Any) -> Any:
    """Return the first tree, with ``change(leaf, ...)`` in place of its leaves if the mask holds.

    Args:
        mask: what to change.
        params: the parameters that the mask is asked about.
        change: from a leaf of each tree to the new leaf of the first.
        trees: trees with the structure of the parameters.
    """
    selected = (mask or weights_only)(params)
    return jax.tree.map(lambda m, *leaves: change(*leaves) if m else leaves[0], selected, *trees)
