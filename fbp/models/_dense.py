"""Dense networks."""

import itertools
from collections.abc import Sequence

from fbp import initializers
from fbp._arguments import checked
from fbp.blocks import Activation
from fbp.combinators import chain, residual
from fbp.layer import Initializer, Layer
from fbp.layers import (
    dense,
    flatten,
    relu,
)
from fbp.models._shared import weights_before


@checked
def mlp(
    outputs: int,
    hidden: Sequence[int] = (128,),
    activation: Activation = relu,
    *,
    weights: Initializer | None = None,
    bias: Initializer | None = None,
    output_activation: Activation | None = None,
    residual_blocks: bool = False,
) -> Layer:
    """Return dense layers with an activation between them, from (B, ...) to (B, outputs).

    Args:
        outputs: the width of the last layer (logits, unless ``output_activation`` is set).
        hidden: the widths of the hidden layers.
        activation: factory of the activation after each hidden layer.
        weights: initializer of all weights; the one that suits the activation by default.
        bias: initializer of all biases; zeros by default.
        output_activation: factory of an activation after the last layer, such as ``sigmoid`` for
            the quadratic cost; None for none.
        residual_blocks: put each hidden layer that does not change the width, with its activation,
            beside a shortcut. Their weights start smaller by the number of blocks, so that the sum
            of all blocks keeps its size at any depth (after Zhang, Dauphin and Ma, 2019, *Fixup
            initialization*).

    Raises:
        InputError: a width is less than 1.
    """
    draw = weights or weights_before(activation)
    is_block = [
        residual_blocks and width == width_below
        for width_below, width in itertools.pairwise((0, *hidden))
    ]
    draw_in_block = initializers.scaled(draw, 1 / max(sum(is_block), 1))
    parts = [flatten()]
    for features, in_block in zip(hidden, is_block, strict=True):
        block = [
            dense(features, weights=draw_in_block if in_block else draw, bias=bias),
            activation(),
        ]
        parts += [residual(*block)] if in_block else block
    parts.append(dense(outputs, weights=draw if output_activation else weights, bias=bias))
    if output_activation:
        parts.append(output_activation())
    return chain(*parts)


@checked
def autoencoder(
    outputs: int,
    hidden: Sequence[int] = (128,),
    code: int = 16,
    activation: Activation = relu,
    *,
    output_activation: Activation | None = None,
) -> Layer:
    """Return a dense encoder to a narrow code, and its mirror as decoder.

    Hinton and Salakhutdinov (2006), *Reducing the dimensionality of data with neural networks*.

    Args:
        outputs: the numbers of an example.
        hidden: the encoder's widths; the decoder's are their mirror.
        code: the width of the code, which is linear.
        activation: factory of the activation after each hidden layer.
        output_activation: factory of an activation after the last layer; None for none.

    Returns:
        A layer from (B, ...) to (B, outputs).
    """
    draw = weights_before(activation)
    parts: list[Layer] = [flatten()]
    for width in hidden:
        parts += [dense(width, weights=draw), activation()]
    parts.append(dense(code))
    for width in reversed(hidden):
        parts += [dense(width, weights=draw), activation()]
    parts.append(dense(outputs))
    return chain(*parts, *([output_activation()] if output_activation else []))
