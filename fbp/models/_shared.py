"""What several models share: initializers, blocks, checks of sizes."""

from fbp import initializers
from fbp.blocks import Activation, transformer_block
from fbp.errors import InputError
from fbp.layer import Initializer, Layer


def weights_before(activation: Activation) -> Initializer:
    """Return the initializer that suits the weights before an activation."""
    return initializers.for_activation(activation().kind)


def transformer_blocks(
    depth: int, features: int, heads: int, dropout_rate: float, *, causal: bool, rotary: bool
) -> list[Layer]:
    block = transformer_block(
        features, heads, causal=causal, rotary=rotary, dropout_rate=dropout_rate, depth=depth
    )
    return [block] * depth


def check_sizes(model: str, **sizes: int) -> None:
    """Raise InputError unless the heads divide the features."""
    if sizes["features"] % sizes["heads"]:
        raise InputError(
            f"{model}: features must be a multiple of heads, got {sizes['features']} and "
            f"{sizes['heads']}"
        )
