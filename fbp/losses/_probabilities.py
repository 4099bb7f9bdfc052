"""Cross-entropies on probabilities, as softmax and sigmoid give them."""

import jax.numpy as jnp

from fbp.layer import Array, Loss
from fbp.losses._targets import (
    class_targets,
    count_positions,
    mean_over_labelled_positions,
    mean_over_positions,
    same_shape,
    weigh_positions,
)


def _smallest_normal(output: Array) -> float:
    """Return the smallest normal number of the dtype: it keeps log(0) and 1/0 finite."""
    return float(jnp.finfo(output.dtype).tiny)


def _probability_value(output: Array, target: Array) -> Array:
    y = class_targets("cross_entropy", output, target)
    return mean_over_labelled_positions(
        -y * jnp.log(jnp.maximum(output, _smallest_normal(output))), output, target
    )


def _probability_delta(output: Array, target: Array) -> Array:
    y = class_targets("cross_entropy", output, target)
    tiny = _smallest_normal(output)
    delta = jnp.where(output > tiny, -y / jnp.maximum(output, tiny), 0)
    return weigh_positions(delta, output, target)


cross_entropy = Loss(
    _probability_value,
    _probability_delta,
    name="cross_entropy",
    targets="labels",
    takes_probabilities=True,
    summary="on probabilities (after softmax); delta = -y/a",
)
"""``C = -sum_k y_k log a_k`` on probabilities a, such as ``softmax()`` gives; delta = -y/a.

Prefer :data:`softmax_cross_entropy`, which works on logits."""


def _bernoulli_value(output: Array, target: Array) -> Array:
    y = same_shape("binary_cross_entropy", output, target)
    log = lambda p: jnp.log(jnp.maximum(p, _smallest_normal(output)))
    return mean_over_positions(-y * log(output) - (1 - y) * log(1 - output))


def _bernoulli_delta(output: Array, target: Array) -> Array:
    y = same_shape("binary_cross_entropy", output, target)
    over = lambda a, p: jnp.where(
        p > _smallest_normal(output), a / jnp.maximum(p, _smallest_normal(output)), 0
    )
    return (over(1 - y, 1 - output) - over(y, output)) / count_positions(output)


binary_cross_entropy = Loss(
    _bernoulli_value,
    _bernoulli_delta,
    name="binary_cross_entropy",
    targets="shares",
    takes_probabilities=True,
    summary="on probabilities (after sigmoid), summed over outputs",
)
"""``C = -sum_k [y_k log a_k + (1 - y_k) log(1 - a_k)]`` on probabilities a.

Prefer :data:`sigmoid_cross_entropy`, which works on logits."""
