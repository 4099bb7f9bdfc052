"""The forms in which one and the same product is computed, and the rules that pick one.

Every choice that depends on the platform or on sizes stands here; benchmarks/README.md has the measurements behind them.
Whatever the form, the result is the same but for rounding. It is picked when a program is lowered: that costs nothing later.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fbp.layer import Array, Params

RNN_UNROLL = 2  # steps of a recurrence in one turn of its loop forward; back, one
MIN_BATCH_TO_SPLIT, MIN_FEATURES_TO_SPLIT = (
    16,
    256,
)  # from here on a recurrence's examples go in two lanes

BLOCKWISE_MIN_KEYS = (
    512  # keys from which attention is computed in blocks: faster, and smaller by far
)
MAX_BLOCK = 512  # queries, and keys, in a block at most

DILATED_MIN_CHANNELS = 32  # what a convolution sums over (channels, or examples): from here on all cores are worth their price


def at_least_float32(x: Array) -> Any:
    """Return the dtype for sums over ``x``: its own, or float32 if that is wider."""
    return jnp.promote_types(x.dtype, jnp.float32)


def by_platform(cpu: Callable[..., Any], other: Callable[..., Any], *arguments: Any) -> Any:
    """``cpu(*arguments)`` where the program is lowered for a CPU, ``other(*arguments)`` elsewhere."""
    return lax.platform_dependent(*arguments, cpu=cpu, default=other)


def delay_until_backward_done(grads: Params) -> Params:
    """The same gradients, of which none can be used before the first is there: the last that a chain's backward pass computes.

    In a loop, XLA copies every weight that an update may replace while the backward pass may still read it. On a CPU each
    gradient is therefore multiplied by a 1 that takes a number of the first one to compute.
    """

    def tied(grads: Params) -> Params:
        first = next(
            (leaf.ravel()[0] for leaf in jax.tree.leaves(grads) if leaf.size), jnp.float32(0)
        )
        one = 1 + 0.0 * jnp.isnan(first).astype(jnp.float32)
        return jax.tree.map(lambda leaf: leaf * one.astype(leaf.dtype), grads)

    return by_platform(tied, lambda grads: grads, grads)


def convolution(
    x: Array, w: Array, stride: Sequence[int], pads: Sequence[tuple[int, int]], input_dilation: Sequence[int],
    dilation: Sequence[int], groups: int = 1,
) -> Array:  # fmt: skip
    """``z[p] = sum_k x[(stride p + dilation k - low) / input_dilation] w[k]``; channels last, kernels (window..., in / groups, out).

    On a CPU, and where that is faster, with all distances doubled, which is the very same sum: XLA gives a plain convolution to
    a kernel that uses one core, but this one to another that uses all of them.
    """

    def by_distance(times: int) -> Callable[[Array, Array], Array]:
        return lambda x, w: lax.conv_general_dilated(
            x,
            w,
            [times * s for s in stride],
            [(times * low, times * high) for low, high in pads],
            [times * s for s in input_dilation],
            [times * d for d in dilation],
            ("NHC", "HIO", "NHC") if len(stride) == 1 else ("NHWC", "HWIO", "NHWC"),
            groups,
        )

    return by_platform(
        by_distance(2 if w.shape[-2] >= DILATED_MIN_CHANNELS else 1), by_distance(1), x, w
    )


def scan_over_time(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    inputs: Any,
    *,
    reverse: bool,
    unroll: int,
) -> tuple[Any, Any]:
    """``lax.scan`` of a step in which no example meets another: leaves of ``state`` (B, features), of ``inputs`` (T, B, ...).

    On a CPU, and where that is faster, the examples go in two lanes, each with products of its own: each runs on a thread of
    its own, which one product of few rows does not manage alone.
    """
    batch, features = jax.tree.leaves(state)[0].shape

    def plain(state: Any, inputs: Any) -> tuple[Any, Any]:
        return lax.scan(step, state, inputs, reverse=reverse, unroll=unroll)

    def in_lanes(state: Any, inputs: Any) -> tuple[Any, Any]:
        lanes = slice(batch // 2), slice(batch // 2, batch)

        def cut(tree: Any, lane: slice) -> Any:
            return jax.tree.map(lambda leaf: leaf[lane], tree)

        def join(*trees: Any) -> Any:
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)

        def both(states: Any, at: Any) -> tuple[Any, Any]:
            after, found = zip(
                *(step(s, cut(at, lane)) for s, lane in zip(states, lanes, strict=True)),
                strict=True,
            )
            return after, join(*found)

        last, found = lax.scan(
            both, tuple(cut(state, lane) for lane in lanes), inputs, reverse=reverse, unroll=unroll
        )
        return join(*last), found

    pays = batch >= MIN_BATCH_TO_SPLIT and features >= MIN_FEATURES_TO_SPLIT
    return by_platform(in_lanes if pays else plain, plain, state, inputs)
