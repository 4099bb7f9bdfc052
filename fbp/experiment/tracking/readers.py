"""Choose and open the reader of a project's runs: MLflow's, or that of its run folders."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fbp._optional import is_installed
from fbp.errors import InputError
from fbp.experiment.rundir import journal, layout
from fbp.experiment.tracking import mlflow_runs
from fbp.experiment.tracking.folder_runs import FolderRuns, find_folder
from fbp.experiment.tracking.run_reader import RunReader
from fbp.experiment.tracking.uri import from_environment

_MLFLOW = "mlflow"  # the sink
FOLDERS = "folders"
"""The tracking URI that stands for the run folders of the project."""


@contextmanager
def open_runs(tracking_uri: str | None, names: Sequence[str] = ()) -> Iterator[RunReader]:
    """Open the store that has the runs of a project.

    That is the MLflow store of `tracking_uri`, of ``MLFLOW_TRACKING_URI``, or of the project. The
    run folders take its place if no URI is chosen, and either the project has no MLflow store,
    MLflow is not installed, or all of `names` are runs that another tracker has.

    Args:
        tracking_uri: the MLflow store to use, or "folders" for the run folders.
        names: the runs that will be searched for.

    Raises:
        InputError: if there is no store, or if it does not answer, now or later.
    """
    root = layout.root()
    chosen = tracking_uri or from_environment()
    if chosen == FOLDERS or (
        not chosen and (not _has_mlflow_store(root) or _in_other_tracker(root, names))
    ):
        if not layout.run_folders(root):
            raise InputError(f"there are no runs in {root} yet; start with: fbp run digits_mlp")
        yield FolderRuns(root)
        return
    with mlflow_runs.opened(tracking_uri) as runs:
        yield runs


def count_in_other_trackers() -> int:
    """Return the number of the project's runs that are not meant for MLflow."""
    return sum(start.sink != _MLFLOW for _, start in journal.started_runs(layout.root()))


def _has_mlflow_store(root: Path) -> bool:
    """Return whether the project's MLflow store exists and MLflow can be imported."""
    return is_installed("mlflow") and layout.database(root).exists()


def _in_other_tracker(root: Path, names: Sequence[str]) -> bool:
    """Return whether `names` are local runs, none of which was sent to MLflow."""
    folders = [find_folder(root, name) for name in names]
    starts = [journal.read_start(folder) if folder else None for folder in folders]
    return bool(names) and all(start and start.sink != _MLFLOW for start in starts)
