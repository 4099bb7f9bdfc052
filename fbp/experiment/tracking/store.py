"""The embedded MLflow store: its database, its artifacts, and clients for any store."""

import contextlib
import functools
import logging
import os
import re
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fbp.errors import InputError
from fbp.experiment.rundir import layout, locks
from fbp.experiment.rundir.redact import redact, redact_secrets_of, redacted_first_line
from fbp.experiment.tracking.sink import NotUnderstood, Refused

_GLOBAL_URI = threading.RLock()
_PAGE = 1000  # results that MLflow gives at once
_USUAL_PORTS = {"postgresql": 5432, "mysql": 3306}
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # a server may ask for an hour
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


LOGIN_HINT = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to a "
    "login that may write there"
)
ADDRESS_HINT = "check the address, or choose another with --tracking-uri"
_REMEDIES = {
    "PERMISSION_DENIED": LOGIN_HINT,
    "CUSTOMER_UNAUTHORIZED": LOGIN_HINT,
    "UNAUTHENTICATED": LOGIN_HINT,
    "ENDPOINT_NOT_FOUND": ADDRESS_HINT,
    "NOT_FOUND": ADDRESS_HINT,
    "NOT_IMPLEMENTED": ADDRESS_HINT,
    "BAD_REQUEST": ADDRESS_HINT,
    "INVALID_PARAMETER_VALUE": "the run's folder keeps what MLflow does not take",
    "RESOURCE_DOES_NOT_EXIST": (
        "somebody deleted it; to send the run anew, remove sent.json from its folder"
    ),
}
"""What to do about the errors of MLflow that another attempt does not mend."""
_OF_A_FILE = re.compile(
    "readonly database|file is not a database|database disk image is malformed|"
    "unable to open database file|permission denied for|password authentication failed",
    re.IGNORECASE,
)
_HTTP_STATUS = re.compile(r"failed with error code (\d{3}) != 200")
_TRANSIENT = (408, 425, 429)  # of the statuses 4xx
_ID = re.compile(r"[\w.-]+")
_LONGEST_REASON = 300  # characters


def _remedy(error: Any) -> str | None:
    """Return what to do about an MlflowException; None if another attempt may mend it."""
    text, code = str(error), error.error_code
    if run := re.search(r"The run (\S+) must be in the 'active' state", text):
        return (
            f"the run is in MLflow's trash; restore it with: mlflow runs restore --run-id {run[1]}"
        )
    if experiment := re.search(r"[Ee]xperiment (\S+) must be in the 'active' state", text):
        return deleted_experiment(experiment[1])
    status = _HTTP_STATUS.search(text)
    if code in _REMEDIES:
        return _REMEDIES[code]
    if status and 400 <= int(status[1]) < 500 and int(status[1]) not in _TRANSIENT:
        return ADDRESS_HINT
    return "see to the store's file and its permissions" if _OF_A_FILE.search(text) else None


def deleted_experiment(experiment: str) -> str:
    """Return what to do about an experiment that is in MLflow's trash.

    Args:
        experiment: its id.
    """
    return (
        "the experiment is in MLflow's trash; restore it with: mlflow experiments restore "
        f"--experiment-id {experiment}; or choose another name with tracking.experiment"
    )


_CHECKS: Mapping[str, Callable[[Any, Any], bool]] = {
    "create_experiment": lambda answer, _: _ID.fullmatch(answer) is not None,
    "get_experiment_by_name": lambda answer, name: (
        answer is None or (answer.name == name and _ID.fullmatch(answer.experiment_id) is not None)
    ),
    "create_run": lambda answer, _: _ID.fullmatch(answer.info.run_id) is not None,
    "get_run": lambda answer, run_id: answer.info.run_id == run_id,
    "search_runs": lambda answer, _: all(_ID.fullmatch(run.info.run_id) for run in answer),
    "search_experiments": lambda answer, _: all(
        _ID.fullmatch(experiment.experiment_id) for experiment in answer
    ),
}
"""Whether an answer to a method with a first argument is one that MLflow gives."""


class CheckedClient:
    """MLflow's client, whose answers are checked before anything relies on them.

    Args:
        client: MLflow's.
        uri: the store's.
        refusals: whether errors that no other attempt mends are raised as :class:`.sink.Refused`.
    """

    def __init__(self, client: Any, uri: str, *, refusals: bool = False):
        self._client, self._uri, self._refusals = client, uri, refusals

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return functools.partial(self.call, name, method) if callable(method) else method

    def call(self, name: str, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function of MLflow's; its errors and its answer are those of a method `name`."""
        from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]
        from mlflow.exceptions import MlflowException

        try:
            answer = method(*args, **options)
            is_right = name not in _CHECKS or _CHECKS[name](answer, args[0] if args else None)
        except MlflowException as error:
            remedy = _remedy(error) if self._refusals else None
            if remedy is not None:
                reason = redacted_first_line(error, self._uri)[:_LONGEST_REASON]
                raise Refused(f"{self._shown}: refuses for good: {reason}; {remedy}") from None
            raise
        except (ParseError, AttributeError, TypeError, KeyError, ValueError) as error:
            reason = f"{type(error).__name__}: {redacted_first_line(error, self._uri)}"
            raise self._not_understood(name, reason[:_LONGEST_REASON]) from None
        if not is_right:
            raise self._not_understood(name, repr(answer)[:_LONGEST_REASON])
        return answer

    def _not_understood(self, name: str, answer: str) -> NotUnderstood:
        return NotUnderstood(
            f"{self._shown}: {name}: expected the answer of an MLflow server, got "
            f"{redact_secrets_of(answer, self._uri)}; check that MLflow is at this address"
        )

    @property
    def _shown(self) -> str:
        return redact(self._uri)


def is_embedded(uri: str) -> bool:
    """Return whether a tracking URI is that of a SQLite file, which this process opens itself."""
    return uri.startswith("sqlite")


def configure_mlflow() -> None:
    """Set the environment variables that keep MLflow quiet and its requests short."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


def connect(uri: str, root: Path, *, refusals: bool = False) -> CheckedClient:
    """Return a checked MLflow client for a store that is ready; make the store if it is a new file.

    Creation is locked: two processes that create one SQLite store corrupt it.

    Args:
        uri: the tracking URI.
        root: the folder ``mlruns``; made if it does not exist.
        refusals: see :class:`CheckedClient`.

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
        client = CheckedClient(MlflowClient(uri), uri, refusals=refusals)
        client.search_experiments(max_results=1)
    return client


def pages(search: Callable[..., Any], limit: int | None = None) -> Iterator[Any]:
    """Iterate over all that a search of MLflow's finds; it answers a page at a time.

    Args:
        search: takes `max_results` and `page_token`.
        limit: maximal number of results; None for all.
    """
    token, rest = None, limit
    while rest is None or rest > 0:
        size = _PAGE if rest is None else min(rest, _PAGE)
        page = search(max_results=size, page_token=token)
        yield from page[:rest]
        rest = None if rest is None else rest - len(page)
        token = page.token
        if not token or not page:
            return


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
    """Set MLflow's global tracking URI inside the block: some calls create their own client.

    One thread has it at a time.
    """
    import mlflow

    with _GLOBAL_URI:
        yield from _set_global_uri(mlflow, uri)


def _set_global_uri(mlflow: Any, uri: str) -> Iterator[None]:
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
    """Return the folder where the embedded store keeps artifacts, as MLflow takes it.

    MLflow decodes a path as if it were a URI; one that this would change is given as a URI.
    """
    folder = layout.tracker_artifacts(root.resolve())
    return folder.as_uri() if set(str(folder)) & set("?%") else str(folder)


def check_artifact_uri(uri: str, artifact_uri: str) -> None:
    """Raise InputError if an embedded store keeps artifacts on a server.

    fbp makes no such store. That of a stranger may, so that the user's login is sent there.

    Args:
        uri: the store's.
        artifact_uri: where it keeps the artifacts of a run, or of an experiment.
    """
    if is_embedded(uri) and re.match(r"(https?|mlflow-artifacts|dbfs|databricks)\b:", artifact_uri):
        raise InputError(
            f"{redact(uri)}: expected a store with its artifacts in files, got "
            f"{redact(artifact_uri)[:_LONGEST_REASON]}; fbp sends no login to a server that a file "
            "names"
        )


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
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=20)
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
