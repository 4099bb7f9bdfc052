"""A configuration: TOML read into typed models, every error in one report, and written back complete.

Each section that has a ``name`` (data, model, loss, optimizer, schedule) accepts the arguments of what is named, with their
types and defaults read from the constructor's signature. So there is one place where an argument is declared.
"""

import functools
import inspect
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, create_model
from pydantic.errors import PydanticUserError

from fbp.blocks import Activation
from fbp.errors import InputError
from fbp.experiment.catalogue import CATALOGUE, find, suggest
from fbp.layer import Array, Initializer, Loss
from fbp.optimizers.base import Mask, Scalar

_Share = Annotated[float, Field(ge=0, lt=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]
_Name = Annotated[str, Field(pattern=r"^\w[\w.\- ]*$", max_length=100)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Data(_Section):
    """``[data]``: what to learn from, and how it is split."""

    name: str
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: _Share = 0.1
    limit: _Count | None = None
    standardize: bool = False
    standardize_targets: bool = False
    reconstruct: bool = False


class Augmentation(_Section):
    """``[augmentation]``: how training pictures are changed at random, in this order; all in pixels."""

    crop: Annotated[int, Field(ge=0)] = 0
    shift: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    cutout: Annotated[int, Field(ge=0)] = 0


class Model(_Section):
    """``[model]``: what learns."""

    name: str


class LossSection(_Section):
    """``[loss]``: what is made small."""

    name: str
    label_smoothing: _Share = 0.0


class OptimizerSection(_Section):
    """``[optimizer]``: the rule, and the transforms around it."""

    name: str
    clip_value: _Positive | None = None
    clip_norm: _Positive | None = None
    clip_global_norm: _Positive | None = None
    clip_adaptive: _Positive | None = None
    l1: _NotNegative = 0.0
    l2: _NotNegative = 0.0
    accumulate: _Count = 1
    average: _Share | None = None


class ScheduleSection(_Section):
    """``[schedule]``: how the learning rate moves from ``optimizer.learning_rate``."""

    name: str = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0


class Training(_Section):
    """``[training]``: how long, and in what portions; ``steps``, where it is given, in place of ``epochs``.

    ``strict`` trains with one thread, so that no number of cores can change a bit; ``deterministic`` sets what a GPU needs
    to give the same bits again.
    """

    epochs: _Count = 10
    steps: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    evaluate_every: _Count | None = None
    batch_size: _Count | Literal["full"] = 32
    shuffle: bool = True
    strict: bool = False
    deterministic: bool = True


class Selection(_Section):
    """``[selection]``: by which logged metric an evaluation is the best, and what follows from it.

    Training stops after ``patience`` evaluations that were not better by more than ``min_delta``; ``restore_best`` makes the
    best parameters the run's model, not the last ones. ``goal`` is "min" or "max"; by default what the metric's name tells.
    """

    metric: str = "validation_loss"
    goal: Literal["min", "max"] | None = None
    patience: _Count | None = None
    min_delta: _NotNegative = 0.0
    restore_best: bool = False


class Checkpoint(_Section):
    """``[checkpoint]``: when the run is saved so that it can be resumed, and how many such states are kept.

    By time, at most every so many seconds (more often at first); or, where ``every_steps`` is given, by steps.
    """

    every_seconds: _Positive = 30.0
    every_steps: _Count | None = None
    keep: _Count = 2


class Tracking(_Section):
    """``[tracking]``: where the run appears in MLflow."""

    experiment: Annotated[str, Field(min_length=1)] | None = None


class Variant(_Section):
    """``[[variant]]``: one of several runs of an experiment; ``set`` overrides keys of the other sections."""

    name: _Name
    set: dict[str, Any]


class Config(_Section):
    """A whole experiment, every default filled in."""

    name: _Name
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: Data
    model: Model
    loss: LossSection
    optimizer: OptimizerSection
    schedule: ScheduleSection = ScheduleSection()
    augmentation: Augmentation = Augmentation()
    training: Training = Training()
    selection: Selection = Selection()
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()
    variant: list[Variant] = []

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)  # as it came, without defaults


_NAMED: Mapping[str, type[_Section]] = {
    "data": Data,
    "model": Model,
    "loss": LossSection,
    "optimizer": OptimizerSection,
    "schedule": ScheduleSection,
}

_PLAIN: Mapping[str, type[_Section]] = {
    "augmentation": Augmentation,
    "training": Training,
    "selection": Selection,
    "checkpoint": Checkpoint,
    "tracking": Tracking,
    "variant": Variant,
}

# what the runner gives to a constructor itself
_GIVEN = {"model": {"outputs", "vocabulary", "sequence"}, "schedule": {"value"}, "optimizer": {"mask"}}

_RANGES: Mapping[str, dict[str, Any]] = {
    "learning_rate": {"gt": 0},
    "momentum": {"ge": 0, "lt": 1},
    "decay": {"ge": 0, "lt": 1},
    "beta1": {"ge": 0, "lt": 1},
    "beta2": {"ge": 0, "lt": 1},
    "epsilon": {"gt": 0},
    "weight_decay": {"ge": 0},
    "initial": {"ge": 0},
    "threshold": {"gt": 0},
    "slope": {"ge": 0},
    "alpha": {"ge": 0},
    "scale": {"gt": 0},
    "factor": {"gt": 0},
    "power": {"gt": 0},
    "end": {"ge": 0},
    "rise": {"gt": 0, "lt": 1},
    "divide": {"ge": 1},
    "final_divide": {"ge": 1},
    "steps": {"ge": 1},
    "every": {"ge": 1},
    "growth": {"ge": 1},
    "examples": {"ge": 10},
    "features": {"ge": 1},
    "noise": {"ge": 0},
    "turns": {"gt": 0},
    "context": {"ge": 1},
    "vocabulary": {"ge": 1, "le": 1_000_000},
    "stride": {"ge": 1},
    "length": {"ge": 2},
    "delay": {"ge": 1},
    "symbols": {"ge": 2},
    "window": {"ge": 1},
    "depth": {"ge": 1},
    "modules": {"ge": 1},
    "heads": {"ge": 1},
    "patch": {"ge": 1},
    "code": {"ge": 1},
    "width": {"ge": 1},
    "embedding_width": {"ge": 1},
    "dropout_rate": {"ge": 0, "lt": 1},
    "periods": {"gt": 0},
    "seed": {"ge": 0},
}


def _nested(kind: str) -> Any:
    """The type of an argument that itself names something: ``"relu"`` or ``{name = "leaky_relu", slope = 0.2}``."""

    def validated(value: Any) -> Any:
        table = {"name": value} if isinstance(value, str) else value
        if not isinstance(table, dict) or not isinstance(table.get("name"), str):
            raise ValueError(f"expected the name of an {kind} or a table with 'name', got {value!r}")
        try:
            model = _section(kind, table["name"])
            checked = model(**table)
        except InputError as error:
            raise ValueError(str(error)) from None
        except ValidationError as error:
            raise ValueError("; ".join(_lines(error, (), {(): model}))) from None
        given = checked.model_dump(exclude_none=True)
        return given["name"] if given == {"name": given["name"]} else given

    return Annotated[Any, BeforeValidator(validated)]


def _field_type(annotation: Any, name: str) -> Any:
    """A constructor's annotation as a configuration sees it: numbers for traced numbers, names for functions."""
    options = (
        typing.get_args(annotation)
        if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
        else (annotation,)
    )
    optional = type(None) in options
    if annotation == Activation or Activation in options:
        kind: Any = _nested("activation")
    elif annotation == Initializer or Initializer in options:
        kind = _nested("initializer")
    elif annotation == Scalar or Array in options:
        kind = float
    elif typing.get_origin(annotation) in (Sequence, typing.get_origin(Sequence[int])):
        (item,) = typing.get_args(annotation)
        kind = list[Annotated[item, Field(ge=1)] if item is int else item]  # type: ignore[misc]
    else:
        kind = next(option for option in options if option is not type(None))
    if name in _RANGES and kind in (int, float):
        finite: dict[str, Any] = {"allow_inf_nan": False} if kind is float else {}
        kind = Annotated[kind, Field(**finite, **_RANGES[name])]
    return kind | None if optional else kind


@functools.cache
def _section(kind: str, name: str) -> type[BaseModel]:
    """The model of a section for what it names: the section's own keys and the constructor's arguments."""
    constructor = find(kind, name)
    base = _NAMED.get(kind, Model)
    fields: dict[str, Any] = {}
    if not isinstance(constructor, Loss):
        for parameter in _parameters(kind, name, constructor):
            variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if variadic or parameter.name in _GIVEN.get(kind, set()) or parameter.annotation == Mask:
                continue
            untyped = parameter.annotation is inspect.Parameter.empty
            field_type = Any if untyped else _field_type(parameter.annotation, parameter.name)
            default: Any = parameter.default
            if default is inspect.Parameter.empty:
                default = ... if not (kind == "schedule" and parameter.name == "steps") else None
                field_type = field_type if default is ... else field_type | None
            elif callable(default):
                default = default.__name__
            elif isinstance(default, tuple):
                default = list(default)
            fields[parameter.name] = (field_type, default)
    try:
        return create_model(f"{kind} {name}", __base__=base, **fields)
    except PydanticUserError as error:
        raise InputError(
            f"{kind} {name!r}: its arguments have types that a file cannot hold ({error.message})"
        ) from None


def _parameters(kind: str, name: str, constructor: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(constructor, eval_str=True).parameters.values())
    except (NameError, TypeError, ValueError) as error:
        raise InputError(f"{kind} {name!r}: its arguments cannot be read ({error})") from None


def read(path: Path, overrides: Sequence[str] = ()) -> Config:
    """An experiment file, with ``section.key=value`` overrides, checked.

    Raises:
        InputError: one line for each thing that is wrong.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {_experiments(path)}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: expected a file, got a folder; {_experiments(path)}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected a TOML file in UTF-8, got other bytes") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    table.setdefault("name", path.stem)
    return parse(override(table, overrides), str(path))


def named_model(path: Path) -> str:
    """The model that a file names; unlike :func:`read`, this imports nothing."""
    try:
        name = tomllib.loads(path.read_text(encoding="utf-8"))["model"]["name"]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected a configuration with a model ({error})") from None
    return name if isinstance(name, str) else ""


def _experiments(path: Path) -> str:
    here = sorted(found.stem for found in Path("experiments").glob("*.toml"))
    return suggest(path.stem, here) if here else "there is no folder 'experiments' here"


def override(table: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The table with each ``section.key=value`` applied; the value is TOML, or a bare text."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {assignment!r}: expected section.key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        table = _assigned(table, key.strip().split("."), value, f"--set {assignment!r}")
    return table


def _assigned(table: dict[str, Any], path: list[str], value: Any, where: str) -> dict[str, Any]:
    first, *rest = path
    if not first:
        raise InputError(f"{where}: expected section.key, got an empty name")
    if not rest:
        return {**table, first: value}
    inner = table.get(first, {})
    if isinstance(inner, str):  # "relu" is short for {name = "relu"}
        inner = {"name": inner}
    if not isinstance(inner, dict):
        raise InputError(f"{where}: {first} is not a section")
    return {**table, first: _assigned(inner, rest, value, where)}


def parse(table: dict[str, Any], where: str) -> Config:
    """A checked configuration from a table such as TOML gives.

    Raises:
        InputError: one line for each thing that is wrong, each with its place and what to do.
    """
    problems: list[str] = []
    sections: dict[str, Any] = {}
    fields: dict[tuple[str, ...], type[BaseModel]] = {(): Config}
    for kind in _NAMED:
        given = table.get(kind, {} if kind == "schedule" else None)
        if not isinstance(given, dict):
            problems.append(f"{kind}: expected a section [{kind}] with a name, got {_shown(given)}")
            continue
        name = given.get("name", "constant" if kind == "schedule" else None)
        if not isinstance(name, str):
            problems.append(f"{kind}.name: expected one of {', '.join(CATALOGUE[kind])}, got {_shown(name)}")
            continue
        try:
            model = _section(kind, name)
        except InputError as error:
            problems.append(f"{kind}.name: {error}")
            continue
        try:
            sections[kind] = model(**given)
        except ValidationError as error:
            problems += _lines(error, (kind,), {(kind,): model})
            sections[kind] = model.model_construct(**given)
    rest = {key: value for key, value in table.items() if key not in _NAMED}
    for kind, base in _NAMED.items():
        sections.setdefault(kind, base.model_construct(name=""))
    fields |= {(key,): section for key, section in _PLAIN.items()}
    try:
        config = Config(**rest, **sections)
    except ValidationError as error:
        problems += _lines(error, (), fields)
    if problems:
        raise InputError("\n".join(f"{where}: {problem}" for problem in problems))
    config._given = table
    return config


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def _lines(
    error: ValidationError, prefix: tuple[str, ...], models: Mapping[tuple[str, ...], type[BaseModel]]
) -> list[str]:
    """One line for each of pydantic's errors: the key's path, what was expected, what came."""
    expected: dict[str, list[str]] = {}  # a union reports each of its branches
    given: dict[str, str] = {}
    for problem in error.errors():
        location = tuple(str(part) for part in problem["loc"] if not _is_branch(part))
        if problem["type"] == "extra_forbidden":
            location = (*location, str(problem["loc"][-1])) if _is_branch(problem["loc"][-1]) else location
        path = ".".join((*prefix, *location))
        if problem["type"] == "extra_forbidden":
            owner = tuple(part for part in (*prefix, *location[:-1]) if not part.isdigit())
            valid = models[owner].model_fields if owner in models else {}
            text = f"unknown key; {suggest(str(problem['loc'][-1]), valid)}"
        elif problem["type"] == "missing":
            text = "expected a value, got none; add it"
        elif problem["type"] == "string_pattern_mismatch":
            text = f"expected a letter or digit, then letters, digits, spaces and . - _ only, got {problem['input']!r}"
        elif problem["type"] == "value_error":
            text = str(problem["ctx"]["error"])
        else:
            text, given[path] = _expectation(problem["msg"]), f", got {problem['input']!r}"
        expected.setdefault(path, []).append(text)
    return [
        f"{path}: {'expected ' if path in given else ''}{' or '.join(texts)}{given.get(path, '')}"
        for path, texts in expected.items()
    ]


def _expectation(message: str) -> str:
    """What pydantic expected, without its "Input should be"."""
    text = message.removeprefix("Input should be ").replace("a valid ", "a ").replace("a integer", "an integer")
    return f"a number {text}" if text.startswith(("greater", "less")) else text


def _is_branch(part: Any) -> bool:
    """Whether a part of pydantic's location names a branch of a union and not a key."""
    return isinstance(part, str) and (part in ("int", "float", "none", "str") or "[" in part or "-" in part)


def variants(config: Config, where: str) -> dict[str, Config]:
    """The configurations of an experiment's variants by name; none where it has no variants."""
    if len({variant.name for variant in config.variant}) != len(config.variant):
        raise InputError(f"{where}: variant: expected different names, got {[v.name for v in config.variant]}")
    base = {key: value for key, value in config._given.items() if key != "variant"}
    found = {}
    for variant in config.variant:
        table = base
        for key, value in variant.set.items():
            table = _assigned(table, key.split("."), value, f"{where}, variant {variant.name!r}: {key}")
        found[variant.name] = parse(table, f"{where}, variant {variant.name!r}")
        for key in ("strict", "deterministic"):  # one process runs all variants
            if getattr(found[variant.name].training, key) != getattr(config.training, key):
                raise InputError(
                    f"{where}, variant {variant.name!r}: training.{key}: set it for all variants, not for one"
                )
    return found


def settings() -> dict[str, dict[str, str]]:
    """The keys of the sections that name nothing, such as ``training``, each with its default."""
    plain = {key: section for key, section in _PLAIN.items() if key != "variant"}
    return {
        key: {
            name: "" if field.default is None else f"= {field.default!r}"
            for name, field in section.model_fields.items()
        }
        for key, section in plain.items()
    }


def to_table(config: Config) -> dict[str, Any]:
    """The configuration as TOML's types, every default filled in; what is not set is left out."""
    table: dict[str, Any] = config.model_dump(exclude_none=True, serialize_as_any=True)
    return table if table["variant"] else {key: value for key, value in table.items() if key != "variant"}


def to_toml(config: Config) -> str:
    """The resolved configuration; reading it gives the same configuration again."""
    return tomli_w.dumps(to_table(config))


def flat(config: Config) -> dict[str, str]:
    """Every value under one name, ``optimizer_learning_rate``: MLflow's parameters."""
    result: dict[str, str] = {}

    def collect(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{prefix}_{key}" if prefix else key, inner)
        elif value != "":
            result[prefix] = str(value)

    collect("", {k: v for k, v in config.model_dump(serialize_as_any=True).items() if k != "variant"})
    return result


def arguments(section: BaseModel) -> dict[str, Any]:
    """The constructor's arguments that a section holds."""
    own = set(next(base for base in _NAMED.values() if isinstance(section, base)).model_fields)
    return {key: getattr(section, key) for key in type(section).model_fields if key not in own}
