"""The keys of a section that names something: the arguments of what it names, as the constructor's signature declares them."""

import functools
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from fbp.blocks import Activation
from fbp.errors import InputError
from fbp.experiment.config import validation_messages
from fbp.experiment.config.catalogue import lookup
from fbp.experiment.config.schema import NAMED, ModelSection
from fbp.layer import Array, Initializer, Loss
from fbp.optimizers.base import Scalar
from fbp.optimizers.masks import Mask

# what the runner gives to a constructor itself
_SUPPLIED_BY_RUNNER = {
    "model": {"outputs", "vocabulary", "sequence"},
    "schedule": {"value"},
    "optimizer": {"mask"},
}

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
    "warmup_share": {"gt": 0, "lt": 1},
    "initial_divisor": {"ge": 1},
    "final_divisor": {"ge": 1},
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
            raise ValueError(
                f"expected the name of an {kind} or a table with 'name', got {value!r}"
            )
        try:
            model = section_model(kind, table["name"])
            checked = model(**table)
        except InputError as error:
            raise ValueError(str(error)) from None
        except ValidationError as error:
            raise ValueError(
                "; ".join(validation_messages.format(error, (), {(): model}))
            ) from None
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
def section_model(kind: str, name: str) -> type[BaseModel]:
    """The model of a section for what it names: the section's own keys and the constructor's arguments."""
    constructor = lookup(kind, name)
    base = NAMED.get(kind, ModelSection)
    fields: dict[str, Any] = {}
    if not isinstance(constructor, Loss):
        for parameter in _parameters(kind, name, constructor):
            variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if (
                variadic
                or parameter.name in _SUPPLIED_BY_RUNNER.get(kind, set())
                or parameter.annotation == Mask
            ):
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
