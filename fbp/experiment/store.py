"""Where runs live: the embedded MLflow store, and each run's own folder beside it.

mlruns/mlflow.db           MLflow's SQLite database
mlruns/artifacts/          MLflow's artifacts
mlruns/runs/RUN/           what the training process writes: journal, configuration, parameters, results
"""

import os
import re
import secrets
import time
from pathlib import Path

from fbp.errors import InputError


def root() -> Path:
    """The folder ``mlruns`` of this project: the nearest one upwards from here, or a new one here."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "mlruns").is_dir():
            return folder / "mlruns"
    return here / "mlruns"


def default_uri(store: Path) -> str:
    """The tracking URI of the embedded store."""
    return f"sqlite:///{store.resolve() / 'mlflow.db'}"


def tracking_uri(store: Path, chosen: str | None) -> str:
    """The tracking URI: the one chosen on the command line, ``MLFLOW_TRACKING_URI``, or the embedded store's."""
    uri = chosen or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(store)
    if not re.match(r"^(sqlite|postgresql|mysql|mssql)(\+\w+)?://|^https?://", uri):
        raise InputError(
            f"--tracking-uri: expected sqlite:///PATH, a database or http(s)://HOST, got {uri!r}; "
            "MLflow no longer keeps runs in plain folders"
        )
    return uri


def new_run_folder(store: Path, name: str) -> Path:
    """A new folder for a run, named after it, the time, and chance."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = store / "runs" / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}-{stamp}-{secrets.token_hex(2)}"
    try:
        (folder / "artifacts").mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder}: the run's folder cannot be made ({error.strerror})") from None
    return folder


def run_folders(store: Path) -> list[Path]:
    """The folders of all runs, oldest first."""
    return sorted((path.parent for path in (store / "runs").glob("*/journal.jsonl")), key=lambda p: p.stat().st_mtime)
