"""Tracking of a user's own training loop: journal, checkpoints and shipper without the runner."""

import contextlib
import operator
import os
import posixpath
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fbp.errors import InputError
from fbp.experiment.config import writing
from fbp.experiment.config.schema import Config
from fbp.experiment.rundir import checkpoints, journal, layout, locks
from fbp.experiment.rundir import tags as tag_names
from fbp.experiment.rundir.checkpoints import Checkpoints
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.npz import to_host, unflatten_like
from fbp.experiment.rundir.recorder import Recorder, record_start
from fbp.experiment.rundir.redact import redact_texts
from fbp.experiment.runner.trained_model import PYFUNC_CODE
from fbp.experiment.tracking import preflight, shipper, store
from fbp.experiment.tracking.folder_runs import find_folder
from fbp.experiment.tracking.sink import Destination
from fbp.experiment.tracking.supervised import Supervised, unsent_message
from fbp.experiment.tracking.uri import destination, recorded_destination, shown, warn
from fbp.layer import Params

_KEY = re.compile(r"(?!\.)[A-Za-z0-9_.\-]([A-Za-z0-9_.\- /]*[A-Za-z0-9_.\-])?")
_LONGEST_KEY = 250
_LONGEST_TEXT = 5000
_SHOWN = 80  # characters of a value in a message


class Tracked:
    """A run that is being tracked; made by :func:`track`.

    Safe between threads: any of them may log, tag, add artifacts and write checkpoints at any time,
    in any order of steps, and nothing is lost. Not between processes: one that was forked from
    this one is refused, and a run that is tracked already cannot be resumed by another.

    Attributes:
        folder: the folder of its journal, checkpoints and artifacts.
        name: the run's name, which ``track(resume=...)`` accepts.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.name = journal.require_start(folder).name
        self._journal = Journal(folder)
        self._recorder = Recorder(self._journal)
        self._checkpoints = Checkpoints(folder, keep, self._journal)
        self._digest = ""
        self._open = True
        self._lock, self._process = threading.RLock(), os.getpid()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write metrics of a step to the journal.

        This takes microseconds, and never fails because of the tracker. After a resume, a metric
        that was logged before at the same step keeps its first value. NaN and infinity are recorded
        as they are; MLflow shows both as NaN, and the tag ``fbp.nonfinite`` has the steps.

        Args:
            step: an integer of at least 0, of Python, numpy or JAX.
            metrics: scalars by name, of Python, numpy or JAX. Nested mappings give names such as
                ``norm/encoder``.

        Raises:
            InputError: if a value is not a number, or if a name has characters other than letters,
                digits, blanks and ``_ . - /``. Then nothing is logged.
        """
        number, values = _step("log", step), dict(_flatten("log", metrics, _number))
        with self._while_open():
            self._recorder.metrics(number, values)

    def tag(self, **tags: object) -> None:
        """Write tags, by which the tracker shows and finds the run.

        Args:
            tags: values by name; they are converted to text.

        Raises:
            InputError: if a name is not valid, see :meth:`log`.
        """
        values = dict(_flatten("tag", tags, _text))
        with self._while_open():
            self._journal.tags(values)

    def artifact(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        """Copy a file to the run's artifacts.

        Args:
            path: the file.
            name: of the copy; it may contain folders, as in ``plots/norms.png``. Default: the
                file's own name.

        Raises:
            InputError: if there is no such file, or if `name` leads out of the run's folder.
        """
        source, inside = Path(path), Path(name or Path(path).name)
        if inside.is_absolute() or ".." in inside.parts:
            raise InputError(
                f"artifact: expected a name inside the run's folder, got {str(inside)!r}"
            )
        if not source.is_file():
            raise InputError(f"artifact: expected a file, got {str(source)!r}")
        target = layout.artifacts(self.folder) / inside
        with self._while_open():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def checkpoint(self, step: int, tree: Params, *, wait: bool = False) -> None:
        """Write a checkpoint in a background thread; the newest ones are kept.

        The arrays are copied to the host before this returns, so that they may be donated or
        changed afterwards.

        Args:
            step: the number of steps that are done.
            tree: a pytree of everything that is needed to resume: parameters, optimizer state,
                random keys, numbers.
            wait: whether to return only after the checkpoint is on the disk. Default: False.

        Raises:
            InputError: if `tree` has leaves other than arrays and numbers.
            OSError: if the previous checkpoint could not be written.
        """
        with self._while_open():
            number, copy = _step("checkpoint", step), to_host(tree)
            self._await_checkpoint()
            self._checkpoints.save(number, {"tree": copy}, copy, {})
            if wait:
                self._await_checkpoint()

    def restore(self, like: Params) -> tuple[int, Params] | None:
        """Read the newest undamaged checkpoint of the run.

        Args:
            like: a pytree of the same structure, shapes and dtypes. Each leaf of the result has the
                type that it has in `like`: a JAX array, a numpy array, or a Python number.

        Returns:
            ``(step, tree)``, or None if the run has no checkpoint, as a new run.

        Raises:
            InputError: if the checkpoint has another structure.
        """
        with self._lock:
            self._await_checkpoint()
            checkpoint = checkpoints.latest(self.folder, warn)
            checkpoints.quarantine_after(self.folder, checkpoint.step if checkpoint else -1)
        if checkpoint is None:
            return None
        arrays = {
            path.removeprefix("tree").removeprefix("/"): array
            for path, array in checkpoint.arrays.items()
        }
        try:
            return checkpoint.step, unflatten_like(arrays, like)
        except ValueError as error:
            raise InputError(
                f"{self.folder.name}: the checkpoint of step {checkpoint.step} does not fit: "
                f"{error}"
            ) from None

    @contextlib.contextmanager
    def _while_open(self) -> Iterator[None]:
        """Keep other threads from writing or ending the run; raise InputError if it has ended."""
        if os.getpid() != self._process:  # where another thread's lock would be held for ever
            raise InputError(
                f"run {self.name}: this process was forked from the one that tracks the run; "
                "log from there, or track a run of its own here"
            )
        with self._lock:
            if not self._open:
                raise InputError(
                    f"run {self.name}: it has ended; resume it with: "
                    f"track(..., resume={self.name!r})"
                )
            yield

    def _await_checkpoint(self) -> None:
        """Block until the checkpoint that is being written is on the disk."""
        digests = self._checkpoints.wait()
        if digests:
            self._digest = digests.params_digest

    def _end(self, status: str, message: str) -> None:
        with self._lock:  # what another thread is writing is whole, and nothing comes after it
            self._open = False
        if status != "FINISHED":
            warn(f"run {self.name}: {status}; resume it with: track(..., resume={self.name!r})")
        try:
            self._await_checkpoint()
            self._recorder.end(status, message, {tag_names.PARAMS_DIGEST: self._digest})
        finally:
            self._checkpoints.close()
            self._journal.close()


class _Request(NamedTuple):
    """The arguments of :func:`track`, checked."""

    experiment: str
    label: str
    params: dict[str, str]
    tags: dict[str, str]
    keep: int
    sink: str
    diff: bool


@contextlib.contextmanager
def track(
    config: Mapping[str, Any] | Config | None = None,
    *,
    experiment: str = "tracked",
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    sink: str = "mlflow",
    diff: bool = True,
    tracking_uri: str | None = None,
    resume: str | None = None,
    keep: int = 2,
    wait: float = shipper.SEND_SECONDS,
) -> Iterator[Tracked]:
    """Track a training loop in MLflow or another tracker, whose failures cannot stop it.

    The run is FINISHED at the end of the ``with`` block, FAILED after an exception, and KILLED
    after Ctrl-C or if the process dies. Runs go to ``mlruns/`` in this folder or one above it, or
    to the server of ``MLFLOW_TRACKING_URI``. This starts another process, which sends them.

    Safe between threads and between processes: each call makes a run of its own, whose
    :class:`Tracked` all threads of the process may use.

    Args:
        config: the parameters that MLflow shows: numbers, texts and lists by name; nested mappings
            give names such as ``optimizer_learning_rate``; or a :class:`Config`.
        experiment: the experiment's name.
        name: beginning of the run's name, which gets a unique end. Default: `experiment`.
        tags: texts by name, see :meth:`Tracked.tag`.
        sink: the tracker: "mlflow", "jsonl", or a class of your own as ``package.module:Class``,
            see :mod:`fbp.experiment.tracking.sink`. A :class:`Config` names its own.
        diff: whether uncommitted changes of the code are recorded, if no :class:`Config` says so.
        tracking_uri: the address of the tracker, if not the default.
        resume: name, folder or id of a run to resume, with the same `config`.
        keep: number of checkpoints that are kept.
        wait: seconds to wait at the end for the tracker; what is left is sent later.

    Raises:
        InputError: if an argument is not valid, or `resume` is no run of this configuration.

    Example::

        with fbp.experiment.track({"learning_rate": 0.1}, resume=run_name) as run:
            step, state = run.restore(like=state) or (0, state)
            for step in range(step + 1, 1001):
                state, loss = train_step(state)
                run.log(step, {"loss": loss})
            run.checkpoint(step, state)
    """
    request = _check_request(config, experiment, name, tags, keep, sink=sink, diff=diff)
    folder, target = _prepare_folder(request, resume, tracking_uri)
    process = None
    try:
        with _training(folder):
            run = _begin(folder, request)
            process = Supervised(folder, target, PYFUNC_CODE, warn)
            with _ending(run):
                yield run
    finally:  # after the lock is released: the shipper ends once nobody trains
        if process and not process.wait(wait):
            warn(unsent_message(folder, shown(target)))


def _check_request(
    config: Mapping[str, Any] | Config | None,
    experiment: str,
    name: str | None,
    tags: Mapping[str, str] | None,
    keep: int,
    *,
    sink: str,
    diff: bool,
) -> _Request:
    """Return the arguments of :func:`track`; raise InputError if one is not valid."""
    if keep < 1:
        raise InputError(f"track: expected to keep at least one checkpoint, got keep={keep}")
    if isinstance(config, Config):
        experiment = config.tracking.experiment or config.name
        params = writing.flat_params(config)
        sink, diff = config.tracking.sink, config.tracking.diff
    else:
        params = _params(config or {})
    if not experiment.strip():
        raise InputError("track: expected a name of an experiment, got an empty one")
    if isinstance(name, str):
        preflight.check_name("run", f"{name}-0123")
    texts = dict(_flatten("tags", tags or {}, _text))
    return _Request(experiment, name or experiment, params, texts, keep, sink, diff)


def _params(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the params of a configuration that is a mapping."""
    params: dict[str, str] = {}
    for key, text in _flatten("config", config, _text):
        name = key.replace("/", "_")
        if name in params:
            raise InputError(
                f"config: {key!r} becomes {name!r} in MLflow, but another key has that name"
            )
        params[name] = text
    return params


def _prepare_folder(
    request: _Request, resume: str | None, tracking_uri: str | None
) -> tuple[Path, Destination]:
    """Make the folder of a new run, or find that of one to resume; return it and its tracker."""
    root = layout.root()
    root.mkdir(parents=True, exist_ok=True)
    store.check_not_moved(root)
    if resume is None:
        target = destination(root, request.sink, tracking_uri)
        preflight.check(target, root, request.experiment)
        folder = layout.new_run_folder(root, request.experiment)
        layout.write_destination(folder, target.place)
        return folder, target
    existing = find_folder(root, resume)
    if existing is None:
        raise InputError(f"resume: no run {resume!r} in {root}")
    recorded, params = journal.require_start(existing).params, redact_texts(request.params)
    changed = sorted(key for key in {*recorded, *params} if recorded.get(key) != params.get(key))
    if changed:
        key = changed[0]
        raise InputError(
            f"resume: {key} was {recorded.get(key)!r} when the run began, and is "
            f"{params.get(key)!r} now; give it the same configuration, or start a new run"
        )
    target = recorded_destination(existing, tracking_uri)
    preflight.check(target, root, journal.require_start(existing).experiment)
    return existing, target


@contextlib.contextmanager
def _training(folder: Path) -> Iterator[None]:
    """Hold the run's training lock; raise InputError if another process does."""
    with locks.try_hold_training_lock(folder) as acquired:
        if not acquired:
            raise InputError(f"{folder.name}: another process is training this run")
        yield


@contextlib.contextmanager
def _ending(run: Tracked) -> Iterator[None]:
    """Write at the end of the block how the run ended."""
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        run._end("KILLED" if stopped else "FAILED", f"{type(error).__name__}: {error}")
        raise
    run._end("FINISHED", "")


def _begin(folder: Path, request: _Request) -> Tracked:
    """Write the first line of a run, or that it is resumed."""
    writer = Journal(folder)
    if journal.read_start(folder):
        writer.resume(max(journal.read_checkpoints(folder), default=0))
    else:
        script = Path(sys.argv[0])
        record_start(
            writer,
            code_folder=script.resolve().parent if script.exists() else Path.cwd(),
            names=[request.sink],
            label=request.label,
            experiment=request.experiment,
            params=request.params,
            run_tags={tag_names.SOURCE_NAME: script.as_posix(), **request.tags},
            sink=request.sink,
            with_diff=request.diff,
        )
    writer.close()
    return Tracked(folder, request.keep)


def _flatten(
    where: str,
    values: Mapping[str, Any],
    convert: Callable[[str, str, Any], Any],
    prefix: str = "",
) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings, converted, under names joined by ``/``."""
    if not isinstance(values, Mapping):
        raise InputError(
            f"{where}: expected a mapping from names to values, got {type(values).__name__}"
        )
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(where, value, convert, f"{name}/")
        elif (
            not _KEY.fullmatch(name) or posixpath.normpath(name) != name or len(name) > _LONGEST_KEY
        ):
            raise InputError(
                f"{where}: expected names of letters, digits and _ . - /, at most {_LONGEST_KEY} "
                f"characters long, got {name!r}"
            )
        else:
            yield name, convert(where, name, value)


def _step(where: str, step: Any) -> int:
    """Return `step` as Python's int; raise InputError if it is not an integer of at least 0."""
    try:
        number = operator.index(step) if not isinstance(step, bool) else -1
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise InputError(f"{where}: expected a step, a whole number of at least 0, got {step!r}")
    return number


def _number(where: str, name: str, value: Any) -> float:
    """Return a scalar as Python's float; raise InputError if it is not a number."""
    try:
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "fiubV":
            raise TypeError
        return float(array.reshape(()).astype(np.float64))
    except (TypeError, ValueError):
        raise InputError(
            f"{where}: {name}: expected a number, got {str(value)[:_SHOWN]!r}"
        ) from None


def _text(where: str, name: str, value: Any) -> str:
    """Return a value as a text that can be encoded, at most 5,000 characters long."""
    return str(value)[:_LONGEST_TEXT].encode("utf-8", "replace").decode()
