"""Losses as pairs of value and delta.

``value(output, target) -> (B,)`` is C_i, the cost of each example. ``delta(output, target)`` is dC_i/d(output_i), with
the output's shape: the first factor of equation (1), the output error. Neither is reduced over the batch. The mean, a mask
or weights per example enter through the seed with which :func:`fbp.value_and_grad` multiplies both, and label smoothing
through the target (:func:`smooth_labels`).

Where the output layer's sigma' would cancel against the loss, the two are one loss on logits z, whose delta *is* delta^L:
``softmax(z) - y`` and ``sigmoid(z) - y``. These stay finite at any finite logits.

Over the last axes of an example the classification losses sum over classes; positions of a sequence, ``(B, T, K)``, are
averaged. ``target`` has the output's shape, except for integer class labels, which lack its last axis; a negative label
counts as no target: its cost and delta are 0, and the average over positions leaves it out.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fbp.errors import ShapeError
from fbp.layer import Array, Loss


def _same_shape(name: str, output: Array, target: Array) -> Array:
    if output.shape != target.shape:
        raise ShapeError(
            f"{name} expects a target of the output's shape {output.shape}, got {target.shape}"
        )
    return target.astype(output.dtype)


def _per_example(values: Array) -> Array:
    """(B, ...) -> (B,): the sum over an example's last axis, the mean over positions before it."""
    return values.reshape(values.shape[0], -1).sum(axis=1) / _positions(values)


def _positions(values: Array) -> int:
    count = 1
    for size in values.shape[1:-1]:
        count *= size
    return count


def _per_labelled_example(values: Array, output: Array, target: Array) -> Array:
    """As :func:`_per_example`, the mean over those positions that have a target."""
    return (
        (values.sum(axis=-1) * _share(output, target)[..., 0])
        .reshape(values.shape[0], -1)
        .sum(axis=1)
    )


def _share(output: Array, target: Array) -> Array:
    """What each position counts in its example's cost, ``(B, ..., 1)`` or one number."""
    if output.ndim < 3 or not _is_labels(output, target):
        return jnp.full((1,) * output.ndim, 1 / _positions(output), output.dtype)
    count = (target >= 0).sum(axis=tuple(range(1, target.ndim)), keepdims=True)
    wide = jnp.promote_types(output.dtype, jnp.float32)
    return (1 / jnp.maximum(count, 1).astype(wide))[..., None].astype(output.dtype)


def _is_labels(output: Array, target: Array) -> bool:
    return jnp.issubdtype(target.dtype, jnp.integer) and target.ndim == output.ndim - 1


def _class_targets(name: str, output: Array, target: Array) -> Array:
    """Integer labels (B, ...) as one-hot rows, targets (B, ..., K) as they are."""
    if not _is_labels(output, target):
        if output.shape != target.shape:
            raise ShapeError(
                f"{name} expects integer labels of shape {output.shape[:-1]} or targets of shape {output.shape}, "
                f"got {target.dtype} of shape {target.shape}"
            )
        return target.astype(output.dtype)
    if target.shape != output.shape[:-1]:
        raise ShapeError(f"{name} expects labels of shape {output.shape[:-1]}, got {target.shape}")
    return jax.nn.one_hot(target.astype(jnp.int32), output.shape[-1], dtype=output.dtype)


def smooth_labels(target: Array, classes: int, smoothing: float) -> Array:
    """Targets ``(1 - smoothing) onehot + smoothing / classes``. Szegedy et al. (2016).

    Args:
        target: integer labels, any shape, or rows of floats ``(..., classes)``. A negative label gives a row of zeros.
        classes: how many classes there are.
        smoothing: the share that is spread over all classes, between 0 and 1.

    Returns:
        float array ``(..., classes)``.
    """
    if jnp.issubdtype(target.dtype, jnp.integer):
        target = jax.nn.one_hot(target.astype(jnp.int32), classes)
    return target * (1 - smoothing) + target.sum(axis=-1, keepdims=True) * (smoothing / classes)


def weighted(*parts: tuple[Loss, float]) -> Loss:
    """The weighted sum of losses, one for each output of a model with several: ``weighted((loss, weight), ...)``.

    Output, target and delta are tuples with one entry per part.
    """

    def value(output: Array, target: Array) -> Array:
        costs = [
            weight * loss.value(a, y)
            for (loss, weight), a, y in zip(parts, output, target, strict=True)
        ]
        return functools.reduce(jnp.add, costs)

    def delta(output: Array, target: Array) -> Any:
        return tuple(
            weight * loss.delta(a, y)
            for (loss, weight), a, y in zip(parts, output, target, strict=True)
        )

    return Loss(value, delta)


# --- regression -------------------------------------------------------------------------------------------------------


def _squared_value(output: Array, target: Array) -> Array:
    error = output - _same_shape("mean_squared_error", output, target)
    return (error * error).reshape(error.shape[0], -1).mean(axis=1)


def _squared_delta(output: Array, target: Array) -> Array:
    error = output - _same_shape("mean_squared_error", output, target)
    return error * (2 / max(error[0].size, 1))


mean_squared_error = Loss(_squared_value, _squared_delta)
"""``C = mean_k (a_k - y_k)^2`` over the K numbers of an example, without a factor 1/2; delta = 2/K (a - y)."""


def _quadratic_value(output: Array, target: Array) -> Array:
    error = output - _same_shape("quadratic", output, target)
    return 0.5 * (error * error).reshape(error.shape[0], -1).sum(axis=1)


quadratic = Loss(
    _quadratic_value, lambda output, target: output - _same_shape("quadratic", output, target)
)
"""The textbook's quadratic cost ``C = 1/2 sum_k (a_k - y_k)^2``; delta = a - y. Nielsen (2015), chapter 1."""


def _absolute_value(output: Array, target: Array) -> Array:
    error = output - _same_shape("mean_absolute_error", output, target)
    return jnp.abs(error).reshape(error.shape[0], -1).mean(axis=1)


def _absolute_delta(output: Array, target: Array) -> Array:
    error = output - _same_shape("mean_absolute_error", output, target)
    return jnp.sign(error) / max(error[0].size, 1)


mean_absolute_error = Loss(_absolute_value, _absolute_delta)
"""``C = mean_k |a_k - y_k|``; delta = sign(a - y)/K, 0 at the kink."""


def huber(threshold: float = 1.0) -> Loss:
    """Half the squared error up to ``threshold``, linear beyond, averaged over an example. Huber (1964).

    ``C = mean_k [ e^2/2 if |e| <= threshold else threshold (|e| - threshold/2) ]``; delta = clip(e, +-threshold)/K.
    """

    def value(output: Array, target: Array) -> Array:
        error = jnp.abs(output - _same_shape("huber", output, target))
        inner = jnp.minimum(error, threshold)
        return (inner * (error - 0.5 * inner)).reshape(error.shape[0], -1).mean(axis=1)

    def delta(output: Array, target: Array) -> Array:
        error = output - _same_shape("huber", output, target)
        return jnp.clip(error, -threshold, threshold) / max(error[0].size, 1)

    return Loss(value, delta)


def _log_cosh_value(output: Array, target: Array) -> Array:
    error = jnp.abs(output - _same_shape("log_cosh", output, target))
    return (error + jnp.log1p(0.5 * jnp.expm1(-2 * error))).reshape(error.shape[0], -1).mean(axis=1)


def _log_cosh_delta(output: Array, target: Array) -> Array:
    error = output - _same_shape("log_cosh", output, target)
    return jnp.tanh(error) / max(error[0].size, 1)


log_cosh = Loss(_log_cosh_value, _log_cosh_delta)
"""``C = mean_k log cosh(a_k - y_k)``; delta = tanh(a - y)/K: quadratic near 0, linear far out, smooth everywhere."""


# --- classification, on logits ----------------------------------------------------------------------------------------


def _softmax_value(output: Array, target: Array) -> Array:
    y = _class_targets("softmax_cross_entropy", output, target)
    return _per_labelled_example(
        _times_log(-y, jax.nn.log_softmax(output, axis=-1)), output, target
    )


def _times_log(y: Array, log: Array) -> Array:
    """``y log``, 0 where y is 0, though the logarithm may be minus infinity there."""
    return jnp.where(y == 0, 0, y * log)


def _softmax_delta(output: Array, target: Array) -> Array:
    y = _class_targets("softmax_cross_entropy", output, target)
    exponentials = jnp.exp(output - output.max(axis=-1, keepdims=True))
    per_row = _mass(output, target) / exponentials.sum(axis=-1, keepdims=True)
    return (exponentials * per_row - y) * _share(output, target)  # softmax(z) - y


def _mass(output: Array, target: Array) -> Array:
    """The sum of each row of class targets: 1 for a distribution, 0 where a label says that there is no target."""
    if _is_labels(output, target):
        labels = target.astype(jnp.int32)  # a narrower type could not hold the number of classes
        return ((labels >= 0) & (labels < output.shape[-1])).astype(output.dtype)[..., None]
    return target.sum(axis=-1, keepdims=True, dtype=output.dtype)


softmax_cross_entropy = Loss(_softmax_value, _softmax_delta)
"""``C = -sum_k y_k log softmax(z)_k`` on logits z; delta = softmax(z) - y. Labels, one-hot or soft targets."""


def _sigmoid_value(output: Array, target: Array) -> Array:
    y = _same_shape("sigmoid_cross_entropy", output, target)
    # log(1 + exp(z)) - y z, written so that no exponential can overflow
    return _per_example(jnp.maximum(output, 0) - y * output + jnp.log1p(jnp.exp(-jnp.abs(output))))


def _sigmoid_delta(output: Array, target: Array) -> Array:
    y = _same_shape("sigmoid_cross_entropy", output, target)
    return (jax.nn.sigmoid(output) - y) / _positions(output)


sigmoid_cross_entropy = Loss(_sigmoid_value, _sigmoid_delta)
"""Binary cross-entropy on logits, summed over output neurons: ``-sum_k [y_k log s_k + (1 - y_k) log(1 - s_k)]`` with
s = sigmoid(z); delta = sigmoid(z) - y. With sigmoid outputs this is the cross-entropy of Nielsen (2015), chapter 3."""


def _hinge_value(output: Array, target: Array) -> Array:
    return _per_example(jnp.maximum(0, 1 - _same_shape("hinge", output, target) * output))


def _hinge_delta(output: Array, target: Array) -> Array:
    y = _same_shape("hinge", output, target)
    return jnp.where(y * output < 1, -y, 0) / _positions(output)


hinge = Loss(_hinge_value, _hinge_delta)
"""``C = sum_k max(0, 1 - y_k z_k)`` with targets -1 or +1; delta = -y inside the margin, 0 at its edge and beyond."""


def _margins(output: Array, target: Array) -> tuple[Array, Array]:
    y = _class_targets("multiclass_hinge", output, target)
    margin = 1 + output - (y * output).sum(axis=-1, keepdims=True)
    return y, jnp.where((y == 0) & (_mass(output, target) > 0), margin, 0)


def _multiclass_hinge_value(output: Array, target: Array) -> Array:
    _, margin = _margins(output, target)
    return _per_labelled_example(jnp.maximum(margin, 0), output, target)


def _multiclass_hinge_delta(output: Array, target: Array) -> Array:
    y, margin = _margins(output, target)
    violated = (margin > 0).astype(output.dtype)
    return (violated - y * violated.sum(axis=-1, keepdims=True)) * _share(output, target)


multiclass_hinge = Loss(_multiclass_hinge_value, _multiclass_hinge_delta)
"""``C = sum_{k != y} max(0, 1 + z_k - z_y)`` for labels y or one-hot targets. Weston and Watkins (1999)."""


def _divergence_value(output: Array, target: Array) -> Array:
    y = _same_shape("kl_divergence", output, target)
    entropy_term = jnp.where(y > 0, y * jnp.log(jnp.where(y > 0, y, 1)), 0)  # 0 log 0 = 0
    return _per_example(entropy_term - _times_log(y, jax.nn.log_softmax(output, axis=-1)))


kl_divergence = Loss(_divergence_value, _softmax_delta)
"""``C = sum_k y_k log(y_k / softmax(z)_k)`` on logits z, target a distribution; delta = softmax(z) - y."""


# --- on probabilities and rates ---------------------------------------------------------------------------------------


def _tiny(output: Array) -> float:
    """What keeps log(0) and 1/0 finite: the smallest normal number of the dtype."""
    return float(jnp.finfo(output.dtype).tiny)


def _probability_value(output: Array, target: Array) -> Array:
    y = _class_targets("cross_entropy", output, target)
    return _per_labelled_example(-y * jnp.log(jnp.maximum(output, _tiny(output))), output, target)


def _probability_delta(output: Array, target: Array) -> Array:
    y = _class_targets("cross_entropy", output, target)
    tiny = _tiny(output)
    return jnp.where(output > tiny, -y / jnp.maximum(output, tiny), 0) * _share(output, target)


cross_entropy = Loss(_probability_value, _probability_delta)
"""``C = -sum_k y_k log a_k`` on probabilities a (the output of ``softmax()``); delta = -y/a. Prefer the form on logits."""


def _bernoulli_value(output: Array, target: Array) -> Array:
    y = _same_shape("binary_cross_entropy", output, target)
    log = lambda p: jnp.log(jnp.maximum(p, _tiny(output)))
    return _per_example(-y * log(output) - (1 - y) * log(1 - output))


def _bernoulli_delta(output: Array, target: Array) -> Array:
    y = _same_shape("binary_cross_entropy", output, target)
    over = lambda a, p: jnp.where(p > _tiny(output), a / jnp.maximum(p, _tiny(output)), 0)
    return (over(1 - y, 1 - output) - over(y, output)) / _positions(output)


binary_cross_entropy = Loss(_bernoulli_value, _bernoulli_delta)
"""``C = -sum_k [y_k log a_k + (1 - y_k) log(1 - a_k)]`` on probabilities (the output of ``sigmoid()``). Prefer logits."""


def _poisson_value(output: Array, target: Array) -> Array:
    return _per_example(jnp.exp(output) - _same_shape("poisson", output, target) * output)


def _poisson_delta(output: Array, target: Array) -> Array:
    return (jnp.exp(output) - _same_shape("poisson", output, target)) / _positions(output)


poisson = Loss(_poisson_value, _poisson_delta)
"""``C = sum_k exp(z_k) - y_k z_k`` for counts y and log-rates z (without the constant log y!); delta = exp(z) - y."""
