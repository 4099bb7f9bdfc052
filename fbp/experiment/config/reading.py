"""A configuration: TOML read into typed models, every error in one report, and written back complete.

Each section that has a ``name`` (data, model, loss, optimizer, schedule) accepts the arguments of what is named, with their
types and defaults read from the constructor's signature. So there is one place where an argument is declared.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

import fbp
from fbp.errors import InputError
from fbp.experiment.config import validation_messages
from fbp.experiment.config.arguments import section_model
from fbp.experiment.config.catalogue import CATALOGUE, did_you_mean
from fbp.experiment.config.schema import NAMED, PLAIN, Config


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


def experiment_folders() -> list[Path]:
    """Return the folders in which an experiment is looked up by its name.

    ``experiments/`` of the working folder, then that of the installed package, or of the checkout
    that is installed in its place.
    """
    package = Path(fbp.__file__).parent
    return [Path("experiments"), package / "experiments", package.parent / "experiments"]


def _experiments(path: Path) -> str:
    files = (file for folder in experiment_folders() for file in folder.glob("*.toml"))
    return did_you_mean(path.stem, sorted({file.stem for file in files}))


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
    inner = table.get(first, {})
    if (
        not rest
    ):  # a table that names something takes the place of what is there, another one is put into it
        added = (
            isinstance(value, dict) and value and "name" not in value and isinstance(inner, dict)
        )
        return {**table, first: {**inner, **value} if added else value}
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
    for kind in NAMED:
        given = table.get(kind, {} if kind == "schedule" else None)
        if not isinstance(given, dict):
            problems.append(f"{kind}: expected a section [{kind}] with a name, got {_shown(given)}")
            continue
        name = given.get("name", "constant" if kind == "schedule" else None)
        if not isinstance(name, str):
            problems.append(
                f"{kind}.name: expected one of {', '.join(CATALOGUE[kind])}, got {_shown(name)}"
            )
            continue
        try:
            model = section_model(kind, name)
        except InputError as error:
            problems.append(f"{kind}.name: {error}")
            continue
        try:
            sections[kind] = model(**given)
        except ValidationError as error:
            problems += validation_messages.format(error, (kind,), {(kind,): model})
            sections[kind] = model.model_construct(**given)
    rest = {key: value for key, value in table.items() if key not in NAMED}
    for kind, base in NAMED.items():
        sections.setdefault(kind, base.model_construct(name=""))
    fields |= {(key,): model for key, model in PLAIN.items()}
    try:
        config = Config(**rest, **sections)
    except ValidationError as error:
        problems += validation_messages.format(error, (), fields)
    if problems:
        raise InputError("\n".join(f"{where}: {problem}" for problem in problems))
    config._given = table
    return config


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def variants(config: Config, where: str) -> dict[str, Config]:
    """The configurations of an experiment's variants by name; none where it has no variants."""
    if len({variant.name for variant in config.variant}) != len(config.variant):
        raise InputError(
            f"{where}: variant: expected different names, got {[v.name for v in config.variant]}"
        )
    base = {key: value for key, value in config._given.items() if key != "variant"}
    found: dict[str, Config] = {}
    problems: list[str] = []
    for variant in config.variant:
        at = f"{where}, variant {variant.name!r}"
        table = base
        try:
            for key, value in variant.set.items():
                table = _assigned(table, key.split("."), value, f"{at}: {key}")
            found[variant.name] = parse(table, at)
        except InputError as error:
            problems.append(str(error))
            continue
        problems += [
            f"{at}: training.{key}: set it for all variants, not for one"
            for key in ("strict", "deterministic")  # one process runs all variants
            if getattr(found[variant.name].training, key) != getattr(config.training, key)
        ]
    if problems:
        raise InputError("\n".join(problems))
    return found
