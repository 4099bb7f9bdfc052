"""What this user trusted when a run was begun on this machine; kept outside the record.

A run of one's own is resumed and loaded with the references that it was begun with. A record cannot
say which those are, because anybody may have written it. So they are kept in the user's state
folder, under the name of the run's folder, bound to its path and to the first line of its journal.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from fbp.errors import InputError
from fbp.experiment.config import references
from fbp.experiment.config.references import NO_TRUST, Trust
from fbp.experiment.rundir import journal, layout
from fbp.experiment.rundir.manifest import digest_of_file


def _file(folder: Path) -> Path | None:
    """Return where the trust for a run is kept; None if this user has no home."""
    chosen = os.environ.get("XDG_STATE_HOME")
    try:
        base = Path(chosen) if chosen else Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    return base / "fbp" / "trust" / f"{folder.name}.json"


def remember(folder: Path, text: str) -> None:
    """Keep what a new run of this machine refers to. Nothing is kept if that is not possible.

    Args:
        folder: the run's; its journal has its first line.
        text: its configuration, or the name of its tracker.
    """
    path, trusted = _file(folder), references.named_in(text)
    if path is None or not trusted.references:
        return
    entry = {**_identity(folder), **trusted.to_json()}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(entry, file)


def recall(folder: Path, config: Path | None = None) -> Trust:
    """Return what was trusted when the run of a folder was begun here; nothing if it was not.

    Args:
        folder: the run's.
        config: the configuration that will be read, which must be the one it was begun with.
            Default: that of the folder.
    """
    path = _file(folder)
    try:
        entry: Any = json.loads(path.read_text(encoding="utf-8")) if path else {}
        if {key: entry[key] for key in ("folder", "start")} != _identity(folder):
            return NO_TRUST
        start, config = journal.require_start(folder), config or layout.config(folder)
        if start.config and digest_of_file(config)["sha256"] != start.config:
            return NO_TRUST
        return Trust.from_json(entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        return NO_TRUST


def _identity(folder: Path) -> dict[str, str]:
    """Return the path of a run, and SHA-256 of the first line of its journal."""
    with open(layout.journal(folder), "rb") as file:
        line = file.readline()
    return {"folder": str(folder.resolve()), "start": hashlib.sha256(line).hexdigest()}
