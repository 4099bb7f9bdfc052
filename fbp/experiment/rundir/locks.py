"""Locks between processes, by ``flock``: the system releases them when their holder dies."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from fbp.errors import InputError
from fbp.experiment.rundir import layout

_MOMENT = 2.0  # seconds; a shipper that closes a dead run holds the lock for a moment


def seconds_of(variable: str, default: float) -> float:
    """Return the seconds that an environment variable says.

    Raises:
        InputError: if it is no number of seconds.
    """
    text = os.environ.get(variable, "")
    try:
        seconds = float(text or default)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise InputError(f"{variable}: expected a number of seconds, got {text!r}")
    return seconds


LOCK_SECONDS = seconds_of("FBP_LOCK_SECONDS", 300)
"""How long a lock is waited for at most. Others make a store meanwhile, or write to a file."""


class LockTimeout(InputError):
    """A lock that another process has held for too long."""


@contextlib.contextmanager
def locked(path: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold an exclusive lock on a file; wait for it.

    Args:
        path: the file; made if it does not exist.
        seconds: how long to wait at most.

    Raises:
        LockTimeout: if another process holds the lock longer.
    """
    with open(path, "a") as file:
        if not try_lock(file.fileno(), seconds):
            raise LockTimeout(
                f"{path}: another process has held this lock for {seconds:.0f} s; wait until it "
                "ends, or end it if it hangs"
            )
        yield


def try_lock(file: int, seconds: float = _MOMENT) -> bool:
    """Lock an open file; return False if another process still holds the lock after a while."""
    deadline, pause = time.monotonic() + seconds, 0.001
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        else:
            return True


def share(file: int) -> None:
    """Hold a lock on an open file that keeps others from :func:`try_lock`; wait for it."""
    fcntl.flock(file, fcntl.LOCK_SH)


def unlock(file: int) -> None:
    """Release the lock on an open file, also if a forked process has it open, too."""
    fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def try_hold_training_lock(folder: Path) -> Iterator[bool]:
    """Hold the run's training lock. Yields False if another process still holds it after 2 s."""
    with open(layout.training_lock(folder), "a") as file:
        yield try_lock(file.fileno())


def is_training(folder: Path) -> bool:
    """Return whether a living process trains the run of ``folder``."""
    try:
        with open(layout.training_lock(folder), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
