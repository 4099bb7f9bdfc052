"""Networks for sequences (B, T, F), or tokens (B, T)."""

from collections.abc import Callable, Sequence
from typing import Literal

from fbp import initializers, layers
from fbp._arguments import checked
from fbp.combinators import bidirectional as both_directions
from fbp.combinators import chain, tie
from fbp.errors import InputError
from fbp.layer import Layer
from fbp.layers import (
    dense,
    dropout,
    embedding,
    layer_norm,
    learned_positions,
    sinusoidal_positions,
    unembedding,
)
from fbp.models._shared import check_sizes, transformer_blocks


@checked
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


@checked
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


@checked
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


@checked
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
    check_sizes("gpt", depth=depth, heads=heads, features=features)
    blocks = transformer_blocks(
        depth, features, heads, dropout_rate, causal=True, rotary=positions == "rotary"
    )
    drop = [dropout(dropout_rate)] if dropout_rate else []
    table = embedding(vocabulary or outputs, features)
    body = [table, *_POSITIONS[positions](), *drop, *blocks, layer_norm()]
    if not tied:
        return chain(*body, dense(outputs, weights=initializers.small_normal(0.02)))
    return tie(chain(*body, unembedding(outputs)), {str(len(body)): "0"})
