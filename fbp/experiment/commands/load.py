"""Load a trained model: from a run's folder, by its name or MLflow run id, or from the registry."""

import contextlib
import os
import re
import tempfile
from pathlib import Path

from fbp._optional import require
from fbp.errors import InputError
from fbp.experiment.config import reading as configuration
from fbp.experiment.config.references import reading_own_run, reading_record
from fbp.experiment.rundir import journal, layout
from fbp.experiment.rundir.redact import redact, redacted_first_line
from fbp.experiment.runner.trained_model import Trained, read
from fbp.experiment.tracking import mlflow_runs, model_registry, store
from fbp.experiment.tracking.folder_runs import find_folder
from fbp.experiment.tracking.uri import from_environment
from fbp.experiment.tracking.uri import tracking_uri as mlflow_uri

_NEWEST = 5  # local runs that a message names


def load(
    run: str | os.PathLike[str],
    tracking_uri: str | None = None,
    *,
    code: str | os.PathLike[str] | None = None,
) -> Trained:
    """Load the trained model of a run.

    Args:
        run: the run's folder, its name (the folder's or MLflow's), or its MLflow run id; a folder
            that contains ``params.npz``; or a registered model, ``models:/NAME@ALIAS``.
        tracking_uri: the store to search for a run that has no local folder. Default:
            ``MLFLOW_TRACKING_URI``, or the store of this project.
        code: a Python file of your own that the run's configuration names, if its module is not
            installed. The runs of this project do not need it.

    Returns:
        A :class:`fbp.experiment.Trained` with ``.predict(x)``, ``.model``, ``.params`` and
        ``.config``.

    Raises:
        InputError: if there is no such run, if it has no model (yet), or if a store's record names
            code that is neither installed nor given by `code`.

    Example::

        trained = fbp.load("digits_mlp-ab12")
        labels = trained.predict(x).argmax(axis=1)
    """
    trusted = None if code is None else Path(code)
    if str(run).startswith("models:/"):
        uri = mlflow_uri(layout.root(), tracking_uri)
        return _load_from_mlflow(str(run), uri, trusted)
    run = re.sub(r"^runs:/([0-9a-f]{32})/model$", r"\1", str(run))
    path = Path(run)
    root = layout.root()
    is_other_folder = path.is_dir() and not layout.journal(path).exists()
    folder = None if is_other_folder else find_folder(root, run)
    if folder and folder.resolve().parent == layout.runs(root).resolve():
        with reading_own_run():
            return read(layout.model(folder))
    if path.is_dir():
        with reading_record(trusted) if trusted else contextlib.nullcontext():
            return read(path if (path / layout.PARAMS).exists() else layout.model(path))
    configured_uri = tracking_uri or from_environment()
    if configured_uri or layout.database(root).exists():
        return _load_from_mlflow(run, mlflow_uri(root, configured_uri), trusted)
    raise InputError(
        f"run {run!r}: there is no such folder, and no run of that name or id in {root}; "
        f"{local_runs(root)}"
    )


def local_runs(root: Path) -> str:
    """Return the names of the newest local runs as part of an error message."""
    names = [start.name for _, start in journal.started_runs(root)]
    newest = names[::-1][:_NEWEST]
    return f"the newest local runs are {', '.join(newest)}" if newest else "there are no local runs"


def _load_from_mlflow(run: str, uri: str, code: Path | None) -> Trained:
    """Download the model of a run, or a registered model, and read it."""
    require("a run in MLflow", "mlflow")
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder, mlflow_runs.opened(uri) as runs:
        run_id = (
            model_registry.run_of(runs.client, run)
            if run.startswith("models:/")
            else runs.find(run).run_id
        )
        try:
            with store.global_tracking_uri(uri):
                downloaded = Path(runs.client.download_artifacts(run_id, "model", folder))
        except (MlflowException, OSError) as error:
            reason = redacted_first_line(error, uri)
            raise InputError(
                f"run {run!r}: no such run with a model in {redact(uri)} ({reason}); "
                f"{local_runs(layout.root())}"
            ) from None
        configuration.require_trusted_names(downloaded / layout.CONFIG, code)
        with reading_record(code):
            return read(downloaded)
