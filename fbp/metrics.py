"""Metrics: numbers observed beside the loss, one per example.

Each is a :class:`Metric`: a function ``(output, target) -> (B,)`` with its name, its better
direction and the format in which tables show it. Means are over the examples that have a target:
:func:`mean_over_targets`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fbp.errors import InputError, ShapeError
from fbp.layer import Array

MetricFunction = Callable[..., Array]  # (output, target, ...) -> (B,)


class Metric:
    """A function ``(output, target) -> (B,)`` and what a table must know of it.

    Args:
        function: maps outputs ``(B, ...)`` and targets to one number per example, ``(B,)``.
        name: the name under which it is logged; that of the function by default.
        higher_is_better: the better direction, for selection; None if it is unknown.
        format: Python's format of a value in tables, such as ``.2%``.
    """

    def __init__(
        self,
        function: MetricFunction,
        *,
        name: str = "",
        higher_is_better: bool | None = None,
        format: str = ".4g",
    ):
        functools.update_wrapper(self, function)
        self.function = function
        self.name = name or getattr(function, "__name__", "metric")
        self.higher_is_better = higher_is_better
        self.format = format

    def __call__(self, output: Array, target: Array) -> Array:
        """Return the metric of each example, ``(B,)``."""
        return self.function(output, target)

    def bind(self, **arguments: Any) -> "Metric":
        """Return the metric with further arguments of its function set.

        Args:
            arguments: values by name, such as the k of ``top_k(output, target, k=3)``.
        """
        function = functools.update_wrapper(
            functools.partial(self.function, **arguments), self.function
        )
        return Metric(
            function,
            name=self.name,
            higher_is_better=self.higher_is_better,
            format=self.format,
        )

    def __repr__(self) -> str:
        return f"Metric({self.name})"


def metric(
    *, higher_is_better: bool | None = None, format: str = ".4g"
) -> Callable[[MetricFunction], Metric]:
    """Return a decorator that makes a function ``(output, target) -> (B,)`` a :class:`Metric`.

    Args:
        higher_is_better: the better direction; None if it is unknown.
        format: Python's format of a value in tables.

    Returns:
        The decorator.

    >>> @metric(higher_is_better=False, format=".3f")
    ... def bias(output, target):
    ...     return (output - target).mean(axis=1)
    >>> bias.name, bias.higher_is_better
    ('bias', False)
    """
    return lambda function: Metric(function, higher_is_better=higher_is_better, format=format)


def has_target(output: Any, target: Any) -> Array:
    """Return which examples have a target, ``(B,)`` booleans.

    An example of labels has none if they are all negative. Numbers and rows are always targets.

    Args:
        output: ``(B, ..., K)``, the model's outputs.
        target: labels ``(B, ...)``, or an array of another kind.
    """
    if not _are_labels(output, target):
        return jnp.ones(jax.tree.leaves(target)[0].shape[:1], bool)
    return (target >= 0).reshape(target.shape[0], -1).any(axis=1)


def mean_over_targets(values: Array, output: Any, target: Any) -> Array:
    """Return the mean of one number per example over the examples that have a target.

    Args:
        values: ``(B,)``, what a metric gives for `output` and `target`.
        output: ``(B, ..., K)``, the model's outputs.
        target: the targets, see :func:`has_target`.

    Returns:
        A scalar; NaN if no example has a target.

    >>> output, labels = jnp.eye(3), jnp.array([0, 2, -1])   # right, wrong, without a target
    >>> float(mean_over_targets(accuracy(output, labels), output, labels))
    0.5
    """
    if not _are_labels(output, target):
        return values.mean()
    counted = has_target(output, target)
    # the factor is exactly 1, and moves no bit, if all have a target
    return jnp.where(counted, values, 0).mean() * (len(values) / counted.sum())


def _are_labels(output: Any, target: Any) -> bool:
    return (
        isinstance(output, jax.Array | np.ndarray)
        and bool(jnp.issubdtype(target.dtype, jnp.integer))
        and target.ndim == output.ndim - 1
    )


def _checked_labels(name: str, labels: Array, classes: int) -> Array:
    """Return which labels are beyond the classes, if that is only known on the device.

    Raises:
        InputError: if a label is beyond the classes and the values are known.
    """
    beyond = labels >= classes
    if not isinstance(beyond, jax.core.Tracer) and bool(beyond.any()):
        raise InputError(
            f"{name}: expected labels from 0 to {classes - 1} (negative without a target), got "
            f"{int(labels.max())}; count classes from 0"
        )
    return beyond


@metric(higher_is_better=True, format=".2%")
def accuracy(output: Array, target: Array) -> Array:
    """Return 1 if the largest output is the class of the target, else 0.

    Args:
        output: ``(B, K)``, or ``(B, T, K)`` for sequences. A single output neuron ``(B, 1)``
            counts as the logit of class 1.
        target: integer labels ``(B,)`` or ``(B, T)``, or one-hot (or soft) rows like ``output``.
            A negative label, or a row of zeros, says that there is no target.

    Returns:
        Float array ``(B,)``. The positions of a sequence that have a target are averaged. NaN for
        an example without a target, so that it is never taken for a wrong one:
        :func:`mean_over_targets` leaves it out. NaN for a label beyond the classes, too, if it is
        only known on the device.

    Raises:
        InputError: if a label is beyond the classes and the values are known.
        ShapeError: if the target fits neither form.
    """
    single = output.shape[-1] == 1
    if _are_labels(output, target) and target.shape == output.shape[:-1]:
        labels, counted = target, target >= 0
        beyond = _checked_labels("accuracy", labels, 2 if single else output.shape[-1])
    elif target.shape == output.shape:
        labels = target[..., 0] > 0.5 if single else target.argmax(axis=-1)
        # of a single neuron, 0 is class 0 and no empty row
        counted = jnp.ones(labels.shape, bool) if single else (target != 0).any(axis=-1)
        beyond = jnp.zeros(labels.shape, bool)
    else:
        raise ShapeError(
            f"accuracy expects integer labels of shape {output.shape[:-1]} or rows of shape "
            f"{output.shape}, got {target.dtype} of shape {target.shape}"
        )
    hits = (output[..., 0] > 0) == (labels > 0) if single else output.argmax(axis=-1) == labels
    values = jnp.where(beyond, jnp.nan, hits.astype(jnp.float32))
    rows, counted = (array.reshape(hits.shape[0], -1) for array in (values, counted))
    count = counted.sum(axis=1)
    mean = jnp.where(counted, rows, 0).sum(axis=1) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, jnp.nan)


@metric(higher_is_better=False)
def absolute_error(output: Array, target: Array) -> Array:
    """Return the mean of ``|output - target|`` over an example.

    Args:
        output: ``(B, ...)``.
        target: numbers of the shape of ``output``.

    Returns:
        Float array ``(B,)``.

    Raises:
        ShapeError: if the shapes differ.
    """
    if output.shape != target.shape:
        raise ShapeError(
            f"absolute_error expects a target of the output's shape {output.shape}, got "
            f"{target.shape}"
        )
    return jnp.abs(output - target).reshape(output.shape[0], -1).mean(axis=1)
