"""The last evaluation of a run: metrics on the test part, and what its plots are drawn from."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fbp import training
from fbp.experiment.rundir import layout
from fbp.experiment.rundir.npz import flatten_by_path, write_arrays
from fbp.experiment.runner.build import Experiment, output_transform
from fbp.layer import Params

_AT_ONCE = 500  # test examples at a time
_SHOWN = 25  # misclassified examples that are kept for a picture
_GRID = 200  # points along each side of a decision boundary's grid


def evaluate_and_write(experiment: Experiment, params: Params, folder: Path) -> dict[str, float]:
    """Predict the test part, write ``results.npz`` into the run's folder, and return the test metrics."""
    test = experiment.data.test
    forward = jax.jit(
        training.make_predict(experiment.model, batch_size=min(_AT_ONCE, len(test.x)))
    )
    output = forward(params, jnp.asarray(test.x))
    y = jnp.asarray(test.y)
    values = {"test_loss": float(experiment.loss.value(output, y).mean())}
    values |= {
        f"test_{name}": float(metric(output, y).mean())
        for name, metric in experiment.metrics.items()
    }
    arrays = {"first_weights": _first_weights(params)}
    if experiment.dataset.sequence:
        arrays |= _by_position(experiment, output)
    elif experiment.config.data.reconstruct:
        arrays |= _reconstructed(
            experiment, np.asarray(output_transform(experiment.config)(output))
        )
    elif experiment.dataset.classes:
        arrays |= _classified(experiment, np.asarray(output_transform(experiment.config)(output)))
    else:
        predicted, true = (
            _in_own_units(experiment, np.asarray(output)),
            _in_own_units(experiment, test.y),
        )
        arrays |= {"predicted": predicted, "true": true}
        spread = float(((true - true.mean(axis=0)) ** 2).sum())
        values["test_r2"] = (
            1 - float(((true - predicted) ** 2).sum()) / spread if spread else float("nan")
        )
    if experiment.shape == (2,) and experiment.dataset.classes:
        arrays |= _boundary(experiment, params)
    write_arrays(
        layout.results(folder), {key: value for key, value in arrays.items() if value.size}
    )
    return values


def _in_own_units(experiment: Experiment, values: np.ndarray) -> np.ndarray:
    return experiment.data.target_scaling.undo(values) if experiment.data.target_scaling else values


def _labels(y: np.ndarray) -> np.ndarray:
    return y if y.ndim == 1 else y.argmax(axis=1)


def _classified(experiment: Experiment, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """The confusion matrix (true by predicted), and the misclassified examples of which the model was surest."""
    x, true = experiment.data.test.x, _labels(experiment.data.test.y)
    predicted, count = probabilities.argmax(axis=1), len(experiment.dataset.classes)
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (true, predicted), 1)
    wrong = np.flatnonzero(predicted != true)
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:_SHOWN]
    return {
        "confusion": confusion,
        "wrong_x": experiment.data.input_scaling.undo(x[wrong])
        if experiment.data.input_scaling
        else x[wrong],
        "wrong_true": true[wrong],
        "wrong_predicted": predicted[wrong],
        "wrong_confidence": probabilities[wrong].max(axis=1),
    }


def _by_position(experiment: Experiment, output: jax.Array) -> dict[str, np.ndarray]:
    """For a sequence: the mean loss at each position, over the examples that have a target there."""
    y = jnp.asarray(experiment.data.test.y)
    labels = y if y.ndim == 2 else y.argmax(axis=-1)
    counted = np.asarray((labels >= 0) if y.ndim == 2 else y.sum(axis=-1) > 0)
    flat = output.reshape(-1, output.shape[-1]), y.reshape(-1, *y.shape[2:])
    costs = np.asarray(experiment.loss.value(*flat)).reshape(counted.shape)
    totals = counted.sum(axis=0)
    mean = np.where(totals > 0, (costs * counted).sum(axis=0) / np.maximum(totals, 1), np.nan)
    return {"loss_by_position": mean}


def _reconstructed(experiment: Experiment, output: np.ndarray) -> dict[str, np.ndarray]:
    """Test examples and what became of them."""
    shape, shown = experiment.shape, slice(_SHOWN)
    undo = (
        experiment.data.input_scaling.undo
        if experiment.data.input_scaling
        else lambda values: values
    )
    target_undo = lambda values: _in_own_units(experiment, values)
    originals = undo(experiment.data.test.x[shown])
    return {
        "originals": originals,
        "reconstructions": target_undo(output[shown]).reshape(-1, *shape),
    }


def _first_weights(params: Params) -> np.ndarray:
    """The first parameter that is a matrix, in the order of layers."""
    return next(
        (array for array in flatten_by_path(params).values() if array.ndim == 2), np.zeros((0,))
    )


def _boundary(experiment: Experiment, params: Params) -> dict[str, np.ndarray]:
    """What the model says on a grid over the plane, and the training points on it, in their own units."""
    train, inputs = experiment.data.train, experiment.data.input_scaling
    low, high = train.x.min(axis=0), train.x.max(axis=0)
    margin = 0.1 * (high - low)
    axes = [
        np.linspace(low[i] - margin[i], high[i] + margin[i], _GRID, dtype=np.float32)
        for i in (0, 1)
    ]
    points = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    output = jax.jit(training.make_predict(experiment.model, batch_size=1000))(
        params, jnp.asarray(points)
    )
    probabilities = np.asarray(output_transform(experiment.config)(output)).reshape(
        _GRID, _GRID, -1
    )
    undo = inputs.undo if inputs else lambda values: values
    corners = undo(np.stack([points[0], points[-1]]))
    return {
        "grid": probabilities.astype(np.float32),
        "grid_extent": corners,
        "points": undo(train.x[:1000]),
        "point_labels": _labels(train.y[:1000]),
    }
