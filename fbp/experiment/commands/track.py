"""Tracking for a training loop of one's own: the journal, the shipper and the checkpoints, without the runner."""

import contextlib
import operator
import os
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
from fbp.experiment.rundir.redact import redact
from fbp.experiment.tracking import shipper, store
from fbp.experiment.tracking.folder_runs import find_folder
from fbp.layer import Params

_KEY = re.compile(r"(?!\.)[A-Za-z0-9_.\-]([A-Za-z0-9_.\- /]*[A-Za-z0-9_.\-])?")
_LONGEST_KEY = 250


class Tracked:
    """A run that is being tracked; made by :func:`track`.

    Attributes:
        folder: where its journal, checkpoints and artifacts are.
        name: what it is called in MLflow, and what ``track(resume=...)`` takes.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.name = journal.require_start(folder).name
        self._journal = Journal(folder)
        self._recorder = Recorder(self._journal)
        self._checkpoints = Checkpoints(folder, keep, self._journal)
        self._digest = ""
        self._open = True

    def _check_open(self) -> None:
        if not self._open:
            raise InputError(
                f"run {self.name}: it has ended; go on with: track(..., resume={self.name!r})"
            )

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Metrics at a step. It takes microseconds and never fails because of MLflow.

        After a resume, what was logged before at a step is kept, and not logged again. NaN and infinity are kept as they are;
        MLflow shows both as NaN, and the run's tag ``fbp.nonfinite`` says where they were.

        Args:
            step: a whole number from 0 on, JAX's too.
            metrics: numbers by name: Python's, numpy's or JAX's scalars. Mappings inside mappings give names like
                ``norm/encoder``.

        Raises:
            InputError: where a value is not a number, or a name has other characters than letters, digits, blanks and
                ``_ . - /``; nothing is logged then.
        """
        self._check_open()
        self._recorder.metrics(_step("log", step), dict(_flat("log", metrics, _number)))

    def tag(self, **tags: object) -> None:
        """Texts by name, which MLflow shows with the run and finds it by."""
        self._check_open()
        self._journal.tags(dict(_flat("tag", tags, _text)))

    def artifact(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        """Copy a file into the run's artifacts, under a name that may have folders: ``plots/norms.png``."""
        self._check_open()
        source, inside = Path(path), Path(name or Path(path).name)
        if inside.is_absolute() or ".." in inside.parts:
            raise InputError(
                f"artifact: expected a name inside the run's folder, got {str(inside)!r}"
            )
        if not source.is_file():
            raise InputError(f"artifact: expected a file, got {str(source)!r}")
        target = layout.artifacts(self.folder) / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())

    def checkpoint(self, step: int, tree: Params, wait: bool = False) -> None:
        """Write a checkpoint of a pytree beside the training; the newest ones are kept.

        The arrays are copied to the host before this returns: they may be donated or changed afterwards.

        Args:
            step: after how many steps.
            tree: what is needed to go on: parameters, optimizer state, random keys, numbers.
            wait: come back only when it is on the disk.

        Raises:
            InputError: where the tree holds something else than arrays and numbers.
            OSError: where the checkpoint before could not be written.
        """
        self._check_open()
        at, own = _step("checkpoint", step), to_host(tree)
        self._note_checkpoint()
        self._checkpoints.save(at, {"tree": own}, own, {})
        if wait:
            self._note_checkpoint()

    def restore(self, like: Params) -> tuple[int, Params] | None:
        """The newest undamaged checkpoint of the run, as ``(step, tree)``; None where there is none, as in a new run.

        Args:
            like: a pytree of the same structure, shapes and dtypes; the result's leaves are of the same kind as its own: JAX's
                arrays, numpy's, or Python's numbers.

        Raises:
            InputError: where the checkpoint is of another structure.
        """
        found = checkpoints.latest(self.folder, lambda text: print(f"fbp: {text}", file=sys.stderr))
        checkpoints.quarantine_after(self.folder, found.step if found else -1)
        if found is None:
            return None
        arrays = {
            path.removeprefix("tree").removeprefix("/"): array
            for path, array in found.arrays.items()
        }
        try:
            return found.step, unflatten_like(arrays, like)
        except ValueError as error:
            raise InputError(
                f"{self.folder.name}: the checkpoint of step {found.step} does not fit: {error}"
            ) from None

    def _note_checkpoint(self) -> None:
        digests = self._checkpoints.wait()
        if digests:
            self._digest = digests.params_digest

    def _end(self, status: str, message: str) -> None:
        self._open = False
        if status != "FINISHED":
            print(
                f"fbp: run {self.name}: {status}; go on with: track(..., resume={self.name!r})",
                file=sys.stderr,
            )
        try:
            self._note_checkpoint()
            self._recorder.end(status, message, {tag_names.PARAMS_DIGEST: self._digest})
        finally:
            self._checkpoints.close()
            self._journal.close()


@contextlib.contextmanager
def track(
    config: Mapping[str, Any] | Config | None = None,
    *,
    experiment: str = "tracked",
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    tracking_uri: str | None = None,
    resume: str | None = None,
    keep: int = 2,
    wait: float = shipper.SEND_SECONDS,
) -> Iterator[Tracked]:
    """Track a training loop of one's own in MLflow; nothing that happens to MLflow can stop it.

    The run is FINISHED at the end of the ``with`` block, FAILED after an exception, KILLED after Ctrl-C or when the process
    dies. Runs go to ``mlruns/`` here or in a folder above, or to the server of ``MLFLOW_TRACKING_URI``.

    Args:
        config: what MLflow shows as parameters: numbers, texts and lists by name; mappings inside give names like
            ``optimizer_learning_rate``. A :class:`Config` is taken, too.
        experiment: MLflow's experiment.
        name: how the run's name begins; four letters are added to tell equals apart. By default the experiment's.
        tags: texts by name, see :meth:`Tracked.tag`.
        tracking_uri: where to log, if not as above.
        resume: the name, folder or id of a run to go on with; the configuration must be the same.
        keep: how many checkpoints stay.
        wait: how many seconds to wait at the end until MLflow has everything. What is left then is sent by a process that goes
            on by itself, or later by ``fbp sync``.

    Yields:
        A :class:`Tracked`, with ``log``, ``tag``, ``artifact``, ``checkpoint`` and ``restore``.

    Raises:
        InputError: where an argument cannot be used, or ``resume`` names no run, or one of another configuration.

    Example::

        state, begin = (params, opt_state, key), 0
        with fbp.experiment.track({"learning_rate": 0.1}, experiment="mine", resume=name_or_none) as run:
            found = run.restore(like=state)
            if found:
                begin, state = found
            for step in range(begin + 1, 1001):
                state, loss = train_step(state)
                run.log(step, {"loss": loss})
                if step % 100 == 0:
                    run.checkpoint(step, state)
    """
    if keep < 1:
        raise InputError(f"track: expected to keep at least one checkpoint, got keep={keep}")
    if isinstance(config, Config):
        experiment, params = config.tracking.experiment or config.name, writing.flat_params(config)
    else:
        params = {}
        for key, text in _flat("config", config or {}, _text):
            name_there = key.replace("/", "_")
            if name_there in params:
                raise InputError(
                    f"config: {key!r} is called {name_there!r} in MLflow, which is there already"
                )
            params[name_there] = text
    if not experiment.strip():
        raise InputError("track: expected a name of an experiment, got an empty one")
    tags = dict(_flat("tags", tags or {}, _text))
    root = layout.root()
    root.mkdir(parents=True, exist_ok=True)
    store.check_not_moved(root)
    folder, uri = _folder(root, experiment, resume, params, tracking_uri)
    process = None
    try:
        with locks.try_hold_training_lock(folder) as mine:
            if not mine:
                raise InputError(f"{folder.name}: another process is training this run")
            run = _begin(folder, experiment, name or experiment, params, tags, keep)
            process = shipper.launch(folder, uri)
            try:
                yield run
            except BaseException as error:
                stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                run._end("KILLED" if stopped else "FAILED", f"{type(error).__name__}: {error}")
                raise
            else:
                run._end("FINISHED", "")
    finally:  # the lock is given back: the shipper ends when nobody trains any more
        if process and not shipper.wait(process, wait):
            print(
                f"fbp: not all of {folder.name} has reached {redact(uri)} yet (see {folder / 'shipper.log'}); "
                "nothing is lost: 'fbp sync' sends the rest",
                file=sys.stderr,
            )


def _folder(
    root: Path,
    experiment: str,
    resume: str | None,
    params: Mapping[str, str],
    tracking_uri: str | None,
) -> tuple[Path, str]:
    """The folder of a new run, or of the one to go on with; and where it is sent."""
    if resume is None:
        uri = store.tracking_uri(root, tracking_uri)
        folder = layout.new_run_folder(root, experiment)
        layout.destination(folder).write_text(store.portable(uri, root), encoding="utf-8")
        return folder, uri
    found = find_folder(root, resume)
    if found is None:
        raise InputError(f"resume: no run {resume!r} in {root}")
    before = journal.require_start(found).params
    other = sorted(key for key in {*before, *params} if before.get(key) != params.get(key))
    if other:
        raise InputError(
            f"resume: {other[0]} was {before.get(other[0])!r} when the run began, and is {params.get(other[0])!r} now; "
            "give it the same configuration, or start a new run"
        )
    return found, store.tracking_uri(root, tracking_uri or shipper.destination(found))


def _begin(
    folder: Path,
    experiment: str,
    label: str,
    params: Mapping[str, str],
    tags: dict[str, str],
    keep: int,
) -> Tracked:
    writer = Journal(folder)
    if journal.read_start(folder):
        writer.resume(max(journal.read_checkpoints(folder), default=0))
    else:
        script = Path(sys.argv[0])
        record_start(
            writer,
            source=script,
            repository=script.resolve().parent if script.exists() else Path.cwd(),
            label=label,
            experiment=experiment,
            params=params,
            run_tags=tags,
        )
    writer.close()
    return Tracked(folder, keep)


def _flat(
    where: str, values: Mapping[str, Any], convert: Any, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings under names joined by ``/``."""
    if not isinstance(values, Mapping):
        raise InputError(
            f"{where}: expected a mapping from names to values, got {type(values).__name__}"
        )
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(where, value, convert, f"{name}/")
        elif (
            not _KEY.fullmatch(name) or posixpath.normpath(name) != name or len(name) > _LONGEST_KEY
        ):
            raise InputError(
                f"{where}: expected names of letters, digits and _ . - /, at most 250 long, got {name!r}"
            )
        else:
            yield name, convert(where, name, value)


def _step(where: str, step: Any) -> int:
    try:
        number = operator.index(step) if not isinstance(step, bool) else -1
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise InputError(f"{where}: expected a step, a whole number from 0 on, got {step!r}")
    return number


def _number(where: str, name: str, value: Any) -> float:
    try:
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "fiubV":
            raise TypeError
        return float(array.reshape(()).astype(np.float64))
    except (TypeError, ValueError):
        raise InputError(f"{where}: {name}: expected a number, got {str(value)[:80]!r}") from None


def _text(where: str, name: str, value: Any) -> str:
    return str(value)[:5000].encode("utf-8", "replace").decode()
