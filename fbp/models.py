"""Models, each only a composition of layers."""

import itertools
from collections.abc import Callable, Sequence

from fbp import initializers
from fbp.compose import chain, residual
from fbp.errors import InputError
from fbp.layer import Initializer, Layer
from fbp.layers import dense, flatten, relu

Activation = Callable[[], Layer]


def mlp(
    outputs: int,
    hidden: Sequence[int] = (128,),
    activation: Activation = relu,
    weights: Initializer | None = None,
    bias: Initializer | None = None,
    output_activation: Activation | None = None,
    residual_blocks: bool = False,
) -> Layer:
    """Dense layers with an activation between them.

    Args:
        outputs: the width of the last layer (logits, unless ``output_activation`` is given).
        hidden: the widths of the hidden layers.
        activation: factory of the activation after each hidden layer.
        weights: initializer of all weights; the one that suits the activation by default.
        bias: initializer of all biases; zeros by default.
        output_activation: factory of an activation after the last layer, such as ``sigmoid`` for the quadratic cost.
        residual_blocks: put each hidden layer that does not change the width, with its activation, beside a shortcut. Their
            weights start smaller by the number of blocks, so that the sum of all blocks keeps its size at any depth (after
            Zhang, Dauphin and Ma, 2019, *Fixup initialization*).

    Returns:
        A layer from ``(B, ...)`` (flattened) to ``(B, outputs)``.

    Raises:
        InputError: where a width is less than 1.
    """
    if any(width < 1 for width in (*hidden, outputs)):
        raise InputError(f"mlp: widths must be at least 1, got hidden {list(hidden)} and outputs {outputs}")
    draw = weights or initializers.for_activation(activation().name.split("(")[0])
    within = [residual_blocks and width == before for before, width in itertools.pairwise((0, *hidden))]
    draw_within = initializers.scaled(draw, 1 / max(sum(within), 1))
    layers = [flatten()]
    for features, is_block in zip(hidden, within, strict=True):
        block = [dense(features, weights=draw_within if is_block else draw, bias=bias), activation()]
        layers += [residual(*block)] if is_block else block
    layers.append(dense(outputs, weights=draw if output_activation else weights, bias=bias))
    if output_activation:
        layers.append(output_activation())
    return chain(*layers)
