"""The reader of runs in an MLflow store; it trusts nothing that the store holds."""

import csv
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fbp._optional import require
from fbp.errors import InputError
from fbp.experiment.rundir import layout, tags
from fbp.experiment.rundir.checkpoints import CheckpointDigests
from fbp.experiment.rundir.redact import redact, redact_secrets_of
from fbp.experiment.rundir.series import Series
from fbp.experiment.tracking import store
from fbp.experiment.tracking.run_reader import (
    FILTER_HINT,
    RecordedRun,
    is_abbreviation,
    matching_runs,
    single_match,
)
from fbp.experiment.tracking.shipper import connect, shipped

_FILES = (
    layout.CONFIG,
    "environment.json",
    "git.diff",
    "history/steps.csv",
    "history/metrics.csv",
    "history/checkpoints.json",
    "history/layers.json",
)
_MODEL = ("model/params.npz", "model/config.toml", "model/model.json")
_NEWEST = 10  # runs that are suggested for an unknown name


class MlflowRuns:
    """The runs of an MLflow store; a :class:`.run_reader.RunReader`. Made by :func:`opened`.

    Attributes:
        client: MLflow's client.
        uri: the tracking URI.
    """

    def __init__(self, client: Any, uri: str, folder: Path):
        self.client, self.uri = client, uri
        self._folder = folder  # of copied artifacts
        self._experiments = {
            experiment.experiment_id: experiment.name for experiment in client.search_experiments()
        }

    def search(
        self, condition: str = "", order: Sequence[str] = (), limit: int = 1000
    ) -> list[RecordedRun]:
        """Return the runs that satisfy a condition, see :meth:`.RunReader.search`."""
        from mlflow.exceptions import MlflowException

        try:
            runs = self.client.search_runs(
                list(self._experiments), condition, max_results=limit, order_by=list(order) or None
            )
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise  # the store's fault; see opened
            reason = redact_secrets_of(str(error).partition("\n")[0], self.uri)
            reason = reason.removeprefix("INVALID_PARAMETER_VALUE: ")
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
            matches = matching_runs(name, self.search())
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
        if not re.fullmatch(r"[A-Za-z0-9_-]+", run.run_id):
            raise InputError(f"run {run.run_id!r}: expected an id of letters and digits")
        folder = self._folder / run.run_id
        folder.mkdir(exist_ok=True)
        names = (*_FILES, *(_MODEL if model else ()))
        with store.global_tracking_uri(self.uri):
            parents = sorted({name.rpartition("/")[0] for name in names})
            existing = {
                entry.path
                for parent in parents
                for entry in self.client.list_artifacts(run.run_id, parent or None)
            }
            for name in names:
                target = (folder / name).parent
                target.mkdir(exist_ok=True)
                if name in existing and not (folder / name).exists():
                    self.client.download_artifacts(run.run_id, name, str(target))
        return folder

    def series(self, run: RecordedRun) -> dict[str, Series]:
        """Return every metric: from the artifacts or, while it runs, as MLflow shows it."""
        return from_artifacts(self.artifacts(run), run.name) or self.indexed_series(run)

    def indexed_series(self, run: RecordedRun) -> dict[str, Series]:
        """Return every metric as MLflow shows it; of long runs, this is a part of the steps."""
        series = {}
        for key in run.metrics:
            if not key.startswith("system/"):
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
        return checkpoints(self.artifacts(run), run.name)

    def layers(self, run: RecordedRun) -> dict[str, str]:
        """Return the names of the model's layers by path."""
        return layers(self.artifacts(run))

    def tag_local_run(self, folder: Path, name: str, text: str) -> None:
        """Set a tag of a run that was sent from `folder`, see :meth:`.RunReader.tag_local_run`."""
        from mlflow.exceptions import MlflowException

        run_id = shipped(folder).get("run_id")
        if not run_id:
            return
        try:
            self.client.set_tag(run_id, name, text)
        except MlflowException as error:
            raise OSError(f"{redact(self.uri)}: the store does not answer") from error


def from_artifacts(folder: Path, run_name: str) -> dict[str, Series]:
    """Return every metric from the history among a run's artifacts; none while it goes on."""
    found: dict[str, Series] = {}
    history = folder / "history"
    try:
        if (history / "steps.csv").exists():
            names = (
                (history / "steps.csv").read_text(encoding="utf-8").partition("\n")[0].split(",")
            )
            table = np.loadtxt(history / "steps.csv", delimiter=",", skiprows=1, ndmin=2)
            steps = table[:, 0].astype(np.int64)
            for i, name in enumerate(names[1:], 1):
                found[name] = Series(
                    steps, table[:, i].astype(np.float32).astype(np.float64), np.zeros_like(steps)
                )
        points: dict[str, list[tuple[int, float, int]]] = {}
        if (history / "metrics.csv").exists():
            with open(history / "metrics.csv", encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    points.setdefault(row["key"], []).append(
                        (int(row["step"]), float(row["value"]), int(row["time"]))
                    )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"run {run_name}: the history among its artifacts is damaged ({error})"
        ) from None
    for key, rows in points.items():
        at, values, times = zip(*rows, strict=True)
        found[key] = Series(
            np.array(at, np.int64), np.array(values, np.float64), np.array(times, np.int64)
        )
    return found


def layers(folder: Path) -> dict[str, str]:
    """Return the names of the model's layers by path, from a run's artifacts."""
    path = folder / "history" / "layers.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        found = {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def checkpoints(folder: Path, run_name: str) -> dict[int, CheckpointDigests]:
    """Return the digests of the parameters at each checkpoint, by step, from a run's artifacts."""
    path = folder / "history" / "checkpoints.json"
    if not path.exists():
        return {}
    try:
        return {
            int(step): _digests(int(step), entry)
            for step, entry in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"run {run_name}: checkpoints.json among its artifacts is damaged ({error})"
        ) from None


def _digests(step: int, entry: dict[str, Any]) -> CheckpointDigests:
    tensors = {str(path): str(digest) for path, digest in entry["tensors"].items()}
    return CheckpointDigests(step, str(entry["params"]), tensors)


@contextmanager
def opened(tracking_uri: str | None) -> Iterator[MlflowRuns]:
    """Open an MLflow store: that of the URI, of ``MLFLOW_TRACKING_URI``, or the embedded one.

    Raises:
        InputError: if there is no store, or if it does not answer, now or later.
    """
    require("MLflow tracking", "mlflow")
    from mlflow.exceptions import MlflowException

    root = layout.root()
    uri = store.tracking_uri(root, tracking_uri)
    if uri == store.default_uri(root):
        if not layout.database(root).exists():
            raise InputError(f"there are no runs in {root} yet; start with: fbp run digits_mlp")
        store.check_not_moved(root)
    elif (
        uri.startswith("sqlite:///")
        and not Path(uri.removeprefix("sqlite:///").partition("?")[0]).exists()
    ):
        raise InputError(f"{redact(uri)}: there is no such store")

    def unanswered(error: Exception) -> InputError:
        first = redact_secrets_of(str(error).partition("\n")[0], uri)[:200]
        return InputError(
            f"{redact(uri)}: the store does not answer ({type(error).__name__}: {first})"
        )

    try:
        client = connect(uri, root)
    except Exception as error:
        raise unanswered(error) from None
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield MlflowRuns(client, uri, Path(folder))
        except MlflowException as error:
            raise unanswered(error) from None
