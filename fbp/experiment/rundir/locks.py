"""Locks between processes, by ``flock``: the system releases them when their holder dies."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from fbp.experiment.rundir import layout

_ATTEMPTS = 20  # a shipper that closes a dead run holds the lock for a moment


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; wait for it."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(file: int) -> bool:
    """Lock an open file; return False if another process still holds the lock after 2 s."""
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        else:
            return True
    return False


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
