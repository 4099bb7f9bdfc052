"""Targets brought into the output's shape, and means over the positions of a sequence."""

import jax
import jax.numpy as jnp

from fbp.errors import ShapeError
from fbp.layer import Array


def same_shape(name: str, output: Array, target: Array) -> Array:
    if output.shape != target.shape:
        raise ShapeError(
            f"{name} expects a target of the output's shape {output.shape}, got {target.shape}"
        )
    return target.astype(output.dtype)


def mean_over_positions(values: Array) -> Array:
    """Return ``(B,)``: the sum over the last axis, averaged over the positions before it."""
    return values.reshape(values.shape[0], -1).sum(axis=1) / count_positions(values)


def count_positions(values: Array) -> int:
    count = 1
    for size in values.shape[1:-1]:
        count *= size
    return count


def mean_over_labelled_positions(values: Array, output: Array, target: Array) -> Array:
    """Return ``(B,)`` like :func:`mean_over_positions`, over the positions with a target."""
    return (
        (values.sum(axis=-1) * position_weights(output, target)[..., 0])
        .reshape(values.shape[0], -1)
        .sum(axis=1)
    )


def position_weights(output: Array, target: Array) -> Array:
    """Return the weight of each position in its example's cost, broadcast against the output."""
    if output.ndim < 3 or not _is_labels(output, target):
        return jnp.full((1,) * output.ndim, 1 / count_positions(output), output.dtype)
    count = (target >= 0).sum(axis=tuple(range(1, target.ndim)), keepdims=True)
    wide = jnp.promote_types(output.dtype, jnp.float32)
    return (1 / jnp.maximum(count, 1).astype(wide))[..., None].astype(output.dtype)


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
    return jax.nn.one_hot(target.astype(jnp.int32), output.shape[-1], dtype=output.dtype)


def target_row_sums(output: Array, target: Array) -> Array:
    """Return the sum of each target row: 1 for a distribution, 0 for a negative label."""
    if _is_labels(output, target):
        labels = target.astype(jnp.int32)  # a narrower type could not hold the number of classes
        return ((labels >= 0) & (labels < output.shape[-1])).astype(output.dtype)[..., None]
    return target.sum(axis=-1, keepdims=True, dtype=output.dtype)
