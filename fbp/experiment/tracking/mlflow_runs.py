"""A run as MLflow has it: found by name, and read back without trusting what it holds."""

import csv
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fbp._optional import require
from fbp.errors import InputError
from fbp.experiment.config.catalogue import did_you_mean
from fbp.experiment.rundir import layout
from fbp.experiment.rundir.redact import redact, redact_secrets_of
from fbp.experiment.rundir.series import Series
from fbp.experiment.tracking import store
from fbp.experiment.tracking.shipper import connect

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


class Recorded(NamedTuple):
    """What MLflow has of a run.

    Attributes:
        run_id, name, experiment, status: MLflow's.
        start, end: milliseconds since 1970; end is None while the run goes on.
        params, tags: texts by name.
        metrics: the last value of each.
        folder: where the artifacts that fbp reads are, as long as the store is open.
    """

    run_id: str
    name: str
    experiment: str
    status: str
    start: int
    end: int | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    folder: Path


class Runs:
    """The runs of an MLflow store. Make one by :func:`opened`."""

    def __init__(self, client: Any, uri: str, folder: Path):
        self.client, self.uri = client, uri
        self._folder = folder
        self.experiments = {
            experiment.experiment_id: experiment.name for experiment in client.search_experiments()
        }

    def search(
        self, condition: str = "", order: list[str] | None = None, limit: int = 1000
    ) -> list[Any]:
        """MLflow's runs that fulfil a condition in MLflow's language.

        Raises:
            InputError: where the condition or the order is not understood.
        """
        from mlflow.exceptions import MlflowException

        try:
            return list(
                self.client.search_runs(
                    list(self.experiments), condition, max_results=limit, order_by=order
                )
            )
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise  # the store's fault; see opened
            first = redact_secrets_of(str(error).partition("\n")[0], self.uri).removeprefix(
                "INVALID_PARAMETER_VALUE: "
            )
            about_order = order and ("order" in first or "attribute key" in first or not condition)
            asked = f"--sort {', '.join(order or [])}" if about_order else condition
            raise InputError(
                f"{asked}: {first}; write metrics.NAME, params.NAME, tags.NAME or attributes.NAME, such as "
                "\"metrics.validation_accuracy > 0.97 and params.optimizer_name = 'adam'\""
            ) from None

    def check_names(self, asked: Sequence[tuple[str, str]]) -> None:
        """See that some run has each metric or param of a filter: MLflow finds nothing where a name is misspelt, silently.

        Raises:
            InputError: where none of the newest runs has it.
        """
        newest = self.search(limit=200) if asked else []
        for kind, name in asked:
            known = {key for run in newest for key in getattr(run.data, kind)}
            if newest and name not in known:
                near = sorted(key for key in known if ("/" in key) == ("/" in name))
                raise InputError(f"no run has {kind}.{name}; {did_you_mean(name, near[:60])}")

    def find(self, name: str) -> Any:
        """The one run of that id (or its beginning), name (or its end, of four letters), or folder.

        Raises:
            InputError: where there is none, or there are several.
        """
        from mlflow.exceptions import MlflowException

        path = Path(name)
        name = path.name if layout.journal(path).exists() else name
        if re.fullmatch(r"[0-9a-f]{32}", name):
            try:
                return self.client.get_run(name)
            except MlflowException:
                pass
        found = []
        if re.fullmatch(r"[^'\"`\\]+", name):
            found = self.search(f"attributes.run_name = '{name}'") or self.search(
                f"tags.`fbp.folder` = '{name}'"
            )
        if not found and re.fullmatch(r"[0-9a-f]{4,31}", name):
            every = self.search()
            found = [run for run in every if run.info.run_id.startswith(name)]
            found = found or [
                run for run in every if (run.info.run_name or "").endswith(f"-{name}")
            ]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(run.info.run_id for run in found[:5])
            raise InputError(
                f"run {name!r}: {len(found)} runs in {redact(self.uri)} are called so; give one of the ids {ids}"
            )
        names = [run.info.run_name for run in self.search(limit=200)]
        hint = did_you_mean(name, names[:10]) if names else "it has no runs"
        raise InputError(f"run {name!r}: no run of that name or id in {redact(self.uri)}; {hint}")

    def children(self, run: Any) -> list[Any]:
        """The runs shown under a run, in the order in which they were made."""
        return self.search(
            f"tags.`mlflow.parentRunId` = '{run.info.run_id}'", ["attributes.start_time ASC"]
        )

    def read(self, run: Any, model: bool = False) -> Recorded:
        """The record of a run, its artifacts copied; those of the model, too, where it is asked for."""
        info = run.info
        if not re.fullmatch(r"[A-Za-z0-9_-]+", info.run_id):
            raise InputError(f"run {info.run_id!r}: expected an id of letters and digits")
        folder = self._folder / info.run_id
        folder.mkdir(exist_ok=True)
        self._copy(info.run_id, (*_FILES, *(_MODEL if model else ())), folder)
        return Recorded(
            info.run_id,
            info.run_name or info.run_id,
            self.experiments.get(info.experiment_id, info.experiment_id),
            info.status,
            info.start_time,
            info.end_time,
            dict(run.data.params),
            dict(run.data.tags),
            dict(run.data.metrics),
            folder,
        )

    def _copy(self, run_id: str, names: Sequence[str], folder: Path) -> None:
        """Artifacts, by names that are ours and not the server's; absent are those that the run does not have."""
        with store.global_tracking_uri(self.uri):
            above = sorted({name.rpartition("/")[0] for name in names})
            there = {
                entry.path
                for path in above
                for entry in self.client.list_artifacts(run_id, path or None)
            }
            for name in names:
                target = (folder / name).parent
                target.mkdir(exist_ok=True)
                if name in there and not (folder / name).exists():
                    self.client.download_artifacts(run_id, name, str(target))

    def series(self, recorded: Recorded) -> dict[str, Series]:
        """Every metric of a run but the machine's: from its artifacts, or, while it runs, what MLflow shows."""
        return from_artifacts(recorded) or self.points(recorded)

    def points(self, recorded: Recorded) -> dict[str, Series]:
        """Every metric of a run but the machine's, as MLflow shows it: of long runs some of the steps."""
        series = {}
        for key in recorded.metrics:
            if not key.startswith("system/"):
                points = self.client.get_metric_history(recorded.run_id, key)
                points.sort(key=lambda point: (point.step, point.timestamp))
                columns = (
                    [p.step for p in points],
                    [p.value for p in points],
                    [p.timestamp for p in points],
                )
                series[key] = Series(
                    *(
                        np.array(column, kind)
                        for column, kind in zip(columns, ("i8", "f8", "i8"), strict=True)
                    )
                )
        return series


def from_artifacts(recorded: Recorded) -> dict[str, Series]:
    """Every metric that a run's artifacts hold; none while it goes on."""
    found: dict[str, Series] = {}
    history = recorded.folder / "history"
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
            f"run {recorded.name}: the history among its artifacts is damaged ({error})"
        ) from None
    for key, rows in points.items():
        at, values, times = zip(*rows, strict=True)
        found[key] = Series(
            np.array(at, np.int64), np.array(values, np.float64), np.array(times, np.int64)
        )
    return found


def layers(recorded: Recorded) -> dict[str, str]:
    """The names of a run's layers by path."""
    path = recorded.folder / "history" / "layers.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        found = {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def checkpoints(recorded: Recorded) -> dict[int, dict[str, Any]]:
    """The digests of a run's parameters by step: ``params``, and ``tensors`` by path."""
    path = recorded.folder / "history" / "checkpoints.json"
    if not path.exists():
        return {}
    try:
        return {
            int(step): _digests(entry)
            for step, entry in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"run {recorded.name}: checkpoints.json among its artifacts is damaged ({error})"
        ) from None


def _digests(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "params": str(entry["params"]),
        "tensors": {str(key): str(text) for key, text in entry["tensors"].items()},
    }


@contextmanager
def opened(tracking_uri: str | None) -> Iterator[Runs]:
    """The runs of a store: that of the URI, of ``MLFLOW_TRACKING_URI``, or the embedded one.

    Raises:
        InputError: where there is no store, or it does not answer, now or later.
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
            yield Runs(client, uri, Path(folder))
        except MlflowException as error:
            raise unanswered(error) from None
