"""Send to the trackers what has not reached them yet: ``fbp sync``."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fbp.errors import InputError, first_line
from fbp.experiment.rundir import journal, layout, locks
from fbp.experiment.runner.trained_model import PYFUNC_CODE
from fbp.experiment.tracking import shipper, uri
from fbp.experiment.tracking.shipment import is_sent, read_problem
from fbp.experiment.tracking.shipper import NOT_YET, REFUSED, SENT

_MARGIN = 30.0  # seconds that a process gets to give up by itself


class Synced(NamedTuple):
    """What ``fbp sync`` has done.

    Attributes:
        summary: one line.
        status: SENT, NOT_YET or REFUSED, see :mod:`fbp.experiment.tracking.shipper`.
    """

    summary: str
    status: int


def sync(
    root: Path,
    tracking_uri: str | None,
    seconds: float,
    say: Callable[[str], None],
    complain: Callable[[str], None],
) -> Synced:
    """Send the remaining records of all runs, one after the other.

    Args:
        root: the folder ``mlruns``.
        tracking_uri: where to; None for where each run was meant for.
        seconds: how long one run may take at most.
        say: takes a line on each run.
        complain: takes a line on each run that was not sent, with the reason.
    """
    unsent = []
    for folder, start in journal.started_runs(root):
        if not start.parent and not is_sent(folder):
            if locks.is_training(folder):
                say(f"{start.name} is still training; its own process sends it")
            else:
                unsent.append(folder)
    if not unsent:
        return Synced("nothing to send", SENT)
    statuses = []
    for folder in unsent:
        status, reason = _send(folder, tracking_uri, seconds, say, complain)
        statuses.append(status)
        if status != SENT:
            kind = "refused for good" if status == REFUSED else "not sent"
            complain(f"{folder.name}: {kind}: {reason}")
    refused = statuses.count(REFUSED)
    summary = f"{statuses.count(SENT)} of {len(unsent)} runs sent"
    return Synced(f"{summary}, {refused} refused for good" if refused else summary, max(statuses))


def _send(
    folder: Path,
    tracking_uri: str | None,
    seconds: float,
    say: Callable[[str], None],
    complain: Callable[[str], None],
) -> tuple[int, str]:
    """Send a run; return the status, and why it was not sent."""
    try:
        target = uri.recorded_destination(folder, tracking_uri, override=True, tell=complain)
        say(f"sending {folder.name} to {uri.shown(target)} ...")
        process = shipper.launch(folder, target, PYFUNC_CODE, seconds)
    except (InputError, OSError) as error:
        return NOT_YET, first_line(error)
    try:
        status = process.wait(seconds + _MARGIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return NOT_YET, f"its process did not end in {seconds + _MARGIN:.0f} s and was ended"
    if status == SENT:
        return SENT, ""
    problem = read_problem(folder)
    reason = problem.reason if problem else f"see {layout.shipper_log(folder)}"
    return REFUSED if status == REFUSED else NOT_YET, reason
