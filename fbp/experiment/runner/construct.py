"""Construct what a section of a configuration names, with the section's arguments."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fbp.errors import InputError
from fbp.experiment.config.arguments import NamedSection
from fbp.experiment.config.catalogue import (
    KINDS,
    describe,
    leading_arguments,
    lookup,
    signature,
)
from fbp.experiment.config.references import is_reference
from fbp.experiment.runner import fit_checks
from fbp.layer import Array, Initializer, Key, Shape
from fbp.metrics import Metric


def construct(section: NamedSection, **from_runner: Any) -> Any:
    """Return what a section names, constructed with the section's arguments.

    Args:
        section: a section of the configuration, or a nested value that names something.
        from_runner: arguments that the runner supplies; those that the constructor does not have
            are left out.

    Raises:
        InputError: if a user's own code raises, or returns another thing than its kind asks for.
    """
    kind, name = section.section_kind, section.name
    target, description = lookup(kind, name), KINDS[section.section_kind]
    if isinstance(target, description.instances):
        return target
    values = {
        key: _construct_nested(value) for key, value in section.constructor_arguments().items()
    }
    with fit_checks.naming(kind, name):
        if isinstance(target, Metric):
            made: Any = target.bind(**values)
        elif leading_arguments(kind, target):
            made = functools.update_wrapper(functools.partial(target, **values), target)
        else:
            made = _call(target, from_runner | values)
    result = description.result(made)
    if result is None:
        raise InputError(f"{kind} {name!r}: expected {description.expected}, got {describe(made)}")
    if kind == "initializer" and is_reference(name):
        return _checked_initializer(name, result)
    return result


def _construct_nested(value: Any) -> Any:
    """Return an argument with every name in it replaced by what it names.

    Activations stay factories, because each call of one makes a layer of its own.
    """
    if isinstance(value, list | tuple):
        return type(value)(map(_construct_nested, value))
    if not isinstance(value, NamedSection):
        return value
    if value.section_kind == "activation":
        return functools.partial(construct, value)
    return construct(value)


def _call(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Call a function with arguments by name, also those that it takes by position only."""
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    parameters = signature(function).parameters.values()
    has_more = any(p.kind is p.VAR_POSITIONAL and values.get(p.name) for p in parameters)
    for parameter in parameters:
        value = values.get(parameter.name, parameter.default)
        if value is inspect.Parameter.empty or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional.extend(value)
        elif parameter.kind is parameter.POSITIONAL_ONLY or (
            has_more and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ):
            positional.append(value)
        else:
            keywords[parameter.name] = value
    return function(*positional, **keywords)


def _checked_initializer(name: str, initialize: Initializer) -> Initializer:
    """Return a user's initializer that raises InputError unless it gives an array as asked."""

    def checked(key: Key, shape: Shape, dtype: Any = jnp.float32) -> Array:
        with fit_checks.naming("initializer", name):
            values = initialize(key, shape, dtype)
        if not isinstance(values, jax.Array) or values.shape != shape or values.dtype != dtype:
            raise InputError(
                f"initializer {name!r}: expected {jnp.dtype(dtype)} of shape {shape}, got "
                f"{fit_checks.received(values)}"
            )
        return values

    return checked
