"""The shipper of a run as its training process sees it: watched over, and replaced if it dies."""

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fbp.experiment.rundir import layout, tags
from fbp.experiment.tracking import shipper
from fbp.experiment.tracking.folder_runs import is_folder_of
from fbp.experiment.tracking.run_reader import RecordedRun
from fbp.experiment.tracking.shipment import read_problem
from fbp.experiment.tracking.sink import Destination

_TOLD = 3  # deaths of shippers that the user is told of


class Supervised:
    """The shipper of a run that this process trains; one that dies is replaced.

    Args:
        folder, destination, model_code: see :func:`.shipper.launch`.
        tell: takes a line about what the user should know; in another thread.
    """

    def __init__(
        self, folder: Path, destination: Destination, model_code: Path, tell: Callable[[str], None]
    ):
        self._folder, self._tell = folder, tell
        self._launch = lambda: shipper.launch(folder, destination, model_code)
        self._process, self._pause, self._deaths = self._launch(), 1.0, 0
        self._is_ending, self._is_refusal_told = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait for the shipper; return whether everything was sent.

        A slower one goes on by itself. One that was killed is replaced within that time.
        """
        self._is_ending.set()
        deadline = time.monotonic() + seconds
        try:
            self._thread.join(seconds)
            while True:
                status = self._process.wait(max(0, deadline - time.monotonic()))
                if status >= 0 or time.monotonic() > deadline:
                    return status == shipper.SENT
                self._process = self._launch()
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            return False

    def kill(self) -> None:
        """End the shipper of a run that never began."""
        self._is_ending.set()
        self._thread.join()
        self._process.kill()
        self._process.wait()

    def _watch(self) -> None:
        while not self._is_ending.wait(1.0):
            self._tell_refusal()
            status = self._process.poll()
            if status in (None, shipper.SENT):
                continue
            self._tell_death(status)
            if self._is_ending.wait(self._pause):
                return
            self._pause = min(2 * self._pause, shipper.LONGEST_PAUSE)
            self._process = self._launch()

    def _tell_death(self, status: int) -> None:
        self._deaths += 1
        if self._deaths <= _TOLD:
            reason = f"signal {-status}" if status < 0 else f"exit status {status}"
            self._tell(
                f"{self._folder.name}: the process that sends the run has ended ({reason}, see "
                f"{layout.shipper_log(self._folder)}); another one goes on in its place"
            )

    def _tell_refusal(self) -> None:
        problem = None if self._is_refusal_told else read_problem(self._folder)
        if problem and problem.refused:
            self._is_refusal_told = True
            self._tell(f"{self._folder.name}: {problem.reason} (training goes on)")


def unsent_message(folder: Path, shown: str) -> str:
    """Return one line for the user on a run that has not reached its tracker.

    Args:
        folder: the run's.
        shown: the tracker's address.
    """
    problem, log = read_problem(folder), layout.shipper_log(folder)
    if problem and problem.refused:
        return (
            f"{folder.name} was refused for good: {problem.reason}; its folder has all of it, and "
            "after that 'fbp sync' sends it"
        )
    reason = f"{problem.reason}; " if problem else ""
    return (
        f"not all of {folder.name} has reached {shown} yet ({reason}see {log}); nothing is lost: "
        "'fbp sync' sends the rest"
    )


def refused_runs(root: Path) -> list[str]:
    """Return the names of the folders of `mlruns` whose runs a tracker refuses for good."""
    problems = {folder.name: read_problem(folder) for folder in layout.run_folders(root)}
    return [name for name, problem in problems.items() if problem and problem.refused]


def tracking_problem(run: RecordedRun) -> str:
    """Return why a tracker does not have all of a run of this project; empty if it has."""
    folder = layout.run_folder(layout.root(), run.tags.get(tags.FOLDER, ""))
    problem = read_problem(folder) if folder and is_folder_of(folder, run.run_id) else None
    if folder is None or problem is None:
        return ""
    kind = "refused for good" if problem.refused else "not all of it is sent yet"
    return f"{folder.name}: {kind}: {problem.reason}; then: fbp sync"
