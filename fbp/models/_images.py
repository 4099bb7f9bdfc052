"""Networks for images (B, H, W, C)."""

from collections.abc import Sequence

from fbp._arguments import checked
from fbp.blocks import Activation, residual_block
from fbp.combinators import chain, graph
from fbp.errors import InputError
from fbp.layer import Layer
from fbp.layers import (
    avg_pool,
    batch_norm,
    concatenate,
    conv2d,
    dense,
    dropout,
    flatten,
    global_avg_pool,
    layer_norm,
    learned_positions,
    max_pool,
    relu,
    reshape,
    tanh,
)
from fbp.models._shared import check_sizes, transformer_blocks, weights_before


@checked
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


@checked
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
    draw = weights_before(activation)
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


@checked
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


@checked
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


@checked
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
    check_sizes("vit", patch=patch, depth=depth, heads=heads, features=features)
    return chain(
        conv2d(features, patch, stride=patch, padding="VALID"),
        reshape((-1, features)),
        learned_positions(),
        *transformer_blocks(depth, features, heads, dropout_rate, causal=False, rotary=False),
        layer_norm(),
        global_avg_pool(),
        dense(outputs),
    )
