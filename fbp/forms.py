"""The forms in which one and the same product is computed, and the rules that pick one.

Every choice that depends on the platform or on sizes stands here; benchmarks/README.md has the measurements behind the numbers.
Whatever the form, the result is the same but for rounding. The choice is made when a program is lowered: it costs nothing after.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from fbp.layer import Array

UNROLL, UNROLL_BACK = 4, 2  # steps of a recurrence in one turn of its loop
HALVES_FROM = 256  # width of a product inside a loop over time from which two halves are faster than one

BLOCKWISE_FROM = 512  # keys from which attention is computed in blocks: faster, and smaller by far
BLOCK = 512  # queries, and keys, in a block at most

PATCHES_UP_TO = (
    16  # channels of a convolution: below, one GEMM over patches beats one GEMM for each place of the window
)


def by_platform(cpu: Callable[..., Any], other: Callable[..., Any], *arguments: Any) -> Any:
    """``cpu(*arguments)`` where the program is lowered for a CPU, ``other(*arguments)`` elsewhere."""
    return lax.platform_dependent(*arguments, cpu=cpu, default=other)


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
