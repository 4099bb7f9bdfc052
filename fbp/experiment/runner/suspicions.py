"""What is probably a mistake, and can be known before training: a line each, and no error."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fbp.datasets import Splits
from fbp.datasets.checks import row_blocks
from fbp.layer import Layer, Loss

_EXAMPLES_PER_CLASS = 5  # fewer are more probably numbers to predict
_LARGE = 100.0  # beyond it a network with common initial weights saturates or diverges
_NORMALIZING = ("batch_norm", "layer_norm", "rms_norm", "group_norm")
_IN_SEQUENCE = ("chain", "repeat", "recompute", "precision", "tie", "weight_norm")
_SHAPES = ("flatten", "reshape", "identity", "transpose")
_PROBABILITIES = ("softmax", "sigmoid")
_NOT_PROBABILITIES = (
    "dense", "unembedding", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "relu",
    "leaky_relu", "elu", "gelu", "selu", "silu", "softplus", "tanh", "log_softmax",
)  # fmt: skip


def suspicions(
    model: Layer,
    loss: Loss,
    data: Splits,
    *,
    loss_name: str,
    has_tokens: bool,
    is_autoencoding: bool,
) -> tuple[str, ...]:
    """Return what is probably a mistake, a line each.

    Args:
        model: the model.
        loss: the loss.
        data: the three parts.
        loss_name: the name of the loss in the configuration.
        has_tokens: whether the inputs are tokens and no numbers.
        is_autoencoding: whether the targets are the inputs.
    """
    return (
        *_many_classes(loss, data),
        *(() if has_tokens else _unscaled_features(model, data)),
        *(() if is_autoencoding else _unscaled_targets(loss, data)),
        *_wrong_output(model, loss, loss_name),
    )


def _many_classes(loss: Loss, data: Splits) -> Iterator[str]:
    y = data.train.y
    if loss.targets != "labels" or y.dtype.kind == "f" or y.ndim > 1:
        return
    classes = len(np.unique(y))
    if classes > 20 and classes * _EXAMPLES_PER_CLASS > len(y):
        yield (
            f"{len(y):,} training examples have {classes:,} different labels; if these are numbers "
            "to predict, take a loss on numbers, such as 'mean_squared_error'"
        )


def _unscaled_features(model: Layer, data: Splits) -> Iterator[str]:
    if data.input_scaling is None and not _end_kind(model, 0) & {*_NORMALIZING}:
        low, high = _range(data.train.x)
        if max(-low, high) > _LARGE:
            yield (
                f"features span {low:,.6g} to {high:,.6g}, from which networks learn badly; set "
                "data.standardize = true"
            )


def _unscaled_targets(loss: Loss, data: Splits) -> Iterator[str]:
    y = data.train.y
    if y.dtype.kind == "f" and loss.targets == "numbers" and data.target_scaling is None:
        low, high = _range(y)
        if max(-low, high) > _LARGE:
            yield (
                f"targets span {low:,.6g} to {high:,.6g}, from which networks learn badly; set "
                "data.standardize_targets = true"
            )


def _range(values: np.ndarray) -> tuple[float, float]:
    blocks = [values[rows] for rows in row_blocks(values)]
    return min(float(b.min()) for b in blocks), max(float(b.max()) for b in blocks)


def _wrong_output(model: Layer, loss: Loss, name: str) -> Iterator[str]:
    last = _end_kind(model, -1)
    links: dict[Any, str] = {jax.nn.softmax: "softmax", jax.nn.sigmoid: "sigmoid"}
    link = links.get(loss.inverse_link)
    if link is not None and last & {*_PROBABILITIES}:
        (kind,) = last
        yield (
            f"the model ends with {kind}, and loss {name!r} applies {link} to its outputs once "
            "more; leave out the model's, or take a loss on probabilities"
        )
    if loss.takes_probabilities and last & {*_NOT_PROBABILITIES}:
        (kind,) = last
        yield (
            f"loss {name!r} expects probabilities, but the model ends with {kind}; set "
            "model.output_activation, or take the loss on logits"
        )


def _end_kind(model: Layer, place: int) -> set[str]:
    """Return the kind of the first (0) or last (-1) layer of a chain; nothing if it is unknown."""
    while model.parts:
        parts = [part for part in model.parts.values() if part.kind not in _SHAPES]
        if model.kind not in _IN_SEQUENCE:
            return set()
        if not parts:
            return set()
        model = parts[place]
    return {model.kind}
