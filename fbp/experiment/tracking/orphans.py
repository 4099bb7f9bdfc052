"""Runs that MLflow shows as RUNNING though nobody trains them: found and closed. What ``fbp close-dead`` does."""

import datetime
from collections.abc import Callable

from fbp.experiment.rundir import journal, layout, locks
from fbp.experiment.rundir import tags as tag_names
from fbp.experiment.tracking import shipper
from fbp.experiment.tracking.mlflow_runs import MlflowRuns


def close_dead(runs: MlflowRuns, minutes: float, say: Callable[[str], None]) -> int:
    """Close the runs that are dead; returns how many.

    A run whose folder is here is dead if no process holds its lock. Of any other run only the heartbeat is known, a tag that
    its shipper renews every half minute: it is dead if that is older than ``minutes``.

    Args:
        runs: the store.
        minutes: how old a heartbeat may be.
        say: told of each run.
    """
    root, closed = layout.root(), 0
    for run in runs.search("attributes.status = 'RUNNING'"):
        tags = run.tags
        folder = layout.run_folder(root, tags.get(tag_names.FOLDER, ""))
        start = journal.read_start(folder) if folder else None
        if folder is not None and start:
            top = layout.run_folder(root, start.parent) if start.parent else folder
            if top is None or locks.is_training(top):
                continue
            dead = shipper.close_orphans(top, [folder])
            if not shipper.wait(shipper.launch(top, runs.uri), 120):
                say(f"{run.name}: dead, but it could not be closed (see {top / 'shipper.log'})")
                continue
            ending = (
                f"closed as KILLED (go on with: fbp resume {top.name})"
                if dead
                else "had ended; the rest of it was sent"
            )
            say(f"{run.name}: nobody trains it; {ending}")
        else:
            seen = _last_seen(tags.get(tag_names.HEARTBEAT), run.start)
            silent = (datetime.datetime.now(datetime.UTC) - seen).total_seconds() / 60
            if tag_names.VERSION not in tags or silent < minutes:
                continue
            message = f"no sign of life since {seen.isoformat(timespec='seconds')}"
            runs.client.set_tag(run.run_id, tag_names.MESSAGE, message)
            runs.client.set_terminated(run.run_id, "KILLED", int(seen.timestamp() * 1000))
            say(f"{run.name}: {message}; closed as KILLED")
        closed += 1
    return closed


def _last_seen(heartbeat: str | None, start: int) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(heartbeat or "").astimezone(datetime.UTC)
    except ValueError:
        return datetime.datetime.fromtimestamp(start / 1000, datetime.UTC)
