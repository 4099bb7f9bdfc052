"""The last evaluation of a run: metrics on the test part, and the arrays for its pictures.

The test part is predicted by groups of batches, so that outputs of many classes never stand in
memory together. What is kept for pictures is bounded, whatever the numbers of classes and targets;
and if it fails, the run goes on without it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fbp import training
from fbp.datasets import Standardization
from fbp.datasets.checks import row_blocks
from fbp.errors import first_line
from fbp.experiment.rundir import results
from fbp.experiment.rundir.results import Results
from fbp.experiment.runner.build import Experiment
from fbp.experiment.runner.compilation import Compiler, Program
from fbp.experiment.runner.loop import EVALUATION_BATCH, evaluation_batch
from fbp.layer import Loss, Params, Shape

_MAX_EXAMPLES = 25  # misclassified examples, reconstructions
_MAX_POINTS = 1000  # training examples on the picture of a decision boundary
_GRID_SIZE = 200  # points along each side of a decision boundary's grid
_COARSE_GRID_SIZE = 60  # the same if many points would cost the run seconds
_TENSORS_OF_DEEP_MODEL = 100  # beyond, a forward pass is slow
_MIN_BATCH = 20  # below, it takes many calls
_MAX_OUTPUTS = 2**24  # numbers of the outputs that stand in memory together
_MAX_NUMBERS = 2**22  # numbers of the examples that are kept for a picture
_MAX_TARGETS = 2**14  # numbers on the picture of a regression
_MAX_NEURONS = 40  # whose weights are drawn
MAX_CLASSES = 30
"""The number of classes of a confusion matrix: those that are confused most often."""


class _Group(NamedTuple):
    """Some batches of the test part.

    Attributes:
        rows: their place in the test part.
        output: the model's output.
        y: the targets.
    """

    rows: slice
    output: jax.Array
    y: jax.Array


def evaluate_and_write(
    experiment: Experiment,
    params: Params,
    folder: Path,
    compiler: Compiler,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, float]:
    """Predict the test part; write `results.npz` into the run's folder.

    Args:
        experiment: what was trained.
        params: the trained parameters.
        folder: the run's folder.
        compiler: compiles, and is left if a signal comes.
        note: takes the reason if the arrays for pictures cannot be made.

    Returns:
        The metrics on the test part by name, `test_loss` and others.

    Raises:
        OSError: if the disk is full.
        Interrupted: if a signal comes.
    """
    predict = _Predict(experiment, compiler)
    metrics, collector = _Means(experiment), _Collector(experiment)
    problem = ""
    for group in _groups(experiment, params, predict):
        metrics.add(group)
        problem = problem or _attempt(collector.add, group)
    measured = Results()
    if not problem:
        try:
            measured = collector.results(params, predict)
        except Exception as error:
            problem = f"{type(error).__name__}: {first_line(error)}"
    if problem:
        note(f"the test part has no pictures: {problem}")
    results.write(folder, measured)
    return metrics.values()


def _attempt(function: Callable[[_Group], None], group: _Group) -> str:
    """Call a function that only serves pictures; return why it failed, or an empty text."""
    try:
        function(group)
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


class _Predict:
    """The model's output for examples of the test part; one program for each number of them.

    Args:
        experiment: what was trained.
        compiler: compiles, and is left if a signal comes.
    """

    def __init__(self, experiment: Experiment, compiler: Compiler):
        self.batch_size = min(EVALUATION_BATCH, len(experiment.data.test.x))
        self.function = training.make_predict(experiment.model, batch_size=self.batch_size)
        self._compiler = compiler
        self._programs: dict[int, Program] = {}

    def __call__(self, params: Params, x: np.ndarray) -> jax.Array:
        """Return the output for `x (N, ...)`."""
        count = len(x)
        if count not in self._programs:
            self._programs[count] = self._compiler.program("the test program", self.function)
        output: jax.Array = self._programs[count](params, jnp.asarray(x))
        return output


def _groups(experiment: Experiment, params: Params, predict: _Predict) -> Iterator[_Group]:
    """Yield the test part in groups of batches; all of it at once if its outputs are small."""
    test = experiment.data.test
    output = jax.eval_shape(
        predict.function, params, jax.ShapeDtypeStruct((1, *test.x.shape[1:]), test.x.dtype)
    )
    unit = predict.batch_size
    if experiment.loss.coupled:
        unit = evaluation_batch(experiment)
    size = max(1, _MAX_OUTPUTS // max(1, output.size) // unit) * unit
    for start in range(0, len(test.x), size):
        rows = slice(start, start + size)
        yield _Group(rows, predict(params, test.x[rows]), jnp.asarray(test.y[rows]))


class _Means:
    """The metrics on the test part, group by group.

    Args:
        experiment: what was trained.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.columns: dict[str, list[jax.Array]] = {
            name: [] for name in ("loss", *experiment.metrics)
        }
        self.squared_error = 0.0

    def add(self, group: _Group) -> None:
        """Measure one group."""
        self.columns["loss"].append(_costs(self.experiment, group))
        for name, metric in self.experiment.metrics.items():
            self.columns[name].append(metric(group.output, group.y))
        if _is_regression(self.experiment):
            true, predicted = _in_units(self.experiment, group)
            self.squared_error += float(((true - predicted) ** 2).sum())

    def values(self) -> dict[str, float]:
        """Return the means by name."""
        metrics = {
            f"test_{name}": float((jnp.concatenate(parts) if len(parts) > 1 else parts[0]).mean())
            for name, parts in self.columns.items()
        }
        if _is_regression(self.experiment):
            variation = _variation(self.experiment)
            metrics["test_r2"] = 1 - self.squared_error / variation if variation else float("nan")
        return metrics


def _is_regression(experiment: Experiment) -> bool:
    return not experiment.dataset.classes and not experiment.config.data.reconstruct


def _costs(experiment: Experiment, group: _Group) -> jax.Array:
    """Return the cost of each example; of a loss that couples them, over batches as in training."""
    count, value = len(group.y), experiment.loss.value
    size = evaluation_batch(experiment) if experiment.loss.coupled else count
    batches = [slice(start, start + size) for start in range(0, count, size)]
    costs = [value(group.output[batch], group.y[batch]) for batch in batches]
    return jnp.concatenate(costs) if len(costs) > 1 else costs[0]


def _in_units(experiment: Experiment, group: _Group) -> tuple[np.ndarray, np.ndarray]:
    """Return the targets and predictions of a regression in the targets' own units, float64."""
    scaling = experiment.data.target_scaling
    true, predicted = np.asarray(group.y), np.asarray(group.output)
    return _unscaled(scaling, true), _unscaled(scaling, predicted)


def _unscaled(scaling: Standardization | None, values: np.ndarray) -> np.ndarray:
    return scaling.undo(values) if scaling else values.astype(np.float64)


def _variation(experiment: Experiment) -> float:
    """Return the sum of squares of the test targets about their means, in their own units."""
    y, scaling = experiment.data.test.y, experiment.data.target_scaling
    scale = scaling.scale if scaling else 1.0
    mean = y.mean(axis=0, dtype=np.float64)
    return sum(float((((y[rows] - mean) * scale) ** 2).sum()) for rows in row_blocks(y))


class _Collector:
    """The arrays for the pictures of the test part, group by group; none grows without a bound.

    Args:
        experiment: what was trained.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.columns: list[tuple[np.ndarray, ...]] = []
        self.reconstructed = Results()

    def add(self, group: _Group) -> None:
        """Keep of one group what its pictures need."""
        experiment, output = self.experiment, group.output
        if experiment.dataset.sequence:
            if _takes_single_positions(experiment.loss, output, group.y):
                self.columns.append(_loss_by_position(experiment.loss, group))
        elif experiment.config.data.reconstruct:
            if group.rows.start == 0:
                self.reconstructed = _reconstructed(experiment, output)
        elif experiment.dataset.classes:
            probabilities = np.asarray(experiment.loss.inverse_link(output))
            self.columns.append((probabilities.argmax(axis=1), probabilities.max(axis=1)))
        elif not self.columns:
            few = group._replace(
                y=_few_targets(group.y),
                output=_few_targets(output),
            )
            self.columns.append(_in_units(experiment, few))

    def results(self, params: Params, predict: _Predict) -> Results:
        """Return the arrays for all pictures."""
        experiment = self.experiment
        measured = self._of_groups() if self.columns else self.reconstructed
        if experiment.shape == (2,) and 0 < len(experiment.dataset.classes) <= MAX_CLASSES:
            measured = _with_boundary(measured, experiment, params, predict)
        return measured._replace(first_weights=_first_weights(params, experiment.shape))

    def _of_groups(self) -> Results:
        left, right = zip(*self.columns, strict=True)
        if self.experiment.dataset.sequence:
            totals, counts = sum(left), sum(right)
            means = np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
            return Results(loss_by_position=means)
        if self.experiment.dataset.classes:
            return _classified(self.experiment, np.concatenate(left), np.concatenate(right))
        return Results(true=left[0], predicted=right[0])


def _few_targets(values: jax.Array) -> jax.Array:
    """Return the first targets of the first examples, as many as a picture can show."""
    count = max(1, _MAX_TARGETS // values[0].size)
    return values[:count, :_MAX_TARGETS]


def _few(size: int) -> int:
    """Return how many examples of `size` numbers are kept for a picture."""
    return min(_MAX_EXAMPLES, _MAX_NUMBERS // max(size, 1))


def _labels(y: np.ndarray) -> np.ndarray:
    return y if y.ndim == 1 else y.argmax(axis=1)


def _classified(experiment: Experiment, predicted: np.ndarray, confidence: np.ndarray) -> Results:
    """Return the confusion matrix and the most confident misclassifications."""
    x, true = experiment.data.test.x, _labels(experiment.data.test.y)
    shown = most_confused(true, predicted, len(experiment.dataset.classes))
    wrong = np.flatnonzero(predicted != true)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][: _few(x[0].size)]
    return Results(
        confusion=confusion(true, predicted, shown),
        confusion_classes=shown,
        misclassified_x=_unscaled(experiment.data.input_scaling, x[wrong]).astype(np.float32),
        misclassified_true=true[wrong],
        misclassified_predicted=predicted[wrong],
        misclassified_confidence=confidence[wrong],
    )


def most_confused(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return the classes that a confusion matrix shows, in their order.

    Args:
        true: `(N,)`, the labels of the test examples.
        predicted: `(N,)`, the labels that the model predicts.
        classes: the number of classes.

    Returns:
        All classes, or the `MAX_CLASSES` that take part in most errors.
    """
    if classes <= MAX_CLASSES:
        return np.arange(classes)
    wrong = predicted != true
    errors = np.bincount(true[wrong], minlength=classes)
    errors += np.bincount(predicted[wrong], minlength=classes)
    return np.sort(np.argsort(-errors, kind="stable")[:MAX_CLASSES])


def confusion(true: np.ndarray, predicted: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Return `(C, C)` counts by true and by predicted class, of the C classes in `shown`."""
    rows, columns = np.searchsorted(shown, true), np.searchsorted(shown, predicted)
    last = len(shown) - 1
    rows, columns = np.minimum(rows, last), np.minimum(columns, last)
    counted = (shown[rows] == true) & (shown[columns] == predicted)
    matrix = np.zeros((len(shown), len(shown)), np.int64)
    np.add.at(matrix, (rows[counted], columns[counted]), 1)
    return matrix


def _takes_single_positions(loss: Loss, output: jax.Array, y: Any) -> bool:
    """Return whether a loss of sequences gives a cost for each position alone, too."""
    count = output.shape[0] * output.shape[1]
    shapes = (jax.ShapeDtypeStruct((count, *array.shape[2:]), array.dtype) for array in (output, y))
    try:
        return not loss.coupled and jax.eval_shape(loss.value, *shapes).shape == (count,)
    except Exception:  # a user's own loss may need the whole sequence
        return False


def _loss_by_position(loss: Loss, group: _Group) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of the costs at each position, and how many examples have a target at it."""
    output, y = group.output, group.y
    labels = y if y.ndim == 2 else y.argmax(axis=-1)
    has_target = np.asarray((labels >= 0) if y.ndim == 2 else (y != 0).any(axis=-1))
    flat = output.reshape(-1, output.shape[-1]), y.reshape(-1, *y.shape[2:])
    costs = np.asarray(loss.value(*flat)).reshape(has_target.shape)
    return np.where(has_target, costs, 0).sum(axis=0), has_target.sum(axis=0)


def _reconstructed(experiment: Experiment, output: jax.Array) -> Results:
    """Return test examples and their reconstructions."""
    shape = experiment.shape
    few = _few(int(np.prod(shape)))
    reconstructions = np.asarray(experiment.loss.inverse_link(output[:few]))
    return Results(
        originals=_unscaled(experiment.data.input_scaling, experiment.data.test.x[:few]),
        reconstructions=_unscaled(experiment.data.target_scaling, reconstructions).reshape(
            -1, *shape
        ),
    )


def _first_weights(params: Params, shape: Shape) -> np.ndarray | None:
    """Return weights into the first neurons if they can be drawn as gray images; None otherwise."""
    weights = next((leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2), None)
    is_gray_image = len(shape) == 3 and shape[-1] == 1
    if weights is None or not is_gray_image or len(weights) != np.prod(shape):
        return None
    return np.asarray(weights[:, :_MAX_NEURONS])


def _with_boundary(
    measured: Results, experiment: Experiment, params: Params, predict: _Predict
) -> Results:
    """Add the model's output on a grid over the plane, and training examples, in data units.

    Args:
        measured: to which they are added.
        experiment: what was trained.
        params: the trained parameters.
        predict: the model's output; there is a program for as many examples as the test part has.
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
    output = _in_batches(lambda x: predict(params, x), points, len(experiment.data.test.x))
    probabilities = np.asarray(experiment.loss.inverse_link(output))
    return measured._replace(
        grid=probabilities.reshape(size, size, -1).astype(np.float32),
        grid_extent=_unscaled(scaling, np.stack([points[0], points[-1]])),
        points=_unscaled(scaling, train.x[:_MAX_POINTS]),
        point_labels=_labels(train.y[:_MAX_POINTS]),
    )


def _in_batches(
    forward: Callable[[np.ndarray], jax.Array], x: np.ndarray, batch_size: int
) -> jax.Array:
    """Return the output for any number of examples of a program for ``batch_size`` of them."""
    count = -(-len(x) // batch_size)
    filled = np.resize(x, (count, batch_size, *x.shape[1:]))
    outputs = [np.asarray(forward(batch)) for batch in filled]
    return jnp.asarray(np.concatenate(outputs)[: len(x)])
