"""What a tracker would refuse for good, as far as it can be known before a run begins.

The training process does not import MLflow, which takes seconds. It looks into the database of an
embedded store, or asks a server one question, for three seconds at most. What cannot be found out
stops no run: the shipper tells it later.
"""

import base64
import contextlib
import http.client
import json
import os
import sqlite3
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import fbp
from fbp.errors import InputError
from fbp.experiment.rundir import layout
from fbp.experiment.rundir.redact import redact
from fbp.experiment.tracking import store
from fbp.experiment.tracking.sink import Destination

LONGEST_NAME = 250
"""Characters of the name of an experiment or of a run: what every database of MLflow's takes."""
_SECONDS = 3.0
_LARGEST_ANSWER = 2**16  # bytes
_OTHER_LOGINS = (
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_WORKSPACE",
)


def check(target: Destination, root: Path, experiment: str) -> None:
    """Raise InputError if MLflow would refuse all of a run for good.

    Args:
        target: where the run is sent.
        root: the folder ``mlruns``.
        experiment: the experiment's name.
    """
    if target.sink != "mlflow":
        return
    check_name("experiment", experiment)
    shown = redact(target.uri)
    if store.is_embedded(target.uri):
        deleted = _deleted_in_file(target, root, experiment)
    elif target.uri.startswith(("http://", "https://")):
        deleted = _deleted_on_server(target.uri, experiment)
    else:
        return
    if deleted:
        raise InputError(f"{shown}: experiment {experiment!r}: {store.deleted_experiment(deleted)}")


def check_name(kind: str, name: str) -> None:
    """Raise InputError if a name is one that MLflow's databases do not take."""
    if len(name) > LONGEST_NAME:
        raise InputError(
            f"{kind} {name[:40]!r}...: expected a name of at most {LONGEST_NAME} characters, "
            f"got {len(name)}; give it a shorter one"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{kind} {name!a}: expected a name that is valid Unicode") from None


def _deleted_in_file(target: Destination, root: Path, experiment: str) -> str:
    """Return the id of an experiment of a SQLite store if it is in the trash; else nothing.

    Raises:
        InputError: if this user may not write to the store.
    """
    prefix, _, text = target.uri.partition(":///")
    path = layout.database(root) if target.place == layout.EMBEDDED else Path(text)
    if (prefix != "sqlite" and target.place != layout.EMBEDDED) or not path.is_file():
        return ""
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        raise InputError(
            f"{path}: permission denied; give this user the right to write to the store and its "
            "folder, or choose another place with --tracking-uri"
        )
    query = "select experiment_id from experiments where name = ? and lifecycle_stage = 'deleted'"
    address = f"{path.resolve().as_uri()}?mode=ro"
    with (
        contextlib.suppress(sqlite3.Error),  # another process makes the store just now
        contextlib.closing(sqlite3.connect(address, uri=True, timeout=_SECONDS)) as database,
    ):
        row = database.execute(query, (experiment,)).fetchone()
        return str(row[0]) if row else ""
    return ""


def _deleted_on_server(uri: str, experiment: str) -> str:
    """Return the id of an experiment of a server if it is in the trash; else nothing.

    Raises:
        InputError: if the server refuses the login, or is no MLflow server.
    """
    status, text = _answer_of(uri, experiment)
    if status in (401, 403) and not _has_other_login():
        raise InputError(
            f"{redact(uri)}: refuses for good (HTTP status {status}); {store.LOGIN_HINT}"
        )
    answer = _parsed(text)
    if status == 404 and "error_code" not in answer:
        raise InputError(
            f"{redact(uri)}: is no MLflow server (HTTP status 404); {store.ADDRESS_HINT}"
        )
    if status != 200:
        return ""
    entry = answer.get("experiment")
    if not isinstance(entry, dict) or not isinstance(entry.get("experiment_id"), str):
        raise InputError(
            f"{redact(uri)}: expected the answer of an MLflow server, got {text[:80]!r}; "
            f"{store.ADDRESS_HINT}"
        )
    return entry["experiment_id"] if entry.get("lifecycle_stage") == "deleted" else ""


def _has_other_login() -> bool:
    """Return whether MLflow may log in with what this module does not read."""
    files = (Path(f"~/{name}").expanduser() for name in (".mlflow/credentials", ".netrc"))
    try:
        return any(os.environ.get(name) for name in _OTHER_LOGINS) or any(
            file.exists() for file in files
        )
    except RuntimeError:  # no home folder
        return False


def _parsed(text: str) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirection, because the login would go along."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _answer_of(uri: str, experiment: str) -> tuple[int, str]:
    """Ask a server for an experiment; return status and text, or 0 if it does not answer soon."""
    query = urlencode({"experiment_name": experiment})
    request = urllib.request.Request(
        f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name?{query}",
        headers={"User-Agent": f"fbp/{fbp.__version__}", **_login()},
    )
    answers: list[tuple[int, str]] = []

    def ask() -> None:
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=_SECONDS) as response:
                answers.append((response.status, _read(response)))
        except urllib.error.HTTPError as error:
            with contextlib.suppress(OSError, http.client.HTTPException), error:
                answers.append((error.code, _read(error)))
        except (OSError, ValueError, http.client.HTTPException):
            pass  # the shipper will say so

    thread = threading.Thread(target=ask, daemon=True)  # a server can drip bytes for ever
    thread.start()
    thread.join(_SECONDS)
    return answers[0] if answers else (0, "")


def _read(response: Any) -> str:
    return str(response.read(_LARGEST_ANSWER).decode("utf-8", "replace"))


def _login() -> dict[str, str]:
    """Return the header by which MLflow's client logs in."""
    user, password = (
        os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD")
    )
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user and password:
        text = base64.b64encode(f"{user}:{password}".encode()).decode()
        return {"Authorization": f"Basic {text}"}
    return {"Authorization": f"Bearer {token}"} if token else {}
