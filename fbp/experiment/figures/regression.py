"""The picture of a regression: predictions beside targets."""

import numpy as np
from matplotlib.figure import Figure

from fbp.errors import InputError


def predictions(true: np.ndarray, predicted: np.ndarray) -> Figure:
    """Draw predicted against true values on the test part.

    Args:
        true: `(N, K)`, the targets.
        predicted: `(N, K)`, the predictions for them.

    Raises:
        InputError: if the model predicts no finite number.
    """
    true, predicted = true.ravel(), predicted.ravel()
    finite = np.isfinite(predicted)
    if not finite.any():
        raise InputError("predictions: expected finite numbers, got none")
    true, predicted = true[finite], predicted[finite]
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.scatter(true, predicted, s=12, alpha=0.7)
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(ends, ends, color="gray", linewidth=1, linestyle="--")
    axes.set(xlabel="true", ylabel="predicted", title="test examples")
    return figure
