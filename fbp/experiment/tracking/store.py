"""Where runs live: the embedded MLflow store, and each run's own folder beside it.

mlruns/mlflow.db           MLflow's SQLite database
mlruns/artifacts/          MLflow's artifacts
mlruns/runs/RUN/           what the training process writes: journal, configuration, parameters, results
"""

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from fbp._optional import require
from fbp.errors import InputError
from fbp.experiment.rundir import layout
from fbp.experiment.rundir.redact import move_login_to_environment, redact

_VARIABLE = "MLFLOW_TRACKING_URI"

EMBEDDED = "embedded"  # stands for the tracking URI of the store beside a run's folder


def default_uri(store: Path) -> str:
    """The tracking URI of the embedded store."""
    return f"sqlite:///{layout.database(store.resolve())}"


def portable(uri: str, store: Path) -> str:
    """A tracking URI to remember: without the embedded store's place, which may move, and without a password."""
    return EMBEDDED if uri == default_uri(store) else redact(uri)


def tracking_uri(store: Path, chosen: str | None) -> str:
    """The tracking URI: the one chosen on the command line, ``MLFLOW_TRACKING_URI``, or the embedded store's."""
    require("MLflow tracking", "mlflow")
    uri = chosen or os.environ.get(_VARIABLE)
    if not uri and re.search("[?%]", str(store.resolve())):
        raise InputError(
            f"{store.resolve()}: MLflow cannot keep a store in a folder with ? or % in its path; give the folder another "
            "name, or name a store with --tracking-uri"
        )
    uri = uri or default_uri(store)
    if not re.match(r"^(sqlite|postgresql|mysql|mssql)(\+\w+)?://|^https?://", uri):
        raise InputError(
            f"tracking URI: expected sqlite:///PATH, a database or http(s)://HOST, got {redact(uri)!r}; "
            "MLflow no longer keeps runs in plain folders"
        )
    try:
        host, _ = urlsplit(redact(uri)).hostname, urlsplit(redact(uri)).port
    except ValueError:
        host = None
    if uri.startswith("http") and not host:
        raise InputError(f"tracking URI: expected http(s)://HOST[:PORT], got {redact(uri)!r}")
    move_login_to_environment(
        os.environ.get(_VARIABLE, "")
    )  # a remembered URI has no login; the variable may
    return move_login_to_environment(uri)


@contextlib.contextmanager
def global_tracking_uri(uri: str) -> Iterator[None]:
    """A tracking URI for all of MLflow, meanwhile: some of its calls make a client, and a store, of their own."""
    import mlflow

    given = os.environ.get(_VARIABLE)
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        os.environ.pop(_VARIABLE, None)
        os.environ.update({} if given is None else {_VARIABLE: given})


def artifact_root(store: Path) -> str:
    """Where MLflow keeps the artifacts of the embedded store's runs."""
    return str(layout.tracker_artifacts(store.resolve()))


def stale_artifact_roots(store: Path) -> list[str]:
    """The places where the embedded store expects its artifacts, other than where they are: it was moved or copied."""
    path = layout.database(store)
    if not path.exists():
        return []
    query = "select distinct artifact_location from experiments where artifact_location like '%/mlruns/artifacts/%'"
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{path.resolve()}?mode=ro", uri=True, timeout=20)
        ) as database:
            locations = [row[0] for row in database.execute(query)]
    except sqlite3.Error:  # another process makes the store just now
        return []
    roots = {
        location.rpartition("/mlruns/artifacts/")[0] + "/mlruns/artifacts" for location in locations
    }
    return sorted(roots - {artifact_root(store)})


def check_not_moved(store: Path) -> None:
    """See that the store's artifacts are where it expects them; MLflow would write them to the old place, silently.

    Raises:
        InputError: where the folder was moved or copied.
    """
    old = stale_artifact_roots(store)
    if old:
        raise InputError(
            f"{store}: this folder was moved or copied: its store expects artifacts in {old[0]}, but they are in "
            f"{artifact_root(store)}; repair it with: fbp repair-store"
        )


def repair(store: Path) -> int:
    """Let the embedded store expect its artifacts where they are; returns how many records were changed."""
    columns = (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
        ("model_versions", "source"),
        ("model_versions", "storage_location"),
    )
    new, changed = artifact_root(store), 0
    with (
        contextlib.closing(sqlite3.connect(layout.database(store), timeout=20)) as database,
        database,
    ):
        for old in stale_artifact_roots(store):
            for table, column in columns:
                done = database.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )
                changed += done.rowcount
    return changed
