"""The keys of a section that names something: arguments read from a constructor's signature.

So there is one place in which an argument is declared, for the library and for a user's own code.
"""

import functools
import inspect
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    create_model,
    model_serializer,
)
from pydantic.errors import PydanticUserError

from fbp._arguments import RANGES
from fbp.errors import InputError, first_line
from fbp.experiment.config import references, validation_messages
from fbp.experiment.config.catalogue import (
    CATALOGUE,
    KINDS,
    leading_arguments,
    lookup,
    mentions_function,
    nested_kind,
    signature,
)
from fbp.layer import Array
from fbp.optimizers.base import Scalar


class Section(BaseModel):
    """A table of a configuration; unknown keys and values of other types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class NamedSection(Section):
    """A table that names something, and has the arguments of what it names.

    Attributes:
        section_kind: the kind of thing, a key of ``KINDS``.
        argument_names: the keys that are arguments of the constructor.
        name: a name of the catalogue, or a reference.
    """

    section_kind: ClassVar[str] = ""
    argument_names: ClassVar[tuple[str, ...]] = ()

    name: str

    def constructor_arguments(self) -> dict[str, Any]:
        """Return the arguments that are set; what is None is left to the constructor."""
        values = {key: getattr(self, key) for key in self.argument_names}
        return {key: value for key, value in values.items() if value is not None}


class NestedSection(NamedSection):
    """A value that names something: written as the bare name if there is nothing else to write."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> Any:
        table = {key: value for key, value in write(self).items() if value is not None}
        return self.name if table == {"name": self.name} else table


# Names that an argument cannot have, because sections work by them.
_RESERVED = {name for name in dir(NamedSection) if name.startswith("model_")}
_RESERVED |= {"section_kind", "argument_names", "constructor_arguments"}


def nested(kind: str, base: type[NamedSection] = NestedSection) -> Any:
    """Return the type of a value that names something.

    Args:
        kind: the kind of thing, a key of ``KINDS``.
        base: the section's own keys.

    Returns:
        A type for pydantic, of ``"relu"`` or ``{name = "leaky_relu", slope = 0.2}``.
    """

    def validate(value: Any) -> Any:
        if isinstance(value, NamedSection):
            return value
        table = {"name": value} if isinstance(value, str) else value
        if not isinstance(table, dict) or not isinstance(table.get("name"), str):
            article = "an" if kind[0] in "aeiou" else "a"
            raise ValueError(
                f"expected the name of {article} {kind} or a table with 'name', got {value!r}"
            )
        try:
            return section_of(kind, table, base)
        except InputError as error:
            raise ValueError(str(error)) from None
        except ValidationError as error:
            model = section_model(kind, references.canonical(kind, table["name"]), base)
            raise ValueError(
                "; ".join(validation_messages.format(error, (), {(): model}))
            ) from None

    return Annotated[Any, BeforeValidator(validate)]


def section_of(kind: str, table: Mapping[str, Any], base: type[NamedSection]) -> NamedSection:
    """Return a section that names something, checked.

    Raises:
        InputError: if there is nothing of its name, or if it cannot be used from a file.
        ValidationError: if a key or a value is wrong.
    """
    name = references.canonical(kind, table["name"])
    model = section_model(kind, name, base)
    return model.model_validate({**table, "name": name})


def _origin(annotation: Any) -> Any:
    return typing.get_origin(annotation)


# Which type a configuration takes for an argument: the first row whose predicate holds.
_FieldType = tuple[Callable[[Any], bool], Callable[[Any], Any]]
_FIELD_TYPES: tuple[_FieldType, ...] = (
    (lambda annotation: annotation is inspect.Parameter.empty, lambda annotation: Any),
    (lambda annotation: nested_kind(annotation) is not None, lambda a: nested(str(nested_kind(a)))),
    (
        lambda annotation: annotation in (Scalar, Array) or Array in typing.get_args(annotation),
        lambda annotation: float,
    ),
    (
        lambda annotation: _origin(annotation) in (Sequence, list),
        lambda annotation: list[_field_type(*typing.get_args(annotation))],  # type: ignore[misc]
    ),
    (
        lambda annotation: _origin(annotation) is tuple,
        lambda annotation: Annotated[
            tuple[tuple(map(_tuple_item, typing.get_args(annotation)))],  # type: ignore[misc]
            Field(strict=False),
        ],
    ),
    (
        lambda a: _origin(a) in (typing.Union, types.UnionType),
        lambda a: functools.reduce(
            lambda left, right: left | right, map(_field_type, typing.get_args(a))
        ),
    ),
)


def _tuple_item(annotation: Any) -> Any:
    return annotation if annotation is Ellipsis else _field_type(annotation)


def _field_type(annotation: Any) -> Any:
    """Return the type that a configuration takes for an argument of this annotation."""
    if annotation is type(None):
        return None
    for applies, make in _FIELD_TYPES:
        if applies(annotation):
            return make(annotation)
    return annotation


def _in_range(field_type: Any, name: str) -> Any:
    """Return the type of a library argument restricted to its range, if it has one."""
    if name not in RANGES:
        return field_type
    if field_type in (int, float):
        finite: dict[str, Any] = {"allow_inf_nan": False} if field_type is float else {}
        return Annotated[field_type, Field(**finite, **RANGES[name])]
    parts = typing.get_args(field_type)
    if _origin(field_type) is list:
        return list[_in_range(parts[0], name)]  # type: ignore[misc]
    if _origin(field_type) in (typing.Union, types.UnionType):
        limited = (_in_range(part, name) for part in parts if part is not type(None))
        return functools.reduce(lambda left, right: left | right, limited) | None
    return field_type


def _can_be_held(field_type: Any, annotation: Any) -> bool:
    if mentions_function(annotation):
        return False
    try:
        TypeAdapter(field_type, config=ConfigDict(strict=True))
    except PydanticUserError:
        return False
    return True


def _refused(kind: str, name: str, parameter: str) -> Any:
    """Return the type of an optional argument that a file cannot hold: any value is refused."""

    def refuse(value: Any) -> Any:
        raise ValueError(
            f"a file cannot hold a value of the type that {kind} {name!r} declares for "
            f"{parameter!r}; remove it"
        )

    return Annotated[Any, BeforeValidator(refuse)]


@functools.cache
def section_model(kind: str, name: str, base: type[NamedSection]) -> type[NamedSection]:
    """Return the model of a section that names something.

    Args:
        kind: the kind of thing, a key of ``KINDS``.
        name: a name of the catalogue, or a reference as ``references.canonical`` gives it.
        base: the section's own keys, to which the constructor's arguments are added.

    Raises:
        InputError: if there is nothing of that name, or if a file cannot hold its arguments.
    """
    constructor = lookup(kind, name)
    fields: dict[str, Any] = {}
    for parameter in configurable_parameters(kind, name, constructor):
        if parameter.name in _RESERVED | set(base.model_fields) or parameter.name[0] == "_":
            raise InputError(
                f"{kind} {name!r}: its argument {parameter.name!r} has a name that the section "
                "uses itself; rename the argument"
            )
        fields[parameter.name] = _field(kind, name, parameter)
    try:
        with warnings.catch_warnings():  # an argument may be called as a method of pydantic
            warnings.filterwarnings("ignore", "Field name .* shadows an attribute")
            model = create_model(f"{kind} {name}", __base__=base, **fields)
    except (PydanticUserError, NameError) as error:
        reason = first_line(error)
        raise InputError(f"{kind} {name!r}: a file cannot hold its arguments ({reason})") from None
    model.section_kind, model.argument_names = kind, tuple(fields)
    return model


def _field(kind: str, name: str, parameter: inspect.Parameter) -> tuple[Any, Any]:
    """Return pydantic's type and default of an argument.

    A default of None leaves the argument to the constructor.
    """
    field_type = _field_type(parameter.annotation)
    if not references.is_reference(name):
        field_type = _in_range(field_type, parameter.name)
    required = parameter.default is parameter.empty
    if not _can_be_held(field_type, parameter.annotation):
        if required and parameter.kind is not parameter.VAR_POSITIONAL:
            raise InputError(
                f"{kind} {name!r}: expected arguments of types that a file can hold (numbers, "
                f"texts, booleans, lists, tables), got {parameter.name!r} of type "
                f"{inspect.formatannotation(parameter.annotation)}"
            )
        return _refused(kind, name, parameter.name), None
    if parameter.kind is parameter.VAR_POSITIONAL:
        return types.GenericAlias(list, (field_type,)), []
    if required and not (kind == "schedule" and parameter.name == "steps"):
        return field_type, ...
    default = None if required else _default(parameter)
    return (field_type if default is not None else field_type | None), default


def _default(parameter: inspect.Parameter) -> Any:
    """Return a default as a configuration writes it; None if it cannot."""
    value, kind = parameter.default, None
    options = (parameter.annotation, *typing.get_args(parameter.annotation))
    kind = next((kind for option in options if (kind := nested_kind(option))), None)
    if kind is not None:
        name = next((name for name, known in CATALOGUE[kind].items() if known is value), None)
        return None if name is None else section_model(kind, name, NestedSection)(name=name)
    if isinstance(value, tuple):
        value = list(value)
    return value if _is_toml(value) else None


def _is_toml(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_toml, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_toml(item) for key, item in value.items())
    return type(value) in (int, float, str, bool)


def configurable_parameters(kind: str, name: str, constructor: Any) -> Iterator[inspect.Parameter]:
    """Yield the parameters of a constructor that a configuration sets.

    Raises:
        InputError: if its signature cannot be read, or lacks an argument that the runner supplies.
    """
    description = KINDS[kind]
    if isinstance(constructor, description.instances):
        return
    try:
        parameters = list(signature(constructor).parameters.values())
        leading = leading_arguments(kind, constructor)
    except (NameError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{kind} {name!r}: its arguments cannot be read ({error})") from None
    names = {parameter.name for parameter in parameters}
    for missing in sorted(description.required - names):
        raise InputError(
            f"{kind} {name!r}: expected a function with an argument {missing!r}, got the "
            f"arguments ({', '.join(parameter.name for parameter in parameters)})"
        )
    for parameter in parameters[leading:]:
        untyped_rest = (
            parameter.kind is parameter.VAR_POSITIONAL and parameter.annotation is parameter.empty
        )
        if (
            parameter.kind is not parameter.VAR_KEYWORD
            and not untyped_rest
            and parameter.name not in description.from_runner
        ):
            yield parameter
