"""Models, each only a composition of layers. The first argument is always the number of outputs."""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

from fbp import initializers, layers
from fbp.blocks import Activation, residual_block, transformer_block
from fbp.combinators._compose import bidirectional as both_directions
from fbp.combinators._compose import chain, residual, shared
from fbp.combinators._graph import graph
from fbp.errors import InputError
from fbp.layer import Initializer, Layer
from fbp.layers import (
    avg_pool,
    batch_norm,
    concatenate,
    conv2d,
    dense,
    dropout,
    embedding,
    flatten,
    global_avg_pool,
    layer_norm,
    learned_positions,
    max_pool,
    relu,
    reshape,
    sinusoidal_positions,
    tanh,
    unembedding,
)


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
        raise InputError(
            f"mlp: widths must be at least 1, got hidden {list(hidden)} and outputs {outputs}"
        )
    draw = weights or initializers.for_activation(activation().name.split("(")[0])
    within = [
        residual_blocks and width == before for before, width in itertools.pairwise((0, *hidden))
    ]
    draw_within = initializers.scaled(draw, 1 / max(sum(within), 1))
    parts = [flatten()]
    for features, is_block in zip(hidden, within, strict=True):
        block = [
            dense(features, weights=draw_within if is_block else draw, bias=bias),
            activation(),
        ]
        parts += [residual(*block)] if is_block else block
    parts.append(dense(outputs, weights=draw if output_activation else weights, bias=bias))
    if output_activation:
        parts.append(output_activation())
    return chain(*parts)


def lenet5(outputs: int, activation: Activation = tanh) -> Layer:
    """LeNet-5 on images (B, 28, 28, C): two 5 x 5 convolutions with average pooling, dense layers of 120 and 84.

    LeCun, Bottou, Bengio and Haffner (1998), *Gradient-based learning applied to document recognition*; with full connections
    between the feature maps and a dense last layer, as everybody builds it now. Other sizes than 28 x 28 work too.
    """
    return chain(
        conv2d(6, 5), activation(), avg_pool(2),
        conv2d(16, 5, padding="VALID"), activation(), avg_pool(2),
        flatten(), dense(120), activation(), dense(84), activation(), dense(outputs),
    )  # fmt: skip


def cnn(
    outputs: int,
    channels: Sequence[int] = (32, 64),
    window: int = 3,
    hidden: Sequence[int] = (128,),
    activation: Activation = relu,
    norm: bool = False,
    dropout_rate: float = 0.0,
) -> Layer:
    """Convolutions, each with an activation and a 2 x 2 max pooling, then dense layers; on images (B, H, W, C).

    Args:
        outputs: the width of the last layer (logits).
        channels: of each convolution.
        window: the convolutions' size.
        hidden: the widths of the dense layers before the last.
        activation: factory of the activation after each layer but the last.
        norm: put a batch norm behind each convolution.
        dropout_rate: the share that is dropped before each dense layer.
    """
    draw = initializers.for_activation(activation().name.split("(")[0])
    parts: list[Layer] = []
    for count in channels:
        parts += [
            conv2d(count, window, weights=draw),
            *[batch_norm()] * norm,
            activation(),
            max_pool(2),
        ]
    drop = [dropout(dropout_rate)] if dropout_rate else []
    parts.append(flatten())
    for width in hidden:
        parts += [*drop, dense(width, weights=draw), activation()]
    return chain(*parts, *drop, dense(outputs))


def resnet(outputs: int, depth: int = 20, width: int = 16) -> Layer:
    """A residual network in the form for small images (CIFAR). He et al. (2016), *Deep residual learning*, section 4.2.

    A 3 x 3 convolution, then three stages of ``(depth - 2) / 6`` blocks with ``width``, 2 and 4 times as many channels, each
    stage but the first halving the image; global average pooling and a dense layer. Shortcuts are 1 x 1 convolutions where
    the shape changes.

    Args:
        outputs: the width of the last layer (logits).
        depth: how many layers with weights: 20, 32, 44, 56, 110 in the paper; any 6 n + 2.
        width: channels of the first stage.
    """
    if depth < 8 or depth % 6 != 2:
        raise InputError(f"resnet: depth must be 6 n + 2, such as 20, 32 or 56, got {depth}")
    parts = [conv2d(width, 3), batch_norm(), relu()]
    for stage in range(3):
        for block in range((depth - 2) // 6):
            first = stage > 0 and block == 0
            parts.append(residual_block(width * 2**stage, stride=2 if first else 1, project=first))
    return chain(*parts, global_avg_pool(), dense(outputs))


def inception(outputs: int, channels: int = 16, modules: int = 2) -> Layer:
    """Modules of four branches that look at different distances, as a graph; on images (B, H, W, C).

    Szegedy et al. (2015), *Going deeper with convolutions*: a 1 x 1 convolution; 3 x 3 and 5 x 5 ones, each behind a 1 x 1; and
    a max pooling with a 1 x 1 behind it; side by side. Between the modules a max pooling halves the image.

    Args:
        outputs: the width of the last layer (logits).
        channels: of each branch; a module gives four times as many.
        modules: how many follow each other.
    """
    if modules < 1:
        raise InputError(f"inception: modules must be at least 1, got {modules}")
    nodes: dict[str, tuple[Layer | str, ...]] = {"stem": (chain(conv2d(channels, 3), relu()), "x")}
    below = "stem"

    def convolution(window: int) -> Layer:
        return chain(conv2d(channels, window), relu())

    for i in range(1, modules + 1):
        nodes |= {
            f"{i} 1x1": (convolution(1), below),
            f"{i} 3x3": (chain(convolution(1), convolution(3)), below),
            f"{i} 5x5": (chain(convolution(1), convolution(5)), below),
            f"{i} pool": (chain(max_pool(3, stride=1, padding="SAME"), convolution(1)), below),
            f"{i} together": (concatenate(), f"{i} 1x1", f"{i} 3x3", f"{i} 5x5", f"{i} pool"),
        }
        below = f"{i} together"
        if i < modules:
            nodes[f"{i} halved"] = (max_pool(2), below)
            below = f"{i} halved"
    return graph({**nodes, "head": (chain(global_avg_pool(), dense(outputs)), below)})


def autoencoder(
    outputs: int,
    hidden: Sequence[int] = (128,),
    code: int = 16,
    activation: Activation = relu,
    output_activation: Activation | None = None,
) -> Layer:
    """Dense layers down to a narrow code and up again: what it must say with few numbers it has to understand.

    Hinton and Salakhutdinov (2006), *Reducing the dimensionality of data with neural networks*.

    Args:
        outputs: how many numbers an example has.
        hidden: the widths on the way down; the way up is their mirror.
        code: the width of the code, which is linear.
        activation: factory of the activation after each hidden layer.
        output_activation: factory of an activation after the last layer.
    """
    draw = initializers.for_activation(activation().name.split("(")[0])
    parts: list[Layer] = [flatten()]
    for width in hidden:
        parts += [dense(width, weights=draw), activation()]
    parts.append(dense(code))
    for width in reversed(hidden):
        parts += [dense(width, weights=draw), activation()]
    parts.append(dense(outputs))
    return chain(*parts, *([output_activation()] if output_activation else []))


def rnn(
    outputs: int,
    hidden: Sequence[int] = (128,),
    embedding_width: int = 64,
    bidirectional: bool = False,
    dropout_rate: float = 0.0,
    vocabulary: int = 0,
    sequence: bool = False,
) -> Layer:
    """Simple recurrent layers (Elman) over a sequence, then a dense layer.

    Args:
        outputs: the width of the last layer.
        hidden: the width of each recurrent layer.
        embedding_width: the width of the tokens' vectors, where the input is tokens.
        bidirectional: read the sequence in both directions.
        dropout_rate: the share that is dropped between layers.
        vocabulary: how many tokens there are; 0 where the input is numbers (B, T, F).
        sequence: an output for each position (B, T, outputs), not only for the last (B, outputs).
    """
    return _recurrent(
        layers.rnn,
        outputs,
        hidden,
        embedding_width,
        bidirectional,
        dropout_rate,
        vocabulary,
        sequence,
    )


def gru(
    outputs: int,
    hidden: Sequence[int] = (128,),
    embedding_width: int = 64,
    bidirectional: bool = False,
    dropout_rate: float = 0.0,
    vocabulary: int = 0,
    sequence: bool = False,
) -> Layer:
    """Gated recurrent units over a sequence, then a dense layer; see :func:`rnn` for the arguments."""
    return _recurrent(
        layers.gru,
        outputs,
        hidden,
        embedding_width,
        bidirectional,
        dropout_rate,
        vocabulary,
        sequence,
    )


def lstm(
    outputs: int,
    hidden: Sequence[int] = (128,),
    embedding_width: int = 64,
    bidirectional: bool = False,
    dropout_rate: float = 0.0,
    vocabulary: int = 0,
    sequence: bool = False,
) -> Layer:
    """Long short-term memory over a sequence, then a dense layer; see :func:`rnn` for the arguments."""
    return _recurrent(
        layers.lstm,
        outputs,
        hidden,
        embedding_width,
        bidirectional,
        dropout_rate,
        vocabulary,
        sequence,
    )


def _recurrent(
    make: Callable[..., Layer],
    outputs: int,
    hidden: Sequence[int],
    embedding_width: int,
    bidirectional: bool,
    dropout_rate: float,
    vocabulary: int,
    sequence: bool,
) -> Layer:
    if not hidden:
        raise InputError(f"{make.__name__}: hidden must name at least one width, got none")
    parts = [embedding(vocabulary, embedding_width)] if vocabulary else []
    for i, width in enumerate(hidden):
        output = "sequence" if sequence or i < len(hidden) - 1 else "last"
        parts.append(
            both_directions(make, width, output=output)
            if bidirectional
            else make(width, output=output)
        )
        parts += [dropout(dropout_rate)] if dropout_rate else []
    return chain(*parts, dense(outputs))


def gpt(
    outputs: int,
    depth: int = 4,
    heads: int = 4,
    features: int = 128,
    dropout_rate: float = 0.0,
    positions: Literal["learned", "rotary", "sinusoidal"] = "learned",
    tied: bool = True,
    vocabulary: int = 0,
) -> Layer:
    """A language model of causal transformer blocks, (B, T) tokens to (B, T, outputs) logits. Radford et al. (2019), GPT-2.

    Args:
        outputs: how many tokens there are to predict.
        depth: how many blocks.
        heads: heads of attention in each block; they divide ``features``.
        features: the width throughout.
        dropout_rate: the share that is dropped after the embedding and at the end of each branch.
        positions: how a position is told: a learned vector, which limits the context, or a formula.
        tied: the last layer reads the embedding's table (Press and Wolf, 2017); else it has weights of its own.
        vocabulary: how many tokens there are in the input, ``outputs`` by default.
    """
    if positions not in ("learned", "rotary", "sinusoidal"):
        raise InputError(
            f"gpt: positions must be 'learned', 'rotary' or 'sinusoidal', got {positions!r}"
        )
    if vocabulary and tied and vocabulary != outputs:
        raise InputError(
            f"gpt: tied expects as many outputs as tokens, got {outputs} and {vocabulary}; set tied to false"
        )
    if min(depth, heads, features) < 1:
        raise InputError(
            f"gpt: depth, heads and features must be at least 1, got {depth}, {heads} and {features}"
        )
    if features % heads:
        raise InputError(f"gpt: features must be a multiple of heads, got {features} and {heads}")
    place = {
        "learned": [learned_positions()],
        "sinusoidal": [sinusoidal_positions()],
        "rotary": [],
    }[positions]
    block = transformer_block(
        features,
        heads,
        causal=True,
        rotary=positions == "rotary",
        dropout_rate=dropout_rate,
        depth=depth,
    )
    drop = [dropout(dropout_rate)] if dropout_rate else []
    body = [
        embedding(vocabulary or outputs, features),
        *place,
        *drop,
        *[block] * depth,
        layer_norm(),
    ]
    if not tied:
        return chain(*body, dense(outputs, weights=initializers.small_normal(0.02)))
    return shared(chain(*body, unembedding(outputs)), {str(len(body)): "0"})


def vit(
    outputs: int,
    patch: int = 4,
    depth: int = 4,
    heads: int = 4,
    features: int = 64,
    dropout_rate: float = 0.0,
) -> Layer:
    """A small vision transformer on images (B, H, W, C): patches as a sequence, the mean over positions at the end.

    Dosovitskiy et al. (2021), *An image is worth 16x16 words*; pooling as in Beyer et al. (2022), *Better plain ViT baselines*.

    Args:
        outputs: the width of the last layer (logits).
        patch: the side of a patch; what is left over at the border is not seen.
        depth: how many blocks.
        heads: heads of attention in each block; they divide ``features``.
        features: the width throughout.
        dropout_rate: the share that is dropped at the end of each branch.
    """
    if min(patch, depth, heads, features) < 1:
        raise InputError(
            f"vit: patch, depth, heads and features must be at least 1, got {patch}, {depth}, {heads} and {features}"
        )
    if features % heads:
        raise InputError(f"vit: features must be a multiple of heads, got {features} and {heads}")
    block = transformer_block(features, heads, dropout_rate=dropout_rate, depth=depth)
    patches = conv2d(features, patch, stride=patch, padding="VALID"), reshape((-1, features))
    return chain(
        *patches,
        learned_positions(),
        *[block] * depth,
        layer_norm(),
        global_avg_pool(),
        dense(outputs),
    )
