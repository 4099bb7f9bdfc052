"""`results.npz` in a run's folder: the arrays that the pictures of the test part are drawn from."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fbp.experiment.rundir import layout
from fbp.experiment.rundir.npz import Header, read_arrays, write_arrays


class Results(NamedTuple):
    """Arrays of the last evaluation; those that do not fit the kind of run are None.

    Safe between threads and between processes: nothing in it changes.

    N is the number of test examples that are shown, K the number of classes.

    Attributes:
        first_weights: `(H * W, neurons)`, if the examples are gray images: weights into the first
            neurons of the first layer.
        confusion: `(C, C)`, counts of test examples by true and by predicted class, for the C
            classes that are confused most often.
        confusion_classes: `(C,)`, these classes.
        misclassified_x: `(N, *shape)`, misclassified test examples, the most confident ones first.
        misclassified_true: `(N,)`, their labels.
        misclassified_predicted: `(N,)`, the labels that the model predicts.
        misclassified_confidence: `(N,)`, the probabilities of the predicted labels.
        loss_by_position: `(T,)`, for sequences: the mean loss at each position, NaN if none has a
            target.
        originals: `(N, *shape)`, for autoencoders: test examples.
        reconstructions: `(N, *shape)`, the model's outputs for them.
        predicted: `(N, K)`, for regressions: predictions for the first test examples.
        true: `(N, K)`, their targets.
        grid: `(rows, columns, K)`, for examples of two features: probabilities over the plane.
        grid_extent: `(2, 2)`, the lower left and the upper right corner of the grid.
        points: `(N, 2)`, training examples.
        point_labels: `(N,)`, their labels.
    """

    first_weights: np.ndarray | None = None
    confusion: np.ndarray | None = None
    confusion_classes: np.ndarray | None = None
    misclassified_x: np.ndarray | None = None
    misclassified_true: np.ndarray | None = None
    misclassified_predicted: np.ndarray | None = None
    misclassified_confidence: np.ndarray | None = None
    loss_by_position: np.ndarray | None = None
    originals: np.ndarray | None = None
    reconstructions: np.ndarray | None = None
    predicted: np.ndarray | None = None
    true: np.ndarray | None = None
    grid: np.ndarray | None = None
    grid_extent: np.ndarray | None = None
    points: np.ndarray | None = None
    point_labels: np.ndarray | None = None


_SHOWN = 60  # characters of a shape
_FLOATS, _WHOLE = "f", "iu"
# of each array: kinds of its dtype, number of axes (None for an example's and one more), and the
# largest length of its first axis
_KINDS: dict[str, tuple[str, int | None, int]] = {
    "first_weights": (_FLOATS, 2, 2**24),
    "confusion": (_WHOLE, 2, 1000),
    "confusion_classes": (_WHOLE, 1, 1000),
    "misclassified_x": (_FLOATS + _WHOLE, None, 100),
    "misclassified_true": (_WHOLE, 1, 100),
    "misclassified_predicted": (_WHOLE, 1, 100),
    "misclassified_confidence": (_FLOATS, 1, 100),
    "loss_by_position": (_FLOATS, 1, 2**24),
    "originals": (_FLOATS, None, 100),
    "reconstructions": (_FLOATS, None, 100),
    "predicted": (_FLOATS, 2, 2**16),
    "true": (_FLOATS, 2, 2**16),
    "grid": (_FLOATS, 3, 2000),
    "grid_extent": (_FLOATS, 2, 2),
    "points": (_FLOATS + _WHOLE, 2, 2**16),
    "point_labels": (_WHOLE, 1, 2**16),
}
_MOST_NUMBERS = 2**26  # in one array


def write(folder: Path, results: Results) -> None:
    """Write the results into a run's folder, atomically; empty arrays are left out.

    Raises:
        OSError: if the disk is full.
    """
    arrays = {key: array for key, array in results._asdict().items() if array is not None}
    nonempty = {key: array for key, array in arrays.items() if array.size}
    write_arrays(layout.results(folder), nonempty)


def _check_headers(headers: Mapping[str, Header]) -> None:
    """Raise ValueError unless the arrays are those of results, before any is read."""
    for name, (shape, dtype) in headers.items():
        if name not in _KINDS:
            continue  # a newer fbp may have more
        kinds, axes, longest = _KINDS[name]
        has_axes = len(shape) == axes if axes is not None else len(shape) > 0
        fits = has_axes and shape[0] <= longest and math.prod(shape) <= _MOST_NUMBERS
        if dtype.kind not in kinds or not fits:
            raise ValueError(f"{name} is {dtype} of shape {str(shape)[:_SHOWN]}")


def read(folder: Path) -> Results:
    """Return the results in a run's folder; all are None if the run has not come so far.

    Raises:
        One of `npz.READ_ERRORS`: if the file is damaged.
    """
    path = layout.results(folder)
    arrays = read_arrays(path, _check_headers) if path.exists() else {}
    return Results(**{key: arrays.get(key) for key in Results._fields})
