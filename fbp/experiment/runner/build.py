"""From a configuration to the functions and arrays of a run."""

import inspect
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel

from fbp import augmentation, datasets, diagnostics, losses, metrics, optimizers, schedules
from fbp._backprop import backpropagate
from fbp.augmentation import Augmentation
from fbp.datasets import Dataset, Examples, Splits
from fbp.errors import InputError, ShapeError, as_keys_of
from fbp.experiment.config.catalogue import did_you_mean, lookup
from fbp.experiment.config.schema import Config, arguments
from fbp.layer import Array, Layer, Loss, Optimizer, Shape
from fbp.optimizers.masks import Mask
from fbp.schedules import Schedule
from fbp.training import Metric

# losses that take class labels as they are; the others get one-hot rows (the hinge -1 and +1)
_TAKES_LABELS = ("softmax_cross_entropy", "cross_entropy", "multiclass_hinge")

_TAKES_SHARES = ("sigmoid_cross_entropy", "binary_cross_entropy", "kl_divergence")
_TAKES_PROBABILITIES = ("cross_entropy", "binary_cross_entropy")

# what a model's output means to a reader, by its loss: probabilities where the loss works on logits
_READING: dict[str, Callable[[Array], Array]] = {
    "softmax_cross_entropy": jax.nn.softmax,
    "kl_divergence": jax.nn.softmax,
    "sigmoid_cross_entropy": jax.nn.sigmoid,
    "poisson": jnp.exp,
}


class Experiment(NamedTuple):
    """All that a run needs, built and fitted together.

    Attributes:
        config: what it was built from.
        dataset: the data as loaded; ``data`` the same in three parts, scaled, with targets as the loss wants them.
        shape: one example's.
        model, loss, optimizer: the functions.
        schedule: the learning rate by step.
        metrics: what is observed beside the loss.
        augment: how training examples are changed at random, None where they are not.
        batch_size, steps_per_epoch, steps, interval: counts, in examples and in steps; ``interval`` lies between evaluations.
    """

    config: Config
    dataset: Dataset
    data: Splits
    shape: Shape
    model: Layer
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    metrics: dict[str, Metric]
    augment: Augmentation | None
    batch_size: int
    steps_per_epoch: int
    steps: int
    interval: int


def build(config: Config) -> Experiment:
    """Load the data, construct what the configuration names, and see that it fits together.

    Raises:
        InputError: where it does not.
    """
    with as_keys_of("data", dataset="reconstruct"):
        dataset = datasets.check(construct("data", config.data))
        if config.data.reconstruct:
            dataset = datasets.as_autoencoding(dataset)
        data = datasets.prepare(
            dataset,
            seed=config.seed,
            validation=config.data.validation,
            test=config.data.test,
            limit=config.data.limit,
            standardize=config.data.standardize,
            standardize_targets=config.data.standardize_targets,
        )
    data = _with_targets(data, config, len(dataset.classes))
    next_token = dataset.sequence and dataset.tokens == dataset.classes and dataset.ordered
    if next_token and getattr(config.model, "bidirectional", False):
        raise InputError(
            "model.bidirectional: expected false for a text, where the next character is the target"
        )
    shape = data.train.x.shape[1:]
    model = build_model(config, dataset.outputs, len(dataset.tokens), dataset.sequence)
    loss = build_loss(config)
    expected = (*shape[: 1 if dataset.sequence else 0], dataset.outputs)
    _check_fit(config, model, loss, shape, expected, data.train)
    examples = len(data.train.x)
    batch_size = examples if config.training.batch_size == "full" else config.training.batch_size
    if batch_size > examples:
        raise InputError(
            f"training.batch_size: expected at most the {examples} training examples, got {batch_size}; "
            "make it smaller, or 'full'"
        )
    steps_per_epoch = examples // batch_size
    steps = config.training.steps or steps_per_epoch * config.training.epochs
    if steps >= 2**31:
        raise InputError(
            f"training.epochs: expected less than 2^31 steps in all, got {steps}; make it smaller"
        )
    for key, value in (
        ("schedule.warmup", config.schedule.warmup),
        ("optimizer.accumulate", config.optimizer.accumulate),
    ):
        if value > steps:
            raise InputError(
                f"{key}: expected at most the run's {steps} steps, got {value}; make it smaller"
            )
    schedule = build_schedule(config, steps)
    optimizer = build_optimizer(config, schedule, optimizers.decay_mask(model))
    observed: dict[str, Metric] = (
        {"accuracy": metrics.accuracy}
        if dataset.classes
        else {"absolute_error": metrics.absolute_error}
    )
    _check_selection(config, observed, model, loss, optimizer, data.train)
    return Experiment(
        config,
        dataset,
        data,
        shape,
        model,
        loss,
        optimizer,
        schedule,
        observed,
        build_augmentation(config, shape),
        batch_size,
        steps_per_epoch,
        steps,
        min(config.training.evaluate_every or steps_per_epoch, steps),
    )


def construct(kind: str, section: BaseModel, *given: Any, **told: Any) -> Any:
    """What a section names, called with the section's arguments."""
    named = lookup(kind, section.name)  # type: ignore[attr-defined]
    if isinstance(named, Loss):
        return named
    values = {
        key: _resolved(key, value) for key, value in arguments(section).items() if value is not None
    }
    return named(*given, **values, **told)


def _resolved(key: str, value: Any) -> Any:
    """Names inside arguments become what they name: ``activation`` a factory, ``weights`` and ``bias`` initializers."""
    kind = (
        "activation"
        if key.endswith("activation")
        else "initializer"
        if key in ("weights", "bias")
        else None
    )
    if kind is None:
        return value
    table = {"name": value} if isinstance(value, str) else dict(value)
    constructor: Any = lookup(kind, table.pop("name"))
    return (lambda: constructor(**table)) if kind == "activation" else constructor(**table)


def build_model(config: Config, outputs: int, vocabulary: int = 0, sequence: bool = False) -> Layer:
    """The model that the configuration names.

    Args:
        config: the experiment's.
        outputs: how many outputs it has: the number of classes, or of targets.
        vocabulary: how many tokens its input may have; 0 where the input is numbers.
        sequence: whether there is a target for each position. This and ``vocabulary`` reach a constructor that has
            arguments of these names.
    """
    constructor: Any = lookup("model", config.model.name)
    told = {"vocabulary": vocabulary, "sequence": sequence}
    try:
        known = inspect.signature(constructor).parameters
        model = construct(
            "model",
            config.model,
            outputs,
            **{key: value for key, value in told.items() if key in known},
        )
    except InputError as error:
        raise InputError(f"model: {error}") from None
    except Exception as error:
        if ":" in config.model.name:  # the user's own function
            raise InputError(
                f"model {config.model.name!r} raised {type(error).__name__}: {error}"
            ) from None
        raise
    if not isinstance(model, Layer):
        raise InputError(
            f"model {config.model.name!r}: expected a function that returns a Layer, got {type(model)}"
        )
    return model


def build_augmentation(config: Config, shape: Shape) -> Augmentation | None:
    """The changes that the configuration asks for, in the order of its keys; None where there are none."""
    section = config.augmentation
    asked = {key: value for key, value in section.model_dump().items() if value}
    if asked and len(shape) != 3:
        raise InputError(
            f"augmentation.{next(iter(asked))}: expected pictures (H, W, C), got examples of shape {shape}"
        )
    for key, size in asked.items():
        most = min(shape[:2]) - 1
        if size is not True and size > most:
            raise InputError(f"augmentation.{key}: expected at most {most} pixels, got {size}")
    makers: dict[str, Callable[..., Augmentation]] = {
        "crop": augmentation.crop,
        "shift": augmentation.shift,
        "flip": lambda _: augmentation.flip(),
        "cutout": augmentation.cutout,
    }
    return (
        augmentation.compose([makers[key](value) for key, value in asked.items()])
        if asked
        else None
    )


def build_loss(config: Config) -> Loss:
    """The loss that the configuration names."""
    loss = construct("loss", config.loss)
    assert isinstance(loss, Loss)
    return loss


def build_schedule(config: Config, steps: int) -> Schedule:
    """The learning rate by step; a schedule without ``steps`` of its own spans the run (after the warm-up)."""
    section, warmup = config.schedule, config.schedule.warmup
    rate = getattr(config.optimizer, "learning_rate", 1.0)
    constructor: Any = lookup("schedule", section.name)
    values = arguments(section)
    if "steps" in values and values["steps"] is None:
        values["steps"] = max(steps - warmup, 1)
    try:
        schedule: Schedule = (
            constructor(**values) if section.name == "piecewise" else constructor(rate, **values)
        )
    except InputError as error:
        raise InputError(f"schedule: {error}") from None
    return schedules.warmup(schedule, warmup) if warmup else schedule


def build_optimizer(config: Config, schedule: Schedule, mask: Mask = None) -> Optimizer:
    """Return the rule with its transforms.

    Penalties and clipping are before the rule, the average of the parameters is after it.

    Args:
        config: the experiment's.
        schedule: the learning rate by step.
        mask: what decays and is penalized; by default what has two axes or more.
    """
    section = config.optimizer
    constructor: Any = lookup("optimizer", section.name)
    values = {
        key: value
        for key, value in arguments(section).items()
        if key != "learning_rate" and value is not None
    }
    if "mask" in inspect.signature(constructor).parameters:
        values["mask"] = mask
    constant = config.schedule.name == "constant" and not config.schedule.warmup
    every = section.accumulate  # the rule counts its own updates, one for so many steps
    rate = schedule if every == 1 else lambda count: schedule(every * count + every - 1)
    rule = constructor(getattr(section, "learning_rate", 1.0) if constant else rate, **values)
    before: list[tuple[Any, Any]] = [
        (section.l2, lambda strength: optimizers.l2(strength, mask)),
        (section.l1, lambda strength: optimizers.l1(strength, mask)),
        (section.clip_value, optimizers.clip_by_value),
        (section.clip_norm, optimizers.clip_by_norm),
        (section.clip_global_norm, optimizers.clip_by_global_norm),
        (section.clip_adaptive, optimizers.adaptive_grad_clip),
    ]
    transforms = [make(strength) for strength, make in before if strength]
    optimizer = optimizers.chain(*transforms, rule) if transforms else rule
    if section.average is not None:
        optimizer = optimizers.chain(optimizer, optimizers.average_parameters(section.average))
    return (
        optimizers.accumulate(optimizer, section.accumulate)
        if section.accumulate > 1
        else optimizer
    )


def _with_targets(data: Splits, config: Config, classes: int) -> Splits:
    """The targets as the loss wants them: labels, one-hot rows, -1 and +1, smoothed."""
    name, smoothing = config.loss.name, config.loss.label_smoothing
    if not classes:
        low, high = float(data.train.y.min()), float(data.train.y.max())
        if name in _TAKES_SHARES and (low < 0 or high > 1):
            raise InputError(
                f"loss.name: {name!r} expects targets between 0 and 1, got values from {low:.3g} to {high:.3g}"
            )
        if name == "poisson" and low < 0:
            raise InputError(
                f"loss.name: 'poisson' expects counts as targets, got values down to {low:.3g}"
            )
        if name in (*_TAKES_LABELS, "hinge"):
            raise InputError(
                f"loss.name: {name!r} expects classes, but data {config.data.name!r} has numbers as targets"
            )
        if smoothing:
            raise InputError(
                "loss.label_smoothing: expected classes, but the data has numbers as targets; remove it"
            )
        return data
    if name == "poisson":
        raise InputError(
            f"loss.name: 'poisson' expects counts as targets, but data {config.data.name!r} has classes"
        )

    def encoded(examples: Examples, smooth: float) -> Examples:
        if name in _TAKES_LABELS and not smooth:
            return examples
        rows = np.asarray(
            losses.smooth_labels(jnp.asarray(examples.y), classes, smooth), np.float32
        )
        return Examples(examples.x, 2 * rows - 1 if name == "hinge" else rows)

    return data._replace(
        train=encoded(data.train, smoothing),
        validation=encoded(data.validation, 0),
        test=encoded(data.test, 0),
    )


def _check_fit(
    config: Config, model: Layer, loss: Loss, shape: Shape, outputs: Shape, examples: Examples
) -> None:
    """See that layers fit the examples, outputs the targets, and gradients the parameters; almost nothing is computed."""

    def everything(key: Array, x: Array, y: Array) -> Any:
        params, _ = model.init(key, shape)
        return params, backpropagate(model, loss)(params, x, y, key)

    x, y = (jax.ShapeDtypeStruct((2, *part.shape[1:]), part.dtype) for part in examples)
    try:
        params, result = jax.eval_shape(everything, jax.random.key(0), x, y)
        if result.output.shape != (2, *outputs):
            wanted, given = (
                ", ".join(map(str, ("B", *sizes))) for sizes in (outputs, result.output.shape[1:])
            )
            raise ShapeError(f"expected outputs of shape ({wanted}), got ({given})")
    except ShapeError as error:
        raise InputError(f"model: for examples of shape {shape}, {error}") from None
    except Exception as error:
        if ":" in config.model.name:  # the user's own layers
            first = next(iter(str(error).splitlines()), "")
            raise InputError(
                f"model {config.model.name!r} raised {type(error).__name__}: {first}"
            ) from None
        raise
    size, memory = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)),
        _memory(),
    )
    if size > memory:
        raise InputError(
            f"model: its parameters take {size / 1e9:,.0f} GB, but this machine has {memory / 1e9:,.0f} GB"
        )
    expected, given = (
        jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (params, result.grads)
    )
    if expected != given:
        raise InputError(
            f"model: its backward gives gradients of another structure than its parameters: {given}"
        )
    if config.loss.name in _TAKES_PROBABILITIES:
        drawn, _ = model.init(jax.random.key(0), shape)
        output, _ = model.forward(drawn, jnp.asarray(examples.x[:8]))
        low, high = float(output.min()), float(output.max())
        if low < 0 or high > 1:
            raise InputError(
                f"loss.name: {config.loss.name!r} expects probabilities, but the model gives values from {low:.3g} "
                f"to {high:.3g}; set model.output_activation, or take the loss on logits"
            )


def _memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_selection(
    config: Config,
    observed: dict[str, Metric],
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    examples: Examples,
) -> None:
    """See that the metric by which the best evaluation is chosen will be there; nothing is computed."""
    names = [f"{part}_{name}" for part in ("validation", "train") for name in ("loss", *observed)]
    names += ["loss", "gradient_norm", "learning_rate", "examples_per_second", "epoch"]
    wanted = config.selection.metric
    if "/" in wanted:

        def norms(x: Array, y: Array) -> diagnostics.LayerNorms:
            params, _ = model.init(jax.random.key(0), x.shape[1:])
            return diagnostics.layer_norms(model, loss, optimizer)(
                params, optimizer.init(params), x, y
            )

        x, y = (jax.ShapeDtypeStruct((2, *part.shape[1:]), part.dtype) for part in examples)
        names += diagnostics.as_metrics(jax.eval_shape(norms, x, y))
    if wanted not in names:
        raise InputError(
            f"selection.metric: no metric {wanted!r} is logged at evaluations; {did_you_mean(wanted, names)}"
        )


def output_transform(config: Config) -> Callable[[Array], Array]:
    """From a model's output to what a reader wants: probabilities, rates, or the output itself."""
    return _READING.get(config.loss.name, lambda output: output)
