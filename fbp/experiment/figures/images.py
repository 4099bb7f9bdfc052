"""Pictures of images: misclassified ones, reconstructions, and weights as images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fbp import _neutral

_MAX_RECONSTRUCTIONS = 12
_MAX_NEURONS = 40
_LONGEST_NAME = 24  # characters of the name of a class


def misclassified(
    images: np.ndarray, true: Sequence[str], predicted: Sequence[str], confidence: np.ndarray
) -> Figure:
    """Draw the test images that the model got wrong, the most confident ones first.

    Args:
        images: `(N, H, W, C)`.
        true: the names of their N classes.
        predicted: the names of the N classes that the model predicts.
        confidence: `(N,)`, the predicted probabilities of these classes.
    """
    columns = min(5, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.7 * columns, 2.0 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for i, (axes, image) in enumerate(zip(panels, images, strict=False)):
        _show(axes, image)
        title = f"{_class(true[i])} taken for {_class(predicted[i])}\n({confidence[i]:.0%})"
        axes.set_title(title, fontsize=8)
    figure.suptitle("misclassified test examples, surest first", fontsize=10)
    return figure


def _class(name: str) -> str:
    return _neutral.label(name, _LONGEST_NAME)


def reconstructions(originals: np.ndarray, outputs: np.ndarray) -> Figure:
    """Draw test images above an autoencoder's outputs for them.

    Args:
        originals: `(N, H, W, C)`, test images.
        outputs: `(N, H, W, C)`, their reconstructions.
    """
    columns = min(len(originals), _MAX_RECONSTRUCTIONS)
    figure = Figure(figsize=(0.9 * columns + 0.4, 2.3), layout="constrained")
    panels = figure.subplots(2, columns, squeeze=False)
    for i in range(columns):
        for axes, image in zip(panels[:, i], (originals[i], outputs[i]), strict=True):
            axes.set_axis_off()
            _show(axes, image)
    figure.suptitle("test pictures (above) and their reconstructions (below)", fontsize=10)
    return figure


def first_layer_weights(weights: np.ndarray, shape: Sequence[int]) -> Figure:
    """Draw the weights into each neuron of the first hidden layer as an image.

    Args:
        weights: `(H * W, neurons)`.
        shape: `(H, W, 1)`, the shape of one example.
    """
    neurons = min(weights.shape[1], _MAX_NEURONS)
    columns = min(10, neurons)
    rows = -(-neurons // columns)
    figure = Figure(figsize=(1.0 * columns, 1.0 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for i, axes in enumerate(panels[:neurons]):
        limit = max(float(np.abs(weights[:, i]).max()), 1e-12)
        image = weights[:, i].reshape(shape[:2])
        axes.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
    title = f"weights into the first {neurons} neurons (red +, blue -, each on its own scale)"
    figure.suptitle(title, fontsize=9)
    return figure


def _show(axes: Any, image: np.ndarray) -> None:
    if image.shape[-1] == 3:
        axes.imshow(np.clip(image, 0, 1))
    else:
        axes.imshow(image[..., 0], cmap="gray_r")
