"""The last evaluation of a run: metrics on the test part, and the arrays for its pictures."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fbp import training
from fbp.datasets import Standardization
from fbp.experiment.rundir import results
from fbp.experiment.rundir.npz import flatten_by_path
from fbp.experiment.rundir.results import Results
from fbp.experiment.runner.build import Experiment
from fbp.experiment.runner.compilation import Compiler, Program
from fbp.experiment.runner.loop import EVALUATION_BATCH, evaluation_batch
from fbp.layer import Loss, Params

_MAX_EXAMPLES = 25  # misclassified examples, reconstructions
_MAX_POINTS = 1000  # training examples on the picture of a decision boundary
_GRID_SIZE = 200  # points along each side of a decision boundary's grid
_COARSE_GRID_SIZE = 60  # the same if many points would cost the run seconds
_TENSORS_OF_DEEP_MODEL = 100  # beyond, a forward pass is slow
_MIN_BATCH = 20  # below, it takes many calls


def evaluate_and_write(
    experiment: Experiment, params: Params, folder: Path, compiler: Compiler
) -> dict[str, float]:
    """Predict the test part; write `results.npz` into the run's folder.

    Args:
        experiment: what was trained.
        params: the trained parameters.
        folder: the run's folder.
        compiler: compiles, and is left if a signal comes.

    Returns:
        The metrics on the test part by name, `test_loss` and others.

    Raises:
        OSError: if the disk is full.
        Interrupted: if a signal comes.
    """
    test = experiment.data.test
    forward = compiler.program(
        "the test program",
        training.make_predict(experiment.model, batch_size=min(EVALUATION_BATCH, len(test.x))),
    )
    output, y = forward(params, jnp.asarray(test.x)), jnp.asarray(test.y)
    metrics = {"test_loss": _mean_loss(experiment, output, y)}
    metrics |= {
        f"test_{name}": float(metric(output, y).mean())
        for name, metric in experiment.metrics.items()
    }
    measured = _measure(experiment, output)
    if measured.predicted is not None and measured.true is not None:
        metrics["test_r2"] = _r2(measured.predicted, measured.true)
    if experiment.shape == (2,) and experiment.dataset.classes:
        measured = _with_boundary(measured, experiment, params, forward)
    results.write(folder, measured._replace(first_weights=_first_matrix(params)))
    return metrics


def _mean_loss(experiment: Experiment, output: jax.Array, y: jax.Array) -> float:
    """Return the mean cost; of a loss that couples examples, over batches as in training."""
    size = evaluation_batch(experiment) if experiment.loss.coupled else len(y)
    batches = [slice(start, start + size) for start in range(0, len(y), size)]
    costs = [experiment.loss.value(output[batch], y[batch]) for batch in batches]
    return float((jnp.concatenate(costs) if len(costs) > 1 else costs[0]).mean())


def _measure(experiment: Experiment, output: jax.Array) -> Results:
    """Return the results that fit the kind of the experiment."""
    if experiment.dataset.sequence:
        if not _takes_single_positions(experiment.loss, output, experiment.data.test.y):
            return Results()
        return Results(loss_by_position=_loss_by_position(experiment, output))
    if experiment.config.data.reconstruct:
        return _reconstructed(experiment, np.asarray(experiment.loss.inverse_link(output)))
    if experiment.dataset.classes:
        return _classified(experiment, np.asarray(experiment.loss.inverse_link(output)))
    scaling = experiment.data.target_scaling
    return Results(
        predicted=_unscaled(scaling, np.asarray(output)),
        true=_unscaled(scaling, experiment.data.test.y),
    )


def _unscaled(scaling: Standardization | None, values: np.ndarray) -> np.ndarray:
    return scaling.undo(values) if scaling else values


def _labels(y: np.ndarray) -> np.ndarray:
    return y if y.ndim == 1 else y.argmax(axis=1)


def _r2(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the coefficient of determination; NaN if all targets are equal."""
    variation = float(((true - true.mean(axis=0)) ** 2).sum())
    if not variation:
        return float("nan")
    return 1 - float(((true - predicted) ** 2).sum()) / variation


def _classified(experiment: Experiment, probabilities: np.ndarray) -> Results:
    """Return the confusion matrix and the most confident misclassifications."""
    x, true = experiment.data.test.x, _labels(experiment.data.test.y)
    predicted, classes = probabilities.argmax(axis=1), len(experiment.dataset.classes)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (true, predicted), 1)
    wrong = np.flatnonzero(predicted != true)
    confidence = probabilities[wrong].max(axis=1)
    wrong = wrong[np.argsort(-confidence, kind="stable")][:_MAX_EXAMPLES]
    return Results(
        confusion=confusion,
        misclassified_x=_unscaled(experiment.data.input_scaling, x[wrong]),
        misclassified_true=true[wrong],
        misclassified_predicted=predicted[wrong],
        misclassified_confidence=probabilities[wrong].max(axis=1),
    )


def _takes_single_positions(loss: Loss, output: jax.Array, y: np.ndarray) -> bool:
    """Return whether a loss of sequences gives a cost for each position alone, too."""
    count = output.shape[0] * output.shape[1]
    shapes = (jax.ShapeDtypeStruct((count, *array.shape[2:]), array.dtype) for array in (output, y))
    try:
        return not loss.coupled and jax.eval_shape(loss.value, *shapes).shape == (count,)
    except Exception:  # a user's own loss may need the whole sequence
        return False


def _loss_by_position(experiment: Experiment, output: jax.Array) -> np.ndarray:
    """Return the mean loss at each position, over the examples that have a target at it."""
    y = jnp.asarray(experiment.data.test.y)
    labels = y if y.ndim == 2 else y.argmax(axis=-1)
    has_target = np.asarray((labels >= 0) if y.ndim == 2 else y.sum(axis=-1) > 0)
    flat = output.reshape(-1, output.shape[-1]), y.reshape(-1, *y.shape[2:])
    costs = np.asarray(experiment.loss.value(*flat)).reshape(has_target.shape)
    counts = has_target.sum(axis=0)
    totals = (costs * has_target).sum(axis=0)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


def _reconstructed(experiment: Experiment, output: np.ndarray) -> Results:
    """Return test examples and their reconstructions."""
    x, shape = experiment.data.test.x[:_MAX_EXAMPLES], experiment.shape
    reconstructions = _unscaled(experiment.data.target_scaling, output[:_MAX_EXAMPLES])
    return Results(
        originals=_unscaled(experiment.data.input_scaling, x),
        reconstructions=reconstructions.reshape(-1, *shape),
    )


def _first_matrix(params: Params) -> np.ndarray | None:
    """Return the first parameter that is a matrix, in the order of layers; None if none is."""
    return next((array for array in flatten_by_path(params).values() if array.ndim == 2), None)


def _with_boundary(
    measured: Results, experiment: Experiment, params: Params, forward: Program
) -> Results:
    """Add the model's output on a grid over the plane, and training examples, in data units.

    Args:
        measured: to which they are added.
        experiment: what was trained.
        params: the trained parameters.
        forward: the program for as many examples as the test part has.
    """
    train, scaling = experiment.data.train, experiment.data.input_scaling
    low, high = train.x.min(axis=0), train.x.max(axis=0)
    margin = 0.1 * (high - low)
    is_deep = len(jax.tree.leaves(params)) > _TENSORS_OF_DEEP_MODEL
    size = _COARSE_GRID_SIZE if is_deep or len(experiment.data.test.x) < _MIN_BATCH else _GRID_SIZE
    axes = [
        np.linspace(low[i] - margin[i], high[i] + margin[i], size, dtype=np.float32) for i in (0, 1)
    ]
    points = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    output = _in_batches(lambda x: forward(params, x), points, len(experiment.data.test.x))
    probabilities = np.asarray(experiment.loss.inverse_link(output))
    return measured._replace(
        grid=probabilities.reshape(size, size, -1).astype(np.float32),
        grid_extent=_unscaled(scaling, np.stack([points[0], points[-1]])),
        points=_unscaled(scaling, train.x[:_MAX_POINTS]),
        point_labels=_labels(train.y[:_MAX_POINTS]),
    )


def _in_batches(
    forward: Callable[[jax.Array], jax.Array], x: np.ndarray, batch_size: int
) -> jax.Array:
    """Return the output for any number of examples of a program for ``batch_size`` of them."""
    count = -(-len(x) // batch_size)
    filled = np.resize(x, (count, batch_size, *x.shape[1:]))
    outputs = [np.asarray(forward(jnp.asarray(batch))) for batch in filled]
    return jnp.asarray(np.concatenate(outputs)[: len(x)])
