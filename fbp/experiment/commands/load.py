"""Load a trained model: from a run's folder, by its name or MLflow run id, or from the registry."""

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fbp._optional import require
from fbp.errors import InputError
from fbp.experiment.commands.run_record import trust_in
from fbp.experiment.config import reading as configuration
from fbp.experiment.config import references
from fbp.experiment.config.references import Trust, reading_record
from fbp.experiment.rundir import journal, layout
from fbp.experiment.rundir import trust as own_trust
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
    trust: Sequence[str] = (),
    code: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
) -> Trained:
    """Load the trained model of a run.

    A record is data: nothing that it names is executed, unless it is in fbp's own catalogue or you
    trust it. A run that was begun on this machine by you is loaded with what it was begun with.

    Args:
        run: the run's folder, its name (the folder's or MLflow's), or its MLflow run id; a folder
            that contains ``params.npz``; or a registered model, ``models:/NAME@ALIAS``.
        tracking_uri: the store to search for a run that has no local folder. Default:
            ``MLFLOW_TRACKING_URI``, or the store of this project.
        trust: references to code that the run's configuration may name, exactly as it has them:
            ``package.module:name``.
        code: Python files (or folders) that stand for the files and modules that it names.

    Returns:
        A :class:`fbp.experiment.Trained` with ``.predict(x)``, ``.model``, ``.params`` and
        ``.config``.

    Raises:
        InputError: if there is no such run, if it has no model (yet), or if its configuration names
            code that is not trusted.

    Example::

        trained = fbp.load("digits_mlp-ab12")
        labels = trained.predict(x).argmax(axis=1)
    """
    paths = [code] if isinstance(code, str | os.PathLike) else list(code)
    trusted = references.trust([trust] if isinstance(trust, str) else trust, [Path(path) for path in paths])
    name = os.fspath(run)
    if not name:
        raise InputError("run '': expected a run's folder, name or id")
    if name.startswith("models:/"):
        return _load_from_mlflow(name, mlflow_uri(layout.root(), tracking_uri), trusted)
    name = re.sub(r"^runs:/([0-9a-f]{32})/model$", r"\1", name)
    path, root = Path(name), layout.root()
    is_other_folder = path.is_dir() and not layout.journal(path).exists()
    folder = None if is_other_folder else find_folder(root, name)
    if folder:
        recalled = own_trust.recall(folder, layout.model(folder) / layout.CONFIG)
        with reading_record(recalled.and_also(trusted)):
            return read(layout.model(folder))
    if path.is_dir():
        with reading_record(trusted):
            return read(path if (path / layout.PARAMS).exists() else layout.model(path))
    configured_uri = tracking_uri or from_environment()
    if configured_uri or layout.database(root).exists():
        return _load_from_mlflow(name, mlflow_uri(root, configured_uri), trusted)
    raise InputError(
        f"run {name!r}: there is no such folder, and no run of that name or id in {root}; "
        f"{local_runs(root)}"
    )


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
        recorded = runs.find(
            model_registry.run_of(runs.client, run) if run.startswith("models:/") else run
        )
        try:
            with store.global_tracking_uri(uri):
                downloaded = Path(runs.client.download_artifacts(recorded.run_id, "model", folder))
        except (MlflowException, OSError) as error:
            reason = redacted_first_line(error, uri)
            raise InputError(
                f"run {run!r}: no such run with a model in {redact(uri)} ({reason}); "
                f"{local_runs(layout.root())}"
            ) from None
        config = downloaded / layout.CONFIG
        trusted = trust_in(recorded, config).and_also(trusted)
        configuration.require_trusted_names(config, trusted)
        with reading_record(trusted):
            return read(downloaded)
