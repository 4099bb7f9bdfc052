"""What is another than when a run began: checked when it is resumed, also where no steps overlap.

The configuration and the data must be the same. The user's own code must be, too, unless the user
accepts the change. Another environment is noted, because it may change bits and cannot be helped.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from fbp.errors import InputError
from fbp.experiment.config import bounded, references, writing
from fbp.experiment.config.schema import Config
from fbp.experiment.rundir import environment, journal, layout, tags, trust_store
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.redact import redact_texts

_MAX_LINES = 5
_LONGEST_VALUE = 60  # characters
_LONGEST_TAG = 1000
_SHORT_DIGEST = 12


class _Resumed(Protocol):
    @property
    def accepts_changes(self) -> bool: ...


class _Notes(Protocol):
    def note(self, text: str) -> None: ...


def current_folder() -> Path:
    """Return the current folder; the root folder if it was removed."""
    try:
        return Path.cwd()
    except OSError:
        return Path("/")


def check_resumed(
    config: Config, identity: _Resumed, folder: Path, variants: Iterable[Config] = ()
) -> list[str]:
    """Check that a run goes on with what it began with; return what is another nevertheless.

    Args:
        config: the configuration that is about to be trained; its code is loaded.
        identity: says whether the user accepts that own code has changed.
        folder: the run's.
        variants: the configurations of its variants, if it is a group.

    Raises:
        InputError: if the configuration, or the user's own code, is another.
    """
    check_config(folder, config)
    recorded = environment.read(layout.artifacts(folder))
    names = writing.names_in([config, *variants])
    changed, unloaded = _changed_files(recorded.get("own_code"), names)
    if changed and not identity.accepts_changes:
        raise InputError(
            f"{folder.name}: own code {_listed(changed)} is not what the run was begun with; put "
            "it back, start a new run, or go on with it: --accept-changes"
        )
    current = environment.describe()
    lines = [
        f"{name} was {old[:_LONGEST_VALUE]}, is {new[:_LONGEST_VALUE]}"
        for name, old, new in environment.differences(recorded, current)
    ]
    return [*(f"own code {name}" for name in changed), *unloaded, *lines]


def note_changes(writer: Journal, changes: list[str], reporter: _Notes) -> None:
    """Show what is another than when a run began, and write it into a tag."""
    if not changes:
        return
    for line in changes[:_MAX_LINES]:
        reporter.note(f"not as when the run began: {line}")
    if len(changes) > _MAX_LINES:
        reporter.note(f"and {len(changes) - _MAX_LINES} more changes, see {tags.RESUMED_WITH}")
    earlier = journal.read_tags(writer.folder).get(tags.RESUMED_WITH, "").split("; ")
    text = "; ".join(dict.fromkeys(filter(None, (*earlier, *changes))))
    writer.tags({tags.RESUMED_WITH: environment.encodable(text)[:_LONGEST_TAG]})


def check_config(folder: Path, config: Config | None = None) -> None:
    """Check that a run's configuration is the one that it was begun with.

    Args:
        folder: the run's.
        config: the configuration that was read from it. None if it cannot be read; then the file's
            plain values are compared, and no name in it means anything.

    Raises:
        InputError: if it is another.
    """
    start = journal.require_start(folder)
    path = layout.config(folder)
    changed = (
        writing.changed_params(start.params, redact_texts(writing.flat_params(config)))
        if config
        else _changed_in_file(path, start.params)
    )
    same_file = not start.config or trust_store.config_digest(path) == start.config
    if same_file and (not changed or config is None):
        return
    keys = f" in {_listed(changed)}" if changed else ""
    raise InputError(
        f"{folder.name}: its configuration differs{keys} from the one that the run was begun with; "
        f"put {path} back, or start a new run"
    )


def _changed_in_file(path: Path, params: Mapping[str, str]) -> list[str]:
    """Return the plain values of a configuration's file that differ from the recorded params."""
    try:
        table = bounded.read_toml(path)
    except (OSError, ValueError):
        return []
    values = {
        f"{section}_{key}": value
        for section, keys in table.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
    } | table
    current = {key: str(x) for key, x in values.items() if isinstance(x, str | int | float)}
    current = redact_texts({key: text for key, text in current.items() if text or key in params})
    return writing.changed_params({key: params.get(key, "") for key in current}, current)


def _changed_files(recorded: object, names: list[str]) -> tuple[list[str], list[str]]:
    """Return the files of the user's own code that changed, and what is no longer loaded.

    A file that a reference names, and whose digest was not recorded, has changed: unknown is not
    the same. Files that were imported from beside it count if they were recorded.
    """
    digests = recorded if isinstance(recorded, dict) else {}
    files, named = references.code_files(names), references.named_files(names)
    changed = [
        str(path)
        for name, path in files.items()
        if (name in digests or path in named) and digests.get(name) != _digest(path)
    ]
    return changed, [f"own code {name} is not loaded" for name in sorted(digests.keys() - files)]


def _digest(path: Path) -> str:
    try:
        return environment.file_digest(path)
    except OSError:
        return "unknown"


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - _MAX_LINES} more" if len(names) > _MAX_LINES else ""
    return ", ".join(names[:_MAX_LINES]) + rest
