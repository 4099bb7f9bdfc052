"""Losses for classes on logits; their delta is delta^L, prediction minus target."""

import jax
import jax.numpy as jnp

from fbp.layer import Array, Loss
from fbp.losses._targets import (
    class_targets,
    count_positions,
    mean_over_labelled_positions,
    mean_over_positions,
    same_shape,
    target_row_sums,
    weigh_positions,
)


def _softmax_value(output: Array, target: Array) -> Array:
    y = class_targets("softmax_cross_entropy", output, target)
    return mean_over_labelled_positions(
        _times_log(-y, jax.nn.log_softmax(output, axis=-1)), output, target
    )


def _times_log(y: Array, log: Array) -> Array:
    """Return ``y log``, and 0 if y is 0, even if the logarithm is minus infinity."""
    return jnp.where(y == 0, 0, y * log)


def _softmax_delta(output: Array, target: Array) -> Array:
    y = class_targets("softmax_cross_entropy", output, target)
    exponentials = jnp.exp(output - output.max(axis=-1, keepdims=True))
    per_row = target_row_sums(output, target) / exponentials.sum(axis=-1, keepdims=True)
    return weigh_positions(exponentials * per_row - y, output, target)  # softmax(z) - y


softmax_cross_entropy = Loss(
    _softmax_value,
    _softmax_delta,
    name="softmax_cross_entropy",
    targets="labels",
    inverse_link=jax.nn.softmax,
    summary="on logits, with labels or distributions; delta = softmax(z) - y",
)
"""``C = -sum_k y_k log softmax(z)_k`` on logits z; delta = softmax(z) - y.

Targets are labels, one-hot or soft rows."""


def _sigmoid_value(output: Array, target: Array) -> Array:
    y = same_shape("sigmoid_cross_entropy", output, target)
    # log(1 + exp(z)) - y z, written so that no exponential can overflow
    return mean_over_positions(
        jnp.maximum(output, 0) - y * output + jnp.log1p(jnp.exp(-jnp.abs(output)))
    )


def _sigmoid_delta(output: Array, target: Array) -> Array:
    y = same_shape("sigmoid_cross_entropy", output, target)
    return (jax.nn.sigmoid(output) - y) / count_positions(output)


sigmoid_cross_entropy = Loss(
    _sigmoid_value,
    _sigmoid_delta,
    name="sigmoid_cross_entropy",
    targets="shares",
    inverse_link=jax.nn.sigmoid,
    summary="binary, on logits, summed over outputs; delta = sigmoid(z) - y",
)
"""``C = -sum_k [y_k log s_k + (1 - y_k) log(1 - s_k)]`` with s = sigmoid(z); delta = s - y.

With sigmoid outputs this is the cross-entropy of Nielsen (2015), chapter 3."""


def _hinge_value(output: Array, target: Array) -> Array:
    return mean_over_positions(jnp.maximum(0, 1 - same_shape("hinge", output, target) * output))


def _hinge_delta(output: Array, target: Array) -> Array:
    y = same_shape("hinge", output, target)
    return jnp.where(y * output < 1, -y, 0) / count_positions(output)


hinge = Loss(
    _hinge_value,
    _hinge_delta,
    name="hinge",
    targets="signs",
    summary="sum of max(0, 1 - y z) with targets -1 and +1",
)
"""``C = sum_k max(0, 1 - y_k z_k)``; delta = -y inside the margin, 0 at its edge and beyond."""


def _margins(output: Array, target: Array) -> tuple[Array, Array]:
    y = class_targets("multiclass_hinge", output, target)
    margin = 1 + output - (y * output).sum(axis=-1, keepdims=True)
    return y, jnp.where((y == 0) & (target_row_sums(output, target) > 0), margin, 0)


def _multiclass_hinge_value(output: Array, target: Array) -> Array:
    _, margin = _margins(output, target)
    return mean_over_labelled_positions(jnp.maximum(margin, 0), output, target)


def _multiclass_hinge_delta(output: Array, target: Array) -> Array:
    y, margin = _margins(output, target)
    violated = (margin > 0).astype(output.dtype)
    delta = violated - y * violated.sum(axis=-1, keepdims=True)
    return weigh_positions(delta, output, target)


multiclass_hinge = Loss(
    _multiclass_hinge_value,
    _multiclass_hinge_delta,
    name="multiclass_hinge",
    targets="labels",
    summary="sum over wrong classes of max(0, 1 + z_k - z_y)",
)
"""``C = sum_{k != y} max(0, 1 + z_k - z_y)`` for labels or one-hot rows.

Weston and Watkins (1999)."""


def _divergence_value(output: Array, target: Array) -> Array:
    y = same_shape("kl_divergence", output, target)
    entropy_term = jnp.where(y > 0, y * jnp.log(jnp.where(y > 0, y, 1)), 0)  # 0 log 0 = 0
    return mean_over_positions(entropy_term - _times_log(y, jax.nn.log_softmax(output, axis=-1)))


kl_divergence = Loss(
    _divergence_value,
    _softmax_delta,
    name="kl_divergence",
    targets="shares",
    inverse_link=jax.nn.softmax,
    summary="sum of y log(y / softmax(z)) on logits; delta = softmax(z) - y",
)
"""``C = sum_k y_k log(y_k / softmax(z)_k)``, targets distributions; delta = softmax(z) - y."""
