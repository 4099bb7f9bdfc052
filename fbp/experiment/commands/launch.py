"""From an experiment file, or a run that was broken off, to a finished run: what ``fbp run`` and ``fbp resume`` do."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fbp.errors import InputError, prefixed_by
from fbp.experiment.commands.load import local_runs
from fbp.experiment.config import reading as configuration
from fbp.experiment.config import writing
from fbp.experiment.config.schema import Config
from fbp.experiment.rundir import environment, journal, layout, locks, tags
from fbp.experiment.runner.jax_setup import configure_jax
from fbp.experiment.runner.loop import Reporter
from fbp.experiment.runner.run import Outcome, RunIdentity, run
from fbp.experiment.runner.variants import run_group
from fbp.experiment.tracking import shipper, store
from fbp.experiment.tracking.folder_runs import find_folder

_LONGEST_LABEL = 80


class Launched(NamedTuple):
    """A run, or a group of variants: their names and outcomes, the folder, and whether MLflow has it all."""

    outcomes: dict[str, Outcome]
    folder: Path
    uri: str
    sent: bool


class _Plan(NamedTuple):
    """Where checkpoints are and where training is broken off, if that is not left to the configuration; see :func:`run`."""

    checkpoint_steps: Sequence[int] | None = None
    stop_at: int | None = None


def launch(
    path: Path,
    overrides: Sequence[str],
    make_reporter: Callable[[str], Reporter],
    tracking_uri: str | None = None,
    waiting: Callable[[], None] = lambda: None,
    signals: list[int] | None = None,
    resume: bool = False,
) -> Launched:
    """Run an experiment file and wait until MLflow has it.

    Args:
        path: the file.
        overrides: ``section.key=value`` texts.
        make_reporter: from a label to who shows the progress of a run.
        tracking_uri: where to log, if not to the embedded store.
        waiting: called once, when training is over and MLflow is waited for.
        signals: signals that were signals before; a run that finds one stops in good order.
        resume: go on with the newest unfinished run of the same configuration, if there is one.

    Raises:
        InputError: where the configuration or the data cannot be used; no run exists then.
    """
    config = configuration.read(path, overrides)
    root = layout.root()
    if resume:
        broken = _unfinished(root, config)
        reporter = make_reporter(config.name)
        reporter.note(
            f"going on with {broken.name}"
            if broken
            else "no unfinished run of this configuration; a new one"
        )
        if broken:
            return continue_run(broken, make_reporter, tracking_uri, waiting, signals)
    origin = RunIdentity(path, _label(config.name, overrides))
    return _launch(config, origin, make_reporter, tracking_uri, waiting, signals, _Plan())


def launch_config(
    path: Path,
    origin: RunIdentity,
    make_reporter: Callable[[str], Reporter],
    tracking_uri: str | None,
    checkpoint_steps: Sequence[int] | None = None,
    stop_at: int | None = None,
) -> Launched:
    """Run a resolved configuration, such as a run recorded.

    Args:
        path: the file.
        origin: where it came from.
        make_reporter, tracking_uri: as for :func:`launch`.
        checkpoint_steps: the steps of its checkpoints, where they are not left to the configuration.
        stop_at: the step at which it is broken off, if any.

    Raises:
        InputError: where the configuration or the data cannot be used; no run exists then.
    """
    plan = _Plan(checkpoint_steps, stop_at)
    return _launch(
        configuration.read(path), origin, make_reporter, tracking_uri, lambda: None, None, plan
    )


def _launch(
    config: Config,
    origin: RunIdentity,
    make_reporter: Callable[[str], Reporter],
    tracking_uri: str | None,
    waiting: Callable[[], None],
    signals: list[int] | None,
    plan: _Plan,
) -> Launched:
    root = layout.root()
    uri = store.tracking_uri(root, tracking_uri)
    store.check_not_moved(root)
    folder = layout.new_run_folder(root, config.name)
    layout.destination(folder).write_text(store.portable(uri, root), encoding="utf-8")
    try:
        with prefixed_by(origin.source):
            return _execute(config, origin, folder, uri, make_reporter, waiting, signals, plan)
    except BaseException:
        if journal.read_start(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def resume(
    name: str,
    make_reporter: Callable[[str], Reporter],
    tracking_uri: str | None = None,
    waiting: Callable[[], None] = lambda: None,
    signals: list[int] | None = None,
) -> Launched:
    """Go on with a run that was broken off; the result is that of an unbroken run, to the bit.

    Args:
        name: the run's folder, the folder's name, its name in MLflow, or its MLflow run id.
        make_reporter, tracking_uri, waiting, signals: as for :func:`launch`.

    Raises:
        InputError: where there is no such run here, where it is finished, or another process trains it.
    """
    root = layout.root().resolve()
    folder = find_folder(root, name)
    damaged = layout.run_folder(root, Path(name).name)
    if folder is None and damaged and layout.journal(damaged).exists():
        journal.require_start(damaged)
    if folder is None:
        raise InputError(f"run {name!r}: no run of that name or id in {root}; {local_runs(root)}")
    parent = journal.require_start(folder).parent
    return continue_run(
        layout.safe_child(folder.parent, parent) or folder,
        make_reporter,
        tracking_uri,
        waiting,
        signals,
    )


def continue_run(
    folder: Path,
    make_reporter: Callable[[str], Reporter],
    tracking_uri: str | None,
    waiting: Callable[[], None],
    signals: list[int] | None,
) -> Launched:
    """Go on with the run of a folder, in the MLflow run that it began; see :func:`resume`."""
    start, end = journal.require_start(folder), journal.read_end(folder)
    if end and end.status == "FINISHED":
        raise InputError(f"{folder.name}: the run is finished; there is nothing to resume")
    if not layout.config(folder).exists():
        name = start.name
        raise InputError(
            f"{name}: made by fbp.experiment.track; run its own script again, with track(..., resume={name!r})"
        )
    config = configuration.read(layout.config(folder))
    uri = store.tracking_uri(layout.root_of(folder), tracking_uri or shipper.destination(folder))
    store.check_not_moved(layout.root_of(folder))
    configure_jax(config, environment.read(layout.artifacts(folder)))
    origin = RunIdentity(Path(start.tags.get(tags.SOURCE_NAME, layout.CONFIG)), start.label)
    return _execute(config, origin, folder, uri, make_reporter, waiting, signals, _Plan())


def _label(name: str, overrides: Sequence[str]) -> str:
    """What a run is called: its experiment and what was overridden, without anything that a shell would take apart."""
    parts = [name]
    for override in overrides:
        key, _, value = override.partition("=")
        part = f"{key.rpartition('.')[2]}={value}"
        parts.append(re.sub(r"[^\w.=+-]+", "_", part).strip("_"))
    while len(",".join(parts)) > _LONGEST_LABEL and len(parts) > 1:
        parts.pop()
    return ",".join(parts)[:_LONGEST_LABEL]


def _unfinished(root: Path, config: Config) -> Path | None:
    """The newest run of exactly this configuration that is not finished and that nobody trains."""
    text = writing.to_toml(config)
    for folder in reversed(layout.run_folders(root)):
        start, end, copy = (
            journal.read_start(folder),
            journal.read_end(folder),
            layout.config(folder),
        )
        over = (
            start is None
            or start.parent
            or (end and end.status == "FINISHED")
            or locks.is_training(folder)
        )
        if not over and copy.exists() and copy.read_text(encoding="utf-8") == text:
            return folder
    return None


def _execute(
    config: Config,
    origin: RunIdentity,
    folder: Path,
    uri: str,
    make_reporter: Callable[[str], Reporter],
    waiting: Callable[[], None],
    signals: list[int] | None,
    plan: _Plan,
) -> Launched:
    """Train what is to be trained in a folder, with a shipper beside it."""
    variants = configuration.variants(config, str(origin.source))
    backend = configure_jax(config)
    if backend.note:
        make_reporter(origin.label).note(backend.note)
    process = None
    try:
        with locks.try_hold_training_lock(folder) as mine:
            if not mine:
                raise InputError(f"{folder.name}: another process is training this run")
            process = shipper.launch(folder, uri)
            if variants:
                label = lambda name: make_reporter(f"{config.name} {name}")
                outcomes = run_group(config, variants, origin, folder, label, signals)
            else:
                outcomes = {
                    config.name: run(
                        config, origin, folder, make_reporter(origin.label), signals, *plan
                    )
                }
    except BaseException:
        if process and journal.read_start(folder) is None:
            process.kill()
            process.wait()
        elif process:
            shipper.wait(
                process, shipper.SEND_SECONDS
            )  # it sees that nobody trains any more, and closes the run
        raise
    waiting()
    return Launched(outcomes, folder, uri, shipper.wait(process, shipper.SEND_SECONDS))
