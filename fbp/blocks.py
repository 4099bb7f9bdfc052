"""Blocks that models repeat; each is a composition of layers."""

from collections.abc import Callable
from typing import TypeAlias

from fbp import initializers
from fbp._arguments import checked
from fbp.combinators import chain, residual
from fbp.errors import InputError
from fbp.layer import Layer
from fbp.layers import (
    attention,
    batch_norm,
    conv2d,
    dense,
    dropout,
    gelu,
    identity,
    layer_norm,
    relu,
    transpose,
)

Activation: TypeAlias = Callable[[], Layer]
"""A factory of an activation, such as ``layers.relu``."""


@checked
def transformer_block(
    features: int,
    heads: int,
    *,
    hidden: int | None = None,
    causal: bool = False,
    rotary: bool = False,
    dropout_rate: float = 0.0,
    depth: int = 1,
    activation: Activation = gelu,
) -> Layer:
    """Return attention, then two dense layers at each position: a block of a transformer.

    Each of the two is behind a layer norm and beside a shortcut (pre-norm). Vaswani et al. (2017);
    the order of Radford et al. (2019), GPT-2, with its initialization: normal with deviation 0.02,
    for the weights that end a branch divided by ``sqrt(2 depth)``.

    Args:
        features: F, the width of the sequence; the block maps (B, T, F) to (B, T, F).
        heads: heads of attention; they divide F.
        hidden: the width between the two dense layers, 4 F by default.
        causal: let a position see itself and those before it only.
        rotary: encode positions by rotating queries and keys; see :func:`fbp.layers.attention`.
        dropout_rate: the share that is dropped at the end of each branch.
        depth: number of such blocks in the model.
        activation: factory of the activation between the two dense layers.
    """
    draw = initializers.small_normal(0.02)
    draw_last = initializers.small_normal(0.02 / (2 * depth) ** 0.5)
    attend = attention(heads, causal=causal, rotary=rotary, weights=draw, output_weights=draw_last)
    feed_forward = (
        dense(hidden or 4 * features, weights=draw),
        activation(),
        dense(features, weights=draw_last),
    )
    drop = [dropout(dropout_rate)] if dropout_rate else []
    return chain(
        residual(layer_norm(), attend, *drop), residual(layer_norm(), *feed_forward, *drop)
    )


@checked
def mixer_block(positions: int, features: int, *, hidden: tuple[int, int] | None = None) -> Layer:
    """Return two dense layers across the positions, then two across the features.

    Each pair is behind a layer norm and beside a shortcut. Tolstikhin et al. (2021), *MLP-Mixer*.

    Args:
        positions: T; the block maps (B, T, F) to (B, T, F).
        features: F.
        hidden: the widths between the dense layers across positions and across features; (T, 4 F)
            by default.
    """
    across_positions, across_features = hidden or (positions, 4 * features)
    transposed = transpose((1, 0))
    mix = transposed, dense(across_positions), gelu(), dense(positions), transposed
    return chain(
        residual(layer_norm(), *mix),
        residual(layer_norm(), dense(across_features), gelu(), dense(features)),
    )


@checked
def residual_block(channels: int, *, stride: int = 1, project: bool = False) -> Layer:
    """Return two 3 x 3 convolutions with batch norm beside a shortcut, on images (B, H, W, C).

    He et al. (2016), *Deep residual learning for image recognition*.

    Args:
        channels: of the output.
        stride: of the first convolution.
        project: put a 1 x 1 convolution into the shortcut; needed if the stride is not 1 or the
            channels change.

    Raises:
        InputError: the stride is not 1 and the shortcut has no convolution.
    """
    if stride != 1 and not project:
        raise InputError(
            "residual_block: a stride needs project=True, so that both branches give the same shape"
        )
    body = (
        conv2d(channels, 3, stride=stride),
        batch_norm(),
        relu(),
        conv2d(channels, 3),
        batch_norm(),
    )
    shortcut = chain(conv2d(channels, 1, stride=stride), batch_norm()) if project else identity()
    return chain(residual(*body, shortcut=shortcut), relu())
