"""The shipper: a process that follows the journal of a run and sends it to a tracker.

Training must not wait for a tracker: importing MLflow takes seconds, one logged metric
milliseconds, a dead server minutes. So training only appends to a journal, and this process reads
it. Pictures are drawn in another process, so that nothing that happens to them keeps a run from its
tracker.
"""

import argparse
import contextlib
import datetime
import enum
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fbp.errors import InputError, first_line
from fbp.experiment.config import references
from fbp.experiment.config.trust import Trust
from fbp.experiment.rundir import journal, layout, locks
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.redact import redact_secrets_of
from fbp.experiment.tracking import sink as sinks
from fbp.experiment.tracking.shipment import Problem, Shipment, write_problem
from fbp.experiment.tracking.sink import Destination, Refused, Sink
from fbp.experiment.tracking.system_metrics import SystemMetrics

SEND_SECONDS = 120.0
"""How long a training process waits at its end until the tracker has everything."""

_POLL_SECONDS = 0.2
# how long to keep trying after the run's end
_RETRY_SECONDS = locks.seconds_of("FBP_RETRY_SECONDS", 20)
# how long one call of a tracker may take; a model may be large
_REQUEST_SECONDS = locks.seconds_of("FBP_REQUEST_SECONDS", 120)
_UPLOAD_SECONDS = locks.seconds_of("FBP_UPLOAD_SECONDS", 900)
_UPLOADS = ("connect", "open", "log_artifacts", "log_model", "facts")
_DRAWING_SECONDS = 300.0

LONGEST_PAUSE = 60.0
"""Seconds between attempts while the run goes on."""
SENT, NOT_YET, REFUSED = 0, 1, 3
"""Exit statuses: all is sent; not all of it yet; the tracker refuses it for good."""

_SECONDS = "FBP_SHIPPER_SECONDS"
_TASK = "FBP_SHIPPER"  # an environment variable, because an argument could show a password
_COMMAND = "import sys; from fbp.experiment.tracking.shipper import main; sys.exit(main())"


def launch(
    folder: Path, destination: Destination, model_code: Path, seconds: float | None = None
) -> subprocess.Popen[bytes]:
    """Start the shipper of a run, out of reach of the terminal's Ctrl-C.

    It follows the run as long as a process trains it (see
    :func:`fbp.experiment.rundir.locks.try_hold_training_lock`), then sends what is left, and ends.

    Args:
        folder: the run's.
        destination: where the run is sent.
        model_code: the Python file that loads a trained model in MLflow.
        seconds: how long the process may take at most; None for a run that is trained.
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
            env=os.environ
            | {"JAX_PLATFORMS": "cpu", _TASK: task, _SECONDS: str(seconds or math.inf)},
        )


def wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for a shipper; return whether everything was sent. A slower one goes on by itself."""
    try:
        return process.wait(timeout=seconds) == SENT
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        return False


class Status(enum.Enum):
    """What a pass over the journals has shown."""

    TRAINING = "the run goes on"
    SENDING = "nobody trains it any more, but not everything is sent"
    DONE = "everything is sent, or the run never began"


class Watch:
    """Knows what this process waits for, and since when.

    Args:
        seconds: how long the process may take at most.
    """

    def __init__(self, seconds: float):
        self._began, self._seconds = time.monotonic(), seconds
        self._call, self._since = "", 0.0

    @contextlib.contextmanager
    def over(self, call: str) -> Iterator[None]:
        """Watch over a call of a tracker."""
        self._call, self._since = call, time.monotonic()
        try:
            yield
        finally:
            self._call = ""

    def overdue(self) -> str:
        """Return what was waited for, and how long, if that is too long; else an empty text."""
        now, call, since = time.monotonic(), self._call, self._since
        limit = _UPLOAD_SECONDS if call in _UPLOADS else _REQUEST_SECONDS
        if call and now - since > limit:
            return f"{call}: the tracker did not answer in {limit:.0f} s"
        if now - self._began > self._seconds:
            doing = f", at last for {call} for {now - since:.0f} s" if call else ""
            return f"sending took more than {self._seconds:.0f} s{doing}; what was sent stays sent"
        return ""


class _Watched:
    """A sink whose calls are watched over."""

    def __init__(self, sink: Sink, watch: Watch):
        self._sink, self._watch = sink, watch

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._sink, name)
        if not callable(method):
            return method

        def call(*args: Any) -> Any:
            with self._watch.over(name):
                return method(*args)

        return call


class Follower:
    """Follows the run of a folder, and the runs under it.

    Args:
        folder: the run's.
        make_shipment: returns the shipment of a run's folder; may raise.
    """

    def __init__(self, folder: Path, make_shipment: Callable[[Path], Shipment]):
        self.folder = folder
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
        if is_training:  # even a finished run may be about to be resumed
            return Status.TRAINING
        is_done = all(
            shipment.done or journal.read_start(shipment.folder) is None
            for shipment in self._shipments.values()
        )
        return Status.DONE if is_done and not self._new_folders() else Status.SENDING

    def rest(self, seconds: float) -> None:
        """Send nothing for a while, but not beyond the end of the training."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(1.0, seconds))
            if not locks.is_training(self.folder):
                return
            self._system_metrics.sample()

    def _new_folders(self) -> list[Path]:
        known = [child for shipment in self._shipments.values() for child in shipment.children]
        return [
            folder
            for folder in (self.folder, *known)
            if folder not in self._shipments and folder.exists()
        ]


def follow(follower: Follower, report: Callable[[Problem | None, str], None]) -> int:
    """Pass over the journals until everything is sent; return the exit status.

    After the run's end, failing passes are repeated for a while only, and a refusal is final.

    Args:
        follower: the runs.
        report: takes the problem of a failed pass, and what the log says of it; None after a pass
            that succeeds again.
    """
    deadline, last_problem, pause = None, "", 1.0
    while True:
        try:
            if follower.one_pass() is Status.DONE:
                return SENT
            if last_problem:
                report(None, "")
            deadline, last_problem, pause = None, "", 1.0
        except (Exception, SystemExit) as error:  # a tracker that ends the process has failed, too
            is_over = bool(
                not locks.is_training(follower.folder) or journal.read_end(follower.folder)
            )
            refused = isinstance(error, Refused | PermissionError)
            log = _log_entry(error)
            if log != last_problem:
                last_problem = log
                report(Problem(_reason(error), refused), log)
            if is_over:
                deadline = deadline or time.monotonic() + _RETRY_SECONDS
                if refused or time.monotonic() > deadline:
                    return REFUSED if refused else NOT_YET
            follower.rest(1.0 if is_over else pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        time.sleep(_POLL_SECONDS)


def _reason(error: BaseException) -> str:
    """Return one line that says why a pass failed."""
    if isinstance(error, InputError):
        return first_line(error)
    if isinstance(error, PermissionError):
        return (
            f"{error.filename}: permission denied; give this user the right to write there, or "
            "choose another place with --tracking-uri"
        )
    return f"{type(error).__name__}: {first_line(error)}"


def _log_entry(error: BaseException) -> str:
    """Return what the log says of a failed pass: all of it, if its reason is not known."""
    if isinstance(error, InputError | PermissionError):
        return _reason(error)
    return "".join(traceback.format_exception(error)).rstrip()


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


def _give_up_in_time(watch: Watch, give_up: Callable[[str], None]) -> None:
    """End this process if it waits for too long: a server can drip bytes for ever."""
    while True:
        time.sleep(1)
        reason = watch.overdue()
        if reason:
            give_up(reason)
            os._exit(NOT_YET)


def main() -> int:
    """Send the run of the folder that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    *fields, reference, folders, model_code = json.loads(os.environ.pop(_TASK))
    seconds = float(os.environ.pop(_SECONDS, "inf"))
    trust = Trust(frozenset({reference}), folders=tuple(map(Path, folders)))
    destination = Destination(*fields)
    sys.argv[0] = "fbp"  # MLflow shows it as where a model comes from
    for number in (signal.SIGINT, signal.SIGTERM):  # for the training process, not for this one
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(19)  # training goes first
    pictures = PictureProcess()
    warnings.filterwarnings("ignore", module="mlflow")
    watch = Watch(seconds)

    def make_shipment(run: Path) -> Shipment:
        with references.reading_record(trust):  # the process that started this one has checked it
            kind = sinks.load(reference)
            with watch.over("connect"):
                sink: Any = _Watched(kind(destination.uri, layout.root_of(run)), watch)
        return Shipment(run, sink, destination, Path(model_code), pictures.draw)

    def report(problem: Problem | None, log: str) -> None:
        if problem:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            text = redact_secrets_of(f"{now} {log}", destination.uri)
            print(text, file=sys.stderr, flush=True)
            problem = problem._replace(reason=redact_secrets_of(problem.reason, destination.uri))
        with contextlib.suppress(OSError):  # a full disk, or the folder was removed
            write_problem(folder, problem)

    threading.Thread(
        target=_give_up_in_time,
        args=(watch, lambda reason: report(Problem(reason), reason)),
        daemon=True,
    ).start()
    try:
        with locks.locked(layout.shipper_lock(folder), min(0.9 * seconds, locks.LOCK_SECONDS)):
            status = follow(Follower(folder, make_shipment), report)
            if status == SENT:
                write_problem(folder, None)
            return status
    except locks.LockTimeout as error:
        report(Problem(first_line(error)), str(error))
        return NOT_YET
    except FileNotFoundError:
        if folder.is_dir():
            raise
        return SENT  # the run never began, and its folder was removed
    finally:
        pictures.close()
