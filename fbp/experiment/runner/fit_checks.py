"""Checks that the parts of an experiment fit together, by tracing shapes: almost nothing runs.

Each refuses in one line that names the kind of thing, its name, and what was expected.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fbp import diagnostics
from fbp._backprop import backpropagate
from fbp._observation import Position, leaf_paths, observe_forward
from fbp.augmentation import Augmentation
from fbp.datasets import Examples
from fbp.errors import InputError, ShapeError, did_you_mean, first_line
from fbp.experiment.config.references import is_reference
from fbp.experiment.config.schema import Config
from fbp.layer import Array, Layer, Loss, Optimizer, Params, Shape
from fbp.metrics import Metric
from fbp.schedules import Schedule

_BATCH = 2  # the size of the batch that is traced


class Trial(NamedTuple):
    """An experiment's functions, and abstract arrays (shapes and dtypes) of one batch.

    Attributes:
        model: the model.
        loss: the loss.
        metrics: the metrics by the name under which they are logged.
        x, y: examples and targets.
        params: the model's parameters.
        output: the model's output for ``x``.
    """

    model: Layer
    loss: Loss
    metrics: Mapping[str, Metric]
    x: Any
    y: Any
    params: Params
    output: Any


@contextlib.contextmanager
def naming(kind: str, name: str) -> Iterator[None]:
    """Inside the block, turn any error of a user's own code into an InputError that names it.

    Errors of what the library itself has under that name stay as they are.
    """
    try:
        yield
    except ShapeError as error:
        if not is_reference(name) or kind == "model":
            raise
        raise InputError(f"{kind} {name!r}: {error}") from None
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        if not is_reference(name):
            raise
        line = first_line(error)
        raise InputError(f"{kind} {name!r} raised {type(error).__name__}: {line}") from None


def received(value: Any) -> str:
    """Return dtype and shape of an array, or the type of anything else, for messages."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} of shape {value.shape}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _abstract(array: Any) -> Any:
    return jax.ShapeDtypeStruct((_BATCH, *array.shape[1:]), array.dtype)


def check_model(
    config: Config,
    model: Layer,
    loss: Loss,
    metrics: Mapping[str, Metric],
    outputs: Shape,
    examples: Examples,
) -> Trial:
    """Check that a model fits the examples, and loss, metrics and gradients the model.

    Args:
        config: the configuration.
        model: the model.
        loss: the loss.
        metrics: the metrics by the name under which they are logged.
        outputs: the shape that one example's output must have.
        examples: training examples.

    Returns:
        What was traced, for further checks.

    Raises:
        InputError: one line that says what does not fit.
    """
    x, y = (_abstract(part) for part in examples)
    params, output = _trace_forward(config.model.name, model, x, outputs)
    _check_caches(config.model.name, model, params, x)
    trial = Trial(model, loss, metrics, x, y, params, output)
    _check_loss(config.loss.name, trial)
    _check_coupling(config.loss.name, trial, examples)
    _check_metrics(trial)
    _check_gradients(config.model.name, trial)
    _check_memory(trial)
    if loss.takes_probabilities:
        _check_probabilities(config.loss.name, model, examples)
    return trial


def check_training(trial: Trial, optimizer: Optimizer, name: str, selection_metric: str) -> None:
    """Check that an optimizer fits the parameters, and that the metric to select by is logged.

    Args:
        trial: what :func:`check_model` traced.
        optimizer: the optimizer.
        name: its name in the configuration.
        selection_metric: the metric by which the best evaluation is selected.

    Raises:
        InputError: one line that says what does not fit.
    """
    _check_optimizer(name, optimizer, trial)
    _check_selection(selection_metric, optimizer, trial)


def _trace_forward(name: str, model: Layer, x: Any, outputs: Shape) -> tuple[Params, Any]:
    """Return abstract parameters and output of a model, for abstract examples.

    Raises:
        InputError: if the layers do not fit the examples, or the output not the targets.
    """
    shape = x.shape[1:]

    def forward(key: Array, x: Array) -> Any:
        params, _ = model.init(key, shape)
        return params, model.forward(params, x, key=key)[0]

    try:
        with naming("model", name):
            params, output = jax.eval_shape(forward, jax.random.key(0), x)
        if getattr(output, "shape", None) != (_BATCH, *outputs):
            if not hasattr(output, "shape"):
                raise ShapeError(f"expected one array as output, got {received(output)}")
            expected, actual = (
                ", ".join(map(str, ("B", *sizes))) for sizes in (outputs, output.shape[1:])
            )
            raise ShapeError(f"expected outputs of shape ({expected}), got ({actual})")
    except ShapeError as error:
        raise InputError(f"model: for examples of shape {shape}, {error}") from None
    return params, output


def _check_caches(name: str, model: Layer, params: Params, x: Any) -> None:
    """Check that every layer's cache holds arrays and numbers only.

    Raises:
        InputError: if one holds another value; it names the layer's path.
    """

    def observe(place: Position, params: Any, x: Any, y: Any, cache: Any, key: Any) -> tuple[()]:
        for leaf in jax.tree.leaves(cache):
            if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int | complex):
                raise InputError(
                    f"model {name!r}, layer {place.path} ({place.layer.name}): expected arrays in "
                    f"the cache that forward returns, got {received(leaf)}; put only arrays there"
                )
        return ()

    run = observe_forward(model, observe, leaf_paths(model))
    with naming("model", name):
        jax.eval_shape(
            lambda params, x, key: run(params, x, key=key)[0], params, x, jax.random.key(0)
        )


def _check_loss(name: str, trial: Trial) -> None:
    """Check that a loss gives one cost per example, and a delta like the output.

    Raises:
        InputError: if it does not fit the outputs and targets.
    """
    loss = trial.loss
    with naming("loss", name):
        costs = jax.eval_shape(loss.value, trial.output, trial.y)
        delta = jax.eval_shape(loss.delta, trial.output, trial.y)
    for part, value, shape in (("value", costs, (_BATCH,)), ("delta", delta, trial.output.shape)):
        if getattr(value, "shape", None) != shape:
            expected = ", ".join(map(str, ("B", *shape[1:])))
            raise InputError(
                f"loss {name!r}: expected a {part} of shape ({expected}{',' * (len(shape) == 1)}), "
                f"got {_with_batch(value)}"
            )


_PROBED = 8  # examples of the batch in which a user's own loss is computed


def _check_coupling(name: str, trial: Trial, examples: Examples) -> None:
    """Check that a user's own loss says so if it couples the examples of a batch; this runs it.

    Raises:
        InputError: if the cost of an example changes when others join its batch.
    """
    if not is_reference(name) or trial.loss.coupled:
        return
    y = jnp.asarray(examples.y[:_PROBED])
    shape = (len(y), *trial.output.shape[1:])
    output = jax.random.normal(jax.random.key(0), shape, trial.output.dtype)
    if trial.loss.takes_probabilities:
        output = jax.nn.softmax(output)
    with naming("loss", name):
        alone = jnp.concatenate(
            [trial.loss.value(output[i : i + 1], y[i : i + 1]) for i in range(min(2, len(y)))]
        )
        together = trial.loss.value(output, y)[: len(alone)]
    if not np.allclose(alone, together, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise InputError(
            f"loss {name!r}: expected a cost of each example alone, but that of the first two is "
            f"{_numbers(alone)} alone and {_numbers(together)} in a batch of {len(y)}; say so with "
            "coupled=True, or mend it"
        )


def _numbers(values: Array) -> str:
    return " and ".join(f"{float(value):.4g}" for value in values)


def _with_batch(value: Any) -> str:
    """Return dtype and shape of an array of a traced batch, its size written as B."""
    shape = getattr(value, "shape", None)
    if not shape or shape[0] != _BATCH:
        return received(value)
    sizes = ", ".join(map(str, ("B", *shape[1:]))) + "," * (len(shape) == 1)
    return f"{value.dtype} of shape ({sizes})"


def _check_metrics(trial: Trial) -> None:
    """Check that each metric gives one number per example.

    Raises:
        InputError: if one raises, or gives another shape.
    """
    for label, metric in trial.metrics.items():
        try:
            value = jax.eval_shape(metric, trial.output, trial.y)
        except InputError as error:
            raise InputError(f"metric {label!r}: {error}") from None
        except Exception as error:
            line = first_line(error)
            raise InputError(f"metric {label!r} raised {type(error).__name__}: {line}") from None
        if getattr(value, "shape", None) != (_BATCH,):
            raise InputError(
                f"metric {label!r}: expected one number per example, of shape (B,), got "
                f"{_with_batch(value)}"
            )


def _check_gradients(name: str, trial: Trial) -> None:
    """Check that the backward pass gives gradients of the parameters' structure and shapes.

    Raises:
        InputError: if it raises, or gives another structure.
    """

    def gradients(params: Params, x: Array, y: Array) -> Any:
        key = jax.random.key(0)
        return backpropagate(trial.model, trial.loss)(params, x, y, key).grads

    try:
        with naming("model", name):
            grads = jax.eval_shape(gradients, trial.params, trial.x, trial.y)
    except ShapeError as error:
        raise InputError(f"model: {error}") from None
    expected, actual = (
        jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (trial.params, grads)
    )
    if expected != actual:
        raise InputError(
            "model: its backward gives gradients of another structure than its parameters: "
            f"{actual}"
        )


def _check_memory(trial: Trial) -> None:
    """Check that the parameters fit into the memory of this machine.

    Raises:
        InputError: if they do not.
    """
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trial.params))
    check_size("model: its parameters", size)


def check_size(subject: str, size: int, hint: str = "") -> None:
    """Check that arrays of `size` bytes fit into the memory of this machine.

    Raises:
        InputError: if they do not.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise InputError(
            f"{subject} take {size / 1e9:,.0f} GB, but this machine has {memory / 1e9:,.0f} GB"
            f"{hint}"
        )


def _check_probabilities(loss_name: str, model: Layer, examples: Examples) -> None:
    """Check that the outputs of a new model lie between 0 and 1; this runs the model.

    Raises:
        InputError: if they do not.
    """
    params, _ = model.init(jax.random.key(0), examples.x.shape[1:])
    output, _ = model.forward(params, jnp.asarray(examples.x[:8]))
    low, high = float(output.min()), float(output.max())
    if low < 0 or high > 1:
        raise InputError(
            f"loss.name: {loss_name!r} expects probabilities, but the model gives values "
            f"from {low:.3g} to {high:.3g}; set model.output_activation, or take the loss on logits"
        )


def check_number_targets(config: Config, loss: Loss, targets: np.ndarray) -> None:
    """Check that a loss takes targets that are numbers, and these numbers.

    Raises:
        InputError: if it takes classes, or numbers of another range.
    """
    name = config.loss.name
    low, high = float(targets.min()), float(targets.max())
    if loss.targets == "shares" and (low < 0 or high > 1):
        raise InputError(
            f"loss.name: {name!r} expects targets between 0 and 1, got values from {low:.3g} to "
            f"{high:.3g}"
        )
    if loss.targets == "counts" and low < 0:
        raise InputError(
            f"loss.name: {name!r} expects counts as targets, got values down to {low:.3g}"
        )
    if loss.targets in ("labels", "one_hot", "signs"):
        raise InputError(
            f"loss.name: {name!r} expects classes, but data {config.data.name!r} has numbers as "
            "targets"
        )
    if config.loss.label_smoothing:
        raise InputError(
            "loss.label_smoothing: expected classes, but the data has numbers as targets; remove it"
        )


def check_schedule(name: str, schedule: Schedule) -> None:
    """Check that a user's own schedule gives one number for a step.

    Raises:
        InputError: if it raises, or gives another shape.
    """
    with naming("schedule", name):
        value = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
    if getattr(value, "shape", None) != ():
        raise InputError(
            f"schedule {name!r}: expected one number, of shape (), got {received(value)}"
        )


def _check_optimizer(name: str, optimizer: Optimizer, trial: Trial) -> None:
    """Check that a user's own optimizer keeps the structure of parameters and of its state.

    Raises:
        InputError: if it raises, or gives other structures or shapes.
    """
    if not is_reference(name):
        return

    def described(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    def updated(params: Params) -> Any:
        state = optimizer.init(params)
        return state, *optimizer.update(params, state, params)

    with naming("optimizer", name):
        state, updates, new_state = jax.eval_shape(updated, trial.params)
    if jax.tree.map(lambda leaf: leaf.shape, updates) != jax.tree.map(
        lambda leaf: leaf.shape, trial.params
    ):
        raise InputError(
            f"optimizer {name!r}: expected updates of the parameters' structure and shapes, got "
            f"{jax.tree.map(received, updates)}"
        )
    if described(state) != described(new_state):
        raise InputError(
            f"optimizer {name!r}: expected an update that keeps the structure, shapes and dtypes "
            f"of its state"
        )


def check_augmentation(name: str, augment: Augmentation, trial: Trial) -> None:
    """Check that an augmentation keeps shape and dtype of the examples.

    Raises:
        InputError: if it raises, or gives another array.
    """
    with naming("augmentation", name):
        changed = jax.eval_shape(augment, jax.random.key(0), trial.x)
    if (getattr(changed, "shape", None), getattr(changed, "dtype", None)) != (
        trial.x.shape,
        trial.x.dtype,
    ):
        raise InputError(
            f"augmentation {name!r}: expected examples as they came, {_with_batch(trial.x)}, got "
            f"{_with_batch(changed)}"
        )


def _check_selection(metric: str, optimizer: Optimizer, trial: Trial) -> None:
    """Check that the metric by which the best evaluation is chosen will be logged.

    Raises:
        InputError: if it will not.
    """
    measured = ("loss", *trial.metrics)
    names = [f"{part}_{name}" for part in ("validation", "train") for name in measured]
    names += ["loss", "gradient_norm", "learning_rate", "examples_per_second", "epoch"]
    if "/" in metric:

        def norms(x: Array, y: Array) -> diagnostics.LayerNorms:
            params, _ = trial.model.init(jax.random.key(0), x.shape[1:])
            measure = diagnostics.layer_norms(trial.model, trial.loss, optimizer)
            return measure(params, optimizer.init(params), x, y)

        names += diagnostics.as_metrics(jax.eval_shape(norms, trial.x, trial.y))
    if metric not in names:
        raise InputError(
            f"selection.metric: no metric {metric!r} is logged at evaluations; "
            f"{did_you_mean(metric, names)}"
        )
