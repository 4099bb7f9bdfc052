"""Losses as pairs of value and delta.

``value(output, target) -> (B,)`` is C_i, the cost of each example. ``delta(output, target)`` is
dC_i/d(output_i), with the output's shape: the first factor of equation (1), the output error.
Neither is reduced over the batch. The mean, a mask or weights per example enter through the
``cost_weights`` by which :func:`fbp.value_and_grad` multiplies both, and label smoothing enters
through the target (:func:`smooth_labels`).

If sigma' of the output layer would cancel against the loss, the two are one loss on logits z,
whose delta *is* delta^L: ``softmax(z) - y`` and ``sigmoid(z) - y``. These stay finite at any
finite logits.

Over the last axis of an example the classification losses sum over classes; the positions of a
sequence, ``(B, T, K)``, are averaged. ``target`` has the output's shape, except for integer class
labels, which lack its last axis. A negative label counts as no target: its cost and delta are 0,
and the average over positions leaves it out.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Loss, TargetKind, identity


def _same_shape(name: str, output: Array, target: Array) -> Array:
    if output.shape != target.shape:
        raise ShapeError(
            f"{name} expects a target of the output's shape {output.shape}, got {target.shape}"
        )
    return target.astype(output.dtype)


def _per_example(values: Array) -> Array:
    """Return ``(B,)``: the sum over the last axis, averaged over the positions before it."""
    return values.reshape(values.shape[0], -1).sum(axis=1) / _positions(values)


def _positions(values: Array) -> int:
    count = 1
    for size in values.shape[1:-1]:
        count *= size
    return count


def _per_labelled_example(values: Array, output: Array, target: Array) -> Array:
    """Return ``(B,)`` like :func:`_per_example`, averaged over the positions with a target."""
    return (
        (values.sum(axis=-1) * _position_weights(output, target)[..., 0])
        .reshape(values.shape[0], -1)
        .sum(axis=1)
    )


def _position_weights(output: Array, target: Array) -> Array:
    """Return the weight of each position in its example's cost, broadcast against the output."""
    if output.ndim < 3 or not _is_labels(output, target):
        return jnp.full((1,) * output.ndim, 1 / _positions(output), output.dtype)
    count = (target >= 0).sum(axis=tuple(range(1, target.ndim)), keepdims=True)
    wide = jnp.promote_types(output.dtype, jnp.float32)
    return (1 / jnp.maximum(count, 1).astype(wide))[..., None].astype(output.dtype)


def _is_labels(output: Array, target: Array) -> bool:
    return jnp.issubdtype(target.dtype, jnp.integer) and target.ndim == output.ndim - 1


def _class_targets(name: str, output: Array, target: Array) -> Array:
    """Return integer labels (B, ...) as one-hot rows, and targets (B, ..., K) as they are."""
    if not _is_labels(output, target):
        if output.shape != target.shape:
            raise ShapeError(
                f"{name} expects integer labels of shape {output.shape[:-1]} or targets of shape "
                f"{output.shape}, got {target.dtype} of shape {target.shape}"
            )
        return target.astype(output.dtype)
    if target.shape != output.shape[:-1]:
        raise ShapeError(f"{name} expects labels of shape {output.shape[:-1]}, got {target.shape}")
    return jax.nn.one_hot(target.astype(jnp.int32), output.shape[-1], dtype=output.dtype)


def smooth_labels(target: Array, classes: int, smoothing: float) -> Array:
    """Return targets ``(1 - smoothing) onehot + smoothing / classes``. Szegedy et al. (2016).

    Args:
        target: integer labels of any shape, or rows of floats ``(..., classes)``. A negative label
            gives a row of zeros.
        classes: the number of classes.
        smoothing: the share that is spread over all classes, from 0 to 1.

    Returns:
        Float array ``(..., classes)``.
    """
    if jnp.issubdtype(target.dtype, jnp.integer):
        target = jax.nn.one_hot(target.astype(jnp.int32), classes)
    return target * (1 - smoothing) + target.sum(axis=-1, keepdims=True) * (smoothing / classes)


def weighted(*parts: tuple[Loss, float]) -> Loss:
    """Return the weighted sum of losses, ``weighted((loss, weight), ...)``.

    Args:
        parts: pairs of a loss and its weight. If the output is a tuple, each part takes one entry
            of output and target. If the output is one array, every part takes all of it.

    Returns:
        The loss. Its delta is a tuple exactly if the output is one.

    Raises:
        InputError: if there are no parts, or if the parts take targets of different kinds and the
            output is one array.
    """
    if not parts:
        raise InputError("weighted: expected at least one pair (loss, weight), got none")
    losses = [loss for loss, _ in parts]
    targets = {loss.targets for loss in losses}
    links = {loss.inverse_link for loss in losses}

    def per_part(output: Any, target: Any) -> list[tuple[Loss, float, Array, Array]]:
        if not isinstance(output, tuple):
            if len(targets) > 1:
                raise InputError(
                    f"weighted: expected losses that take the same targets, got "
                    f"{', '.join(f'{loss.name} ({loss.targets})' for loss in losses)}"
                )
            return [(loss, weight, output, target) for loss, weight in parts]
        return [
            (loss, weight, a, y) for (loss, weight), a, y in zip(parts, output, target, strict=True)
        ]

    def value(output: Any, target: Any) -> Array:
        costs = [weight * loss.value(a, y) for loss, weight, a, y in per_part(output, target)]
        return functools.reduce(jnp.add, costs)

    def delta(output: Any, target: Any) -> Any:
        deltas = [weight * loss.delta(a, y) for loss, weight, a, y in per_part(output, target)]
        return tuple(deltas) if isinstance(output, tuple) else functools.reduce(jnp.add, deltas)

    return Loss(
        value,
        delta,
        name="weighted",
        targets=losses[0].targets,
        takes_probabilities=any(loss.takes_probabilities for loss in losses),
        inverse_link=losses[0].inverse_link if len(links) == 1 else identity,
        coupled=any(loss.coupled for loss in losses),
    )


def from_function(
    function: Callable[[Any, Any], Array],
    *,
    name: str | None = None,
    targets: TargetKind = "numbers",
    takes_probabilities: bool = False,
    inverse_link: Callable[[Any], Any] = identity,
    coupled: bool = False,
    summary: str | None = None,
) -> Loss:
    """Return a loss from any JAX function; its delta comes from ``jax.vjp``.

    Args:
        function: maps outputs ``(B, ...)`` and targets to one cost per example, ``(B,)``.
        name: the name in messages and tables; that of the function by default.
        targets: the targets that it takes, see :class:`fbp.Loss`.
        takes_probabilities: whether outputs must lie between 0 and 1.
        inverse_link: the function that makes outputs readable; the identity by default.
        coupled: whether a cost depends on other examples of the batch; then delta is the
            derivative of the sum of all costs.
        summary: one line about it; the first line of the function's docstring by default.

    Returns:
        The loss, which ``fbp.check_gradients`` checks like any other.

    Raises:
        ShapeError: when the loss is called, if the function does not give float costs ``(B,)``.

    >>> import jax.numpy as jnp
    >>> quartic = from_function(lambda output, target: ((output - target) ** 4).sum(axis=1))
    >>> print(quartic.delta(jnp.array([[2.0]]), jnp.array([[1.0]])))   # 4 (a - y)^3
    [[4.]]
    """
    title = str(name or getattr(function, "__name__", "loss"))
    first_line = (function.__doc__ or "").strip().partition("\n")[0]

    def value(output: Any, target: Any) -> Array:
        return _checked_costs(title, function(output, target), output)

    def delta(output: Any, target: Any) -> Any:
        costs, pull_back = jax.vjp(lambda a: value(a, target), output)
        return pull_back(jnp.ones_like(costs))[0]

    return Loss(
        value,
        delta,
        name=title,
        targets=targets,
        takes_probabilities=takes_probabilities,
        inverse_link=inverse_link,
        coupled=coupled,
        summary=first_line if summary is None else summary,
    )


def _checked_costs(name: str, costs: Any, output: Any) -> Array:
    """Return ``costs``; raise ShapeError unless they are one float per example of ``output``."""
    examples = jax.tree.leaves(output)[0].shape[0]
    is_array = isinstance(costs, jax.Array)
    if is_array and costs.shape == (examples,) and jnp.issubdtype(costs.dtype, jnp.floating):
        return costs
    received = f"{costs.dtype} of shape {costs.shape}" if is_array else type(costs).__name__
    raise ShapeError(
        f"loss {name!r}: expected a function that gives one cost per example, floats of "
        f"shape ({examples},), got {received}"
    )


# --- regression -----------------------------------------------------------------------------------


def _squared_value(output: Array, target: Array) -> Array:
    error = output - _same_shape("mean_squared_error", output, target)
    return (error * error).reshape(error.shape[0], -1).mean(axis=1)


def _squared_delta(output: Array, target: Array) -> Array:
    error = output - _same_shape("mean_squared_error", output, target)
    return error * (2 / max(error[0].size, 1))


mean_squared_error = Loss(
    _squared_value,
    _squared_delta,
    name="mean_squared_error",
    summary="mean of (a - y)^2 over an example's outputs, no factor 1/2",
)
"""``C = mean_k (a_k - y_k)^2`` over the K numbers of an example; delta = 2/K (a - y)."""


def _quadratic_value(output: Array, target: Array) -> Array:
    error = output - _same_shape("quadratic", output, target)
    return 0.5 * (error * error).reshape(error.shape[0], -1).sum(axis=1)


quadratic = Loss(
    _quadratic_value,
    lambda output, target: output - _same_shape("quadratic", output, target),
    name="quadratic",
    summary="the textbook's 1/2 sum of (a - y)^2; delta = a - y",
)
"""The quadratic cost ``C = 1/2 sum_k (a_k - y_k)^2``; delta = a - y. Nielsen (2015), chapter 1."""


def _absolute_value(output: Array, target: Array) -> Array:
    error = output - _same_shape("mean_absolute_error", output, target)
    return jnp.abs(error).reshape(error.shape[0], -1).mean(axis=1)


def _absolute_delta(output: Array, target: Array) -> Array:
    error = output - _same_shape("mean_absolute_error", output, target)
    return jnp.sign(error) / max(error[0].size, 1)


mean_absolute_error = Loss(
    _absolute_value,
    _absolute_delta,
    name="mean_absolute_error",
    summary="mean of |a - y| over an example's outputs",
)
"""``C = mean_k |a_k - y_k|``; delta = sign(a - y)/K, 0 at the kink."""


def huber(threshold: float = 1.0) -> Loss:
    """Return half the squared error up to ``threshold``, linear beyond it. Huber (1964).

    ``C = mean_k [ e^2/2 if |e| <= threshold else threshold (|e| - threshold/2) ]``;
    delta = clip(e, +-threshold)/K.

    Args:
        threshold: the size of an error from which on the cost is linear, above 0.

    Returns:
        The loss.
    """

    def value(output: Array, target: Array) -> Array:
        error = jnp.abs(output - _same_shape("huber", output, target))
        inner = jnp.minimum(error, threshold)
        return (inner * (error - 0.5 * inner)).reshape(error.shape[0], -1).mean(axis=1)

    def delta(output: Array, target: Array) -> Array:
        error = output - _same_shape("huber", output, target)
        return jnp.clip(error, -threshold, threshold) / max(error[0].size, 1)

    return Loss(value, delta, name="huber")


def _log_cosh_value(output: Array, target: Array) -> Array:
    error = jnp.abs(output - _same_shape("log_cosh", output, target))
    return (error + jnp.log1p(0.5 * jnp.expm1(-2 * error))).reshape(error.shape[0], -1).mean(axis=1)


def _log_cosh_delta(output: Array, target: Array) -> Array:
    error = output - _same_shape("log_cosh", output, target)
    return jnp.tanh(error) / max(error[0].size, 1)


log_cosh = Loss(
    _log_cosh_value,
    _log_cosh_delta,
    name="log_cosh",
    summary="mean of log cosh(a - y): quadratic near 0, linear far out",
)
"""``C = mean_k log cosh(a_k - y_k)``; delta = tanh(a - y)/K: smooth everywhere."""


# --- classification, on logits --------------------------------------------------------------------


def _softmax_value(output: Array, target: Array) -> Array:
    y = _class_targets("softmax_cross_entropy", output, target)
    return _per_labelled_example(
        _times_log(-y, jax.nn.log_softmax(output, axis=-1)), output, target
    )


def _times_log(y: Array, log: Array) -> Array:
    """Return ``y log``, and 0 if y is 0, even if the logarithm is minus infinity."""
    return jnp.where(y == 0, 0, y * log)


def _softmax_delta(output: Array, target: Array) -> Array:
    y = _class_targets("softmax_cross_entropy", output, target)
    exponentials = jnp.exp(output - output.max(axis=-1, keepdims=True))
    per_row = _target_row_sums(output, target) / exponentials.sum(axis=-1, keepdims=True)
    return (exponentials * per_row - y) * _position_weights(output, target)  # softmax(z) - y


def _target_row_sums(output: Array, target: Array) -> Array:
    """Return the sum of each target row: 1 for a distribution, 0 for a negative label."""
    if _is_labels(output, target):
        labels = target.astype(jnp.int32)  # a narrower type could not hold the number of classes
        return ((labels >= 0) & (labels < output.shape[-1])).astype(output.dtype)[..., None]
    return target.sum(axis=-1, keepdims=True, dtype=output.dtype)


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
    y = _same_shape("sigmoid_cross_entropy", output, target)
    # log(1 + exp(z)) - y z, written so that no exponential can overflow
    return _per_example(jnp.maximum(output, 0) - y * output + jnp.log1p(jnp.exp(-jnp.abs(output))))


def _sigmoid_delta(output: Array, target: Array) -> Array:
    y = _same_shape("sigmoid_cross_entropy", output, target)
    return (jax.nn.sigmoid(output) - y) / _positions(output)


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
    return _per_example(jnp.maximum(0, 1 - _same_shape("hinge", output, target) * output))


def _hinge_delta(output: Array, target: Array) -> Array:
    y = _same_shape("hinge", output, target)
    return jnp.where(y * output < 1, -y, 0) / _positions(output)


hinge = Loss(
    _hinge_value,
    _hinge_delta,
    name="hinge",
    targets="signs",
    summary="sum of max(0, 1 - y z) with targets -1 and +1",
)
"""``C = sum_k max(0, 1 - y_k z_k)``; delta = -y inside the margin, 0 at its edge and beyond."""


def _margins(output: Array, target: Array) -> tuple[Array, Array]:
    y = _class_targets("multiclass_hinge", output, target)
    margin = 1 + output - (y * output).sum(axis=-1, keepdims=True)
    return y, jnp.where((y == 0) & (_target_row_sums(output, target) > 0), margin, 0)


def _multiclass_hinge_value(output: Array, target: Array) -> Array:
    _, margin = _margins(output, target)
    return _per_labelled_example(jnp.maximum(margin, 0), output, target)


def _multiclass_hinge_delta(output: Array, target: Array) -> Array:
    y, margin = _margins(output, target)
    violated = (margin > 0).astype(output.dtype)
    return (violated - y * violated.sum(axis=-1, keepdims=True)) * _position_weights(output, target)


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
    y = _same_shape("kl_divergence", output, target)
    entropy_term = jnp.where(y > 0, y * jnp.log(jnp.where(y > 0, y, 1)), 0)  # 0 log 0 = 0
    return _per_example(entropy_term - _times_log(y, jax.nn.log_softmax(output, axis=-1)))


kl_divergence = Loss(
    _divergence_value,
    _softmax_delta,
    name="kl_divergence",
    targets="shares",
    inverse_link=jax.nn.softmax,
    summary="sum of y log(y / softmax(z)) on logits; delta = softmax(z) - y",
)
"""``C = sum_k y_k log(y_k / softmax(z)_k)``, targets distributions; delta = softmax(z) - y."""


# --- on probabilities and rates -------------------------------------------------------------------


def _smallest_normal(output: Array) -> float:
    """Return the smallest normal number of the dtype: it keeps log(0) and 1/0 finite."""
    return float(jnp.finfo(output.dtype).tiny)


def _probability_value(output: Array, target: Array) -> Array:
    y = _class_targets("cross_entropy", output, target)
    return _per_labelled_example(
        -y * jnp.log(jnp.maximum(output, _smallest_normal(output))), output, target
    )


def _probability_delta(output: Array, target: Array) -> Array:
    y = _class_targets("cross_entropy", output, target)
    tiny = _smallest_normal(output)
    return jnp.where(output > tiny, -y / jnp.maximum(output, tiny), 0) * _position_weights(
        output, target
    )


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
    y = _same_shape("binary_cross_entropy", output, target)
    log = lambda p: jnp.log(jnp.maximum(p, _smallest_normal(output)))
    return _per_example(-y * log(output) - (1 - y) * log(1 - output))


def _bernoulli_delta(output: Array, target: Array) -> Array:
    y = _same_shape("binary_cross_entropy", output, target)
    over = lambda a, p: jnp.where(
        p > _smallest_normal(output), a / jnp.maximum(p, _smallest_normal(output)), 0
    )
    return (over(1 - y, 1 - output) - over(y, output)) / _positions(output)


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


def _poisson_value(output: Array, target: Array) -> Array:
    return _per_example(jnp.exp(output) - _same_shape("poisson", output, target) * output)


def _poisson_delta(output: Array, target: Array) -> Array:
    return (jnp.exp(output) - _same_shape("poisson", output, target)) / _positions(output)


poisson = Loss(
    _poisson_value,
    _poisson_delta,
    name="poisson",
    targets="counts",
    inverse_link=jnp.exp,
    summary="sum of exp(z) - y z for counts y and log-rates z",
)
"""``C = sum_k exp(z_k) - y_k z_k``, without the constant log y!; delta = exp(z) - y."""
