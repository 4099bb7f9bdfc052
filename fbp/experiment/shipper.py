"""Sends journals to MLflow, from a process of its own.

Training must not wait for MLflow: importing it takes seconds, one logged metric milliseconds, a dead server minutes. So
training only appends to a journal, and this process follows it. What was sent is remembered in ``shipped.json``; sending
something twice changes nothing, because MLflow takes (key, step, time, value) as a metric's identity.
"""

import argparse
import contextlib
import fcntl
import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fbp.experiment import journal
from fbp.experiment.journal import Journal

_POINTS = 2500  # per metric key: what the dashboard reads at once
_BATCH = 1000  # metrics per request: MLflow's limit
_POLL_SECONDS = 0.2
_RETRY_SECONDS = float(os.environ.get("FBP_RETRY_SECONDS", "60"))  # how long to keep trying after the run's end

STATE = "shipped.json"
DESTINATION = "destination"  # a file with the tracking URI that the run was meant for

_COMMAND = "import sys; from fbp.experiment.shipper import main; sys.exit(main())"

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def launch(folder: Path, uri: str, follow_me: bool = True) -> subprocess.Popen[bytes]:
    """Start the shipper for a run's folder, out of reach of the terminal's Ctrl-C.

    Args:
        folder: the run's.
        uri: where to send it.
        follow_me: this process is training; otherwise the run is over, and only what is left of it is sent.
    """
    parent = ["--parent", str(os.getpid())] if follow_me else []
    with open(folder / "shipper.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _COMMAND, str(folder), "--uri", uri, *parent],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, across processes."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def connect(uri: str, store: Path) -> Any:
    """An MLflow client on a store that is ready; a new SQLite store is made under a lock, since two makers destroy it."""
    from mlflow.tracking import MlflowClient

    with locked(store / ".init.lock"):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def shipped(folder: Path) -> dict[str, Any]:
    """What a shipper remembered of a run: uri, run_id, offset, stride, done; empty where that is absent or damaged."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) and {"uri", "run_id", "offset", "stride", "done"} <= set(state) else {}


class Shipment:
    """One run on its way to MLflow."""

    def __init__(self, folder: Path, client: Any, uri: str, store: Path):
        self.folder, self.client, self.uri, self.store = folder, client, uri, store
        self.offset, self.run_id, self.stride = 0, "", 1
        self.ended: dict[str, Any] | None = None
        self.done = False
        self.children: list[Path] = []
        self._metrics: list[Any] = []
        self._resume()

    def _resume(self) -> None:
        state = shipped(self.folder)
        if state.get("uri") == self.uri:
            self.offset, self.run_id, self.stride = state["offset"], state["run_id"], state["stride"]
            self.done = state["done"]
        elif (self.folder / STATE).exists() and not state:  # damaged: the run itself knows whose it is
            experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
            found = self.client.search_runs(experiments, f"tags.`fbp.folder` = '{self.folder.name}'")
            self.run_id = found[0].info.run_id if found else ""

    def _remember(self) -> None:
        state = {
            "uri": self.uri,
            "run_id": self.run_id,
            "offset": self.offset,
            "stride": self.stride,
            "done": self.done,
        }
        partial = self.folder / f".{STATE}.partial"
        partial.write_text(json.dumps(state))
        partial.replace(self.folder / STATE)

    def advance(self) -> None:
        """Send what the journal holds beyond what was sent; finish the run where the journal ends."""
        offset = self.offset
        for offset, line in journal.lines(self.folder, self.offset):  # noqa: B007
            self._take(line)
        self._send()
        if offset != self.offset:
            self.offset = offset
            self._remember()
        if self.ended and not self.done:
            self._finish(self.ended)

    def _take(self, line: dict[str, Any]) -> None:
        match line["kind"]:
            case "start":
                if not self.run_id:
                    self._create(line)
                self.stride = max(1, -(-line["steps"] // _POINTS))
            case "steps":
                self._take_steps(line)
            case "metrics":
                for key, value in line["values"].items():
                    self._add(key, value, line["time"], line["step"])
            case "tags":
                for key, value in line["values"].items():
                    self.client.set_tag(self.run_id, key, value)
            case "child":
                self.children.append(self.folder.parent / line["folder"])
            case "end":
                self.ended = line

    def _take_steps(self, line: dict[str, Any]) -> None:
        columns = {key: journal.decode(column) for key, column in line["columns"].items()}
        count = max((len(column) for column in columns.values()), default=0)
        times = journal.step_times(line, count)
        for i in range(count):
            step = line["first"] + i
            if step % self.stride == 0 or step == 1:
                for key, column in columns.items():
                    self._add(key, float(column[i]), int(times[i]), step)

    def _add(self, key: str, value: float, when: int, step: int) -> None:
        from mlflow.entities import Metric

        finite = value if abs(value) != float("inf") else float("nan")  # MLflow turns infinity into 1.8e308
        self._metrics.append(Metric(key, finite, when, step))
        if len(self._metrics) >= _BATCH:
            self._send()

    def _send(self) -> None:
        for at in range(0, len(self._metrics), _BATCH):
            self.client.log_batch(self.run_id, metrics=self._metrics[at : at + _BATCH])
        self._metrics.clear()

    def _create(self, line: dict[str, Any]) -> None:
        from mlflow.entities import Param

        tags = dict(line["tags"])
        if line["parent"]:
            tags["mlflow.parentRunId"] = self._run_id_of(self.folder.parent / line["parent"])
        run = self.client.create_run(
            self._experiment(line["experiment"]), start_time=line["time"], tags=tags, run_name=line["name"]
        )
        self.run_id = run.info.run_id
        self._remember()
        self.client.log_batch(self.run_id, params=[Param(key, value) for key, value in line["params"].items()])
        if line["inputs"]:
            self.client.log_inputs(self.run_id, [_dataset_input(entry) for entry in line["inputs"]])

    def _run_id_of(self, folder: Path) -> str:
        return str(shipped(folder)["run_id"])

    def _experiment(self, name: str) -> str:
        with locked(self.store / ".init.lock"):
            found = self.client.get_experiment_by_name(name)
            if found:
                return str(found.experiment_id)
            embedded = self.uri.startswith("sqlite:")
            directory = re.sub(r"[^\w.\- ]|^\.+", "_", name)
            location = str((self.store / "artifacts" / directory).resolve()) if embedded else None
            # this tag opens the dashboard on its side for training runs
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return str(self.client.create_experiment(name, artifact_location=location, tags=tags))

    def _finish(self, end: dict[str, Any]) -> None:
        """Artifacts, the model, and last the status."""
        if self.run_id:
            from fbp.experiment import plots

            problems = plots.draw(self.folder, [child for child in self.children if child.exists()])
            for problem in problems:
                print(f"plot not drawn: {problem}", file=sys.stderr)
            write_history(self.folder)
            self.client.log_artifacts(self.run_id, str(self.folder / "artifacts"))
            if end["status"] == "FINISHED" and (self.folder / "artifacts" / "model").exists():
                log_model(self.folder, self.run_id, self.uri)
            if end["message"]:
                self.client.set_tag(self.run_id, "fbp.message", end["message"])
            self.client.set_terminated(self.run_id, end["status"], end["time"])
        self.done = True
        self._remember()


def _dataset_input(entry: dict[str, Any]) -> Any:
    """An MLflow dataset from its description; the digest is over all its content, unlike MLflow's own."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    def spec(shape: list[int], dtype: str) -> str:
        return json.dumps([{"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1, *shape[1:]]}}])

    schema = {"mlflow_tensorspec": {"features": spec(*entry["x"]), "targets": spec(*entry["y"])}}
    profile = {"features_shape": entry["x"][0], "targets_shape": entry["y"][0], "num_rows": entry["x"][0][0]}
    dataset = Dataset(
        entry["name"],
        entry["digest"],
        "code",
        json.dumps({"tags": {"mlflow.source.name": "fbp.datasets"}}),
        schema=json.dumps(schema),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", entry["context"])])


def write_history(folder: Path) -> None:
    """Every point of every metric as CSV: ``history/steps.csv`` for what is per step, ``history/metrics.csv`` for the rest."""
    import numpy as np

    series = journal.history(folder)
    per_step = [key for key in ("loss", "gradient_norm", "learning_rate") if key in series]
    target = folder / "artifacts" / "history"
    target.mkdir(exist_ok=True)
    if per_step:
        table = np.column_stack([series[per_step[0]].steps, *(series[key].values for key in per_step)])
        header = ",".join(["step", *per_step])
        np.savetxt(target / "steps.csv", table, "%.9g", ",", header=header, comments="")
    with open(target / "metrics.csv", "w", encoding="utf-8") as file:
        file.write("key,step,time,value\n")
        for key in sorted(set(series) - set(per_step)):
            for step, value, when in zip(*series[key], strict=True):
                file.write(f"{key},{step},{when},{float(value)!r}\n")


def log_model(folder: Path, run_id: str, uri: str) -> None:
    """The trained model as an MLflow model: code and arrays, no pickle, explicit requirements and a signature."""
    import importlib.metadata

    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    import fbp

    saved = folder / "artifacts" / "model"
    facts = json.loads((saved / "model.json").read_text())
    positions = facts["shape"][:1] if facts["sequence"] else []
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("int32" if facts["tokens"] else "float32"), (-1, *facts["shape"]))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, *positions, facts["outputs"]))]),
    )
    needed = ("jax", "numpy", "pydantic", "tomli-w")
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run(run_id=run_id):
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"model": str(saved)},
            signature=signature,
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in needed],
            code_paths=[str(Path(fbp.__file__).parent), *_user_code(saved)],
        )


def _user_code(saved: Path) -> list[str]:
    """The file or package of a model of the user's own, named as ``package.module:function`` in the configuration."""
    with open(saved / "config.toml", "rb") as file:
        name = tomllib.load(file)["model"]["name"]
    if ":" not in name:
        return []
    spec = importlib.util.find_spec(name.partition(":")[0].partition(".")[0])
    if spec is None or spec.origin is None:
        return []
    origin = Path(spec.origin)
    return [str(origin.parent if origin.name == "__init__.py" else origin)]


def follow(folder: Path, uri: str, alive: Callable[[], bool]) -> bool:
    """Ship a run and its children until all have ended; returns whether all was sent.

    Args:
        folder: the run's.
        uri: where to.
        alive: says whether the training process still lives; once it does not, what it left unfinished is closed.
    """
    store = folder.parent.parent
    client = None
    shipments: list[Shipment] = []
    deadline, last_problem = None, ""
    while True:
        lives = alive()
        if not lives and not (folder / journal.NAME).exists():
            return True  # the run never began
        try:
            if client is None:
                client = connect(uri, store)
                shipments = [Shipment(folder, client, uri, store)]
            shipments += [Shipment(child, client, uri, store) for child in _new_children(shipments)]
            if not lives:
                _close_orphans(shipments)
            for shipment in reversed(shipments):  # children end before their parent
                if not shipment.done:
                    shipment.advance()
            if all(shipment.done for shipment in shipments) and not _new_children(shipments):
                return True
            deadline = None
        except Exception:
            problem = traceback.format_exc()
            if problem != last_problem:
                print(problem, file=sys.stderr, flush=True)
                last_problem = problem
            if not lives or journal.end_of(folder):
                deadline = deadline or time.monotonic() + _RETRY_SECONDS
            if deadline and time.monotonic() > deadline:
                return False
            time.sleep(1)
        time.sleep(_POLL_SECONDS)


def _new_children(shipments: Sequence[Shipment]) -> list[Path]:
    known = {shipment.folder for shipment in shipments}
    return [child for shipment in shipments for child in shipment.children if child not in known and child.exists()]


def _close_orphans(shipments: Sequence[Shipment]) -> None:
    """Write the end that a training process that died could not write."""
    for shipment in shipments:
        if not shipment.done and (shipment.folder / journal.NAME).exists() and not journal.end_of(shipment.folder):
            writer = Journal(shipment.folder)
            writer.write("end", status="KILLED", message="the training process died without a word")
            writer.close()


def main() -> int:
    """Follow one run's journal until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--uri", required=True)
    parser.add_argument("--parent", type=int, help="the training process; without it, the run is taken as over")
    options = parser.parse_args()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(19)  # training goes first
    import mlflow  # noqa: F401  (while training starts)

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="mlflow")
    try:
        with locked(options.folder / ".shipper.lock"):
            return 0 if follow(options.folder, options.uri, lambda: os.getppid() == options.parent) else 1
    except FileNotFoundError:
        if options.folder.is_dir():
            raise
        return 0  # the run never began, and its folder is gone
