"""A configuration written: as TOML that reads back as itself, and as flat parameters."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
from pydantic import BaseModel

from fbp.experiment.config.arguments import NamedSection
from fbp.experiment.config.schema import Config, TrackingSection
from fbp.experiment.config.trust import FILE_REFERENCE, is_module_reference

_QUOTED = re.compile(r"'([^']*:\w+)'")


def to_table(config: Config) -> dict[str, Any]:
    """Return the configuration as TOML's types, every default filled in.

    Values of None are left out, because TOML has none.
    """
    table: dict[str, Any] = config.model_dump(exclude_none=True, serialize_as_any=True)
    return {key: value for key, value in table.items() if key != "variant" or value}


def to_toml(config: Config) -> str:
    """Return the resolved configuration as text; to read it gives the same configuration."""
    return tomli_w.dumps(to_table(config))


def flat_params(config: Config) -> dict[str, str]:
    """Return every value under one name, such as ``optimizer_learning_rate``, for a tracker."""
    params: dict[str, str] = {}

    def collect(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{prefix}_{key}" if prefix else key, inner)
        elif value != "":
            params[prefix] = str(value)

    table = config.model_dump(serialize_as_any=True)
    collect("", {key: value for key, value in table.items() if key != "variant"})
    return params


class Written(NamedTuple):
    """What a run records of its configuration.

    Attributes:
        text: see :func:`to_toml`.
        params: see :func:`flat_params`.
        names: see :func:`names_in`.
    """

    text: str
    params: dict[str, str]
    names: list[str]


def written(config: Config, variants: Iterable[Config] = ()) -> Written:
    """Return what a run, or a group of variants, records of its configuration."""
    return Written(to_toml(config), flat_params(config), names_in([config, *variants]))


def names_in(value: Any) -> list[str]:
    """Return all names in a configuration, or in a part of it: of the catalogue, and references."""
    if isinstance(value, list | tuple):
        return [name for item in value for name in names_in(item)]
    if not isinstance(value, BaseModel):
        return []
    own = [value.name] if isinstance(value, NamedSection) else []
    own += [value.sink] if isinstance(value, TrackingSection) else []
    return own + [
        name for field in type(value).model_fields for name in names_in(getattr(value, field))
    ]


def changed_params(recorded: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """Return the names of the params that differ.

    It does not count where the code of a reference lies: a reader of a record gives a copy of it.

    Args:
        recorded: see :func:`flat_params`.
        current: those of another configuration.
    """
    names = sorted({*recorded, *current})
    return [
        name
        for name in names
        if _without_place(recorded.get(name)) != _without_place(current.get(name))
    ]


def _without_place(text: str | None) -> str | None:
    if text is None:
        return None
    source, _, name = text.rpartition(":")
    if FILE_REFERENCE.fullmatch(text):
        return f"{Path(source).stem}:{name}"
    if is_module_reference(text):
        return f"{source.rpartition('.')[2]}:{name}"
    # a list or table of names, as a param has it
    return _QUOTED.sub(lambda match: f"'{_without_place(match[1])}'", text)


def same_but_for_places(value: Any, other: Any) -> bool:
    """Return whether two configurations, as TOML gives them, differ in places of code at most."""
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(
            same_but_for_places(item, other[key]) for key, item in value.items()
        )
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(same_but_for_places, value, other))
    if isinstance(value, str) and isinstance(other, str):
        return _without_place(value) == _without_place(other)
    return type(value) is type(other) and value == other
