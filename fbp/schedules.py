"""Learning rates over time: pure functions of the step, which may be traced.

Each factory returns ``schedule(step) -> value``; step counts from 0. Pass one wherever an optimizer takes a learning rate.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from fbp.errors import InputError
from fbp.layer import Array

Schedule = Callable[[Array], Array]


def _progress(step: Array, steps: int) -> Array:
    """How much of ``steps`` is over, from 0 to 1."""
    return jnp.clip(jnp.asarray(step) / max(steps, 1), 0.0, 1.0)


def constant(value: float | Array) -> Schedule:
    """``value`` at every step."""
    return lambda step: jnp.asarray(value, jnp.result_type(float))


def step_decay(value: float | Array, every: int, factor: float | Array = 0.1) -> Schedule:
    """``value factor^floor(step / every)``: a drop by ``factor`` after each ``every`` steps."""
    return lambda step: (
        value * jnp.asarray(factor, jnp.result_type(float)) ** (jnp.asarray(step) // every)
    )


def piecewise(values: Sequence[float], boundaries: Sequence[int]) -> Schedule:
    """``values[i]`` from step ``boundaries[i-1]`` on, up to ``boundaries[i]``; one more value than boundaries."""
    if len(values) != len(boundaries) + 1:
        raise InputError(
            f"piecewise: expected one more value than boundaries, got {len(values)} values and {len(boundaries)} boundaries"
        )
    if list(boundaries) != sorted(set(boundaries)):
        raise InputError(f"piecewise: expected boundaries that grow, got {list(boundaries)}")
    return lambda step: jnp.asarray(values)[
        jnp.searchsorted(jnp.asarray(boundaries), jnp.asarray(step), side="right")
    ]


def exponential(value: float | Array, steps: int, factor: float | Array) -> Schedule:
    """``value factor^(step / steps)``: a smooth fall by ``factor`` over each ``steps`` steps."""
    return lambda step: (
        value * jnp.asarray(factor, jnp.result_type(float)) ** (jnp.asarray(step) / steps)
    )


def polynomial(
    value: float | Array, steps: int, end: float | Array = 0.0, power: float | Array = 1.0
) -> Schedule:
    """``end + (value - end) (1 - step/steps)^power``, then ``end``; linear by default."""
    return lambda step: end + (value - end) * (1 - _progress(step, steps)) ** power


def inverse_square_root(value: float | Array, steps: int) -> Schedule:
    """``value sqrt(steps / max(step, steps))``: constant for ``steps`` steps, then as 1/sqrt(step). Vaswani et al. (2017)."""
    return lambda step: value * jnp.sqrt(steps / jnp.maximum(jnp.asarray(step), steps))


def cosine(value: float | Array, steps: int, end: float | Array = 0.0) -> Schedule:
    """Half a cosine wave from ``value`` down to ``end`` over ``steps`` steps. Loshchilov and Hutter (2017)."""
    return lambda step: end + (value - end) * 0.5 * (1 + jnp.cos(math.pi * _progress(step, steps)))


def cosine_restarts(
    value: float | Array, steps: int, end: float | Array = 0.0, growth: int = 1
) -> Schedule:
    """Cosine decay that starts again after ``steps``, each period ``growth`` times the one before: SGDR, the same paper."""
    if growth < 1 or steps < 1:
        raise InputError(
            f"cosine_restarts: growth must be at least 1 and steps too, got growth {growth}, steps {steps}"
        )

    def schedule(step: Array) -> Array:
        step = jnp.asarray(step)
        if growth == 1:
            return cosine(value, steps, end)(step % steps)
        # period k starts at steps (growth^k - 1) / (growth - 1); the table covers every step an int32 can count
        starts, length = [0], steps
        while starts[-1] + length < 2**31:
            starts.append(starts[-1] + length)
            length *= growth
        period = jnp.searchsorted(jnp.asarray(starts, jnp.int32), step, side="right") - 1
        lengths = jnp.asarray([float(steps) * growth**k for k in range(len(starts))])
        done = (step - jnp.asarray(starts, jnp.int32)[period]) / lengths[period]
        return end + (value - end) * 0.5 * (1 + jnp.cos(math.pi * done))

    return schedule


def warmup(schedule: Schedule, steps: int, start: float | Array = 0.0) -> Schedule:
    """Linear from ``start`` to ``schedule(0)`` over ``steps`` steps, then ``schedule``, which counts from there."""

    def warmed(step: Array) -> Array:
        step = jnp.asarray(step)
        first = schedule(jnp.zeros((), jnp.int32))
        ramp = start + (first - start) * _progress(step, steps)
        return jnp.where(step < steps, ramp, schedule(jnp.maximum(step - steps, 0)))

    return warmed


def one_cycle(
    value: float | Array,
    steps: int,
    rise: float = 0.3,
    divide: float | Array = 25.0,
    final_divide: float | Array = 1e4,
) -> Schedule:
    """Cosine up from ``value/divide`` to ``value`` in the first ``rise`` share of ``steps``, then down to
    ``value/divide/final_divide``. Smith and Topin (2018)."""
    low, peak = value / divide, max(round(rise * steps), 1)
    up = cosine(low, peak, end=value)
    down = cosine(value, max(steps - peak, 1), end=low / final_divide)
    return lambda step: jnp.where(
        jnp.asarray(step) < peak, up(step), down(jnp.asarray(step) - peak)
    )
