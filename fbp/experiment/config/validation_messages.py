"""Pydantic's errors as one line for each key: its path, what was expected, what came."""

from collections.abc import Mapping
from datetime import date, time
from typing import Any

from pydantic import BaseModel, ValidationError

from fbp.errors import did_you_mean


def format(
    error: ValidationError,
    prefix: tuple[str, ...],
    models: Mapping[tuple[str, ...], type[BaseModel]],
) -> list[str]:
    """Return one line for each key that is wrong.

    Args:
        error: pydantic's.
        prefix: the path of the table that was validated.
        models: the models of tables by their paths, for suggestions.
    """
    texts: dict[str, list[str]] = {}  # by path; a union reports each of its branches
    received: dict[str, str] = {}
    for problem in error.errors():
        location = _location(problem["loc"], is_unknown=problem["type"] == "extra_forbidden")
        path = ".".join((*prefix, *location))
        if problem["type"] == "extra_forbidden":
            owner = tuple(part for part in (*prefix, *location[:-1]) if not part.isdigit())
            valid = models[owner].model_fields if owner in models else {}
            text = f"unknown key; {did_you_mean(location[-1], valid)}"
        elif problem["type"] == "missing":
            text = "expected a value, got none; add it"
        elif problem["type"] == "string_pattern_mismatch":
            text = (
                "expected a letter or digit, then letters, digits, spaces and . - _ only, "
                f"got {problem['input']!r}"
            )
        elif problem["type"] == "value_error":
            text = str(problem["ctx"]["error"])
        else:
            text = _expectation(problem["msg"])
            received[path] = f", got {as_written(problem['input'])}"
        texts.setdefault(path, []).append(text)
    return [
        f"{path}: {'expected ' if path in received else ''}{' or '.join(alternatives)}"
        f"{received.get(path, '')}"
        for path, alternatives in texts.items()
    ]


def _location(parts: tuple[Any, ...], *, is_unknown: bool) -> tuple[str, ...]:
    """Return the path of a key without the branches of unions that pydantic names in it."""
    last = len(parts) - 1 if is_unknown else -1  # an unknown key may be called like a branch
    return tuple(
        str(part) for index, part in enumerate(parts) if index in (0, last) or not _is_branch(part)
    )


def _expectation(message: str) -> str:
    """Return what pydantic expected, without its "Input should be"."""
    text = (
        message.removeprefix("Input should be ")
        .replace("a valid ", "a ")
        .replace("a integer", "an integer")
    )
    text = text.replace("String should have at ", "a text of at ")
    if "dictionary or instance of" in text:
        text = "a table of keys and values"
    return f"a number {text}" if text.startswith(("greater", "less")) else text


def as_written(value: Any) -> str:
    """Return a value as a user has written it."""
    return value.isoformat() if isinstance(value, date | time) else repr(value)


def _is_branch(part: Any) -> bool:
    """Return whether a part of pydantic's location names a branch of a union and not a key."""
    return isinstance(part, str) and (
        part in ("int", "float", "none", "str", "bool", "any") or "[" in part or "-" in part
    )
