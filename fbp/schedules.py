"""Learning rates over time: pure functions of the step, which may be traced.

Each factory returns ``schedule(step) -> value``; step counts from 0. Pass one wherever an optimizer
takes a learning rate.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp

from fbp._arguments import checked
from fbp.errors import InputError
from fbp.layer import Array

Schedule: TypeAlias = Callable[[Array], Array]
"""``step -> value``."""


def _as_float(step: Any) -> Array:
    """Return the step in the default float dtype; int32 divided by a number would be float32."""
    return jnp.asarray(step, jnp.result_type(float))


def _progress(step: Array, steps: int) -> Array:
    """Return the share of ``steps`` that is over, from 0 to 1."""
    return jnp.clip(_as_float(step) / max(steps, 1), 0.0, 1.0)


@checked
def constant(value: float | Array) -> Schedule:
    """Return ``value`` at every step.

    Args:
        value: the rate.
    """
    return lambda step: jnp.asarray(value, jnp.result_type(float))


@checked
def step_decay(value: float | Array, every: int, factor: float | Array = 0.1) -> Schedule:
    """Return ``value factor^floor(step / every)``: a drop by ``factor`` after ``every`` steps.

    As PyTorch's StepLR with the same default; Optax's ``exponential_decay(staircase=True)``.

    Args:
        value: the rate at the beginning.
        every: steps between two drops.
        factor: of each drop.
    """
    return lambda step: (
        value * jnp.asarray(factor, jnp.result_type(float)) ** (jnp.asarray(step) // every)
    )


@checked
def piecewise(values: Sequence[float], boundaries: Sequence[int]) -> Schedule:
    """Return ``values[i]`` from step ``boundaries[i-1]`` on, up to ``boundaries[i]``.

    Args:
        values: the rates, one more than boundaries.
        boundaries: steps in increasing order.

    Raises:
        InputError: the lengths do not fit, or the boundaries do not increase.
    """
    if len(values) != len(boundaries) + 1:
        raise InputError(
            f"piecewise: expected one more value than boundaries, got {len(values)} values and "
            f"{len(boundaries)} boundaries"
        )
    if list(boundaries) != sorted(set(boundaries)):
        raise InputError(f"piecewise: expected boundaries that grow, got {list(boundaries)}")
    return lambda step: jnp.asarray(values, jnp.result_type(float))[
        jnp.searchsorted(jnp.asarray(boundaries), jnp.asarray(step), side="right")
    ]


@checked
def exponential(value: float | Array, steps: int, factor: float | Array) -> Schedule:
    """Return ``value factor^(step / steps)``: a smooth fall by ``factor`` over ``steps`` steps.

    Args:
        value: the rate at the beginning.
        steps: steps of a fall by ``factor``.
        factor: of the fall.
    """
    return lambda step: (
        value * jnp.asarray(factor, jnp.result_type(float)) ** (_as_float(step) / steps)
    )


@checked
def polynomial(
    value: float | Array, steps: int, end: float | Array = 0.0, power: float | Array = 1.0
) -> Schedule:
    """Return ``end + (value - end) (1 - step/steps)^power``, then ``end``; linear by default.

    Optax's ``polynomial_schedule``; PyTorch's PolynomialLR ends at 0.

    Args:
        value: the rate at the beginning.
        steps: steps until ``end``.
        end: the rate at the end.
        power: exponent of the fall.
    """
    return lambda step: end + (value - end) * (1 - _progress(step, steps)) ** power


@checked
def inverse_square_root(value: float | Array, steps: int) -> Schedule:
    """Return ``value sqrt(steps / max(step, steps))``: constant, then falling as 1/sqrt(step).

    Vaswani et al. (2017), *Attention is all you need*.

    Args:
        value: the rate of the first ``steps`` steps.
        steps: steps before the fall.
    """
    return lambda step: value * jnp.sqrt(steps / jnp.maximum(_as_float(step), steps))


@checked
def cosine(value: float | Array, steps: int, end: float | Array = 0.0) -> Schedule:
    """Return half a cosine wave from ``value`` down to ``end``, then ``end``.

    Loshchilov and Hutter (2017), *SGDR: stochastic gradient descent with warm restarts*.

    Args:
        value: the rate at the beginning.
        steps: steps until ``end``.
        end: the rate at the end.
    """
    return lambda step: end + (value - end) * 0.5 * (1 + jnp.cos(math.pi * _progress(step, steps)))


@checked
def cosine_restarts(
    value: float | Array, steps: int, end: float | Array = 0.0, growth: int = 1
) -> Schedule:
    """Return a cosine decay that starts again after each period: SGDR, the paper of :func:`cosine`.

    Args:
        value: the rate at the beginning of each period.
        steps: steps of the first period.
        end: the rate at the end of each period.
        growth: length of each period in lengths of the one before.

    Raises:
        InputError: ``growth`` or ``steps`` is less than 1.
    """

    def schedule(step: Array) -> Array:
        step = jnp.asarray(step)
        if growth == 1:
            return cosine(value, steps, end)(step % steps)
        # period k starts at steps (growth^k - 1) / (growth - 1); the table covers all int32 steps
        starts, length = [0], steps
        while starts[-1] + length < 2**31:
            starts.append(starts[-1] + length)
            length *= growth
        period = jnp.searchsorted(jnp.asarray(starts, jnp.int32), step, side="right") - 1
        lengths = _as_float([float(steps) * growth**k for k in range(len(starts))])
        progress = _as_float(step - jnp.asarray(starts, jnp.int32)[period]) / lengths[period]
        return end + (value - end) * 0.5 * (1 + jnp.cos(math.pi * progress))

    return schedule


@checked
def warmup(schedule: Schedule, steps: int, start: float | Array = 0.0) -> Schedule:
    """Return a linear rise from ``start`` to ``schedule(0)``, followed by ``schedule``.

    Args:
        schedule: what follows; its steps count from the end of the rise.
        steps: steps of the rise.
        start: the rate at the beginning.
    """

    def with_warmup(step: Array) -> Array:
        step = jnp.asarray(step)
        peak = schedule(jnp.zeros((), jnp.int32))
        ramp = start + (peak - start) * _progress(step, steps)
        return jnp.where(step < steps, ramp, schedule(jnp.maximum(step - steps, 0)))

    return with_warmup


@checked
def one_cycle(
    value: float | Array,
    steps: int,
    warmup_share: float = 0.3,
    initial_divisor: float | Array = 25.0,
    final_divisor: float | Array = 1e4,
) -> Schedule:
    """Return a cosine rise to ``value``, followed by a cosine fall.

    The first rate is ``value / initial_divisor``, the last the first over ``final_divisor``.
    Smith and Topin (2018), *Super-convergence*, in PyTorch's form with two phases. The peak is at
    step ``round(warmup_share steps)``, a whole number; PyTorch's OneCycleLR has it at
    ``warmup_share steps - 1``, which may lie between two steps, ends a step earlier, and turns the
    momentum against the rate, too. Optax's ``cosine_onecycle_schedule`` truncates where this
    rounds.

    Args:
        value: the rate at the peak.
        steps: steps in all.
        warmup_share: share of the steps before the peak, in (0, 1).
        initial_divisor: the peak in units of the first rate.
        final_divisor: the first rate in units of the last.
    """
    low, peak = value / initial_divisor, max(round(warmup_share * steps), 1)
    up = cosine(low, peak, end=value)
    down = cosine(value, max(steps - peak, 1), end=low / final_divisor)
    return lambda step: jnp.where(
        jnp.asarray(step) < peak, up(step), down(jnp.asarray(step) - peak)
    )
