"""The embedded MLflow store: its database, its artifacts, and clients for any store."""

import contextlib
import logging
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fbp.errors import InputError
from fbp.experiment.rundir import layout, locks

_USUAL_PORTS = {"postgresql": 5432, "mysql": 3306}
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def is_embedded(uri: str) -> bool:
    """Return whether a tracking URI is that of a SQLite file, which this process opens itself."""
    return uri.startswith("sqlite")


def configure_mlflow() -> None:
    """Set the environment variables that keep MLflow quiet and its requests short."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


def connect(uri: str, root: Path) -> Any:
    """Return an MLflow client for a store that is ready; make the store if it is a new file.

    Creation is locked: two processes that create one SQLite store corrupt it.

    Args:
        uri: the tracking URI.
        root: the folder ``mlruns``; made if it does not exist.

    Raises:
        OSError: if the server of a database does not listen.
        MlflowException: if the store cannot be used.
    """
    configure_mlflow()
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    root.mkdir(parents=True, exist_ok=True)
    _check_server_listens(uri)
    with creation_lock(uri, root):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _check_server_listens(uri: str) -> None:
    """Raise OSError unless a database's server listens, if host and port are known.

    MLflow itself would try for two minutes.
    """
    usual_port = _USUAL_PORTS.get(re.split(r"[:+]", uri, maxsplit=1)[0])
    if usual_port:
        from sqlalchemy.engine import make_url

        url = make_url(uri)
        if url.host and not url.query:  # a query may name another host, or a socket
            socket.create_connection((url.host, url.port or usual_port), timeout=10).close()


def creation_lock(uri: str, root: Path) -> contextlib.AbstractContextManager[None]:
    """Return a lock for the creation of tables and experiments; a server needs none."""
    return locks.locked(layout.store_lock(root)) if is_embedded(uri) else contextlib.nullcontext()


@contextlib.contextmanager
def global_tracking_uri(uri: str) -> Iterator[None]:
    """Set MLflow's global tracking URI inside the block: some calls create their own client."""
    import mlflow

    variable = "MLFLOW_TRACKING_URI"
    saved_variable = os.environ.get(variable)
    saved_uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(saved_uri)
        os.environ.pop(variable, None)
        if saved_variable is not None:
            os.environ[variable] = saved_variable


def artifact_root(root: Path) -> str:
    """Return the folder where the embedded store keeps artifacts."""
    return str(layout.tracker_artifacts(root.resolve()))


def stale_artifact_roots(root: Path) -> list[str]:
    """Return the folders in which the embedded store looks for artifacts, but should not.

    There are some if ``mlruns`` was moved or copied.
    """
    path = layout.database(root)
    if not path.exists():
        return []
    query = (
        "select distinct artifact_location from experiments "
        "where artifact_location like '%/mlruns/artifacts/%'"
    )
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
    return sorted(roots - {artifact_root(root)})


def check_not_moved(root: Path) -> None:
    """Raise InputError if ``mlruns`` was moved or copied; MLflow would write to the old folder."""
    old = stale_artifact_roots(root)
    if old:
        raise InputError(
            f"{root}: this folder was moved or copied: its store expects artifacts in {old[0]}, "
            f"but they are in {artifact_root(root)}; repair it with: fbp repair-store"
        )


def repair(root: Path) -> int:
    """Rewrite the artifact paths of a moved store; return the number of changed records."""
    columns = (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
        ("model_versions", "source"),
        ("model_versions", "storage_location"),
    )
    new, changed = artifact_root(root), 0
    with (
        contextlib.closing(sqlite3.connect(layout.database(root), timeout=20)) as database,
        database,
    ):
        for old in stale_artifact_roots(root):
            for table, column in columns:
                done = database.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) "
                    f"where substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )
                changed += done.rowcount
    return changed
