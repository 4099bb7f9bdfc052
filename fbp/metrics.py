"""Metrics: numbers observed beside the loss, one per example.

Each is a :class:`Metric`: a function ``(output, target) -> (B,)`` with its name, its better
direction and the format in which tables show it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

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


@metric(higher_is_better=True, format=".2%")
def accuracy(output: Array, target: Array) -> Array:
    """Return 1 if the largest output is the class of the target, else 0.

    Args:
        output: ``(B, K)``, or ``(B, T, K)`` for sequences. A single output neuron ``(B, 1)``
            counts as the logit of class 1.
        target: integer labels ``(B,)`` or ``(B, T)``, or one-hot (or soft) rows like ``output``.
            A negative label counts as no target.

    Returns:
        Float array ``(B,)``. The positions of a sequence that have a target are averaged.
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


@metric(higher_is_better=False)
def absolute_error(output: Array, target: Array) -> Array:
    """Return the mean of ``|output - target|`` over an example.

    Args:
        output: ``(B, ...)``.
        target: numbers of the shape of ``output``.

    Returns:
        Float array ``(B,)``.
    """
    return jnp.abs(output - target).reshape(output.shape[0], -1).mean(axis=1)
