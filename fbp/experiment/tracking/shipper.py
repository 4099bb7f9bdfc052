"""Sends journals to MLflow, from a process of its own.

Training must not wait for MLflow: importing it takes seconds, one logged metric milliseconds, a dead server minutes. So
training only appends to a journal, and this process follows it. What was sent is remembered in ``shipped.json``; sending
something twice changes nothing, because MLflow takes (key, step, time, value) as a metric's identity, and what is sent is on
the disk before, so that no loss of power can make a resumed run send it with another time. Where a journal no longer begins
with what was sent (a damaged disk, somebody's editor), all of it is sent again but for what MLflow has.
"""

import argparse
import contextlib
import datetime
import json
import logging
import operator
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fbp.experiment.rundir import journal, layout, locks, tags
from fbp.experiment.rundir.journal import (
    ChildLine,
    EndLine,
    Journal,
    Line,
    MetricsLine,
    PrefixChecksum,
    ResumeLine,
    StartLine,
    StepsLine,
    TagsLine,
)
from fbp.experiment.rundir.layout import JOURNAL, SYSTEM_JOURNAL
from fbp.experiment.rundir.redact import redact_secrets_of
from fbp.experiment.tracking import mlflow_format, store
from fbp.experiment.tracking.system_metrics import SystemMetrics

_BATCH = 1000  # metrics per request: MLflow's limit
_POLL_SECONDS = 0.2
_RETRY_SECONDS = float(
    os.environ.get("FBP_RETRY_SECONDS", "20")
)  # how long to keep trying after the run's end
_HEARTBEAT_SECONDS = 30.0
_HANGING_SECONDS = 900.0  # one request may take as long as a large model takes to upload
SEND_SECONDS = (
    120.0  # how long a training process waits for MLflow at its end; the journal stays in any case
)

_URI = "FBP_SHIPPER_URI"

_COMMAND = "import sys; from fbp.experiment.tracking.shipper import main; sys.exit(main())"

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def launch(folder: Path, uri: str) -> subprocess.Popen[bytes]:
    """Start the shipper for a run's folder, out of reach of the terminal's Ctrl-C.

    It follows the run for as long as somebody trains it (see :func:`fbp.experiment.rundir.locks.try_hold_training_lock`), then sends what is left.
    """
    with open(layout.shipper_log(folder), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _COMMAND, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ
            | {"JAX_PLATFORMS": "cpu", _URI: uri},  # not an argument: it may hold a password
        )


def wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for a shipper; returns whether all was sent. One that takes longer goes on by itself."""
    try:
        return process.wait(timeout=seconds) == 0
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        return False


def connect(uri: str, root: Path) -> Any:
    """An MLflow client on a store that is ready; a new SQLite store is made under a lock, since two makers destroy it."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    root.mkdir(parents=True, exist_ok=True)
    _knock(uri)
    with _one_at_a_time(uri, root):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _knock(uri: str) -> None:
    """See that a database's server listens, where it is plain at which port: MLflow itself would try for two minutes.

    Raises:
        OSError: where it does not.
    """
    usual = {"postgresql": 5432, "mysql": 3306}.get(re.split(r"[:+]", uri, maxsplit=1)[0])
    if usual:
        from sqlalchemy.engine import make_url

        url = make_url(uri)
        if url.host and not url.query:  # a query may name another host, or a socket
            socket.create_connection((url.host, url.port or usual), timeout=10).close()


def _one_at_a_time(uri: str, root: Path) -> contextlib.AbstractContextManager[None]:
    """A lock for what makes tables and experiments in an embedded store; a server sees to that itself."""
    return (
        locks.locked(layout.store_lock(root))
        if uri.startswith("sqlite:")
        else contextlib.nullcontext()
    )


def shipped(folder: Path) -> dict[str, Any]:
    """What a shipper remembered of a run: uri, run_id, what was sent of each journal, stride, done.

    Empty where that is absent or damaged.
    """
    try:
        state = json.loads(layout.sent(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    kinds = {"uri": str, "run_id": str, "sent": dict, "stride": int, "done": bool}
    if not (
        isinstance(state, dict)
        and all(isinstance(state.get(key), kind) for key, kind in kinds.items())
    ):
        return {}
    try:
        marks = {
            name: PrefixChecksum(*map(operator.index, state["sent"][name]))
            for name in (JOURNAL, SYSTEM_JOURNAL)
        }
    except (KeyError, TypeError):
        return {}
    return state | {"sent": marks}


def destination(folder: Path) -> str | None:
    """The tracking URI that a run was meant for, without its password; None where nothing is known."""
    path = layout.destination(folder)
    meant = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    return store.default_uri(layout.root_of(folder)) if meant == store.EMBEDDED else meant


def is_sent(folder: Path) -> bool:
    """Whether MLflow has all that the run's journal holds, and the run is closed there."""
    state = shipped(folder)
    return bool(state.get("done")) and journal.length(folder) <= state["sent"][JOURNAL].length


class Shipment:
    """One run on its way to MLflow."""

    def __init__(self, folder: Path, client: Any, uri: str, root: Path):
        self.folder, self.client, self.uri, self.root = folder, client, uri, root
        self.sent = {JOURNAL: PrefixChecksum(), SYSTEM_JOURNAL: PrefixChecksum()}
        self.run_id, self.stride = "", 1
        self.ended: EndLine | None = None
        self._finished = False
        self.children: list[Path] = []
        self._metrics: list[Any] = []
        self._there: set[tuple[str, int]] = (
            set()
        )  # what MLflow has already of a journal that is sent again
        self._beat = 0.0
        self._remembered()

    def _remembered(self) -> None:
        state = shipped(self.folder)
        if state.get("uri") != store.portable(self.uri, self.root):
            return
        self.sent, self.run_id, self.stride = state["sent"], state["run_id"], state["stride"]
        for name, mark in self.sent.items():
            if not journal.has_prefix(self.folder, mark, name):
                self._begin_again(name)
        if self.sent[JOURNAL].length:
            self._finished, self.ended = state["done"], journal.read_end(self.folder)
        for offset, line in journal.lines(self.folder, kinds=[ChildLine]):
            if isinstance(line, ChildLine) and offset <= self.sent[JOURNAL].length:
                self._add_child(line)

    def _begin_again(self, name: str) -> None:
        """Send a journal from its beginning, without what MLflow has."""
        self.sent[name] = PrefixChecksum()
        if self.run_id:
            for key in self.client.get_run(self.run_id).data.metrics:
                if key.startswith("system/") == (name == SYSTEM_JOURNAL):
                    self._there |= {
                        (key, point.step)
                        for point in self.client.get_metric_history(self.run_id, key)
                    }

    def _add_child(self, line: ChildLine) -> None:
        child = layout.safe_child(self.folder.parent, line.folder)
        if child is not None and child not in self.children:
            self.children.append(child)

    def _remember(self) -> None:
        state = {
            "uri": store.portable(self.uri, self.root),
            "run_id": self.run_id,
            "sent": self.sent,
            "stride": self.stride,
            "done": self._finished,
        }
        partial = layout.sent(self.folder).with_suffix(".partial")
        partial.write_text(json.dumps(state))
        partial.replace(layout.sent(self.folder))

    @property
    def done(self) -> bool:
        """Whether MLflow has all of it, and the run is closed there."""
        return self._finished and journal.length(self.folder) <= self.sent[JOURNAL].length

    def advance(self, lives: bool) -> None:
        """Send what the journals hold beyond what was sent; finish the run where the journal ends."""
        for name in (JOURNAL, SYSTEM_JOURNAL):
            if (self.run_id or name == JOURNAL) and layout.journal(self.folder, name).exists():
                self._advance(name)
        if self.ended and not self._finished:
            self._finish(self.ended)
        elif lives and self.run_id and time.monotonic() - self._beat > _HEARTBEAT_SECONDS:
            self._beat = time.monotonic()
            when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            self.client.set_tag(self.run_id, tags.HEARTBEAT, when)

    def _advance(self, name: str) -> None:
        length = journal.length(self.folder, name)
        if length <= self.sent[name].length:
            return
        with open(layout.journal(self.folder, name), "rb") as file:
            os.fsync(file.fileno())  # what was sent must not be lost here
        self._metrics.clear()  # of an attempt that failed
        before = self.sent[name]
        reached = before.length
        for reached, line in journal.lines(self.folder, reached, name):  # noqa: B007, B020
            self._take(line)
        self._send()
        # damaged lines at the end are passed over, too
        self.sent[name] = journal.checksum_prefix(self.folder, max(reached, length), name, before)
        self._remember()

    def _take(self, line: Line) -> None:
        match line:
            case StartLine():
                self._create(line)
            case StepsLine():
                self._take_steps(line)
            case MetricsLine():
                for key, value in line.values.items():
                    self._add(key, value, line.time, line.step)
            case TagsLine():
                for key, text in line.values.items():
                    self.client.set_tag(self.run_id, mlflow_format.key_of(key), text)
            case ChildLine():
                self._add_child(line)
            case EndLine():
                self.ended = line
            case ResumeLine():
                self.ended, self._finished = None, False
                self.client.update_run(self.run_id, status="RUNNING")
                if tags.MESSAGE in self.client.get_run(self.run_id).data.tags:
                    self.client.delete_tag(self.run_id, tags.MESSAGE)

    def _take_steps(self, line: StepsLine) -> None:
        times = line.times
        for i in range(len(line)):
            step = line.first_step + i
            if step % self.stride == 0 or step == 1:
                for key, column in line.columns.items():
                    self._add(key, float(column[i]), int(times[i]), step)

    def _add(self, key: str, value: float, when: int, step: int) -> None:
        from mlflow.entities import Metric

        key = mlflow_format.key_of(key)
        if (key, step) in self._there:
            return
        finite = (
            value if abs(value) != float("inf") else float("nan")
        )  # MLflow turns infinity into 1.8e308
        self._metrics.append(Metric(key, finite, when, step))
        if len(self._metrics) >= _BATCH:
            self._send()

    def _send(self) -> None:
        for at in range(0, len(self._metrics), _BATCH):
            self.client.log_batch(self.run_id, metrics=self._metrics[at : at + _BATCH])
        self._metrics.clear()

    def _create(self, line: StartLine) -> None:
        """Make the run in MLflow, or find it there if an attempt before got so far."""
        from mlflow.entities import Param

        self.stride = max(1, -(-line.steps // mlflow_format.POINTS))
        experiment = self._experiment(line.experiment)
        if not self.run_id:
            found = self.client.search_runs(
                [experiment], f"tags.`{tags.FOLDER}` = '{self.folder.name}'", max_results=1
            )
            self.run_id = found[0].info.run_id if found else ""
        if not self.run_id:
            run_tags = dict(line.tags)
            if line.parent:
                parent = layout.safe_child(self.folder.parent, line.parent)
                run_tags[tags.PARENT_ID] = str(shipped(parent)["run_id"]) if parent else ""
            run = self.client.create_run(
                experiment, start_time=line.time, tags=run_tags, run_name=line.name
            )
            self.run_id = run.info.run_id
            self._remember()
        self.client.log_batch(
            self.run_id,
            params=[Param(mlflow_format.key_of(key), value) for key, value in line.params.items()],
        )
        if line.inputs:
            self.client.log_inputs(
                self.run_id, [mlflow_format.dataset_input(entry) for entry in line.inputs]
            )

    def _experiment(self, name: str) -> str:
        with _one_at_a_time(self.uri, self.root):
            found = self.client.get_experiment_by_name(name)
            if found:
                return str(found.experiment_id)
            embedded = self.uri.startswith("sqlite:")
            directory = re.sub(r"[^\w.\- ]|^\.+", "_", name)
            location = f"{store.artifact_root(self.root)}/{directory}" if embedded else None
            # this tag opens the dashboard on its side for training runs
            kind = {tags.EXPERIMENT_KIND: "custom_model_development"}
            return str(self.client.create_experiment(name, artifact_location=location, tags=kind))

    def _finish(self, end: EndLine) -> None:
        """Artifacts, the model, and last the status."""
        if self.run_id:
            from fbp.experiment.figures.draw import draw

            try:
                problems = draw(self.folder, [child for child in self.children if child.exists()])
            except Exception as error:  # a damaged file must not keep the rest from MLflow
                problems = [f"{type(error).__name__}: {error}"]
            for problem in problems:
                print(f"plot not drawn: {problem}", file=sys.stderr)
            mlflow_format.write_history(self.folder)
            self.client.log_artifacts(self.run_id, str(layout.artifacts(self.folder)))
            saved = layout.model(self.folder)
            if (
                end.status == "FINISHED"
                and (saved / layout.MODEL_FACTS).exists()
                and not self._has_model()
            ):
                mlflow_format.log_model(self.folder, self.run_id, self.uri)
            if end.message:
                self.client.set_tag(self.run_id, tags.MESSAGE, end.message)
            self.client.set_terminated(self.run_id, end.status, end.time)
        self._finished = True
        self._remember()

    def _has_model(self) -> bool:
        experiment = self.client.get_run(self.run_id).info.experiment_id
        return bool(
            self.client.search_logged_models(
                [experiment], f"source_run_id = '{self.run_id}'", max_results=1
            )
        )


def follow(folder: Path, uri: str) -> bool:
    """Ship a run and its children until all have ended; returns whether all was sent.

    What a training process that died left unfinished is closed.
    """
    root = layout.root_of(folder)
    client, system = None, SystemMetrics(folder)
    watch = _Watch(folder)
    shipments: list[Shipment] = []
    deadline, last_problem = None, ""
    while True:
        lives = locks.is_training(folder)
        if not lives and journal.read_start(folder) is None:
            return True  # the run never began
        try:
            if lives:
                system.sample()
            if client is None:
                client = connect(uri, root)
            if not shipments:
                shipments = [Shipment(folder, client, uri, root)]
            shipments += [Shipment(child, client, uri, root) for child in _new_children(shipments)]
            if not lives:
                close_orphans(folder, [shipment.folder for shipment in shipments])
            for shipment in reversed(shipments):  # children end before their parent
                if not shipment.done:
                    shipment.advance(lives)
                    watch.progress()
            left = [
                shipment
                for shipment in shipments
                if not shipment.done and journal.read_start(shipment.folder)
            ]
            if not lives and not left and not _new_children(shipments):
                return True  # as long as it lives, there may come more: a run that is about to be resumed looks finished
            deadline = None
        except Exception:
            problem = traceback.format_exc()
            if problem != last_problem:
                print(redact_secrets_of(problem, uri), file=sys.stderr, flush=True)
                last_problem = problem
            if not lives or journal.read_end(folder):
                deadline = deadline or time.monotonic() + _RETRY_SECONDS
            if deadline and time.monotonic() > deadline:
                return False
            time.sleep(1)
        time.sleep(_POLL_SECONDS)


class _Watch:
    """Ends this process when, long after the training, one request still hangs: a server can drip bytes for ever."""

    def __init__(self, folder: Path):
        self._last, self._folder = time.monotonic(), folder
        threading.Thread(target=self._watch, daemon=True).start()

    def progress(self) -> None:
        """Something was sent."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while True:
            time.sleep(5)
            if locks.is_training(self._folder):
                self.progress()
            elif time.monotonic() - self._last > _HANGING_SECONDS:
                print("gave up on a server that hangs", file=sys.stderr, flush=True)
                os._exit(1)


def _new_children(shipments: Sequence[Shipment]) -> list[Path]:
    known = {shipment.folder for shipment in shipments}
    return [
        child
        for shipment in shipments
        for child in shipment.children
        if child not in known and child.exists()
    ]


def close_orphans(top: Path, folders: Sequence[Path]) -> int:
    """Write the ends that a training process that died could not write; returns how many.

    Args:
        top: the run's folder, or its group's.
        folders: the folders of all its runs.
    """
    closed = 0
    with locks.try_hold_training_lock(top) as mine:  # nobody resumes it meanwhile
        for folder in folders if mine else ():
            if journal.read_start(folder) and not journal.read_end(folder):
                writer = Journal(folder)
                writer.end("KILLED", "the training process died without a word")
                writer.close()
                closed += 1
    return closed


def main() -> int:
    """Follow one run's journal until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    sys.argv[0] = "fbp"  # MLflow shows it as where a model comes from
    uri = os.environ.pop(_URI)  # without a server's password, see redact.py
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # they are for the training process; this one ends after it
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(19)  # training goes first
    import mlflow  # noqa: F401  (while training starts)

    warnings.filterwarnings("ignore", module="mlflow")
    try:
        with locks.locked(layout.shipper_lock(options.folder)):
            return 0 if follow(options.folder, uri) else 1
    except FileNotFoundError:
        if options.folder.is_dir():
            raise
        return 0  # the run never began, and its folder is gone
