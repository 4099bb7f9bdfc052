"""Closes runs that are shown as RUNNING although their process has died: ``fbp close-dead``."""

import contextlib
import datetime
import platform
from collections.abc import Callable
from pathlib import Path

from fbp.errors import InputError
from fbp.experiment.rundir import journal, layout, locks, tags
from fbp.experiment.tracking import shipper
from fbp.experiment.tracking.folder_runs import is_folder_of
from fbp.experiment.tracking.mlflow_runs import MlflowRuns
from fbp.experiment.tracking.run_reader import RecordedRun
from fbp.experiment.tracking.uri import recorded_destination

_SEND_SECONDS = 120.0


def close_dead(
    runs: MlflowRuns,
    minutes: float,
    say: Callable[[str], None],
    *,
    model_code: Path,
    without_folder: bool = False,
) -> int:
    """Mark the runs KILLED whose process has died; return how many.

    A run whose folder is on this machine, in this project or another, is dead if no process holds
    its lock. Of a run on another machine only the heartbeat is known, a tag that its shipper renews
    every half minute. A run that began on this machine and whose folder is not where it was may be
    alive: it is not closed, unless `without_folder`.

    Args:
        runs: the store.
        minutes: a run on another machine is dead if its heartbeat is older.
        say: takes a line on each run.
        model_code: see :func:`fbp.experiment.tracking.shipper.launch`.
        without_folder: whether the heartbeat decides of runs whose folder is gone, too.
    """
    closed = 0
    for run in runs.search("attributes.status = 'RUNNING'"):
        folder, host = _folder_of(run), run.tags.get(tags.HOST, "")
        is_here = host in ("", platform.node())
        if folder is not None and (is_here or _is_alive(folder)):
            closed += _close_local(folder, run, runs.uri, say, model_code)
        elif host and is_here and not without_folder:
            say(
                f"{run.name}: not closed, because nobody can tell whether it is alive: it began on "
                f"this machine, but its folder is not at {run.tags.get(tags.RUN_FOLDER)}; to let "
                "its heartbeat decide: fbp close-dead --without-folder"
            )
        else:
            closed += _close_remote(runs, run, minutes, say)
    return closed


def _folder_of(run: RecordedRun) -> Path | None:
    """Return the folder of a run if this machine has it, in whichever project."""
    name, path = run.tags.get(tags.FOLDER, ""), Path(run.tags.get(tags.RUN_FOLDER, ""))
    candidates = [layout.run_folder(layout.root(), name)]
    if path.is_absolute() and path.name == name:
        candidates.append(layout.safe_child(path.parent, name))
    for folder in candidates:
        with contextlib.suppress(InputError, OSError):
            if folder and journal.read_start(folder) and is_folder_of(folder, run.run_id):
                return folder
    return None


def _is_alive(folder: Path) -> bool:
    top = _top_of(folder)
    return top is not None and locks.is_training(top)


def _top_of(folder: Path) -> Path | None:
    """Return the folder whose lock says whether a run is trained: its own or its group's."""
    parent = journal.require_start(folder).parent
    return layout.safe_child(folder.parent, parent) if parent else folder


def _close_local(
    folder: Path, run: RecordedRun, uri: str, say: Callable[[str], None], model_code: Path
) -> bool:
    """Close a run of this machine if no process trains it; return whether it was closed."""
    top = _top_of(folder)
    if top is None or locks.is_training(top):
        return False
    was_dead = shipper.close_orphans(top, [folder])
    process = shipper.launch(top, recorded_destination(top, uri), model_code)
    if not shipper.wait(process, _SEND_SECONDS):
        say(f"{run.name}: dead, but it could not be closed (see {layout.shipper_log(top)})")
        return False
    ending = (
        f"closed as KILLED (go on with: fbp resume {top.name})"
        if was_dead
        else "had ended; the rest of it was sent"
    )
    say(f"{run.name}: nobody trains it; {ending}")
    return True


def _close_remote(
    runs: MlflowRuns, run: RecordedRun, minutes: float, say: Callable[[str], None]
) -> bool:
    """Close a run of another machine if its heartbeat is old; return whether it was closed."""
    seen = _last_seen(run.tags.get(tags.HEARTBEAT), run.start)
    silent = (datetime.datetime.now(datetime.UTC) - seen).total_seconds() / 60
    if tags.VERSION not in run.tags or silent < minutes:
        return False
    message = f"no sign of life since {seen.isoformat(timespec='seconds')}"
    runs.client.set_tag(run.run_id, tags.MESSAGE, message)
    runs.client.set_terminated(run.run_id, "KILLED", int(seen.timestamp() * 1000))
    say(f"{run.name}: {message}; closed as KILLED")
    return True


def _last_seen(heartbeat: str | None, start: int) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(heartbeat or "").astimezone(datetime.UTC)
    except ValueError:
        return datetime.datetime.fromtimestamp(start / 1000, datetime.UTC)
