"""What a configuration can name: for each kind of thing, names and what they stand for.

The names are derived from what the library exports. A public function belongs to a kind if its
return annotation says so and a file can hold its required arguments. To add a layer, a loss, an
optimizer, a data set or a metric is therefore to write it and to export it.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fbp import (
    augmentation,
    datasets,
    initializers,
    layers,
    losses,
    metrics,
    models,
    optimizers,
    schedules,
)
from fbp.augmentation import Augmentation
from fbp.blocks import Activation
from fbp.datasets import Dataset
from fbp.errors import InputError, did_you_mean
from fbp.experiment.config import references
from fbp.layer import Array, Initializer, Layer, Loss, Optimizer
from fbp.metrics import Metric
from fbp.optimizers.base import Scalar
from fbp.schedules import Schedule

Constructor = Callable[..., Any]


class Kind(NamedTuple):
    """A kind of thing that a configuration can name.

    Attributes:
        expected: what a name must stand for, for messages.
        result: converts what a constructor returns into the thing; None if it is another thing.
        instances: types of which a reference may name an instance itself, without a call.
        leading: the arguments with which the thing itself is called. A function that begins with
            them is the thing itself; its further arguments are those of the configuration.
        from_runner: arguments of a constructor that the runner supplies.
        required: those of them that a constructor must have.
    """

    expected: str
    result: Callable[[Any], Any]
    instances: tuple[type, ...] = ()
    leading: tuple[str, ...] = ()
    from_runner: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()


def _instance_of(expected: type) -> Callable[[Any], Any]:
    return lambda value: value if isinstance(value, expected) else None


def _function(value: Any) -> Any:
    return value if callable(value) else None


def _metric(value: Any) -> Metric | None:
    if isinstance(value, Metric):
        return value
    return Metric(value) if callable(value) else None


def _optimizer(value: Any) -> Optimizer | None:
    """Return an fbp or Optax optimizer: any pair of functions ``(init, update)``."""
    if isinstance(value, tuple) and len(value) == 2 and all(map(callable, value)):
        return value if isinstance(value, Optimizer) else Optimizer(*value)
    return None


KINDS: Mapping[str, Kind] = {
    "data": Kind(
        "a function that returns a Dataset",
        _instance_of(Dataset),
        from_runner=frozenset({"loss_targets"}),
    ),
    "model": Kind(
        "a function that returns a Layer",
        _instance_of(Layer),
        from_runner=frozenset({"outputs", "vocabulary", "sequence"}),
        required=frozenset({"outputs"}),
    ),
    "activation": Kind("a function that returns a Layer", _instance_of(Layer)),
    "initializer": Kind(
        "a function (key, shape, dtype), or one that returns such a function",
        _function,
        leading=("key", "shape", "dtype"),
    ),
    "loss": Kind(
        "a Loss, or a function that returns one",
        _instance_of(Loss),
        instances=(Loss,),
    ),
    "optimizer": Kind(
        "a function that returns an Optimizer",
        _optimizer,
        from_runner=frozenset({"mask"}),
    ),
    "schedule": Kind(
        "a function that returns a schedule, step -> value",
        _function,
        from_runner=frozenset({"value"}),
    ),
    "metric": Kind(
        "a function (output, target), or one that returns such a function",
        _metric,
        leading=("output", "target"),
    ),
    "augmentation": Kind(
        "a function (key, x), or one that returns such a function",
        _function,
        leading=("key", "x"),
    ),
    "tracker": Kind("a class of trackers", _function),
}

# The kinds that an argument of a constructor may name, by the argument's annotation.
NESTED_KINDS: Mapping[Any, str] = {
    Activation: "activation",
    Initializer: "initializer",
    Loss: "loss",
}

_VALUE_TYPES = (int, float, str, bool, Array, Any, types.NoneType, inspect.Parameter.empty)


def signature(constructor: Constructor) -> inspect.Signature:
    """Return a constructor's signature, its annotations evaluated."""
    return inspect.signature(constructor, eval_str=True)


def nested_kind(annotation: Any) -> str | None:
    """Return the kind of thing that an argument of this annotation names; None if it names none."""
    return next((kind for known, kind in NESTED_KINDS.items() if known == annotation), None)


def mentions_function(annotation: Any) -> bool:
    """Return whether an annotation has a function type in it, other than that of a nested kind."""
    if nested_kind(annotation) or annotation == Scalar:
        return False
    if annotation is Callable or typing.get_origin(annotation) is collections.abc.Callable:
        return True
    return any(map(mentions_function, typing.get_args(annotation)))


def _is_value(annotation: Any) -> bool:
    """Return whether a file can hold an argument of a library function."""
    if nested_kind(annotation) or annotation == Scalar:
        return True
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if mentions_function(annotation):
        return False
    if origin in (typing.Union, types.UnionType):
        return any(map(_is_value, parts))
    return origin is typing.Literal or annotation in _VALUE_TYPES or (
        bool(parts) and all(map(_is_value, parts))
    )  # fmt: skip


def _exported(
    module: types.ModuleType, returns: Any, *, instances: type = Metric, defined_in: str = ""
) -> dict[str, Any]:
    """Return what a module exports of a kind: constructors, and instances.

    Args:
        module: where to look.
        returns: the return annotation of the kind's constructors.
        instances: the type of instances that belong to the kind, too.
        defined_in: a part of the name of the module in which constructors are defined, if the
            kind's functions share their return annotation with others.
    """

    def belongs(value: Any) -> bool:
        if not inspect.isfunction(value) or defined_in not in value.__module__:
            return isinstance(value, instances)
        declared = signature(value)
        required = [
            parameter
            for parameter in declared.parameters.values()
            if parameter.default is parameter.empty
        ]
        return declared.return_annotation == returns and all(
            parameter.name != "name" and _is_value(parameter.annotation) for parameter in required
        )

    exported = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name: value for name, value in exported.items() if belongs(value)}


_MODULES: Mapping[str, types.ModuleType] = {
    "data": datasets,
    "model": models,
    "activation": layers,
    "initializer": initializers,
    "loss": losses,
    "optimizer": optimizers,
    "schedule": schedules,
    "metric": metrics,
    "augmentation": augmentation,
}

CATALOGUE: Mapping[str, Mapping[str, Any]] = {
    "data": _exported(datasets, Dataset),
    "model": _exported(models, Layer),
    "activation": _exported(layers, Layer, defined_in="activation"),
    "initializer": _exported(initializers, Initializer),
    "loss": _exported(losses, Loss, instances=Loss),
    "optimizer": _exported(optimizers, Optimizer, defined_in="aliases"),
    "schedule": _exported(schedules, Schedule),
    "metric": _exported(metrics, Metric),
    "augmentation": _exported(augmentation, Augmentation),
}

# Trackers by name. They are imported by the process that sends the run, not by the one that trains.
TRACKERS: Mapping[str, str] = {
    "mlflow": "fbp.experiment.tracking.mlflow_sink:MlflowSink",
    "jsonl": "fbp.experiment.tracking.jsonl_sink:JsonlSink",
}

# The names of the catalogue as references, which a record may spell out.
EXPORTED_REFERENCES: Mapping[str, frozenset[str]] = {
    "tracker": frozenset(TRACKERS.values()),
    **{
        kind: frozenset(f"{_MODULES[kind].__name__}:{name}" for name in names)
        for kind, names in CATALOGUE.items()
    },
}


def lookup(kind: str, name: str) -> Any:
    """Return what a name stands for: a constructor, or an instance such as a Loss.

    Args:
        kind: a key of :data:`KINDS`.
        name: a name of the catalogue, or a reference to a user's own code.

    Raises:
        InputError: if there is nothing of that name, or if it is neither a function nor an
            instance of the kind.
    """
    if references.is_reference(name):
        value = references.resolve(kind, name)
        if isinstance(value, KINDS[kind].instances) or _is_constructor(value):
            return value
        raise InputError(f"{kind} {name!r}: expected {KINDS[kind].expected}, got {describe(value)}")
    names = TRACKERS if kind == "tracker" else CATALOGUE[kind]
    if name not in names:
        raise InputError(f"unknown {kind} {name!r}; {did_you_mean(name, names)}")
    return references.import_name(TRACKERS[name]) if kind == "tracker" else names[name]


def _is_constructor(value: Any) -> bool:
    return callable(value) and not isinstance(value, tuple)


def describe(value: Any) -> str:
    """Return a few words about a value of the wrong type, for messages."""
    return "None" if value is None else f"a value of type {type(value).__name__}"


def leading_arguments(kind: str, function: Constructor) -> int:
    """Return how many arguments of `function` belong to the thing that it itself is; 0 if none.

    ``def top_k(output, target, k=3)`` is a metric itself and has two, ``def top_k(k)`` returns a
    metric and has none.
    """
    if isinstance(function, Metric):
        return 2
    names = KINDS[kind].leading
    positional = [
        parameter
        for parameter in signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    count = next((n for n in (len(names), 2) if _begins_with(positional, names[:n])), 0)
    if not count and len(names) == 2 and len(positional) >= 2:
        # called otherwise than here, such as (y_pred, y_true): two that no file could hold
        is_array = [p.default is p.empty and p.annotation in (p.empty, Array) for p in positional]
        return 2 if all(is_array[:2]) else 0
    return count


def _begins_with(parameters: list[inspect.Parameter], names: tuple[str, ...]) -> bool:
    return bool(names) and tuple(parameter.name for parameter in parameters[: len(names)]) == names


def summary(kind: str, name: str) -> str:
    """Return one line about what a name of the catalogue stands for."""
    value = CATALOGUE[kind][name]
    if isinstance(value, Loss):
        return value.summary
    return (value.__doc__ or "").strip().partition("\n")[0]
