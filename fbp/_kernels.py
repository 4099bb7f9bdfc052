"""Platform-specific implementations of the same operation, and the thresholds that choose one.

Every choice that depends on the platform or on sizes stands here. benchmarks/README.md has the
measurements behind them. All implementations give the same result up to rounding. The choice is
made when a program is lowered, so it costs nothing at run time.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fbp.layer import Array, Params

RNN_UNROLL = 2
"""Steps of a recurrence in one turn of its forward loop; the backward loop takes one."""

MIN_BATCH_TO_SPLIT = 16
MIN_FEATURES_TO_SPLIT = 256
"""With this many examples and features, a recurrence splits its batch in two."""

BLOCKWISE_MIN_KEYS = 512
"""Keys from which on attention is computed in blocks: faster, and in far less memory."""

MAX_BLOCK = 512
"""Largest number of queries, and of keys, in a block."""

DILATED_MIN_CHANNELS = 32
"""Terms of a convolution's sum (channels, or examples) from which on all cores pay off."""

MIN_TENSORS_TO_REDUCE_APART = 100
"""Parameters of a model from which on the norms by layer are not reduced in one program: XLA
compiles each reduction by itself, which takes ten times as long as the backward pass."""


def at_least_float32(x: Array) -> Any:
    """Return the dtype for sums over ``x``: its own, or float32 if that is wider."""
    return jnp.promote_types(x.dtype, jnp.float32)


def by_platform(cpu: Callable[..., Any], other: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``cpu(*arguments)`` in a program lowered for a CPU, else ``other(*arguments)``."""
    return lax.platform_dependent(*arguments, cpu=cpu, default=other)


def delay_until_backward_done(grads: Params) -> Params:
    """Make every gradient depend on the first layer's, which backpropagation computes last.

    Then XLA cannot overwrite a weight that the backward pass still reads, and in a loop need not
    copy it. On a CPU each gradient is multiplied by a 1 that is computed from the first layer's
    gradient; elsewhere gradients are returned as they are.
    """

    def delay(grads: Params) -> Params:
        numbers = (leaf.ravel()[0] for leaf in jax.tree.leaves(grads) if leaf.size)
        last_computed = next(numbers, jnp.float32(0))
        unit = 1 + 0.0 * jnp.isnan(last_computed).astype(jnp.float32)
        return jax.tree.map(lambda leaf: leaf * unit.astype(leaf.dtype), grads)

    return by_platform(delay, lambda grads: grads, grads)


class ConvolutionShape(NamedTuple):
    """How a kernel moves over the spatial axes; one entry per axis.

    Attributes:
        stride: distance between the kernel's positions.
        pads: zeros before and after each axis.
        input_dilation: distance between the input's values; zeros lie between them.
        dilation: distance between the kernel's values.
        groups: number of groups of channels that do not see each other.
    """

    stride: Sequence[int]
    pads: Sequence[tuple[int, int]]
    input_dilation: Sequence[int]
    dilation: Sequence[int]
    groups: int = 1


def convolution(x: Array, w: Array, shape: ConvolutionShape) -> Array:
    """Return ``z[p] = sum_k x[(stride p + dilation k - low) / input_dilation] w[k]``.

    On a CPU, with many channels, the same sum is computed with stride, padding and both dilations
    doubled: XLA then picks its multi-threaded kernel.

    Args:
        x: (B, spatial..., C), channels last.
        w: (window..., C / groups, out).
        shape: stride, padding, dilations and groups.

    Returns:
        (B, spatial..., out).
    """

    def at_distance(factor: int) -> Callable[[Array, Array], Array]:
        return lambda x, w: lax.conv_general_dilated(
            x,
            w,
            [factor * s for s in shape.stride],
            [(factor * low, factor * high) for low, high in shape.pads],
            [factor * s for s in shape.input_dilation],
            [factor * d for d in shape.dilation],
            ("NHC", "HIO", "NHC") if w.ndim == 3 else ("NHWC", "HWIO", "NHWC"),
            shape.groups,
        )

    factor = 2 if w.shape[-2] >= DILATED_MIN_CHANNELS else 1
    return by_platform(at_distance(factor), at_distance(1), x, w)


def scan_over_time(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    inputs: Any,
    *,
    reverse: bool,
    unroll: int,
) -> tuple[Any, Any]:
    """Run ``lax.scan`` of a step that treats each example alone.

    On a CPU, with many examples and features, the batch is split in two so that XLA runs two matrix
    products on two threads; one product with few rows uses only one.

    Args:
        step: ``(state, inputs of one position) -> (state, outputs)``.
        state: a tree of arrays (B, features).
        inputs: a tree of arrays (T, B, ...).
        reverse: run from the last position to the first.
        unroll: steps in one turn of the loop.

    Returns:
        The last state, and the outputs (T, B, ...).
    """
    batch, features = jax.tree.leaves(state)[0].shape

    def whole(state: Any, inputs: Any) -> tuple[Any, Any]:
        return lax.scan(step, state, inputs, reverse=reverse, unroll=unroll)

    def split(state: Any, inputs: Any) -> tuple[Any, Any]:
        halves = slice(batch // 2), slice(batch // 2, batch)

        def cut(tree: Any, half: slice) -> Any:
            return jax.tree.map(lambda leaf: leaf[half], tree)

        def join(*trees: Any) -> Any:
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)

        def both(states: Any, inputs: Any) -> tuple[Any, Any]:
            pairs = zip(states, halves, strict=True)
            results = (step(half_state, cut(inputs, half)) for half_state, half in pairs)
            new_states, outputs = zip(*results, strict=True)
            return new_states, join(*outputs)

        initial = tuple(cut(state, half) for half in halves)
        last, outputs = lax.scan(both, initial, inputs, reverse=reverse, unroll=unroll)
        return join(*last), outputs

    pays_off = batch >= MIN_BATCH_TO_SPLIT and features >= MIN_FEATURES_TO_SPLIT
    return by_platform(split if pays_off else whole, whole, state, inputs)
