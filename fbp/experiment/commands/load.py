"""Load a trained model: from a run's folder, by its name or MLflow run id, or from the registry."""

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fbp._optional import require
from fbp.errors import InputError, named_in_place_of
from fbp.experiment.commands.missing import (
    missing_artifacts,
    require_artifacts,
    require_model,
)
from fbp.experiment.config import reading as configuration
from fbp.experiment.config.references import reading_record
from fbp.experiment.config.trust import NOTHING, Trust, trust_of
from fbp.experiment.rundir import journal, layout, tags, trust_store
from fbp.experiment.rundir.redact import redact, redacted_first_line
from fbp.experiment.runner.trained_model import Trained, read
from fbp.experiment.tracking import mlflow_runs, model_registry, store
from fbp.experiment.tracking.folder_runs import find_folder
from fbp.experiment.tracking.uri import from_environment
from fbp.experiment.tracking.uri import tracking_uri as mlflow_uri

_NEWEST = 5  # local runs that a message names
_LONGEST_NAME, _SHOWN = 1000, 80  # characters


def load(
    run: str | os.PathLike[str],
    tracking_uri: str | None = None,
    *,
    trust: str | Iterable[str] = (),
    code: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
) -> Trained:
    """Load the trained model of a run.

    Safe between threads and between processes: it only reads. A login in `tracking_uri` is that of
    the whole process.

    A record may come from anybody, so it may name fbp's own parts only. Code of your own that it
    names is imported if you trust it by name, or if the run was begun on this machine by you.

    Args:
        run: the run's folder, its name (the folder's or MLflow's), or its MLflow run id; a folder
            that contains ``params.npz``; or a registered model, ``models:/NAME@ALIAS``.
        tracking_uri: the store to search for a run that has no local folder. Default:
            ``MLFLOW_TRACKING_URI``, or the store of this project.
        trust: references that the run's configuration may name, ``package.module:name``.
        code: Python files of your own, or folders of them, whose functions the run's configuration
            may name. A file stands for the module or file of its name.

    Returns:
        A :class:`fbp.experiment.Trained` with ``.predict(x)``, ``.model``, ``.params`` and
        ``.config``.

    Raises:
        InputError: if there is no such run, if it has no model (yet), or if its record names code
            that is not trusted. The message says which.

    Example::

        trained = fbp.load("digits_mlp-ab12")
        labels = trained.predict(x).argmax(axis=1)
    """
    run, trusted = _checked_name(run), trust_of(trust, code)
    if run.startswith("models:/"):
        uri = mlflow_uri(layout.root(), tracking_uri)
        return _load_from_mlflow(run, uri, trusted)
    run = re.sub(r"^runs:/([0-9a-f]{32})/model$", r"\1", run)
    path = Path(run)
    root = layout.root()
    is_other_folder = path.is_dir() and not layout.journal(path).exists()
    folder = None if is_other_folder else find_folder(root, run)
    if folder is not None:
        require_model(folder)
        return _read(layout.model(folder), trusted)
    if is_other_folder:
        return _read(path if (path / layout.PARAMS).exists() else layout.model(path), trusted)
    configured_uri = tracking_uri or from_environment()
    if configured_uri or layout.database(root).exists():
        return _load_from_mlflow(run, mlflow_uri(root, configured_uri), trusted)
    raise InputError(
        f"run {run!r}: there is no such folder, and no run of that name or id in {root}; "
        f"{local_runs(root)}"
    )


def _checked_name(run: object) -> str:
    """Return the name of a run, or its path, as a text."""
    try:
        name = os.fspath(run)  # type: ignore[call-overload]
    except TypeError:
        name = None
    if not isinstance(name, str) or not name.strip() or "\0" in name or len(name) > _LONGEST_NAME:
        shown = repr(run) if not isinstance(name, str) or len(name) < _LONGEST_NAME else "more"
        raise InputError(
            f"load: expected a run's folder, name or id of 1 to {_LONGEST_NAME} characters, got "
            f"{shown[:_SHOWN]}"
        )
    return name


def _read(folder: Path, trusted: Trust) -> Trained:
    """Read a trained model; its configuration may name what its reader or its maker trusts."""
    trust = trusted.joined(trust_store.lookup_model(folder))
    if (folder / layout.CONFIG).exists():
        configuration.require_trusted_names(folder / layout.CONFIG, trust)
    with reading_record(trust):
        return read(folder)


def local_runs(root: Path) -> str:
    """Return the names of the newest local runs as part of an error message."""
    names = [start.name for _, start in journal.started_runs(root)]
    newest = names[::-1][:_NEWEST]
    return f"the newest local runs are {', '.join(newest)}" if newest else "there are no local runs"


def _load_from_mlflow(run: str, uri: str, trusted: Trust) -> Trained:
    """Download the model of a run, or a registered model, and read it."""
    require("a run in MLflow", "mlflow")
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder, mlflow_runs.opened(uri) as runs:
        run_id = (
            model_registry.run_of(runs.client, run)
            if run.startswith("models:/")
            else runs.find(run).run_id
        )
        recorded = runs.find(run_id)
        run_folder_name = recorded.tags.get(tags.FOLDER)
        if missing_artifacts(runs, recorded):
            require_artifacts(runs, recorded, layout.READ_MODEL)
        try:
            with store.global_tracking_uri(uri):
                downloaded = Path(runs.client.download_artifacts(run_id, "model", folder))
        except (MlflowException, OSError) as error:
            reason = redacted_first_line(error, uri)
            raise InputError(
                f"run {run!r}: no such run with a model in {redact(uri)} ({reason}); "
                f"{local_runs(layout.root())}"
            ) from None
        local = layout.run_folder(layout.root(), run_folder_name)
        own = trust_store.lookup(local, downloaded / layout.CONFIG) if local else NOTHING
        with named_in_place_of(downloaded, f"run {recorded.name}"):
            return _read(downloaded, trusted.joined(own))
