"""One run on its way from its journal to a tracker.

How much was sent is remembered in a file of the run's folder. Before that, the journal is synced to
the disk: otherwise a loss of power could make a resumed run send a metric again with another time.
If a journal no longer begins with what was sent (a damaged disk, somebody's editor), all of it is
sent again.
"""

import datetime
import json
import operator
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fbp.errors import InputError
from fbp.experiment.config import bounded
from fbp.experiment.rundir import history, journal, layout, manifest, tags
from fbp.experiment.rundir.journal import Journal, PrefixChecksum
from fbp.experiment.rundir.journal_lines import (
    ChildLine,
    EndLine,
    Line,
    MetricsLine,
    ResumeLine,
    SealLine,
    StartLine,
    StepsLine,
    TagsLine,
)
from fbp.experiment.rundir.layout import JOURNAL, SYSTEM_JOURNAL
from fbp.experiment.rundir.series import Series, joined, read_series
from fbp.experiment.tracking.sink import Destination, Point, RunInfo, Sink

_BATCH = 1000  # points in one call of the sink
_HEARTBEAT_SECONDS = 30.0
_NOTHING = PrefixChecksum()


_NOTHING_SENT = {JOURNAL: _NOTHING, SYSTEM_JOURNAL: _NOTHING}


class SentState(NamedTuple):
    """How much of a run a tracker has.

    Attributes:
        sink: the tracker.
        place: its address, see :class:`Destination`.
        run_id: the run's id; empty if it is not known.
        checksums: of the part of each journal that was sent.
        done: whether the run is closed in the tracker.
        again: whether metrics were sent twice, because the journal was changed after it was sent;
            the tracker may have kept the times of the first ones.
    """

    sink: str = ""
    place: str = ""
    run_id: str = ""
    checksums: dict[str, PrefixChecksum] = _NOTHING_SENT
    done: bool = False
    again: bool = False


def read_sent(folder: Path) -> SentState:
    """Return how much of a run was sent; nothing if the file is absent or damaged."""
    try:
        state = bounded.read_json(layout.sent(folder))
        checksums = {
            name: PrefixChecksum(*map(operator.index, state["checksums"][name]))
            for name in (JOURNAL, SYSTEM_JOURNAL)
        }
        texts = [state[key] for key in ("sink", "place", "run_id")]
    except (OSError, ValueError, KeyError, TypeError):
        return SentState()
    if not all(isinstance(text, str) for text in texts):
        return SentState()
    sink, place, run_id = texts
    flags = [state.get(key) is True for key in ("done", "again")]
    return SentState(sink, place, run_id, checksums, *flags)


def changes_of_sent(folder: Path) -> list[str]:
    """Return a line if the file that says what was sent is not as it is after a run was sent."""
    path, state = layout.sent(folder), read_sent(folder)
    if not path.exists():
        return [f"{path.name} is missing"]
    expected = {
        name: journal.checksum_prefix(folder, journal.size(folder, name), name)
        for name in (JOURNAL, SYSTEM_JOURNAL)
    }
    same = state.done and state.checksums == expected and path.read_bytes() == _sent_text(state)
    return [] if same else [f"{path.name}: its content was changed"]


def _sent_text(state: SentState) -> bytes:
    return json.dumps(state._asdict()).encode()


def is_sent(folder: Path) -> bool:
    """Return whether the tracker has everything in the run's journal, and the run is closed."""
    state = read_sent(folder)
    return state.done and journal.length(folder) <= state.checksums[JOURNAL].length


class Problem(NamedTuple):
    """Why a tracker does not have all of a run.

    Attributes:
        reason: one line.
        refused: whether another attempt does not help until the user has done something.
    """

    reason: str
    refused: bool = False


def write_problem(folder: Path, problem: Problem | None) -> None:
    """Write why a tracker does not have all of a run; None if it has."""
    path = layout.problem(folder)
    if problem is None:
        path.unlink(missing_ok=True)
        return
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(problem._asdict()), encoding="utf-8")
    partial.replace(path)


def read_problem(folder: Path) -> Problem | None:
    """Return why a tracker does not have all of a run; None if nothing is known to be wrong."""
    try:
        entries = bounded.read_json(layout.problem(folder))
        reason, refused = entries["reason"], entries["refused"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Problem(reason, refused is True) if isinstance(reason, str) else None


class Shipment:
    """Sends one run.

    Args:
        folder: the run's.
        sink: the tracker, made for this run.
        destination: where that is.
        model_code: the Python file that loads a trained model.
        draw: draws a run's pictures from its folder and those of its children, and returns what
            could not be drawn.

    Attributes:
        children: the folders of runs that are shown under this one.
    """

    def __init__(
        self,
        folder: Path,
        sink: Sink,
        destination: Destination,
        model_code: Path,
        draw: Callable[[Path, Sequence[Path]], list[str]],
    ):
        self.folder, self.children = folder, list[Path]()
        self._sink, self._destination = sink, destination
        self._model_code, self._draw = model_code, draw
        self._checksums = dict(SentState().checksums)
        self._run_id, self._is_open, self._is_sent_again = "", False, False
        self._end: EndLine | None = None
        self._finished = False
        self._points: list[Point] = []
        self._stride = 1
        self._last_heartbeat = 0.0
        self._recall()

    @property
    def done(self) -> bool:
        """Whether the tracker has everything, and the run is closed there."""
        return self._finished and journal.length(self.folder) <= self._checksums[JOURNAL].length

    def advance(self, *, is_training: bool) -> None:
        """Send what the journals have beyond what was sent; close the run if its journal ends."""
        for name in (JOURNAL, SYSTEM_JOURNAL):
            if name == JOURNAL or self._is_open:
                self._send_new_lines(name)
        if self._end and not self._finished:
            self._finish(self._end)
        elif is_training and self._is_open:
            self._show_heartbeat()

    def _recall(self) -> None:
        """Go on where an earlier shipper stopped."""
        state = read_sent(self.folder)
        if (state.sink, state.place) != (self._destination.sink, self._destination.place):
            return
        self._run_id, self._is_sent_again = state.run_id, state.again
        for name, checksum in state.checksums.items():
            if journal.has_prefix(self.folder, checksum, name):
                self._checksums[name] = checksum
            else:
                self._is_sent_again = True
        if self._checksums[JOURNAL].length:
            self._finished, self._end = state.done, journal.read_end(self.folder)
        for offset, line in journal.lines(self.folder, kinds=[ChildLine]):
            if offset <= self._checksums[JOURNAL].length:
                self._add_child(line)

    def _remember(self) -> None:
        destination = self._destination
        state = SentState(
            destination.sink,
            destination.place,
            self._run_id,
            self._checksums,
            self._finished,
            self._is_sent_again,
        )
        path = layout.sent(self.folder)
        partial = path.with_suffix(".partial")
        partial.write_bytes(_sent_text(state))
        partial.replace(path)

    def _send_new_lines(self, name: str) -> None:
        length, checksum = journal.length(self.folder, name), self._checksums[name]
        if length <= checksum.length:
            return
        with open(layout.journal(self.folder, name), "rb") as file:
            os.fsync(file.fileno())  # what was sent must not be lost
        self._points.clear()  # of an attempt that failed
        offset = checksum.length
        for offset, line in journal.lines(self.folder, checksum.length, name):  # noqa: B007
            self._apply(line)
        self._send_points()
        # damaged lines at the end are skipped, too
        end = max(offset, length)
        self._checksums[name] = journal.checksum_prefix(self.folder, end, name, checksum)
        self._remember()

    def _apply(self, line: Line) -> None:
        if not self._is_open:
            self._open()
        self._finished = False
        match line:
            case StartLine():
                self._sink.log_params(line.params)
                if line.inputs:
                    self._sink.log_inputs(line.inputs)
            case StepsLine() | MetricsLine():
                for point in self._points_of(line):
                    self._points.append(point)
                    if len(self._points) >= _BATCH:
                        self._send_points()
            case TagsLine():
                self._sink.set_tags(line.values)
            case ChildLine():
                self._add_child(line)
            case EndLine():
                self._end = line
            case ResumeLine():
                self._end = None
                self._open()
            case SealLine():
                self._sink.set_tags({tags.MANIFEST: line.root})

    def _open(self) -> None:
        """Create the run in the tracker, or mark it as running again."""
        start = journal.require_start(self.folder)
        parent = layout.safe_child(self.folder.parent, start.parent) if start.parent else None
        info = RunInfo(
            folder=self.folder.name,
            name=start.name,
            experiment=start.experiment,
            start_time=start.time,
            tags=start.tags,
            parent_id=read_sent(parent).run_id if parent else "",
            run_id=self._run_id,
            is_sent_again=self._is_sent_again,
        )
        run_id: object = self._sink.open(info)
        if not isinstance(run_id, str) or not run_id:
            raise InputError(
                f"tracker {self._destination.sink!r}: open: expected the run's id, a text that is "
                f"not empty, got {run_id!r}; return the id from open"
            )
        self._run_id = run_id
        self._is_open, self._finished = True, False
        max_points = getattr(self._sink, "max_points", 0)
        self._stride = max(1, -(-start.steps // max_points)) if max_points else 1
        self._remember()

    def _points_of(self, line: StepsLine | MetricsLine) -> Iterator[Point]:
        if isinstance(line, MetricsLine):
            for key, value in line.values.items():
                yield Point(key, float(value), line.time, line.step)
            return
        times = line.times
        for i in range(len(line)):
            step = line.first_step + i
            if step % self._stride == 0 or step == 1:
                for key, column in line.columns.items():
                    yield Point(key, float(column[i]), int(times[i]), step)

    def _send_points(self) -> None:
        if self._points:
            self._sink.log_metrics(self._points)
            self._points.clear()

    def _add_child(self, line: Line) -> None:
        name = line.folder if isinstance(line, ChildLine) else None
        child = layout.safe_child(self.folder.parent, name)
        if child is not None and child not in self.children:
            self.children.append(child)

    def _show_heartbeat(self) -> None:
        if time.monotonic() - self._last_heartbeat > _HEARTBEAT_SECONDS:
            self._last_heartbeat = time.monotonic()
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            self._sink.set_tags({tags.HEARTBEAT: now})

    def _finish(self, end: EndLine) -> None:
        """Send the model, seal the record, send all files, then close the run."""
        if not self._is_open:
            self._open()
        self._make_files()
        if end.status == "FINISHED" and layout.model_facts(self.folder).exists():
            self._sink.log_model(layout.model(self.folder), self._model_code)
        self._seal()
        self._sink.log_artifacts(layout.artifacts(self.folder))
        if end.message:
            self._sink.set_tags({tags.MESSAGE: end.message[: journal.LONGEST_MESSAGE]})
        self._sink.finish(end.status, end.time)
        self._finished = True
        self._remember()

    def _make_files(self) -> None:
        """Draw the pictures and write the history, unless only tags have changed since."""
        seal = journal.read_seal(self.folder)
        if seal and all(isinstance(line, TagsLine) for line in seal.later):
            return
        children = [child for child in self.children if child.exists()]
        for problem in self._draw(self.folder, children):
            print(f"plot not drawn: {problem}", file=sys.stderr, flush=True)
        history.write(self.folder)

    def _seal(self) -> None:
        """Write the manifest and its root into the journal, if they are not there; send the root.

        Raises:
            InputError: if the training process has the journal open still.
        """
        facts: Callable[..., Mapping[str, Any]] | None = getattr(self._sink, "facts", None)
        tracker = facts(self._shown_series()) if facts else {}
        writer = Journal(self.folder, alone=True)
        try:
            root = manifest.write(self.folder, manifest.make(self.folder, tracker))
            seal = journal.read_seal(self.folder)
            if seal is None or seal.later or seal.root != root:
                writer.seal(root)
        finally:
            writer.close()
        self._send_new_lines(JOURNAL)
        self._sink.set_tags({tags.MANIFEST: root})

    def _shown_series(self) -> dict[str, Series]:
        """Return the points of every metric that were sent to the tracker."""
        series = {}
        for key, points in read_series(self.folder, [StepsLine]).items():
            is_sent = (points.steps % self._stride == 0) | (points.steps == 1)
            series[key] = points.where(is_sent)
        for name in (JOURNAL, SYSTEM_JOURNAL):
            for key, points in read_series(self.folder, [MetricsLine], name).items():
                series[key] = joined([series[key], points]) if key in series else points
        return series
