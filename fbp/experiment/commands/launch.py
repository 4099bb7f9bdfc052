"""From an experiment's file, or an interrupted run, to a finished run: `fbp run`, `fbp resume`."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fbp.datasets import Dataset
from fbp.errors import InputError, prefixed_by
from fbp.experiment.commands.load import local_runs
from fbp.experiment.config import reading, writing
from fbp.experiment.config.references import code_folders, is_reference, reading_record
from fbp.experiment.config.schema import Config
from fbp.experiment.config.trust import NOTHING, Trust
from fbp.experiment.rundir import environment, journal, layout, locks, tags, trust_store
from fbp.experiment.runner.changes import check_config
from fbp.experiment.runner.jax_setup import configure_jax
from fbp.experiment.runner.loop import Reporter
from fbp.experiment.runner.run import Outcome, run
from fbp.experiment.runner.run_start import RunIdentity
from fbp.experiment.runner.trained_model import PYFUNC_CODE
from fbp.experiment.runner.variants import run_group
from fbp.experiment.tracking import preflight, shipper, store
from fbp.experiment.tracking.folder_runs import find_folder
from fbp.experiment.tracking.sink import Destination
from fbp.experiment.tracking.supervised import Supervised
from fbp.experiment.tracking.uri import destination, recorded_destination, warn

_MAX_LABEL = 80  # characters


def _do_nothing() -> None:
    pass


class RunRequest(NamedTuple):
    """How to run an experiment, whichever it is.

    Attributes:
        make_reporter: from a run's label to what shows its progress.
        tracking_uri: the address of the tracker; None for the usual one, which for MLflow is that
            of MLFLOW_TRACKING_URI or the embedded store.
        on_wait_for_mlflow: called once, when training is over and only MLflow is waited for.
        signals: signals that came already; a run with one in it stops at its first chunk.
        checkpoint_steps: the steps of the checkpoints; None leaves them to the configuration.
        stop_at: the step at which training is broken off; None for a whole run.
        trust: which code of the user's own the configuration of a resumed run may name, beside
            that with which it began on this machine.
        accepts_changes: whether a run is resumed although the user's own code has changed.
        dataset: the data, if they are not to be loaded as the configuration says.
    """

    make_reporter: Callable[[str], Reporter]
    tracking_uri: str | None = None
    on_wait_for_mlflow: Callable[[], None] = _do_nothing
    signals: list[int] | None = None
    checkpoint_steps: Sequence[int] | None = None
    stop_at: int | None = None
    dataset: Dataset | None = None
    trust: Trust = NOTHING
    accepts_changes: bool = False


class Launched(NamedTuple):
    """A run, or a group of variants, that has ended.

    Attributes:
        outcomes: how each run ended, by name.
        folder: the folder of the run, or of the group.
        destination: the tracker that it is sent to.
        sent: whether the tracker has all of it.
    """

    outcomes: dict[str, Outcome]
    folder: Path
    destination: Destination
    sent: bool


def launch(
    path: Path, overrides: Sequence[str], request: RunRequest, *, resume: bool = False
) -> Launched:
    """Run an experiment's file and wait until MLflow has the run.

    Safe between processes, each of which makes a run of its own. Not between threads of one
    process, because it configures JAX for all of them: launch one run after the other.

    Args:
        path: the file.
        overrides: texts like `section.key=value`.
        request: how to run it.
        resume: resume the newest unfinished run of the same configuration, if there is one.

    Raises:
        InputError: if the configuration or the data cannot be used; no run exists then.
    """
    config = reading.read(path, overrides)
    if resume:
        unfinished = _unfinished_run(layout.root(), config)
        request = request._replace(trust=request.trust.joined(_trust_in(config, str(path))))
        note = (
            f"going on with {unfinished.name}"
            if unfinished
            else "no unfinished run of this configuration; a new one"
        )
        request.make_reporter(config.name).note(note)
        if unfinished:
            return continue_run(unfinished, request)
    identity = RunIdentity(path, _label(config.name, overrides), code_folder=path.resolve().parent)
    return launch_config(config, identity, request)


def launch_config(config: Config, identity: RunIdentity, request: RunRequest) -> Launched:
    """Run a configuration in a new folder and wait until MLflow has the run.

    Args:
        config: what to run.
        identity: where it comes from.
        request: how to run it.

    Raises:
        InputError: if the configuration or the data cannot be used; no run exists then.
    """
    root = layout.root()
    target = destination(root, config.tracking.sink, request.tracking_uri)
    store.check_not_moved(root)
    preflight.check(target, root, config.tracking.experiment or config.name)
    folder = layout.new_run_folder(root, config.name)
    layout.write_destination(folder, target.place)
    try:
        with prefixed_by(identity.source):
            return _run_with_shipper(config, identity, folder, target, request)
    except BaseException:
        if journal.read_start(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def resume(run_name: str, request: RunRequest) -> Launched:
    """Resume an interrupted run; it ends as an unbroken run would have ended, to the bit.

    Args:
        run_name: the run's folder, the folder's name, its name in MLflow, or its MLflow run id.
        request: how to run it.

    Raises:
        InputError: if there is no such run on this machine, it is finished, or another process
            trains it.
    """
    root = layout.root().resolve()
    folder = find_folder(root, run_name)
    if folder is None:
        damaged = layout.run_folder(root, Path(run_name).name)
        if damaged and layout.journal(damaged).exists():
            journal.require_start(damaged)
        raise InputError(
            f"run {run_name!r}: no run of that name or id in {root}; {local_runs(root)}"
        )
    parent = layout.safe_child(folder.parent, journal.require_start(folder).parent)
    return continue_run(parent or folder, request)


def continue_run(folder: Path, request: RunRequest) -> Launched:
    """Resume the run of a folder, in the MLflow run that it began; see :func:`resume`.

    Args:
        folder: the run's folder, or the group's.
        request: how to run it.

    Raises:
        InputError: if the run cannot be resumed.
    """
    start = journal.require_start(folder)
    _refuse_finished(folder)
    if not layout.config(folder).exists():
        raise InputError(
            f"{start.name}: made by fbp.experiment.track; run its own script again, with "
            f"track(..., resume={start.name!r})"
        )
    root = layout.root_of(folder)
    trust = trust_store.lookup(folder).joined(request.trust)
    with reading_record(trust):
        config = _recorded_config(folder, trust)
        target = recorded_destination(folder, request.tracking_uri)
        store.check_not_moved(root)
        preflight.check(target, root, start.experiment)
        source = Path(start.tags.get(tags.SOURCE_NAME, layout.CONFIG))
        identity = RunIdentity(source, start.label, accepts_changes=request.accepts_changes)
        configure_jax(config.training, environment.read(layout.artifacts(folder)))
        return _run_with_shipper(config, identity, folder, target, request)


def _refuse_finished(folder: Path) -> None:
    end = journal.read_end(folder)
    if end and end.status == "FINISHED":
        raise InputError(f"{folder.name}: the run is finished; there is nothing to resume")


def _recorded_config(folder: Path, trust: Trust) -> Config:
    """Return the configuration of a run that is resumed; nothing that it names is run before."""
    path = layout.config(folder)
    try:
        reading.require_trusted_names(path, trust)
        config = reading.read(path)
    except InputError:
        check_config(folder)  # a file that was changed is told as such
        raise
    check_config(folder, config)
    return config


def _trust_in(config: Config, where: str) -> Trust:
    """Return trust in what the user's own configuration names."""
    configs = [config, *reading.variants(config, where).values()]
    own = frozenset(name for name in writing.names_in(configs) if is_reference(name))
    return Trust(own, folders=code_folders(own))


def _label(name: str, overrides: Sequence[str]) -> str:
    """Return a run's label: experiment and overrides, with shell metacharacters replaced by _."""
    parts = [name]
    for override in overrides:
        key, _, value = override.partition("=")
        part = f"{key.rpartition('.')[2]}={value}"
        parts.append(re.sub(r"[^\w.=+-]+", "_", part).strip("_"))
    while len(",".join(parts)) > _MAX_LABEL and len(parts) > 1:
        parts.pop()
    return ",".join(parts)[:_MAX_LABEL]


def _unfinished_run(root: Path, config: Config) -> Path | None:
    """Return the newest run of exactly this configuration that is unfinished and not trained."""
    text = writing.to_toml(config)
    for folder, start in reversed(list(journal.started_runs(root))):
        end, copy = journal.read_end(folder), layout.config(folder)
        is_finished = end is not None and end.status == "FINISHED"
        if start.parent or is_finished or locks.is_training(folder):
            continue
        if copy.exists() and copy.read_text(encoding="utf-8", errors="replace") == text:
            return folder
    return None


def _run_with_shipper(
    config: Config, identity: RunIdentity, folder: Path, target: Destination, request: RunRequest
) -> Launched:
    """Train in a folder, start the process that sends the run to its tracker, and wait for it."""
    variants = reading.variants(config, str(identity.source))
    backend = configure_jax(config.training)
    if backend.note:
        request.make_reporter(identity.label).note(backend.note)
    process = None
    try:
        with locks.try_hold_training_lock(folder) as is_locked:
            if not is_locked:
                raise InputError(f"{folder.name}: another process is training this run")
            _refuse_finished(folder)  # here, because the run may have ended a moment ago
            process = Supervised(folder, target, PYFUNC_CODE, warn)
            outcomes = _train(config, variants, identity, folder, request)
    except BaseException as error:
        if isinstance(error, OSError) and journal.read_start(folder):  # such as a full disk
            error.add_note(f"free some space, then go on with: fbp resume {folder.name}")
        if process and journal.read_start(folder) is None:
            process.kill()
        elif process:  # it closes the run, because nobody trains it any more
            process.wait(shipper.SEND_SECONDS)
        raise
    request.on_wait_for_mlflow()
    return Launched(outcomes, folder, target, process.wait(shipper.SEND_SECONDS))


def _train(
    config: Config,
    variants: dict[str, Config],
    identity: RunIdentity,
    folder: Path,
    request: RunRequest,
) -> dict[str, Outcome]:
    """Train one run, or each variant of a group; return the outcomes by name."""
    if variants:
        label = lambda variant: request.make_reporter(f"{config.name} {variant}")
        return run_group(config, variants, identity, folder, label, request.signals)
    outcome = run(
        config,
        identity,
        folder,
        request.make_reporter(identity.label),
        signals=request.signals,
        checkpoint_steps=request.checkpoint_steps,
        stop_at=request.stop_at,
        dataset=request.dataset,
    )
    return {config.name: outcome}
