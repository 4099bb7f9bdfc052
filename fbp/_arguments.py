"""What the library's constructors accept: ranges by name, and the check of a call's arguments.

The ranges are those of a configuration, too. A hyper-parameter may be a tracer, as under
``jax.vmap`` over learning rates; then only its type is known, and nothing is checked.
"""

import functools
import inspect
import numbers
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from fbp.errors import ArgumentError, CallError

_F = TypeVar("_F", bound=Callable[..., Any])

RANGES: Mapping[str, Mapping[str, Any]] = {
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
    "pieces": {"ge": 1},
    "code": {"ge": 1},
    "width": {"ge": 1},
    "embedding_width": {"ge": 1},
    "dropout_rate": {"ge": 0, "lt": 1},
    "periods": {"gt": 0},
    "seed": {"ge": 0},
    "pixels": {"ge": 0},
    "margin": {"ge": 0},
    "size": {"ge": 0},
    "hidden": {"ge": 1},
    "channels": {"ge": 1},
    "boundaries": {"ge": 1},
    "dilation": {"ge": 1},
    "groups": {"ge": 1},
    "rate": {"ge": 0, "lt": 1},
    "batch": {"ge": 1},
    "classes": {"ge": 1},
    "smoothing": {"ge": 0, "le": 1},
    "limit": {"gt": 0},
    "strength": {"ge": 0},
    "outputs": {"ge": 1},
    "times": {"ge": 1},
    "unroll": {"ge": 1},
    "loss_scale": {"gt": 0},
    "positions": {"ge": 1},
    "count": {"ge": 0},
    "temperature": {"ge": 0},
}
"""The ranges of the library's own arguments, by name: pydantic's words for bounds."""

_SIGNS = {
    "gt": ("more than", operator.gt),
    "ge": ("at least", operator.ge),
    "lt": ("less than", operator.lt),
    "le": ("at most", operator.le),
}
_SHOWN = 60  # characters of a value in a message


def checked(function: _F) -> _F:
    """Decorate a constructor: its arguments are checked by their annotations and ``RANGES``.

    A call with wrong arguments raises :class:`fbp.errors.ArgumentError`, one line with the name of
    the function and of the argument. What is not known (a tracer) or has no simple type is left to
    the function.
    """

    @functools.cache
    def signature() -> inspect.Signature:
        return inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        try:
            bound = signature().bind(*args, **options)
        except TypeError as error:
            raise CallError(f"{function.__name__}: {error}") from None
        for name, value in bound.arguments.items():
            _check(function.__name__, name, value, signature().parameters[name])
        return function(*args, **options)

    return typing.cast(_F, wrapper)


def _check(function: str, name: str, value: Any, parameter: inspect.Parameter) -> None:
    """Raise ArgumentError if an argument has another type than declared, or is out of range."""
    if isinstance(value, jax.core.Tracer):
        return
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return
    if value is parameter.default or (_is_whole(value) and value == parameter.default):
        return
    kinds = _alternatives(parameter.annotation)
    if not any(_accepts(kind, value) for kind in kinds):
        expected = " or ".join(dict.fromkeys(map(_words, kinds)))
        raise ArgumentError(function, name, f"expected {expected}, got {_shown(value)}")
    if name in RANGES:
        _check_range(function, name, value)


def _alternatives(annotation: Any) -> list[Any]:
    """Return the parts of a union, without None; or the annotation itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [part for part in typing.get_args(annotation) if part is not types.NoneType]
    return [annotation]


def _accepts(kind: Any, value: Any) -> bool:
    """Return whether a value can be an argument of a type; True if that is not a simple one."""
    origin = typing.get_origin(kind)
    if kind is int:
        return _is_whole(value)
    if kind is float:
        return _is_number(value)
    if kind is jax.Array:
        return _is_number(value) or isinstance(value, jax.Array | np.ndarray)
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    if kind is str:
        return isinstance(value, str)
    if origin is typing.Literal:
        return isinstance(value, str) and value in typing.get_args(kind)
    if isinstance(origin, type) and issubclass(origin, Callable):  # type: ignore[arg-type]
        return callable(value)
    if origin is Sequence:
        (part,) = typing.get_args(kind)
        is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
        return is_sequence and all(_accepts(part, entry) for entry in value)
    if origin is tuple:
        parts = [part for part in typing.get_args(kind) if part is not Ellipsis]
        is_pair = isinstance(value, tuple | list)
        return is_pair and all(_accepts(parts[0], entry) for entry in value)
    return True


def _is_whole(value: Any) -> bool:
    if isinstance(value, bool | np.bool_ | str):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return False
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return value.ndim == 0 and bool(np.issubdtype(value.dtype, np.number) or _is_narrow(value))
    return isinstance(value, numbers.Real)


def _is_narrow(value: Any) -> bool:
    """Return whether an array's dtype is one of JAX's own, such as bfloat16."""
    return bool(jax.numpy.issubdtype(value.dtype, jax.numpy.floating))


def _words(kind: Any) -> str:
    origin = typing.get_origin(kind)
    simple = {
        int: "a whole number",
        float: "a number",
        jax.Array: "a number",
        bool: "True or False",
        str: "a text",
    }
    if kind in simple:
        return simple[kind]
    if origin is typing.Literal:
        return " or ".join(repr(word) for word in typing.get_args(kind))
    if isinstance(origin, type) and issubclass(origin, Callable):  # type: ignore[arg-type]
        return "a function"
    if origin in (Sequence, tuple):
        part = _words(typing.get_args(kind)[0]).removeprefix("a ").removesuffix("s")
        return f"a sequence of {part}s"
    return getattr(kind, "__name__", str(kind))


def _shown(value: Any) -> str:
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{type(value).__name__} {text[: _SHOWN - 3]}..."


def _check_range(function: str, name: str, value: Any) -> None:
    """Raise ArgumentError if a number, or one of a sequence of numbers, is out of range."""
    if callable(value) or isinstance(value, str):
        return
    try:
        entries = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return
    for word, bound in RANGES[name].items():
        text, holds = _SIGNS[word]
        if not np.all(holds(entries, bound)):  # NaN satisfies no bound
            raise ArgumentError(
                function, name, f"expected a number of {text} {bound}, got {_shown(value)}"
            )
    if not np.all(np.isfinite(entries)):
        raise ArgumentError(function, name, f"expected a finite number, got {_shown(value)}")
