"""Pictures of a classifier: confusion matrix, decision boundary."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fbp import _neutral


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], *, of: int) -> Figure:
    """Draw how many test examples of each class were predicted as each class.

    Args:
        counts: `(C, C)`, by true and by predicted class.
        classes: the names of the C classes.
        of: the number of all classes; the C are those that are confused most often.
    """
    classes = [label(name) for name in classes]
    size = max(3.6, 0.5 * len(counts) + 1.6)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        axes.text(
            column,
            row,
            counts[row, column],
            ha="center",
            va="center",
            color="white" if shares[row, column] > 0.5 else "black",
            fontsize=9,
        )
    ticks = np.arange(len(counts))
    axes.set_xticks(ticks, classes, rotation=45 if max(map(len, classes)) > 3 else 0)
    axes.set_yticks(ticks, classes)
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    title = f"test: {accuracy:.1%} of {counts.sum():,} right"
    if of > len(counts):
        title = f"test: the {len(counts)} of {of:,} classes that are confused most often"
    axes.set(xlabel="predicted", ylabel="true", title=title)
    axes.grid(visible=False)
    return figure


_MAX_LABEL = 24  # letters; a longer name would leave no room for the picture


def label(name: str) -> str:
    """Return a class's name as an axis can show it: one short line, and no formula."""
    return _neutral.label(name, _MAX_LABEL)


def decision_boundary(
    grid: np.ndarray,
    extent: np.ndarray,
    points: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
) -> Figure:
    """Draw the model's output over the plane, and training examples on it.

    Args:
        grid: `(rows, columns, K)`, the model's output at each point of the plane.
        extent: `(2, 2)`, the lower left and the upper right corner of the grid.
        points: `(N, 2)`, training examples.
        labels: `(N,)`, their labels.
        classes: the names of the K classes.
    """
    classes = [label(name) for name in classes]
    figure = Figure(figsize=(5.4, 5), layout="constrained")
    axes = figure.subplots()
    (left, bottom), (right, top) = extent
    options: dict[str, Any] = {
        "extent": (left, right, bottom, top),
        "origin": "lower",
        "aspect": "auto",
        "vmin": 0,
    }
    if grid.shape[-1] == 2:
        share = grid[..., 1] / np.maximum(grid.sum(axis=-1), 1e-30)
        image = axes.imshow(share, cmap="RdBu_r", vmax=1, alpha=0.6, **options)
        figure.colorbar(image, ax=axes, label=f"share of '{classes[1]}'").ax.grid(visible=False)
        colors = ["tab:blue", "tab:red"]
    else:
        axes.imshow(grid.argmax(axis=-1), cmap="tab10", vmax=9, alpha=0.3, **options)
        colors = [f"C{i}" for i in range(grid.shape[-1])]
    for number, name in enumerate(classes):
        x, y = points[labels == number].T
        color = colors[number]
        axes.scatter(x, y, s=9, color=color, edgecolors="white", linewidths=0.3, label=name)
    axes.locator_params(nbins=6)
    axes.set(title="decision boundary and training examples")
    axes.legend(loc="upper right", frameon=True)
    axes.grid(visible=False)
    return figure
