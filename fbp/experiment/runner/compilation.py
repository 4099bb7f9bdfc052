"""Compiles the programs of a run: each one once, announced, and so that a signal ends it.

Tracing and lowering is Python, which a signal's handler interrupts. XLA's compiler is not; it runs
in a thread that can be left, see :mod:`fbp._interruptible`.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax

from fbp._interruptible import StopRequest, call_apart

_INTERVAL = 0.5  # seconds between two reports
_LONG = 20.0  # seconds of compilation after which the user is told what helps
_HINT = (
    "compiling takes longer the more layers a model spells out; equal blocks inside fbp.repeat "
    "are compiled once"
)


def _do_nothing() -> None:
    pass


class Announcer(Protocol):
    """Tells the user what takes time."""

    def working(self, task: str, seconds: float) -> None:
        """Show that `task` has taken `seconds` so far; called from another thread."""

    def note(self, text: str) -> None:
        """Show a message to the user."""


class Compiler:
    """Compiles the programs of one run.

    Args:
        announcer: shows what is compiled and for how long.
        stop: what ends a compilation.
    """

    def __init__(self, announcer: Announcer, stop: StopRequest):
        self.announcer, self.stop = announcer, stop
        self._hinted = False

    def program(
        self, title: str, function: Callable[..., Any], donate_argnums: Sequence[int] = ()
    ) -> "Program":
        """Return a function as a program that is compiled when it is needed first.

        Args:
            title: what the user is told, such as ``the training program``.
            function: a pure function of arrays, always called with the same shapes.
            donate_argnums: the arguments whose memory the program may take.
        """
        return Program(self, title, jax.jit(function, donate_argnums=tuple(donate_argnums)))

    def compile(
        self, title: str, function: Any, *args: Any, meanwhile: Callable[[], None] = _do_nothing
    ) -> Callable[..., Any]:
        """Compile a jitted function for arguments.

        Args:
            title: what the user is told.
            function: the jitted function.
            args: its arguments.
            meanwhile: called while XLA compiles.

        Raises:
            Interrupted: if a signal comes.
        """
        with (
            self.stop.obeyed_at_once(f"while {title} was compiled"),
            self.announced(f"compiling {title}", hint=True),
        ):
            compiled: Callable[..., Any] = call_apart(
                function.lower(*args).compile, self.stop.check, meanwhile
            )
        return compiled

    @contextlib.contextmanager
    def announced(self, task: str, *, hint: bool = False) -> Iterator[None]:
        """Tell the user twice a second how long `task` has taken so far, inside the block.

        Args:
            task: what the block does.
            hint: say, once and if it takes long, what makes compiling faster.
        """
        ended, began = threading.Event(), time.monotonic()

        def report() -> None:
            while not ended.wait(_INTERVAL):
                seconds = time.monotonic() - began
                self.announcer.working(task, seconds)
                self.stop.remind()
                if hint and not self._hinted and seconds > _LONG:
                    self._hinted = True
                    self.announcer.note(_HINT)

        thread = threading.Thread(target=report, name="fbp-announcer", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class Program:
    """A function that is compiled once, at its first call or by :meth:`compile`.

    Args:
        compiler: that of the run.
        title: what the user is told.
        function: the jitted function.
    """

    def __init__(self, compiler: Compiler, title: str, function: Any):
        self._compiler, self._title, self._function = compiler, title, function
        self._compiled: Callable[..., Any] | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether a call takes no compilation."""
        return self._compiled is not None

    def compile(
        self, *args: Any, meanwhile: Callable[[], None] = _do_nothing
    ) -> Callable[..., Any]:
        """Compile for arguments of these shapes, unless that is done; return the executable.

        Args:
            args: arrays, or what has their shapes.
            meanwhile: called while XLA compiles.

        Raises:
            Interrupted: if a signal comes meanwhile.
        """
        if self._compiled is None:
            self._compiled = self._compiler.compile(
                self._title, self._function, *args, meanwhile=meanwhile
            )
        return self._compiled

    def __call__(self, *args: Any) -> Any:
        """Compile if needed, run, and wait for the results.

        Raises:
            Interrupted: if a signal comes meanwhile.
        """
        compiled, stop = self.compile(*args), self._compiler.stop
        with stop.obeyed_at_once(f"while {self._title} ran"):
            return call_apart(lambda: jax.block_until_ready(compiled(*args)), stop.check)
