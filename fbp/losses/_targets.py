"""Targets brought into the output's shape, and means over the positions of a sequence."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Loss


def same_shape(name: str, output: Array, target: Array) -> Array:
    if output.shape != target.shape:
        raise ShapeError(
            f"{name} expects a target of the output's shape {output.shape}, got {target.shape}"
        )
    return target.astype(output.dtype)


def mean_over_positions(values: Array) -> Array:
    """Return ``(B,)``: the sum over the last axis, averaged over the positions before it."""
    return flat_rows(values).sum(axis=1) / count_positions(values)


def flat_rows(values: Array) -> Array:
    """Return ``(B, ...)`` as rows ``(B, F)``, also of a batch without examples."""
    return values.reshape(values.shape[0], math.prod(values.shape[1:]))


def count_positions(values: Array) -> int:
    count = 1
    for size in values.shape[1:-1]:
        count *= size
    return count


def mean_over_labelled_positions(values: Array, output: Array, target: Array) -> Array:
    """Return ``(B,)`` like :func:`mean_over_positions`, over the positions with a target."""
    costs = weigh_positions(values.sum(axis=-1, keepdims=True), output, target)
    return flat_rows(costs).sum(axis=1)


def weigh_positions(values: Array, output: Array, target: Array) -> Array:
    """Return ``values (B, ..., K or 1)``, each times its position's share of its example's cost.

    A position without a target is left out, whatever its values are; one whose label is no class
    becomes NaN.
    """
    if not _is_labels(output, target):
        return values * jnp.asarray(1 / count_positions(output), values.dtype)
    labels = target.astype(jnp.int32)[..., None]  # a narrower type could not hold all classes
    count = (labels >= 0).sum(axis=tuple(range(1, labels.ndim)), keepdims=True)
    wide = jnp.promote_types(output.dtype, jnp.float32)
    shares = 1 / jnp.maximum(count, 1).astype(wide)
    shares = jnp.where(labels < output.shape[-1], shares, jnp.nan).astype(output.dtype)
    return jnp.where(labels >= 0, values * shares, 0)


def labelled_examples(loss: Loss, target: Any) -> Array | None:
    """Return which examples have a target, ``(B,)``; None if all have, by their type.

    An example has none if its label, or that of each of its positions, is negative.
    """
    is_integers = isinstance(target, jax.Array | np.ndarray) and jnp.issubdtype(
        target.dtype, jnp.integer
    )
    if loss.targets != "labels" or not is_integers:
        return None
    return flat_rows(jnp.asarray(target >= 0)).any(axis=1)


def over_labelled(labelled: Array | None) -> Array | float:
    """Return the number of examples over that of those with a target, by which a mean is corrected.

    It is exactly 1 if all examples have a target, so that no bit of a mean moves then.
    """
    if labelled is None:
        return 1.0
    return labelled.shape[0] / jnp.maximum(labelled.sum(), 1).astype(jnp.float32)


def mean_over_labelled(values: Array, labelled: Array | None) -> Array:
    """Return the mean of ``values (B,)`` over the examples that have a target; 0 if none has."""
    if labelled is None:
        return values.mean()
    mean = jnp.where(labelled, values, 0).mean()
    return mean * jnp.asarray(over_labelled(labelled), mean.dtype)


def _is_labels(output: Array, target: Array) -> bool:
    return jnp.issubdtype(target.dtype, jnp.integer) and target.ndim == output.ndim - 1


def class_targets(name: str, output: Array, target: Array) -> Array:
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
    require_classes(name, target, output.shape[-1])
    return jax.nn.one_hot(target.astype(jnp.int32), output.shape[-1], dtype=output.dtype)


def require_classes(name: str, labels: Array, classes: int) -> None:
    """Check that no label is beyond the classes, where the labels are known.

    Raises:
        InputError: if one is. Inside ``jax.jit`` the cost is NaN then.
    """
    if isinstance(labels, jax.core.Tracer) or not labels.size:
        return
    largest = int(np.asarray(labels).max())
    if largest >= classes:
        raise InputError(
            f"{name} expects labels from 0 to {classes - 1} (negative: no target), got {largest}; "
            "labels begin with 0"
        )


def target_row_sums(output: Array, target: Array) -> Array:
    """Return the sum of each target row: 1 for a distribution, 0 for a negative label."""
    if _is_labels(output, target):
        labels = target.astype(jnp.int32)  # a narrower type could not hold the number of classes
        return ((labels >= 0) & (labels < output.shape[-1])).astype(output.dtype)[..., None]
    return target.sum(axis=-1, keepdims=True, dtype=output.dtype)
