"""Build an experiment: from a configuration to the functions and arrays of a run."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fbp import augmentation, datasets, losses, metrics, optimizers, schedules
from fbp.augmentation import Augmentation
from fbp.datasets import Dataset, Examples, Splits
from fbp.errors import InputError, as_keys_of
from fbp.experiment.config.references import is_reference
from fbp.experiment.config.schema import Config
from fbp.experiment.rundir import metric_table
from fbp.experiment.runner import fit_checks
from fbp.experiment.runner.construct import construct
from fbp.experiment.runner.suspicions import suspicions
from fbp.layer import Layer, Loss, Optimizer, Shape
from fbp.metrics import Metric
from fbp.optimizers.masks import Mask
from fbp.schedules import Schedule


class Experiment(NamedTuple):
    """Everything that a run needs, built and checked together.

    Attributes:
        config: the configuration.
        dataset: the data set without its examples.
        fingerprint: that of the data set as loaded.
        data: its three parts, scaled, with targets in the form that the loss takes.
        shape: the shape of one example.
        model, loss, optimizer: the functions.
        schedule: the learning rate by step.
        metrics: what is observed beside the loss, by the name under which it is logged.
        augment: random changes of training examples; None if there are none.
        batch_size: in examples.
        steps_per_epoch, steps: in steps; the last batch of an epoch is left out if it is not full.
        interval: the number of steps between evaluations.
        notes: what a person should know before training: the task, what was guessed, and what
            probably is a mistake; a line each.
    """

    config: Config
    dataset: Dataset
    fingerprint: str
    data: Splits
    shape: Shape
    model: Layer
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    metrics: Mapping[str, Metric]
    augment: Augmentation | None
    batch_size: int
    steps_per_epoch: int
    steps: int
    interval: int
    notes: tuple[str, ...]


class _Counts(NamedTuple):
    batch_size: int
    steps_per_epoch: int
    steps: int
    interval: int


def build(config: Config, dataset: Dataset | None = None) -> Experiment:
    """Load the data, construct what a configuration names, and check that it fits together.

    Almost nothing is computed: shapes are traced. The metrics are added to this process's table of
    metrics, which formats them.

    Args:
        config: the configuration.
        dataset: the data, as :func:`load_data` returned them; loaded by default.

    Raises:
        InputError: one line that says what does not fit.
    """
    loss = build_loss(config)
    with as_keys_of("data", dataset="reconstruct"):
        loaded = dataset or load_data(config, loss)
        fingerprint = loaded.fingerprint
        # arrays that came from a caller or from a user's own code may be in use elsewhere
        overwrite = dataset is None and not is_reference(config.data.name)
        data = _split(config, loaded, overwrite=overwrite)
        dataset = loaded._replace(train=_without_rows(loaded.train), test=None)
    _check_missing_targets(data, config, loss)
    data = _with_targets(data, config, loss, len(dataset.classes))
    _check_direction(config, dataset)
    shape = data.train.x.shape[1:]
    model = build_model(config, dataset.outputs, len(dataset.tokens), sequence=dataset.sequence)
    observed = build_metrics(config, has_classes=bool(dataset.classes))
    metric_table.add(observed)
    positions = shape[:1] if dataset.sequence else ()
    outputs = (*positions, dataset.outputs)
    trial = fit_checks.check_model(config, model, loss, observed, outputs, data.train)
    counts = _counts(config, len(data.train.x))
    schedule = build_schedule(config, counts.steps)
    optimizer = build_optimizer(config, schedule, optimizers.decay_mask(model))
    name, metric = config.optimizer.name, config.selection.metric
    fit_checks.check_training(trial, optimizer, name, metric)
    augment = build_augmentation(config, shape, trial)
    return Experiment(
        config,
        dataset,
        fingerprint,
        data,
        shape,
        model,
        loss,
        optimizer,
        schedule,
        observed,
        augment,
        *counts,
        (*_data_notes(dataset, data), *_suspicions(config, dataset, data, model, loss)),
    )


def _data_notes(dataset: Dataset, data: Splits) -> tuple[str, ...]:
    """Return one line with the task and all guesses, and what is known of the parts."""
    return f"data {dataset.name!r}: {'; '.join((dataset.task, *dataset.notes))}", *data.notes


def _suspicions(
    config: Config, dataset: Dataset, data: Splits, model: Layer, loss: Loss
) -> tuple[str, ...]:
    return suspicions(
        model,
        loss,
        data,
        loss_name=config.loss.name,
        has_tokens=bool(dataset.tokens),
        is_autoencoding=config.data.reconstruct,
    )


def load_data(config: Config, loss: Loss | None = None) -> Dataset:
    """Return the data set that a configuration names, checked.

    Args:
        config: the configuration.
        loss: its loss, which says what its targets are; built by default.

    Raises:
        InputError: if there is no such file, or if it cannot be learned from.
    """
    loss = loss or build_loss(config)
    dataset = construct(config.data, loss_targets=loss.targets)
    if not is_reference(config.data.name):
        dataset = datasets.check(dataset)
    else:
        with fit_checks.naming("data", config.data.name):
            dataset = datasets.check(dataset)
    return datasets.as_autoencoding(dataset) if config.data.reconstruct else dataset


def _split(config: Config, dataset: Dataset, *, overwrite: bool) -> Splits:
    section = config.data
    return datasets.prepare(
        dataset,
        seed=config.seed,
        validation=section.validation,
        test=section.test,
        limit=section.limit,
        standardize=section.standardize,
        standardize_targets=section.standardize_targets,
        overwrite=overwrite,
    )


def _without_rows(examples: Examples) -> Examples:
    """Return no examples, of the same shapes and dtypes; the memory of the others can be freed."""
    return Examples(*(np.empty((0, *array.shape[1:]), array.dtype) for array in examples))


def _check_missing_targets(data: Splits, config: Config, loss: Loss) -> None:
    """Check that positions without a target are labels, because rows could not say so.

    Raises:
        InputError: if the loss takes no labels, or if they are smoothed into rows.
    """
    parts = (data.train, data.validation, data.test)
    if all(part.y.dtype.kind == "f" or (part.y >= 0).all() for part in parts):
        return
    if loss.targets != "labels":
        raise InputError(
            f"loss.name: {config.loss.name!r} takes no labels, but some positions have no target "
            "(a negative label); take a loss on labels, such as 'softmax_cross_entropy'"
        )
    if config.loss.label_smoothing:
        raise InputError(
            "loss.label_smoothing: expected a target at each position, got positions without one "
            "(a negative label); remove it"
        )


def _check_direction(config: Config, dataset: Dataset) -> None:
    next_token = dataset.sequence and dataset.tokens == dataset.classes and dataset.ordered
    if next_token and getattr(config.model, "bidirectional", False):
        raise InputError(
            "model.bidirectional: expected false for a text, because the next character is the "
            "target"
        )


def _counts(config: Config, examples: int) -> _Counts:
    training = config.training
    batch_size = examples if training.batch_size == "full" else training.batch_size
    if batch_size > examples:
        raise InputError(
            f"training.batch_size: expected at most the {examples} training examples, got "
            f"{batch_size}; make it smaller, or 'full'"
        )
    steps_per_epoch = examples // batch_size
    steps = training.steps or steps_per_epoch * training.epochs
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
    interval = min(training.evaluate_every or steps_per_epoch, steps)
    return _Counts(batch_size, steps_per_epoch, steps, interval)


def build_model(
    config: Config, outputs: int, vocabulary: int = 0, *, sequence: bool = False
) -> Layer:
    """Return the model that a configuration names.

    Args:
        config: the configuration.
        outputs: the number of outputs: of classes, or of targets.
        vocabulary: the number of tokens; 0 if the input is numbers.
        sequence: whether there is a target for each position. This and ``vocabulary`` reach
            constructors that have arguments of these names.

    Raises:
        InputError: if an argument cannot be used, or if a user's own function returns no Layer.
    """
    try:
        model: Layer = construct(
            config.model, outputs=outputs, vocabulary=vocabulary, sequence=sequence
        )
    except InputError as error:
        line = str(error)
        raise InputError(line if line.startswith("model ") else f"model: {line}") from None
    return model


def build_loss(config: Config) -> Loss:
    """Return the loss that a configuration names."""
    loss: Loss = construct(config.loss)
    return loss


def build_metrics(config: Config, *, has_classes: bool) -> dict[str, Metric]:
    """Return what is observed beside the loss, by the name under which it is logged.

    Args:
        config: the configuration.
        has_classes: whether the targets are classes; that decides the default.

    Raises:
        InputError: if two have the same name, or one that is taken.
    """
    sections = config.metrics.names
    if sections is None:
        default = metrics.accuracy if has_classes else metrics.absolute_error
        return {default.name: default}
    observed: dict[str, Metric] = {}
    for section in sections:
        metric: Metric = construct(section)
        label = section.label or metric.name
        if label in observed or label in _TAKEN:
            raise InputError(
                f"metrics.names: expected different names, none of {', '.join(_TAKEN)}, got "
                f"{label!r} {'twice' if label in observed else ''}".rstrip()
                + "; give it one of its own: {name = ..., label = ...}"
            )
        observed[label] = metric
    return observed


_TAKEN = ("loss", "r2")  # metrics of every run; R^2 is that of the test part


def build_augmentation(
    config: Config, shape: Shape, trial: fit_checks.Trial
) -> Augmentation | None:
    """Return the changes that a configuration asks for, in the order of its keys; None if none.

    Args:
        config: the configuration.
        shape: the shape of one example.
        trial: abstract examples, to check a user's own ones with.

    Raises:
        InputError: if a change does not fit the examples.
    """
    section = config.augmentation
    sizes = {key: value for key in _PICTURE_CHANGES if (value := getattr(section, key))}
    if sizes and len(shape) != 3:
        raise InputError(
            f"augmentation.{next(iter(sizes))}: expected pictures (H, W, C), got examples of "
            f"shape {shape}"
        )
    for key, size in sizes.items():
        most = min(shape[:2]) - 1
        if size is not True and size > most:
            raise InputError(f"augmentation.{key}: expected at most {most} pixels, got {size}")
    changes = [_PICTURE_CHANGES[key](size) for key, size in sizes.items()]
    for entry in section.names:
        change: Augmentation = construct(entry)
        fit_checks.check_augmentation(entry.name, change, trial)
        changes.append(change)
    return augmentation.compose(changes) if changes else None


_PICTURE_CHANGES: Mapping[str, Callable[[int], Augmentation]] = {
    "crop": augmentation.crop,
    "shift": augmentation.shift,
    "flip": lambda _: augmentation.flip(),
    "cutout": augmentation.cutout,
}


def build_schedule(config: Config, steps: int) -> Schedule:
    """Return the learning rate by step.

    Args:
        config: the configuration.
        steps: the run's; a schedule without ``steps`` of its own spans them, after the warm-up.

    Raises:
        InputError: if an argument cannot be used.
    """
    section, warmup = config.schedule, config.schedule.warmup
    rate = getattr(config.optimizer, "learning_rate", 1.0)
    try:
        schedule: Schedule = construct(section, value=rate, steps=max(steps - warmup, 1))
    except InputError as error:
        line = str(error)
        raise InputError(line if line.startswith("schedule ") else f"schedule: {line}") from None
    if is_reference(section.name):
        fit_checks.check_schedule(section.name, schedule)
    return schedules.warmup(schedule, warmup) if warmup else schedule


def build_optimizer(config: Config, schedule: Schedule, mask: Mask = None) -> Optimizer:
    """Return the rule with its transforms.

    Penalties and clipping come before the rule, the average of the parameters after it.

    Args:
        config: the configuration.
        schedule: the learning rate by step.
        mask: what decays and is penalized; by default what has two axes or more.

    Raises:
        InputError: if the rule takes no learning rate and the schedule is not constant.
    """
    section = config.optimizer
    is_constant = config.schedule.name == "constant" and not config.schedule.warmup
    if "learning_rate" not in section.argument_names and not is_constant:
        raise InputError(
            f"schedule: expected an optimizer with the argument 'learning_rate', but "
            f"{section.name!r} has none; remove the schedule"
        )
    every = section.accumulate  # the rule counts its own updates, one for so many steps
    rate = schedule if every == 1 else lambda count: schedule(every * count + every - 1)
    if is_constant:
        rule: Optimizer = construct(section, mask=mask)
    else:
        unset = section.model_copy(update={"learning_rate": None})
        rule = construct(unset, mask=mask, learning_rate=rate)
    strengths: list[tuple[Any, Callable[[Any], Optimizer]]] = [
        (section.l2, lambda strength: optimizers.l2(strength, mask)),
        (section.l1, lambda strength: optimizers.l1(strength, mask)),
        (section.clip_value, optimizers.clip_by_value),
        (section.clip_norm, optimizers.clip_by_norm),
        (section.clip_global_norm, optimizers.clip_by_global_norm),
        (section.clip_adaptive, optimizers.adaptive_grad_clip),
    ]
    transforms = [make(strength) for strength, make in strengths if strength]
    optimizer = optimizers.chain(*transforms, rule) if transforms else rule
    if section.average is not None:
        optimizer = optimizers.chain(optimizer, optimizers.average_parameters(section.average))
    return optimizers.accumulate(optimizer, every) if every > 1 else optimizer


def _with_targets(data: Splits, config: Config, loss: Loss, classes: int) -> Splits:
    """Return the data with targets as the loss takes them: labels, rows, signs, smoothed."""
    smoothing = config.loss.label_smoothing
    if not classes:
        fit_checks.check_number_targets(config, loss, data.train.y)
        return data
    if loss.targets == "counts":
        raise InputError(
            f"loss.name: {config.loss.name!r} expects counts as targets, but data "
            f"{config.data.name!r} has classes"
        )

    def encoded(examples: Examples, smooth: float) -> Examples:
        if loss.targets == "labels" and not smooth:
            return examples
        fit_checks.check_size(
            f"loss {config.loss.name!r}: the rows of {len(examples.y):,} targets over {classes:,} "
            "classes",
            4 * examples.y.size * classes,
            "; take a loss on labels, such as 'softmax_cross_entropy', without label_smoothing",
        )
        rows = np.asarray(
            losses.smooth_labels(jnp.asarray(examples.y), classes, smooth), np.float32
        )
        return Examples(examples.x, 2 * rows - 1 if loss.targets == "signs" else rows)

    return data._replace(
        train=encoded(data.train, smoothing),
        validation=encoded(data.validation, 0),
        test=encoded(data.test, 0),
    )
