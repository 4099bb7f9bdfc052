"""Get a trained model back: from a run's folder, its name, or its MLflow run id."""

import os
import re
import tempfile
from pathlib import Path

from fbp.errors import InputError
from fbp.experiment.config import reading as configuration
from fbp.experiment.config.catalogue import require_trusted_module
from fbp.experiment.rundir import journal
from fbp.experiment.rundir.redact import redact, redact_secrets_of
from fbp.experiment.runner.trained_model import Trained, read
from fbp.experiment.tracking import mlflow_runs, model_registry, store
from fbp.experiment.tracking.shipper import shipped


def load(run: str | os.PathLike[str], tracking_uri: str | None = None) -> Trained:
    """The trained model of a run.

    Args:
        run: the run's folder, its name (the folder's or MLflow's), or its MLflow run id; also a folder from MLflow
            that holds ``params.npz``, or a registered model, ``models:/NAME@ALIAS``.
        tracking_uri: where to look for a run id that no local run has.

    Returns:
        A :class:`fbp.experiment.runner.trained_model.Trained`: ``.predict(x)``, ``.model``, ``.params``, ``.config``.

    Raises:
        InputError: where there is no such run, or it has no model (yet).
    """
    if str(run).startswith("models:/"):
        root = store.root()
        return _from_mlflow(str(run), store.tracking_uri(root, tracking_uri))
    run = re.sub(r"^runs:/([0-9a-f]{32})/model$", r"\1", str(run))
    path = Path(run)
    if path.is_dir():
        return read(path if (path / "params.npz").exists() else path / "artifacts" / "model")
    root = store.root()
    folder = find_folder(root, str(run))
    if folder:
        return read(folder / "artifacts" / "model")
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri or (root / "mlflow.db").exists():
        return _from_mlflow(str(run), store.tracking_uri(root, uri))
    raise InputError(
        f"run {str(run)!r}: there is no such folder, and no run of that name or id in {root}; {local_runs(root)}"
    )


def find_folder(root: Path, run: str) -> Path | None:
    """The local folder of a run, by the folder's name, the run's name in MLflow, or its MLflow run id (or its beginning)."""
    folders = store.run_folders(root)
    for folder in folders:
        if run in (
            folder.name,
            (journal.read_start(folder) or {}).get("name"),
            shipped(folder).get("run_id"),
        ):
            return folder
    if not re.fullmatch(r"[0-9a-f]{4,31}", run):
        return None
    found = [folder for folder in folders if shipped(folder).get("run_id", "").startswith(run)]
    found = found or [folder for folder in folders if folder.name.endswith(f"-{run}")]
    return found[0] if len(found) == 1 else None


def local_runs(root: Path) -> str:
    """For a message: the newest runs that are here."""
    names = [(journal.read_start(folder) or {}).get("name") for folder in store.run_folders(root)]
    shown = [name for name in reversed(names) if name][:5]
    return f"the newest runs here are {', '.join(shown)}" if shown else "there are no runs here"


def _from_mlflow(run: str, uri: str) -> Trained:
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder, mlflow_runs.opened(uri) as runs:
        run_id = (
            model_registry.run_of(runs.client, run)
            if run.startswith("models:/")
            else runs.find(run).info.run_id
        )
        try:
            with store.global_tracking_uri(uri):
                copied = runs.client.download_artifacts(run_id, "model", folder)
        except (MlflowException, OSError) as error:
            why = redact_secrets_of(str(error).partition("\n")[0], uri)
            raise InputError(
                f"run {run!r}: no such run with a model in {redact(uri)} ({why}); {local_runs(store.root())}"
            ) from None
        require_trusted_module(configuration.named_model(Path(copied) / "config.toml"))
        return read(Path(copied))
