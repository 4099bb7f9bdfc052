"""What pydantic found wrong, as one line for each key: its path, what was expected, what came."""

from collections.abc import Mapping
from datetime import date, time
from typing import Any

from pydantic import BaseModel, ValidationError

from fbp.experiment.config.catalogue import did_you_mean


def format(
    error: ValidationError,
    prefix: tuple[str, ...],
    models: Mapping[tuple[str, ...], type[BaseModel]],
) -> list[str]:
    """One line for each of pydantic's errors: the key's path, what was expected, what came."""
    expected: dict[str, list[str]] = {}  # a union reports each of its branches
    given: dict[str, str] = {}
    for problem in error.errors():
        location = tuple(str(part) for part in problem["loc"] if not _is_branch(part))
        if problem["type"] == "extra_forbidden":
            location = (
                (*location, str(problem["loc"][-1])) if _is_branch(problem["loc"][-1]) else location
            )
        path = ".".join((*prefix, *location))
        if problem["type"] == "extra_forbidden":
            owner = tuple(part for part in (*prefix, *location[:-1]) if not part.isdigit())
            valid = models[owner].model_fields if owner in models else {}
            text = f"unknown key; {did_you_mean(str(problem['loc'][-1]), valid)}"
        elif problem["type"] == "missing":
            text = "expected a value, got none; add it"
        elif problem["type"] == "string_pattern_mismatch":
            text = f"expected a letter or digit, then letters, digits, spaces and . - _ only, got {problem['input']!r}"
        elif problem["type"] == "value_error":
            text = str(problem["ctx"]["error"])
        else:
            text, given[path] = (
                _expectation(problem["msg"]),
                f", got {_as_written(problem['input'])}",
            )
        expected.setdefault(path, []).append(text)
    return [
        f"{path}: {'expected ' if path in given else ''}{' or '.join(texts)}{given.get(path, '')}"
        for path, texts in expected.items()
    ]


def _expectation(message: str) -> str:
    """What pydantic expected, without its "Input should be"."""
    text = (
        message.removeprefix("Input should be ")
        .replace("a valid ", "a ")
        .replace("a integer", "an integer")
    )
    text = text.replace("String should have at ", "a text of at ")
    if "dictionary or instance of" in text:
        text = "a table of keys and values"
    return f"a number {text}" if text.startswith(("greater", "less")) else text


def _as_written(value: Any) -> str:
    return value.isoformat() if isinstance(value, date | time) else repr(value)


def _is_branch(part: Any) -> bool:
    """Whether a part of pydantic's location names a branch of a union and not a key."""
    return isinstance(part, str) and (
        part in ("int", "float", "none", "str") or "[" in part or "-" in part
    )
