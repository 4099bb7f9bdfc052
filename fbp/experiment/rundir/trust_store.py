"""What a user's runs on this machine began with, kept outside of the records.

A run folder may be anybody's: unpacked, downloaded, copied. What code its configuration may name,
and to which address it is sent with the user's login, is therefore not taken from it, but from
``$XDG_STATE_HOME/fbp/trust/RUN.json`` (by default ``~/.local/state``), which only its user can read
and write. The entry holds for one folder at one path; what it says of code, with one configuration.
"""

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fbp.experiment.config import bounded, references
from fbp.experiment.config.trust import NOTHING, Trust
from fbp.experiment.rundir import layout

_FORMAT = 1
_LARGEST = 2**20  # bytes of an entry
_NO_CONFIG = ""


def config_digest(path: Path) -> str:
    """Return SHA-256 of a configuration's file; empty if there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return _NO_CONFIG


def remember(folder: Path, names: Iterable[str]) -> str:
    """Keep what the run of a folder begins with; return why its code cannot be kept, or nothing.

    Args:
        folder: the run's, in which the configuration and the tracker's address are already.
        names: all that its configuration names; those of the catalogue are left out.
    """
    own = frozenset(name for name in names if references.is_reference(name))
    place = layout.read_destination(folder)
    if not own and place in ("", layout.EMBEDDED):
        return ""
    entry = {
        "format": _FORMAT,
        "folder": str(folder.resolve()),
        "config": config_digest(layout.config(folder)),
        "place": place,
        **Trust(own, folders=references.code_folders(own)).to_json(),
    }
    try:
        _write(_entry(folder), json.dumps(entry, indent=1))
    except (OSError, RuntimeError) as error:  # such as no home folder
        return str(error) if own else ""
    return ""


def lookup(folder: Path, config: Path | None = None) -> Trust:
    """Return what the run of a folder began with on this machine; nothing if it did not.

    Args:
        folder: the run's.
        config: the configuration that is about to be read. Default: that of `folder`.
    """
    try:
        entry = _read_entry(folder)
        if entry["config"] != config_digest(config or layout.config(folder)):
            return NOTHING
        return Trust.from_json(entry)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return NOTHING


def place_of(folder: Path) -> str:
    """Return the address that the run of a folder began with on this machine; empty if it did not.

    It is the address that a file of the folder names, too; but that file may be anybody's.
    """
    try:
        place = _read_entry(folder)["place"]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return ""
    return place if isinstance(place, str) else ""


def _read_entry(folder: Path) -> dict[str, Any]:
    """Return the entry of the run of a folder.

    Raises:
        OSError, RuntimeError, ValueError, KeyError, TypeError: if there is none that holds.
    """
    path = _entry(folder)
    facts = path.lstat()
    is_private = stat.S_ISREG(facts.st_mode) and not facts.st_mode & 0o077
    if not is_private or facts.st_uid != os.getuid() or facts.st_size > _LARGEST:
        raise ValueError("expected a small file of the user's own")
    entry: dict[str, Any] = bounded.read_json(path, _LARGEST)
    if (entry["format"], entry["folder"]) != (_FORMAT, str(folder.resolve())):
        raise ValueError("expected the entry of this folder")
    return entry


def lookup_model(folder: Path) -> Trust:
    """Return what the run of a trained model's folder began with, see :func:`lookup`."""
    folder = folder.resolve()
    run = folder.parent.parent
    return lookup(run, folder / layout.CONFIG) if layout.model(run) == folder else NOTHING


def _entry(folder: Path) -> Path:
    return _state_folder() / f"{folder.resolve().name}.json"


def _state_folder() -> Path:
    """Return the folder of the entries; raise RuntimeError if the user has no home folder."""
    chosen = Path(os.environ.get("XDG_STATE_HOME") or "")
    base = chosen if chosen.is_absolute() else Path.home() / ".local" / "state"
    return base / "fbp" / "trust"


def _write(path: Path, text: str) -> None:
    """Write a file atomically that only this user can read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")  # 0600
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
