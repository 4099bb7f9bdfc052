"""The forms in which one and the same product is computed, and the rules that pick one.

Every choice that depends on the platform or on sizes stands here; benchmarks/README.md has the measurements behind them.
Whatever the form, the result is the same but for rounding. It is picked when a program is lowered: that costs nothing later.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from fbp.layer import Array

UNROLL, UNROLL_BACK = 4, 2  # steps of a recurrence in one turn of its loop
HALVES_FROM = 256  # width of a product inside a loop over time from which two halves are faster than one

BLOCKWISE_FROM = 512  # keys from which attention is computed in blocks: faster, and smaller by far
BLOCK = 512  # queries, and keys, in a block at most

CHANNELS_FROM = 32  # what a convolution sums over (channels, or examples): from here on all cores are worth their price


def by_platform(cpu: Callable[..., Any], other: Callable[..., Any], *arguments: Any) -> Any:
    """``cpu(*arguments)`` where the program is lowered for a CPU, ``other(*arguments)`` elsewhere."""
    return lax.platform_dependent(*arguments, cpu=cpu, default=other)


def convolution(
    x: Array, w: Array, stride: Sequence[int], pads: Sequence[tuple[int, int]], spread: Sequence[int],
    dilation: Sequence[int], groups: int = 1,
) -> Array:  # fmt: skip
    """``z[p] = sum_k x[(stride p + dilation k - low) / spread] w[k]``; channels last, kernels (window..., in / groups, out).

    On a CPU, and where that is faster, with all distances doubled, which is the very same sum: XLA gives a plain convolution to
    a kernel that uses one core, but this one to another that uses all of them.
    """

    def by_distance(times: int) -> Callable[[Array, Array], Array]:
        return lambda x, w: lax.conv_general_dilated(
            x,
            w,
            [times * s for s in stride],
            [(times * low, times * high) for low, high in pads],
            [times * s for s in spread],
            [times * d for d in dilation],
            ("NHC", "HIO", "NHC") if len(stride) == 1 else ("NHWC", "HWIO", "NHWC"),
            groups,
        )

    return by_platform(by_distance(2 if w.shape[-2] >= CHANNELS_FROM else 1), by_distance(1), x, w)


def back_through_time(w: Array) -> Callable[[Array], Array]:
    """``delta -> delta w^T`` with ``w (out, in)`` for every turn of a loop over time.

    On a CPU by two products of half the width: each runs on a thread of its own, which a product of few rows over a long sum
    does not manage alone.
    """
    if w.shape[0] < HALVES_FROM:
        return lambda delta: delta @ w.T
    halves = tuple(lax.optimization_barrier(half.T) for half in jnp.split(w, [w.shape[0] // 2]))

    def in_halves(delta: Array) -> Array:
        return jnp.concatenate([delta @ half for half in halves], axis=-1)

    return lambda delta: by_platform(in_halves, lambda delta: delta @ w.T, delta)
