"""A configuration read: TOML parsed into typed models, every error in one report.

Each section that names something (data, model, loss, optimizer, schedule, and the entries of
metrics and augmentation) accepts the arguments of what it names, with their types and defaults
read from the constructor's signature.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

import fbp
from fbp.errors import InputError, UntrustedCode, did_you_mean
from fbp.experiment.config import bounded, references, validation_messages, writing
from fbp.experiment.config.arguments import NamedSection, Section, section_model, section_of
from fbp.experiment.config.catalogue import CATALOGUE
from fbp.experiment.config.schema import NAMED, PLAIN, Config, TopLevel, VariantSection
from fbp.experiment.config.trust import NOTHING, Trust


def read(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of an experiment file, checked.

    Args:
        path: a TOML file.
        overrides: ``section.key=value`` from the command line. Files to which they refer are
            trusted.

    Raises:
        InputError: one line for each mistake.
    """
    table = _parsed(path)
    table.setdefault("name", path.stem)
    return parse(override(table, overrides), str(path))


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return bounded.read_toml(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {_experiments(path)}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: expected a file, got a folder; {_experiments(path)}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected a TOML file in UTF-8, got other bytes") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: not valid TOML: it is nested too deeply") from None


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


def require_trusted_names(path: Path, trust: Trust = NOTHING) -> None:
    """Check that what a record's configuration names is trusted; import nothing.

    References in the short form of an argument (``activation = "package.module:name"``) are checked
    when the configuration is read inside ``references.reading_record``.

    Args:
        path: the record's ``config.toml``.
        trust: what the reader of the record trusts.

    Raises:
        InputError: if the file cannot be read.
        UntrustedCode: one line for each reference that is neither in fbp's catalogue nor trusted.
    """
    try:
        table = bounded.read_toml(path)
        assert isinstance(table["model"]["name"], str)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected a configuration with a model ({error})") from None
    except AssertionError:
        raise InputError(f"{path}: expected a configuration with a model") from None
    problems = []
    with references.reading_record(trust):
        for section, keys in table.items():
            for kind, name in _names(_KINDS_OF_NAMES.get(section, section), keys):
                try:
                    references.canonical(kind, name)
                except InputError as error:
                    problems.append(str(error))
    if problems:
        raise UntrustedCode("\n".join(dict.fromkeys(problems)))


def same_but_for_places(path: Path, other: Path) -> bool:
    """Return whether two configurations' files differ in the places of own code at most."""
    try:
        return writing.same_but_for_places(_parsed(path), _parsed(other))
    except InputError:
        return False


_KINDS_OF_NAMES = {"metrics": "metric", "tracking": "tracker"}


def _names(kind: str, value: Any) -> list[tuple[str, str]]:
    """Return every name in a section: the values of ``name``, and the texts in ``names``."""
    if isinstance(value, list):
        return [pair for item in value for pair in _names(kind, item)]
    if not isinstance(value, dict):
        return []
    texts = [value.get("name"), value.get("sink"), *_texts(value.get("names"))]
    own = [(kind, text) for text in texts if isinstance(text, str)]
    return own + [pair for item in value.values() for pair in _names(kind, item)]


def _texts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def override(table: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return the table with each ``section.key=value`` of the command line applied.

    Args:
        table: the configuration as TOML gives it; it stays as it is.
        assignments: the value of each is TOML, or a bare text. The files to which values refer are
            trusted from now on.

    Raises:
        InputError: if an assignment has another form, or assigns into what is not a section.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {assignment!r}: expected section.key=value")
        try:
            value = bounded.parse_toml(f"value = {text}")["value"]
        except ValueError:
            value = text
        references.trust_files_in(value)
        table = _assigned(table, key.strip().split("."), value, f"--set {assignment!r}")
    return table


def _assigned(table: dict[str, Any], path: list[str], value: Any, where: str) -> dict[str, Any]:
    """Return the table with a value at a path of keys.

    A table without ``name`` is merged into the present one; any other value replaces it.
    """
    key, *rest = path
    if not key:
        raise InputError(f"{where}: expected section.key, got an empty name")
    inner = table.get(key, {})
    if not rest:
        is_merged = (
            isinstance(value, dict) and value and "name" not in value and isinstance(inner, dict)
        )
        return {**table, key: {**inner, **value} if is_merged else value}
    if isinstance(inner, str):  # "relu" is short for {name = "relu"}
        inner = {"name": inner}
    if not isinstance(inner, dict):
        raise InputError(f"{where}: {key} is not a section")
    return {**table, key: _assigned(inner, rest, value, where)}


class _Result(NamedTuple):
    """A checked part of a configuration: its value, or the problems for which it has none."""

    value: Any
    problems: list[str]


def parse(table: dict[str, Any], where: str) -> Config:
    """Return a checked configuration from a table such as TOML gives.

    Args:
        table: sections by name.
        where: the source, which messages name.

    Raises:
        InputError: one line for each mistake, with its place and what to do.
    """
    results = {kind: _named_section(kind, base, table) for kind, base in NAMED.items()}
    results |= {key: _plain_section(key, model, table) for key, model in PLAIN.items()}
    top_level = _top_level({key: value for key, value in table.items() if key not in results})
    problems = [line for result in (*results.values(), top_level) for line in result.problems]
    if problems:
        raise InputError("\n".join(f"{where}: {problem}" for problem in problems))
    sections = {key: result.value for key, result in results.items()}
    config = Config(**dict(top_level.value), **sections)
    config._table = table
    return config


def _named_section(kind: str, base: type[NamedSection], table: Mapping[str, Any]) -> _Result:
    keys = table.get(kind, {} if kind == "schedule" else None)
    if not isinstance(keys, dict):
        problem = f"{kind}: expected a section [{kind}] with a name, got {_received(keys)}"
        return _Result(None, [problem])
    name = keys.get("name", "constant" if kind == "schedule" else None)
    if not isinstance(name, str):
        names = ", ".join(CATALOGUE[kind])
        return _Result(None, [f"{kind}.name: expected one of {names}, got {_received(name)}"])
    try:
        return _Result(section_of(kind, {**keys, "name": name}, base), [])
    except InputError as error:
        return _Result(None, [f"{kind}.name: {line}" for line in str(error).splitlines()])
    except ValidationError as error:
        model = section_model(kind, references.canonical(kind, name), base)
        return _Result(None, validation_messages.format(error, (kind,), {(kind,): model}))


def _plain_section(key: str, model: type[Section], table: Mapping[str, Any]) -> _Result:
    keys = table.get(key, {})
    if not isinstance(keys, dict):
        return _Result(None, [f"{key}: expected a table of keys and values, got {_received(keys)}"])
    return _validated(model, keys, (key,), {(key,): model})


def _top_level(keys: Mapping[str, Any]) -> _Result:
    return _validated(TopLevel, keys, (), {(): Config, ("variant",): VariantSection})


def _validated(
    model: type[Section],
    keys: Mapping[str, Any],
    prefix: tuple[str, ...],
    models: Mapping[tuple[str, ...], type[BaseModel]],
) -> _Result:
    try:
        return _Result(model.model_validate(dict(keys)), [])
    except ValidationError as error:
        return _Result(None, validation_messages.format(error, prefix, models))


def _received(value: Any) -> str:
    return "nothing" if value is None else validation_messages.as_written(value)


def variants(config: Config, where: str) -> dict[str, Config]:
    """Return the configurations of an experiment's variants by name; none if it has no variants.

    Args:
        config: the experiment.
        where: the source, which messages name.

    Raises:
        InputError: one line for each mistake, in any of the variants.
    """
    names = [variant.name for variant in config.variant]
    if len(set(names)) != len(names):
        raise InputError(f"{where}: variant: expected different names, got {names}")
    base = {key: value for key, value in config._table.items() if key != "variant"}
    parsed: dict[str, Config] = {}
    problems: list[str] = []
    for variant in config.variant:
        place = f"{where}, variant {variant.name!r}"
        table = base
        try:
            for key, value in variant.set.items():
                table = _assigned(table, key.split("."), value, f"{place}: {key}")
            parsed[variant.name] = parse(table, place)
        except InputError as error:
            problems.append(str(error))
            continue
        problems += [
            f"{place}: training.{key}: set it for all variants, not for one"
            for key in ("strict", "deterministic")  # one process runs all variants
            if getattr(parsed[variant.name].training, key) != getattr(config.training, key)
        ]
    if problems:
        raise InputError("\n".join(problems))
    return parsed
