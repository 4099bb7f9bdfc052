"""The shipper: a process that follows the journal of a run and sends it to a tracker.

Training must not wait for a tracker: importing MLflow takes seconds, one logged metric
milliseconds, a dead server minutes. So training only appends to a journal, and this process reads
it. Pictures are drawn in another process, so that nothing that happens to them keeps a run from its
tracker.
"""

import argparse
import contextlib
import enum
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from fbp.experiment.config import references
from fbp.experiment.config.trust import Trust
from fbp.experiment.rundir import journal, layout, locks
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.redact import redact_secrets_of
from fbp.experiment.tracking import sink as sinks
from fbp.experiment.tracking.shipment import Shipment
from fbp.experiment.tracking.sink import Destination
from fbp.experiment.tracking.system_metrics import SystemMetrics

SEND_SECONDS = 120.0
"""How long a training process waits at its end until the tracker has everything."""

_POLL_SECONDS = 0.2
# how long to keep trying after the run's end
_RETRY_SECONDS = float(os.environ.get("FBP_RETRY_SECONDS", "20"))
_HANGING_SECONDS = 900.0  # one request may take as long as a large model takes to upload
_DRAWING_SECONDS = 300.0

_TASK = "FBP_SHIPPER"  # an environment variable, because an argument could show a password
_COMMAND = "import sys; from fbp.experiment.tracking.shipper import main; sys.exit(main())"


def launch(folder: Path, destination: Destination, model_code: Path) -> subprocess.Popen[bytes]:
    """Start the shipper of a run, out of reach of the terminal's Ctrl-C.

    It follows the run as long as a process trains it (see
    :func:`fbp.experiment.rundir.locks.try_hold_training_lock`), then sends what is left, and ends.

    Args:
        folder: the run's.
        destination: where the run is sent.
        model_code: the Python file that loads a trained model in MLflow.
    """
    reference = sinks.reference(destination.sink)
    folders = [str(path) for path in references.code_folders([reference])]
    task = json.dumps([*destination, reference, folders, str(model_code)])
    with open(layout.shipper_log(folder), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, str(folder)],  # -P: not from this folder
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", _TASK: task},
        )


def wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for a shipper; return whether everything was sent. A slower one goes on by itself."""
    try:
        return process.wait(timeout=seconds) == 0
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        return False


class Status(enum.Enum):
    """What a pass over the journals has shown."""

    TRAINING = "the run goes on"
    SENDING = "nobody trains it any more, but not everything is sent"
    DONE = "everything is sent, or the run never began"


class Follower:
    """Follows the run of a folder, and the runs under it.

    Args:
        folder: the run's.
        make_shipment: returns the shipment of a run's folder; may raise.

    Attributes:
        last_progress: when something was sent, by the monotonic clock.
    """

    def __init__(self, folder: Path, make_shipment: Callable[[Path], Shipment]):
        self.folder, self.last_progress = folder, time.monotonic()
        self._make_shipment = make_shipment
        self._shipments: dict[Path, Shipment] = {}
        self._system_metrics = SystemMetrics(folder)

    def one_pass(self) -> Status:
        """Send what is new in the journals; close runs whose training process has died.

        Raises:
            Exception: whatever the tracker raises; another pass may succeed.
        """
        is_training = locks.is_training(self.folder)
        if not is_training and journal.read_start(self.folder) is None:
            return Status.DONE
        while new := self._new_folders():
            self._shipments |= {folder: self._make_shipment(folder) for folder in new}
        top = self._shipments.get(self.folder)
        if is_training and not (top and top.done):  # a sealed journal does not grow
            self._system_metrics.sample()
        elif not is_training:
            close_orphans(self.folder, list(self._shipments))
        for shipment in reversed(self._shipments.values()):  # children end before their parent
            if not shipment.done and journal.read_start(shipment.folder):
                shipment.advance(is_training=is_training)
                self.last_progress = time.monotonic()
        if is_training:  # even a finished run may be about to be resumed
            return Status.TRAINING
        is_done = all(
            shipment.done or journal.read_start(shipment.folder) is None
            for shipment in self._shipments.values()
        )
        return Status.DONE if is_done and not self._new_folders() else Status.SENDING

    def _new_folders(self) -> list[Path]:
        known = [child for shipment in self._shipments.values() for child in shipment.children]
        return [
            folder
            for folder in (self.folder, *known)
            if folder not in self._shipments and folder.exists()
        ]


def follow(follower: Follower, report: Callable[[str], None]) -> bool:
    """Pass over the journals until everything is sent; return whether it is.

    After the run's end, failing passes are repeated for a while only.

    Args:
        follower: the runs.
        report: takes the traceback of a failed pass.
    """
    deadline, last_problem = None, ""
    while True:
        try:
            if follower.one_pass() is Status.DONE:
                return True
            deadline = None
        except (Exception, SystemExit):  # a tracker that ends the process has failed, too
            if traceback.format_exc() != last_problem:
                last_problem = traceback.format_exc()
                report(last_problem)
            if not locks.is_training(follower.folder) or journal.read_end(follower.folder):
                deadline = deadline or time.monotonic() + _RETRY_SECONDS
            if deadline and time.monotonic() > deadline:
                return False
            time.sleep(1)
        time.sleep(_POLL_SECONDS)


def close_orphans(top: Path, folders: Sequence[Path]) -> int:
    """Write the ends that a training process that died could not write; return how many.

    Args:
        top: the run's folder, or its group's.
        folders: the folders of all its runs.
    """
    closed = 0
    with locks.try_hold_training_lock(top) as is_ours:  # nobody resumes it meanwhile
        for folder in folders if is_ours else ():
            if journal.read_start(folder) and not journal.read_end(folder):
                writer = Journal(folder)
                writer.end("KILLED", "the training process died without a word")
                writer.close()
                closed += 1
    return closed


class PictureProcess:
    """A process that draws pictures on request, and ends with this one.

    It is forked while this process has one thread only, and before MLflow is imported.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self._requests, other_end = context.Pipe()
        self._process = context.Process(target=_serve_pictures, args=(other_end, self._requests))
        self._process.daemon = True
        with warnings.catch_warnings():  # JAX warns of every fork, but has not started here
            warnings.simplefilter("ignore")
            self._process.start()
        other_end.close()

    def draw(self, folder: Path, children: Sequence[Path]) -> list[str]:
        """Draw the pictures of a run; return what could not be drawn, and why."""
        try:
            self._requests.send((folder, list(children)))
            if self._requests.poll(_DRAWING_SECONDS):
                problems: list[str] = self._requests.recv()
                return problems
        except (OSError, EOFError):
            return ["the process that draws has ended"]
        return [f"the pictures took more than {_DRAWING_SECONDS:.0f} s"]

    def close(self) -> None:
        """End the process, whatever it does: one that just began may ignore SIGTERM still."""
        self._process.kill()
        self._process.join()


def _serve_pictures(requests: Connection, other_end: Connection) -> None:
    """Answer requests for pictures until the asking process ends."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # multiprocessing ends it so, at exit
    other_end.close()  # otherwise the end of the other process would not be noticed
    with contextlib.suppress(EOFError, OSError):
        while True:
            folder, children = requests.recv()
            try:
                from fbp.experiment.figures.draw import draw

                problems = draw(folder, children)
            except Exception as error:
                problems = [f"{type(error).__name__}: {error}"]
            requests.send(problems)


def _give_up_if_hanging(follower: Follower) -> None:
    """End this process if, long after the training, a request hangs: a server can drip bytes."""
    while True:
        time.sleep(5)
        is_hanging = time.monotonic() - follower.last_progress > _HANGING_SECONDS
        if is_hanging and not locks.is_training(follower.folder):
            print("gave up on a server that hangs", file=sys.stderr, flush=True)
            os._exit(1)


def main() -> int:
    """Send the run of the folder that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    *fields, reference, folders, model_code = json.loads(os.environ.pop(_TASK))
    trust = Trust(frozenset({reference}), folders=tuple(map(Path, folders)))
    destination = Destination(*fields)
    sys.argv[0] = "fbp"  # MLflow shows it as where a model comes from
    for number in (signal.SIGINT, signal.SIGTERM):  # for the training process, not for this one
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(19)  # training goes first
    pictures = PictureProcess()
    warnings.filterwarnings("ignore", module="mlflow")

    def make_shipment(run: Path) -> Shipment:
        with references.reading_record(trust):  # the process that started this one has checked it
            sink = sinks.load(reference)(destination.uri, layout.root_of(run))
        return Shipment(run, sink, destination, Path(model_code), pictures.draw)

    def report(problem: str) -> None:
        print(redact_secrets_of(problem, destination.uri), file=sys.stderr, flush=True)

    follower = Follower(folder, make_shipment)
    threading.Thread(target=_give_up_if_hanging, args=(follower,), daemon=True).start()
    try:
        with locks.locked(layout.shipper_lock(folder)):
            return 0 if follow(follower, report) else 1
    except FileNotFoundError:
        if folder.is_dir():
            raise
        return 0  # the run never began, and its folder was removed
    finally:
        pictures.close()
