"""Calls that nothing can interrupt, such as XLA's compiler, in a thread that can be left.

Python runs a signal's handler between two instructions of the main thread. A call that stays in
XLA for minutes would make the process deaf for minutes. So another thread makes the call, and the
calling thread waits for it in short intervals.

A thread that was left goes on until its call returns. If the interpreter ends before, XLA aborts
the process. So a function that runs at exit ends it earlier, with the right status.
"""

import _thread
import atexit
import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

_INTERVAL = 0.05  # seconds between two checks
_GRACE = 1.0  # seconds that a chunk of steps may still take after a signal
_SILENT = 1.0  # seconds of waiting at exit about which nothing is said

Result = TypeVar("Result")


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop.

    Args:
        message: how the run was stopped.
        number: the signal; None if it was none.
    """

    def __init__(self, message: str, number: int | None = None):
        super().__init__(*([] if number is None else [signal.Signals(number)]))
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopRequest:
    """The signals that ask a run to stop.

    The first one is obeyed between two chunks of steps, and at once inside :meth:`obeyed_at_once`.
    The second one is obeyed at once, wherever it comes.

    Args:
        signals: the signals that came already; those that come are appended.

    Attributes:
        signals: all signals, the first one first.
        is_obeyed: whether the run is being ended; only another signal then stops that.
    """

    def __init__(self, signals: list[int] | None = None):
        self.signals: list[int] = [] if signals is None else signals
        self.is_obeyed = False
        self._doing: list[str] = []
        self._receives = self._is_reminder = False
        self._time = time.monotonic()

    @property
    def first_signal(self) -> int | None:
        """The first signal; None if none came."""
        return self.signals[0] if self.signals else None

    def receive(self, number: int, frame: Any = None) -> None:
        """Take a signal; the handler of the process.

        Raises:
            Interrupted: if it is to be obeyed at once.
        """
        if self._is_reminder:
            self._is_reminder = False
            self.check()
            return
        self.signals.append(number)
        if len(self.signals) == 1:
            self._time = time.monotonic()
        else:
            raise Interrupted(f"stopped at once by {signal.Signals(number).name}", number)
        self.check()

    def check(self) -> None:
        """Raise Interrupted if a signal came and is to be obeyed at once."""
        if self._doing and self.signals and not self.is_obeyed:
            self._stop(self._doing[-1])

    def remind(self) -> None:
        """Obey a signal again if it came inside a block that obeys it at once; from any thread.

        Python swallows what a handler raises inside a callback, such as that of a garbage
        collection.
        """
        is_due = self._doing and self.signals and not self.is_obeyed
        if is_due and self._receives:
            self._is_reminder = True
            _thread.interrupt_main(signal.Signals(self.signals[0]))

    def check_after_grace(self) -> None:
        """Raise Interrupted if a signal came more than a second ago."""
        if self.signals and time.monotonic() - self._time > _GRACE:
            self._stop("in a chunk of steps")

    def _stop(self, when: str) -> NoReturn:
        number = self.signals[0]
        raise Interrupted(f"stopped by {signal.Signals(number).name} {when}", number)

    @contextlib.contextmanager
    def obeyed_at_once(self, when: str) -> Iterator[None]:
        """Obey a signal at once inside the block.

        Args:
            when: what is being done, for the message, such as ``while ... was compiled``.

        Raises:
            Interrupted: at the block's beginning if a signal came before, or inside it.
        """
        self._doing.append(when)
        try:
            self.check()
            yield
        finally:
            self._doing.pop()

    @contextlib.contextmanager
    def received(self) -> Iterator[None]:
        """Receive SIGINT and SIGTERM inside the block, if this is the main thread."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        try:
            handlers = {number: signal.signal(number, self.receive) for number in numbers}
        except ValueError:  # not in the main thread, where signals are another's
            yield
            return
        self._receives = True
        try:
            yield
        finally:
            self._receives = False
            for number, handler in handlers.items():
                signal.signal(number, handler)


_left: list[threading.Thread] = []
_exit_status: int | None = None


def call_apart(
    function: Callable[[], Result],
    check: Callable[[], None],
    meanwhile: Callable[[], None] = lambda: None,
) -> Result:
    """Call ``function`` in another thread; return what it returns, or raise what it raises.

    Args:
        function: its call may last, and is not interrupted.
        check: called 20 times a second meanwhile. If it raises, or a signal's handler does, the
            thread is left alone and goes on.
        meanwhile: called once in this thread, while the other one works.
    """
    _watch_exit()
    results: list[Result] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, name="fbp-apart", daemon=True)
    thread.start()
    try:
        meanwhile()
        while thread.is_alive():
            thread.join(_INTERVAL)
            if thread.is_alive():
                check()
    except BaseException:
        _left.append(thread)
        raise
    if errors:
        raise errors[0]
    return results[0]


def exit_with(status: int) -> NoReturn:
    """End the process as ``sys.exit`` does, also if a thread was left that is in XLA still."""
    global _exit_status
    _exit_status = status
    sys.exit(status)


@functools.cache
def _watch_exit() -> None:
    atexit.register(_leave)


def _leave() -> None:
    """End the process if a thread that was left goes on; wait for it if the status is unknown."""
    if not any(thread.is_alive() for thread in _left):
        return
    error = getattr(sys, "last_type", None)  # that ended the program
    if _exit_status is not None:
        _end(_exit_status)
    elif error is not None and issubclass(error, KeyboardInterrupt):
        _flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as Python does
        os.kill(os.getpid(), signal.SIGINT)
    elif error is not None:
        _end(1)
    else:
        _wait()


def _wait() -> None:
    """Wait for the threads that were left; Ctrl-C ends the process."""
    began, silent = time.monotonic(), True
    try:
        while any(thread.is_alive() for thread in _left):
            time.sleep(_INTERVAL)
            if silent and time.monotonic() - began > _SILENT:
                silent = False
                print(
                    "fbp: waiting for XLA, which cannot be interrupted; Ctrl-C ends the process",
                    file=sys.stderr,
                    flush=True,
                )
    except KeyboardInterrupt:
        _end(128 + signal.SIGINT)


def _end(status: int) -> NoReturn:
    _flush()
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    logging.shutdown()
