"""What is measured beside the cost: functions ``(output, target) -> (B,)``, one number per example."""

import jax.numpy as jnp

from fbp.layer import Array


def accuracy(output: Array, target: Array) -> Array:
    """1 where the largest output is the target's class, else 0; target integer labels or one-hot (or soft) rows.

    Positions of a sequence ``(B, T, K)`` are averaged, those with a negative label left out. A single output neuron ``(B, 1)``
    counts as the logit of class 1.
    """
    labels = (
        target
        if jnp.issubdtype(target.dtype, jnp.integer) and target.ndim == output.ndim - 1
        else None
    )
    if output.shape[-1] == 1:
        hits = (output[..., 0] > 0) == ((target[..., 0] if labels is None else labels) > 0.5)
    else:
        hits = output.argmax(axis=-1) == (target.argmax(axis=-1) if labels is None else labels)
    rows = hits.astype(jnp.float32).reshape(hits.shape[0], -1)
    if labels is None or labels.ndim == 1:
        return rows.mean(axis=1)
    counted = (labels >= 0).reshape(rows.shape)
    return (rows * counted).sum(axis=1) / jnp.maximum(counted.sum(axis=1), 1)


def absolute_error(output: Array, target: Array) -> Array:
    """The mean of |output - target| over an example."""
    return jnp.abs(output - target).reshape(output.shape[0], -1).mean(axis=1)
