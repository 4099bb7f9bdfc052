"""The reader of runs in an MLflow store; it trusts nothing that the store holds."""

import functools
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fbp._optional import require
from fbp.errors import InputError, prefixed_by
from fbp.experiment.rundir import history, layout, signatures, tags
from fbp.experiment.rundir.checkpoints import CheckpointDigests
from fbp.experiment.rundir.metric_table import MACHINE
from fbp.experiment.rundir.redact import redact, redacted_first_line
from fbp.experiment.rundir.series import Series
from fbp.experiment.rundir.verification import NotSealed, Verification
from fbp.experiment.tracking import mlflow_shown, store
from fbp.experiment.tracking.folder_runs import is_folder_of, verify_local
from fbp.experiment.tracking.run_reader import (
    FILTER_HINT,
    RecordedRun,
    is_abbreviation,
    matching_runs,
    single_match,
)
from fbp.experiment.tracking.uri import default_uri
from fbp.experiment.tracking.uri import tracking_uri as mlflow_uri

_LONGEST_REASON = 200  # characters
_NEWEST = 10  # runs that are suggested for an unknown name


class MlflowRuns:
    """The runs of an MLflow store; a :class:`.run_reader.RunReader`. Made by :func:`opened`.

    Safe between processes: it only reads. Not safe between threads.

    Attributes:
        client: MLflow's client.
        uri: the tracking URI.
    """

    def __init__(self, client: Any, uri: str, folder: Path):
        self.client, self.uri = client, uri
        self._folder = folder  # of copied artifacts
        self._experiments = {
            experiment.experiment_id: experiment.name
            for experiment in store.pages(client.search_experiments)
        }

    def search(
        self, condition: str = "", order: Sequence[str] = (), limit: int | None = None
    ) -> list[RecordedRun]:
        """Return the runs that satisfy a condition, see :meth:`.RunReader.search`."""
        from mlflow.exceptions import MlflowException

        try:
            search = functools.partial(
                self.client.search_runs,
                list(self._experiments),
                condition,
                order_by=list(order) or None,
            )
            runs = list(store.pages(search, limit))
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise  # the store's fault; see opened
            reason = redacted_first_line(error, self.uri).removeprefix("INVALID_PARAMETER_VALUE: ")
            about_order = order and (
                "order" in reason or "attribute key" in reason or not condition
            )
            text = f"--sort {', '.join(order)}" if about_order else condition
            raise InputError(f"{text}: {reason}; {FILTER_HINT}") from None
        return [self._recorded(run) for run in runs]

    def _recorded(self, run: Any) -> RecordedRun:
        """Return MLflow's run as fbp's type."""
        info, data = run.info, run.data
        datasets = run.inputs.dataset_inputs if run.inputs else []
        return RecordedRun(
            info.run_id,
            info.run_name or info.run_id,
            self._experiments.get(info.experiment_id, info.experiment_id),
            info.status,
            info.start_time,
            info.end_time,
            dict(data.params),
            dict(data.tags),
            dict(data.metrics),
            data.tags.get(tags.PARENT_ID, ""),
            info.artifact_uri or "",
            tuple((entry.dataset.name, entry.dataset.digest) for entry in datasets),
        )

    def find(self, name: str) -> RecordedRun:
        """Return exactly one run, see :meth:`.RunReader.find`."""
        from mlflow.exceptions import MlflowException

        path = Path(name)
        name = path.name if layout.journal(path).exists() else name
        if re.fullmatch(r"[0-9a-f]{32}", name):
            try:
                return self._recorded(self.client.get_run(name))
            except MlflowException:
                pass
        matches = []
        if re.fullmatch(r"[^'\"`\\]+", name):
            matches = self.search(f"attributes.run_name = '{name}'")
            matches = matches or self.search(f"tags.`{tags.FOLDER}` = '{name}'")
        if not matches and is_abbreviation(name):
            conditions = f"attributes.run_id LIKE '{name}%'", f"attributes.run_name LIKE '%-{name}'"
            candidates = {run.run_id: run for each in conditions for run in self.search(each)}
            matches = matching_runs(name, list(candidates.values()))
        newest = [] if len(matches) == 1 else self.search(limit=_NEWEST)
        return single_match(name, matches, newest, redact(self.uri))

    def children(self, run: RecordedRun) -> list[RecordedRun]:
        """Return the runs shown under `run`, the oldest first."""
        condition = f"tags.`{tags.PARENT_ID}` = '{run.run_id}'"
        return self.search(condition, ["attributes.start_time ASC"])

    def artifacts(self, run: RecordedRun, *, model: bool = False) -> Path:
        """Copy the artifacts that fbp reads into a temporary folder; return the folder.

        The names are fbp's and not the server's. Files that the run does not have are missing.
        """
        store.check_artifact_uri(self.uri, run.artifact_uri)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", run.run_id):
            raise InputError(f"run {run.run_id!r}: expected an id of letters and digits")
        folder = self._folder / run.run_id
        folder.mkdir(exist_ok=True)
        names = (*layout.READ, *(layout.READ_MODEL if model else ()))
        existing = self.artifact_names(run)
        with store.global_tracking_uri(self.uri):
            for name in names:
                target = (folder / name).parent
                target.mkdir(exist_ok=True)
                if name in existing and not (folder / name).exists():
                    self.client.download_artifacts(run.run_id, name, str(target))
        return folder

    def artifact_names(self, run: RecordedRun) -> set[str]:
        """Return the names of those artifacts of a run that fbp reads, and that are there."""
        store.check_artifact_uri(self.uri, run.artifact_uri)
        names = (*layout.READ, *layout.READ_MODEL)
        with store.global_tracking_uri(self.uri):
            listed = {
                entry.path
                for parent in sorted({name.rpartition("/")[0] for name in names})
                for entry in self.client.list_artifacts(run.run_id, parent or None)
            }
        return listed.intersection(names)

    def series(self, run: RecordedRun) -> dict[str, Series]:
        """Return every metric: from the artifacts or, while it runs, as MLflow shows it."""
        with prefixed_by(f"run {run.name}"):
            return history.read(self.artifacts(run)) or self._indexed_series(run)

    def _indexed_series(self, run: RecordedRun) -> dict[str, Series]:
        """Return every metric as MLflow shows it; of long runs, this is a part of the steps."""
        series = {}
        for key in run.metrics:
            if not key.startswith(MACHINE):
                points = self.client.get_metric_history(run.run_id, key)
                points.sort(key=lambda point: (point.step, point.timestamp))
                series[key] = Series(
                    np.array([point.step for point in points], "i8"),
                    np.array([point.value for point in points], "f8"),
                    np.array([point.timestamp for point in points], "i8"),
                )
        return series

    def checkpoints(self, run: RecordedRun) -> dict[int, CheckpointDigests]:
        """Return the digests of the parameters at each checkpoint, by step."""
        with prefixed_by(f"run {run.name}"):
            return history.read_checkpoints(self.artifacts(run))

    def layers(self, run: RecordedRun) -> dict[str, str]:
        """Return the names of the model's layers by path."""
        return history.read_layer_names(self.artifacts(run))

    def signed_artifacts(self, run: RecordedRun) -> Path:
        """Return a folder with copies of the manifest of a run and its signatures."""
        store.check_artifact_uri(self.uri, run.artifact_uri)
        folder = self._folder / f"{run.run_id}-signed"
        with store.global_tracking_uri(self.uri):
            mlflow_shown.copy_signed(run.artifact_uri, folder)
        return folder

    def add_signatures(self, run: RecordedRun, folder: Path) -> None:
        """Add a folder of signatures to the run's artifacts, here and in its own folder."""
        store.check_artifact_uri(self.uri, run.artifact_uri)
        with store.global_tracking_uri(self.uri):
            self.client.log_artifacts(run.run_id, str(folder), layout.SIGNATURES)
        local = self._local_folder(run)
        if local:
            signatures.copy(folder, layout.artifacts(local))

    def _local_folder(self, run: RecordedRun) -> Path | None:
        """Return the run's folder if it is on this machine."""
        folder = layout.run_folder(layout.root(), run.tags.get(tags.FOLDER, ""))
        return folder if folder and is_folder_of(folder, run.run_id) else None

    def verify(self, run: RecordedRun) -> Verification:
        """Check what MLflow shows of a run, and the run's folder if it is on this machine."""
        store.check_artifact_uri(self.uri, run.artifact_uri)
        with store.global_tracking_uri(self.uri):
            shown = mlflow_shown.verify(self.client, run)
        folder = self._local_folder(run)
        if folder is None:
            return shown
        try:
            local = verify_local(folder)
        except NotSealed as error:
            local = Verification("", (str(error),))
        lines = [f"run folder: {line}" for line in local.differences]
        if local.holds and shown.root != local.root:
            lines.append("the run's folder has another manifest than MLflow")
        both = dict.fromkeys((*shown.covered, *local.covered))
        return shown.with_differences(lines)._replace(covered=tuple(both))


def _folders_hint(root: Path) -> str:
    """Return how the runs of this project can be read without MLflow; empty if there are none."""
    if not layout.run_folders(root):
        return ""
    return "; the run folders of this project can be read with: --tracking-uri folders"


@contextmanager
def opened(tracking_uri: str | None) -> Iterator[MlflowRuns]:
    """Open an MLflow store: that of the URI, of ``MLFLOW_TRACKING_URI``, or the embedded one.

    Raises:
        InputError: if there is no store, or if it does not answer, now or later.
    """
    require("MLflow tracking", "mlflow")
    from mlflow.exceptions import MlflowException

    root = layout.root()
    uri = mlflow_uri(root, tracking_uri)
    if uri == default_uri(root):
        if not layout.database(root).exists():
            raise InputError(f"there are no runs in {root} yet; start with: fbp run digits_mlp")
        store.check_not_moved(root)
    elif store.is_embedded(uri) and not Path(uri.partition(":///")[2].partition("?")[0]).exists():
        raise InputError(f"{redact(uri)}: there is no such store{_folders_hint(root)}")

    def unanswered(error: Exception) -> InputError:
        reason = redacted_first_line(error, uri)[:_LONGEST_REASON]
        return InputError(
            f"{redact(uri)}: the store does not answer ({type(error).__name__}: {reason})"
            f"{_folders_hint(root)}"
        )

    try:
        client = store.connect(uri, root)
    except Exception as error:
        raise unanswered(error) from None
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield MlflowRuns(client, uri, Path(folder))
        except MlflowException as error:
            raise unanswered(error) from None
