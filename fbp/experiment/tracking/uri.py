"""Tracking URIs: which one a run is sent to, and how it is remembered without its password."""

import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

from fbp import _neutral
from fbp._optional import require
from fbp.errors import InputError
from fbp.experiment.config import references
from fbp.experiment.rundir import journal, layout, trust_store
from fbp.experiment.rundir.layout import EMBEDDED
from fbp.experiment.rundir.redact import (
    move_login_to_environment,
    redact,
    split_login,
    storable,
)
from fbp.experiment.tracking import jsonl_sink
from fbp.experiment.tracking import sink as sinks
from fbp.experiment.tracking.sink import Destination

_VARIABLE = "MLFLOW_TRACKING_URI"


def warn(line: str) -> None:
    """Print a line about tracking to standard error."""
    print(f"fbp: {_neutral.line(line)}", file=sys.stderr)


def default_uri(root: Path) -> str:
    """Return the tracking URI of the embedded MLflow store.

    If the path has characters that mean something in a URI, they are encoded. The driver is named
    then, because MLflow would otherwise make a folder with the encoded name.
    """
    path = str(layout.database(root.resolve()))
    if not set(path) & set("?%"):
        return f"sqlite:///{path}"
    from sqlalchemy.engine import make_url

    encoded = f"sqlite+pysqlite:///{quote(path)}"
    if make_url(encoded).database == path:
        return encoded
    return f"sqlite+pysqlite:///file:{quote(path)}?uri=true"  # before SQLAlchemy 2.1


def from_environment() -> str | None:
    """Return the tracking URI of ``MLFLOW_TRACKING_URI``; None if it is not set."""
    return os.environ.get(_VARIABLE) or None


def tracking_uri(root: Path, chosen: str | None) -> str:
    """Return the URI of the MLflow store to use.

    Moves user and password of an http(s) URI into environment variables.

    Args:
        root: the folder ``mlruns``.
        chosen: the URI of the command line; by default that of ``MLFLOW_TRACKING_URI``, or the
            embedded store's.

    Raises:
        InputError: if MLflow cannot use the URI.
        MissingDependency: if MLflow is not installed.
    """
    require("MLflow tracking", "mlflow")
    uri = chosen or from_environment()
    uri = uri or default_uri(root)
    if not re.match(r"^(sqlite|postgresql|mysql|mssql)(\+\w+)?://|^https?://", uri):
        raise InputError(
            f"tracking URI: expected sqlite:///PATH, a database or http(s)://HOST, "
            f"got {redact(uri)!r}; MLflow no longer keeps runs in plain folders"
        )
    try:
        host, _ = urlsplit(split_login(uri)[1]).hostname, urlsplit(split_login(uri)[1]).port
    except ValueError:
        host = None
    if uri.startswith("http") and not host:
        raise InputError(f"tracking URI: expected http(s)://HOST[:PORT], got {redact(uri)!r}")
    # a remembered URI has no login, but the variable may
    move_login_to_environment(os.environ.get(_VARIABLE, ""))
    return _with_absolute_path(move_login_to_environment(uri))


def _with_absolute_path(uri: str) -> str:
    """Return the URI of a SQLite file with its whole path: it is used from other folders, too."""
    match = re.fullmatch(r"(sqlite(?:\+\w+)?:///)(?!/|:memory:|file:)(.+)", uri, re.DOTALL)
    return f"{match[1]}{Path.cwd() / match[2]}" if match else uri


def destination(root: Path, sink: str, chosen: str | None = None) -> Destination:
    """Return where a run is sent.

    Args:
        root: the folder ``mlruns``.
        sink: the tracker, see :mod:`fbp.experiment.tracking.sink`.
        chosen: its address, if not the usual one: for MLflow as in :func:`tracking_uri`, for
            ``jsonl`` the file ``tracked.jsonl`` of ``mlruns``, for any other an empty text.

    Raises:
        InputError: if the tracker cannot be used.
    """
    if sink == "mlflow":
        uri = tracking_uri(root, chosen)
        return Destination(sink, uri, EMBEDDED if uri == default_uri(root) else storable(uri))
    sinks.load(sinks.reference(sink))
    if sink == "jsonl":
        jsonl_sink.check_address(chosen or "")
        uri = str(Path(chosen).absolute() if chosen else layout.tracked_lines(root.resolve()))
        return Destination(sink, uri, uri if chosen else EMBEDDED)
    return Destination(sink, chosen or "", storable(chosen) if chosen else EMBEDDED)


def recorded_destination(
    folder: Path,
    chosen: str | None = None,
    *,
    override: bool = False,
    tell: Callable[[str], None] = warn,
) -> Destination:
    """Return where the run of a folder is sent: where it began to be sent to, or another address.

    A run that did not begin on this machine goes to `chosen`, to ``MLFLOW_TRACKING_URI``, or to the
    store beside it. The address in its folder is not obeyed: whoever wrote it would be sent the
    user's login.

    Args:
        folder: the run's.
        chosen: the other address.
        override: whether ``MLFLOW_TRACKING_URI`` is such an address, for a run that MLflow gets.
        tell: takes a line if the address in the folder is not obeyed.
    """
    root = layout.root_of(folder)
    sink = journal.require_start(folder).sink
    recorded, place = layout.read_destination(folder), trust_store.place_of(folder)
    is_foreign = not place and recorded not in ("", EMBEDDED)
    trust = references.current_trust().joined(trust_store.lookup(folder))
    if (override or is_foreign) and sink == "mlflow":
        chosen = chosen or from_environment()
    if not chosen and place not in ("", EMBEDDED):
        chosen = place
    elif not chosen:
        chosen = default_uri(root) if sink == "mlflow" else None
    with references.reading_record(trust):  # anybody may have written the journal
        target = destination(root, sink, chosen)
    if is_foreign and target.place != recorded:
        tell(
            f"{folder.name}: it did not begin on this machine, and its folder asks for "
            f"{redact(recorded)}; it goes to {shown(target)} (to obey: --tracking-uri "
            f"{shlex.quote(redact(recorded))})"
        )
    return target


def shown(place: Destination) -> str:
    """Return the address of a tracker for a message, without a password."""
    return redact(place.uri) or place.sink
