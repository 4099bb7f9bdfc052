"""Models; each is a composition of layers, and its first argument is the number of outputs."""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

from fbp import initializers, layers
from fbp.blocks import Activation, residual_block, transformer_block
from fbp.combinators import bidirectional as both_directions
from fbp.combinators import chain, graph, residual, tie
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
    if any(width < 1 for width in (*hidden, outputs)):
        raise InputError(
            f"mlp: widths must be at least 1, got hidden {list(hidden)} and outputs {outputs}"
        )
    draw = weights or _weights_before(activation)
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


def _weights_before(activation: Activation) -> Initializer:
    """Return the initializer that suits the weights before an activation."""
    return initializers.for_activation(activation().name.split("(")[0])


def lenet5(outputs: int, activation: Activation = tanh) -> Layer:
    """Return LeNet-5: two 5 x 5 convolutions with average pooling, dense layers of 120 and 84.

    LeCun, Bottou, Bengio and Haffner (1998), *Gradient-based learning applied to document
    recognition*; with full connections between the feature maps and a dense last layer, as is usual
    today.

    Args:
        outputs: the width of the last layer (logits).
        activation: factory of the activation after each layer but the last.

    Returns:
        A layer from images (B, 28, 28, C), or of other sizes, to (B, outputs).
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
    *,
    norm: bool = False,
    dropout_rate: float = 0.0,
) -> Layer:
    """Return convolutions with 2 x 2 max pooling, then dense layers, on images (B, H, W, C).

    Args:
        outputs: the width of the last layer (logits).
        channels: of each convolution.
        window: side of the convolutions' window.
        hidden: the widths of the dense layers before the last.
        activation: factory of the activation after each layer but the last.
        norm: put a batch norm behind each convolution.
        dropout_rate: the share that is dropped before each dense layer.
    """
    draw = _weights_before(activation)
    parts: list[Layer] = []
    for count in channels:
        parts.append(conv2d(count, window, weights=draw))
        if norm:
            parts.append(batch_norm())
        parts += [activation(), max_pool(2)]
    drop = [dropout(dropout_rate)] if dropout_rate else []
    parts.append(flatten())
    for width in hidden:
        parts += [*drop, dense(width, weights=draw), activation()]
    return chain(*parts, *drop, dense(outputs))


def resnet(outputs: int, depth: int = 20, width: int = 16) -> Layer:
    """Return a residual network for small images (B, H, W, C), such as those of CIFAR.

    A 3 x 3 convolution; three stages of ``(depth - 2) / 6`` blocks with ``width``, 2 and 4 times as
    many channels, each stage but the first halving the image; global average pooling and a dense
    layer. A shortcut is a 1 x 1 convolution if the shape changes. He et al. (2016), *Deep residual
    learning for image recognition*, section 4.2.

    Args:
        outputs: the width of the last layer (logits).
        depth: number of layers with weights: 20, 32, 44, 56, 110 in the paper; any 6 n + 2.
        width: channels of the first stage.

    Raises:
        InputError: ``depth`` is not 6 n + 2.
    """
    if depth < 8 or depth % 6 != 2:
        raise InputError(f"resnet: depth must be 6 n + 2, such as 20, 32 or 56, got {depth}")
    parts = [conv2d(width, 3), batch_norm(), relu()]
    for stage in range(3):
        for block in range((depth - 2) // 6):
            halves = stage > 0 and block == 0
            stride = 2 if halves else 1
            parts.append(residual_block(width * 2**stage, stride=stride, project=halves))
    return chain(*parts, global_avg_pool(), dense(outputs))


def inception(outputs: int, channels: int = 16, modules: int = 2) -> Layer:
    """Return modules of four branches with windows of different sizes, on images (B, H, W, C).

    A module is a graph of four branches side by side: a 1 x 1 convolution; 3 x 3 and 5 x 5 ones,
    each behind a 1 x 1; and a max pooling before a 1 x 1. Between two modules a max pooling halves
    the image. Szegedy et al. (2015), *Going deeper with convolutions*.

    Args:
        outputs: the width of the last layer (logits).
        channels: of each branch; a module returns four times as many.
        modules: number of modules.

    Raises:
        InputError: there are no modules.
    """
    if modules < 1:
        raise InputError(f"inception: modules must be at least 1, got {modules}")
    nodes: dict[str, tuple[Layer | str, ...]] = {"stem": (chain(conv2d(channels, 3), relu()), "x")}
    below = "stem"

    def convolution(window: int) -> Layer:
        return chain(conv2d(channels, window), relu())

    for i in range(1, modules + 1):
        branches = {
            f"{i}_1x1": convolution(1),
            f"{i}_3x3": chain(convolution(1), convolution(3)),
            f"{i}_5x5": chain(convolution(1), convolution(5)),
            f"{i}_pool_1x1": chain(max_pool(3, stride=1, padding="SAME"), convolution(1)),
        }
        nodes |= {name: (branch, below) for name, branch in branches.items()}
        nodes[f"{i}_concat"] = (concatenate(), *branches)
        below = f"{i}_concat"
        if i < modules:
            nodes[f"{i}_pool"] = (max_pool(2), below)
            below = f"{i}_pool"
    return graph({**nodes, "head": (chain(global_avg_pool(), dense(outputs)), below)})


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
    draw = _weights_before(activation)
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
    *,
    embedding_width: int = 64,
    bidirectional: bool = False,
    dropout_rate: float = 0.0,
    vocabulary: int = 0,
    sequence: bool = False,
) -> Layer:
    """Return simple recurrent layers (Elman) over a sequence, then a dense layer.

    Args:
        outputs: the width of the last layer.
        hidden: the width of each recurrent layer.
        embedding_width: the width of the tokens' vectors, if the input is tokens (B, T).
        bidirectional: read the sequence in both directions.
        dropout_rate: the share that is dropped after each recurrent layer.
        vocabulary: number of tokens; 0 if the input is numbers (B, T, F).
        sequence: return an output for each position, (B, T, outputs), and not only for the last,
            (B, outputs).

    Raises:
        InputError: ``hidden`` names no width.
    """
    stacked = _stacked(
        layers.rnn, hidden, dropout_rate, bidirectional=bidirectional, sequence=sequence
    )
    embedded = [embedding(vocabulary, embedding_width)] if vocabulary else []
    return chain(*embedded, *stacked, dense(outputs))


def gru(
    outputs: int,
    hidden: Sequence[int] = (128,),
    *,
    embedding_width: int = 64,
    bidirectional: bool = False,
    dropout_rate: float = 0.0,
    vocabulary: int = 0,
    sequence: bool = False,
) -> Layer:
    """Return gated recurrent units over a sequence, then a dense layer.

    Args:
        outputs: the width of the last layer.
        hidden: the width of each recurrent layer.
        embedding_width: the width of the tokens' vectors, if the input is tokens (B, T).
        bidirectional: read the sequence in both directions.
        dropout_rate: the share that is dropped after each recurrent layer.
        vocabulary: number of tokens; 0 if the input is numbers (B, T, F).
        sequence: return an output for each position, (B, T, outputs), and not only for the last,
            (B, outputs).

    Raises:
        InputError: ``hidden`` names no width.
    """
    stacked = _stacked(
        layers.gru, hidden, dropout_rate, bidirectional=bidirectional, sequence=sequence
    )
    embedded = [embedding(vocabulary, embedding_width)] if vocabulary else []
    return chain(*embedded, *stacked, dense(outputs))


def lstm(
    outputs: int,
    hidden: Sequence[int] = (128,),
    *,
    embedding_width: int = 64,
    bidirectional: bool = False,
    dropout_rate: float = 0.0,
    vocabulary: int = 0,
    sequence: bool = False,
) -> Layer:
    """Return long short-term memory layers over a sequence, then a dense layer.

    Args:
        outputs: the width of the last layer.
        hidden: the width of each recurrent layer.
        embedding_width: the width of the tokens' vectors, if the input is tokens (B, T).
        bidirectional: read the sequence in both directions.
        dropout_rate: the share that is dropped after each recurrent layer.
        vocabulary: number of tokens; 0 if the input is numbers (B, T, F).
        sequence: return an output for each position, (B, T, outputs), and not only for the last,
            (B, outputs).

    Raises:
        InputError: ``hidden`` names no width.
    """
    stacked = _stacked(
        layers.lstm, hidden, dropout_rate, bidirectional=bidirectional, sequence=sequence
    )
    embedded = [embedding(vocabulary, embedding_width)] if vocabulary else []
    return chain(*embedded, *stacked, dense(outputs))


def _stacked(
    make: Callable[..., Layer],
    hidden: Sequence[int],
    dropout_rate: float,
    *,
    bidirectional: bool,
    sequence: bool,
) -> list[Layer]:
    """Return recurrent layers, each with its dropout; all but the last return the sequence."""
    if not hidden:
        raise InputError(f"{make.__name__}: hidden must name at least one width, got none")
    parts: list[Layer] = []
    for i, width in enumerate(hidden):
        output = "sequence" if sequence or i < len(hidden) - 1 else "last"
        parts.append(
            both_directions(make, width, output=output)
            if bidirectional
            else make(width, output=output)
        )
        if dropout_rate:
            parts.append(dropout(dropout_rate))
    return parts


_POSITIONS: dict[str, Callable[[], list[Layer]]] = {
    "learned": lambda: [learned_positions()],
    "sinusoidal": lambda: [sinusoidal_positions()],
    "rotary": lambda: [],  # attention encodes them
}


def gpt(
    outputs: int,
    depth: int = 4,
    heads: int = 4,
    features: int = 128,
    *,
    dropout_rate: float = 0.0,
    positions: Literal["learned", "rotary", "sinusoidal"] = "learned",
    tied: bool = True,
    vocabulary: int = 0,
) -> Layer:
    """Return a language model of causal transformer blocks. Radford et al. (2019), GPT-2.

    Args:
        outputs: number of tokens to predict.
        depth: number of blocks.
        heads: heads of attention in each block; they divide ``features``.
        features: the width throughout.
        dropout_rate: the share that is dropped after the embedding and at the end of each branch.
        positions: how positions are encoded: by learned vectors, which limit the context, or by a
            formula.
        tied: let the last layer read the embedding's table (Press and Wolf, 2017), instead of
            weights of its own.
        vocabulary: number of tokens in the input, ``outputs`` by default.

    Returns:
        A layer from (B, T) tokens to (B, T, outputs) logits.

    Raises:
        InputError: the sizes do not fit each other.
    """
    if positions not in _POSITIONS:
        raise InputError(
            f"gpt: positions must be 'learned', 'rotary' or 'sinusoidal', got {positions!r}"
        )
    if vocabulary and tied and vocabulary != outputs:
        raise InputError(
            f"gpt: tied expects as many outputs as tokens, got {outputs} and {vocabulary}; "
            "set tied to false"
        )
    _check_sizes("gpt", depth=depth, heads=heads, features=features)
    blocks = _transformer_blocks(
        depth, features, heads, dropout_rate, causal=True, rotary=positions == "rotary"
    )
    drop = [dropout(dropout_rate)] if dropout_rate else []
    table = embedding(vocabulary or outputs, features)
    body = [table, *_POSITIONS[positions](), *drop, *blocks, layer_norm()]
    if not tied:
        return chain(*body, dense(outputs, weights=initializers.small_normal(0.02)))
    return tie(chain(*body, unembedding(outputs)), {str(len(body)): "0"})


def _transformer_blocks(
    depth: int, features: int, heads: int, dropout_rate: float, *, causal: bool, rotary: bool
) -> list[Layer]:
    block = transformer_block(
        features, heads, causal=causal, rotary=rotary, dropout_rate=dropout_rate, depth=depth
    )
    return [block] * depth


def _check_sizes(model: str, **sizes: int) -> None:
    """Raise InputError unless all sizes are at least 1 and the heads divide the features."""
    if min(sizes.values()) < 1:
        *most, last = sizes
        *values, value = map(str, sizes.values())
        raise InputError(
            f"{model}: {', '.join(most)} and {last} must be at least 1, "
            f"got {', '.join(values)} and {value}"
        )
    if sizes["features"] % sizes["heads"]:
        raise InputError(
            f"{model}: features must be a multiple of heads, got {sizes['features']} and "
            f"{sizes['heads']}"
        )


def vit(
    outputs: int,
    patch: int = 4,
    depth: int = 4,
    heads: int = 4,
    features: int = 64,
    *,
    dropout_rate: float = 0.0,
) -> Layer:
    """Return a small vision transformer on images (B, H, W, C), to (B, outputs).

    Patches are a sequence; the last layer reads its mean over the positions. Dosovitskiy et al.
    (2021), *An image is worth 16x16 words*; pooling as in Beyer et al. (2022), *Better plain ViT
    baselines*.

    Args:
        outputs: the width of the last layer (logits).
        patch: side of a patch; pixels at the border that fill no patch are ignored.
        depth: number of blocks.
        heads: heads of attention in each block; they divide ``features``.
        features: the width throughout.
        dropout_rate: the share that is dropped at the end of each branch.

    Raises:
        InputError: the sizes do not fit each other.
    """
    _check_sizes("vit", patch=patch, depth=depth, heads=heads, features=features)
    return chain(
        conv2d(features, patch, stride=patch, padding="VALID"),
        reshape((-1, features)),
        learned_positions(),
        *_transformer_blocks(depth, features, heads, dropout_rate, causal=False, rotary=False),
        layer_norm(),
        global_avg_pool(),
        dense(outputs),
    )
