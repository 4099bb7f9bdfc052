"""Parts that models repeat, each only a composition of layers."""

from collections.abc import Callable

from fbp import initializers
from fbp.combinators._compose import chain, residual
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

Activation = Callable[[], Layer]


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
    """Attention, then two dense layers at each position, each beside a shortcut and behind a layer norm (pre-norm).

    Vaswani et al. (2017); the order of Radford et al. (2019), GPT-2, with its initialization: normal with deviation 0.02,
    for the weights that end a branch divided by ``sqrt(2 depth)``.

    Args:
        features: F, the width of the sequence; the block maps (B, T, F) to (B, T, F).
        heads: heads of attention.
        hidden: the width between the two dense layers, 4 F by default.
        causal, rotary: see :func:`fbp.layers.attention`.
        dropout_rate: the share that is dropped at the end of each branch.
        depth: how many such blocks follow each other.
        activation: factory of the activation between the two dense layers.
    """
    draw = initializers.small_normal(0.02)
    draw_last = initializers.small_normal(0.02 / (2 * depth) ** 0.5)
    look = attention(heads, causal=causal, rotary=rotary, weights=draw, output_weights=draw_last)
    think = (
        dense(hidden or 4 * features, weights=draw),
        activation(),
        dense(features, weights=draw_last),
    )
    drop = [dropout(dropout_rate)] if dropout_rate else []
    return chain(residual(layer_norm(), look, *drop), residual(layer_norm(), *think, *drop))


def mixer_block(positions: int, features: int, *, hidden: tuple[int, int] | None = None) -> Layer:
    """Two dense layers across the positions, then two across the features, each behind a norm and beside a shortcut.

    Tolstikhin et al. (2021), *MLP-Mixer*. Maps (B, positions, features) to the same shape.

    Args:
        positions, features: the shape of an example.
        hidden: the widths between the dense layers across positions and across features; (positions, 4 F) by default.
    """
    across_positions, across_features = hidden or (positions, 4 * features)
    turn = transpose((1, 0))
    mix = turn, dense(across_positions), gelu(), dense(positions), turn
    return chain(
        residual(layer_norm(), *mix),
        residual(layer_norm(), dense(across_features), gelu(), dense(features)),
    )


def residual_block(channels: int, *, stride: int = 1, project: bool = False) -> Layer:
    """Two 3 x 3 convolutions with batch norm beside a shortcut. He et al. (2016), *Deep residual learning*.

    Args:
        channels: of the output.
        stride: of the first convolution.
        project: lead the shortcut through a 1 x 1 convolution: needed where the stride is not 1 or the channels change.
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
