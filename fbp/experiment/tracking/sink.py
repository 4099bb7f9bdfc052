"""What a tracker must offer to receive runs: a class with eight methods that only write.

`[tracking] sink` of a configuration names the class: ``mlflow``, ``jsonl``, or one of your own as
``package.module:Class``. The shipper, a process beside the training, makes an object of it for each
run as ``Class(uri, root)`` and calls its methods in the order of the journal, all in one thread. An
exception in one of them costs no result: the shipper tries again, and the journal stays. So every
call may come twice; a metric is the same if its name, step, value and time are. A sink raises
:class:`Refused` for what the tracker will never take; the user is then told at once. No two
processes send one run at a time.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fbp.errors import InputError


class Refused(InputError):
    """What a tracker will never take, however often it is sent; a sink raises it.

    Args:
        message: one line: what is refused, why, and what to do.
    """


class NotUnderstood(InputError):
    """An answer that no tracker of that kind gives; another time the right one may answer.

    Args:
        message: one line: what was asked, what was expected, what came.
    """


class Destination(NamedTuple):
    """Where a run is sent.

    Attributes:
        sink: the name of the tracker.
        uri: the tracker's address; it may have a password in it.
        place: the address as it may be stored and shown.
    """

    sink: str
    uri: str
    place: str


class Point(NamedTuple):
    """A value of a metric.

    Attributes:
        key: the metric's name.
        value: the value; it may be NaN or infinite.
        time: in milliseconds since 1970.
        step: the step.
    """

    key: str
    value: float
    time: int
    step: int


class RunInfo(NamedTuple):
    """A run that is sent.

    Attributes:
        folder: the name of its folder, which no other run has.
        name: its name in lists.
        experiment: the experiment it belongs to.
        start_time: in milliseconds since 1970.
        tags: texts by name.
        parent_id: the id of the run under which it is shown; empty if none.
        run_id: the id that an earlier :meth:`Sink.open` returned; empty if there was none.
        is_sent_again: whether metrics follow that the tracker may have already, because the journal
            was changed after it was sent.
    """

    folder: str
    name: str
    experiment: str
    start_time: int
    tags: Mapping[str, str]
    parent_id: str = ""
    run_id: str = ""
    is_sent_again: bool = False


class Sink(Protocol):
    """A tracker, as far as one run is concerned.

    One thread uses an object at a time, so it need not be safe between threads. Several processes
    may send different runs to one place, so it must be safe between processes.

    An attribute `max_points` may say how many steps of a metric the tracker can show; the shipper
    then thins per-step metrics. Without it, or if it is 0, every step is sent.

    An optional method `facts(series)` may return, as JSON's types by name, what the tracker shows
    of the run beyond what it was sent; the run's manifest then covers that, too. `series` has the
    points that were sent. It is called at the run's end.
    """

    def __init__(self, uri: str, root: Path) -> None:
        """Connect to the tracker at `uri`; `root` is the folder ``mlruns`` that the run is in."""

    def open(self, run: RunInfo) -> str:
        """Create the run, or mark an earlier one as running again; return its id."""

    def log_params(self, params: Mapping[str, str]) -> None:
        """Store the configuration: texts by name."""

    def log_inputs(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Store which data are used: name, digest, context, shape and dtype of x and y of each."""

    def log_metrics(self, points: Sequence[Point]) -> None:
        """Store values of metrics, at most a thousand at once."""

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Store texts by name; a new value replaces the old one."""

    def log_artifacts(self, folder: Path) -> None:
        """Store all files of a folder."""

    def log_model(self, folder: Path, code: Path) -> None:
        """Store a trained model: a folder of files, and the Python file that loads it."""

    def finish(self, status: str, time: int) -> None:
        """Mark the run as FINISHED, FAILED or KILLED at a time in milliseconds since 1970."""


METHODS = (
    "open",
    "log_params",
    "log_inputs",
    "log_metrics",
    "set_tags",
    "log_artifacts",
    "log_model",
    "finish",
)


def reference(name: str) -> str:
    """Return the reference of a tracker's class: ``package.module:Class`` or ``PATH:Class``."""
    from fbp.experiment.config.catalogue import TRACKERS

    return TRACKERS.get(name, name)


def load(reference: str) -> type[Sink]:
    """Return the class of a sink; import its module, if it is trusted.

    A record may name fbp's own sinks only, and what is trusted where it is read, see
    :func:`fbp.experiment.config.references.reading_record`.

    Args:
        reference: where the class is, see :func:`reference`.

    Raises:
        InputError: if there is no such class, if it is not trusted, or if a method is missing in
            it.
    """
    from fbp.experiment.config.catalogue import TRACKERS, lookup
    from fbp.experiment.config.references import import_name

    own = reference in TRACKERS.values()
    sink = import_name(reference) if own else lookup("tracker", reference)
    missing = [method for method in METHODS if not callable(getattr(sink, method, None))]
    if missing:
        raise InputError(
            f"tracking.sink: {reference!r} is no tracker; it has no method {', '.join(missing)}; "
            "see fbp.experiment.tracking.sink"
        )
    return sink
