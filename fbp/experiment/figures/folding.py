"""Makes the diagram of a deep model small enough to be read: equal blocks in a row become one."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fbp._diagram import Box, Diagram

MAX_BOXES = 60
"""Boxes up to which a diagram is drawn as it is."""

_MIN_COPIES = 3
_MAX_FOLDS = 30
_MAX_PERIOD = 60  # boxes of a block
_AT_EACH_END = 25  # boxes that stay if a diagram cannot be folded enough


class _Run(NamedTuple):
    """Equal blocks in a row: copies of ``period`` boxes each, from the box at place ``start``."""

    start: int
    period: int
    copies: int

    @property
    def saved(self) -> int:
        """Boxes that folding removes."""
        return self.period * (self.copies - 1)


def fold(diagram: Diagram) -> Diagram:
    """Return a diagram of few boxes: equal blocks in a row are one, with the number of its copies.

    A diagram of at most 60 boxes stays as it is. If folding does not help, boxes in the middle are
    replaced by one that says how many they are.

    Args:
        diagram: boxes, whose numbers are in topological order, and arrows.
    """
    for _ in range(_MAX_FOLDS):
        run = _longest_run(diagram) if len(diagram.boxes) > MAX_BOXES else None
        if run is None:
            break
        diagram = _folded(diagram, run)
    return diagram if len(diagram.boxes) <= MAX_BOXES else _without_middle(diagram)


def _longest_run(diagram: Diagram) -> _Run | None:
    """Return the run that saves most boxes; None if no block has three copies in a row."""
    numbers = sorted(diagram.boxes)
    kinds: dict[tuple[object, ...], int] = {}
    ids = np.array([kinds.setdefault(_content(diagram.boxes[n]), len(kinds)) for n in numbers])
    candidates = []
    for period in range(1, min(_MAX_PERIOD, len(ids) // _MIN_COPIES) + 1):
        same = np.flatnonzero(np.diff(np.r_[0, ids[:-period] == ids[period:], 0]))
        for start, stop in zip(same[::2], same[1::2], strict=True):
            copies = (stop - start) // period + 1
            if copies >= _MIN_COPIES:
                candidates.append(_Run(int(start), period, int(copies)))
    connections = _Connections(diagram)
    for run in sorted(candidates, key=lambda run: (-run.saved, run.period)):
        # the equal boxes may begin in the middle of a block
        for shift in range(run.period):
            copies = run.copies - (shift > 0)
            shifted = connections.longest_valid(_Run(run.start + shift, run.period, copies))
            if shifted.copies >= _MIN_COPIES:
                return shifted
    return None


def _content(box: Box) -> tuple[object, ...]:
    return box.lines, box.shape, box.parameters, tuple(map(_times, box.groups))


def _times(group: str) -> str:
    return group.rpartition(" x ")[2]


class _Connections:
    """The arrows of a diagram, and its groups, by the places of its boxes in order."""

    def __init__(self, diagram: Diagram):
        numbers = sorted(diagram.boxes)
        place = {number: i for i, number in enumerate(numbers)}
        self.groups = [diagram.boxes[number].groups for number in numbers]
        self.sources: list[list[int]] = [[] for _ in numbers]
        self.targets: list[list[int]] = [[] for _ in numbers]
        self.members: dict[str, list[int]] = {}
        for source, target in diagram.arrows:
            self.sources[place[target]].append(place[source])
            self.targets[place[source]].append(place[target])
        for i, names in enumerate(self.groups):
            for name in names:
                self.members.setdefault(name, []).append(i)

    def longest_valid(self, run: _Run) -> _Run:
        """Return as many of a run's copies as are connected in the same way, each to the next."""
        copies = 1
        while copies < run.copies and self._continues(run, copies):
            copies += 1
        # only the last copy may have arrows to what comes after it
        while (leaving := self._copy_with_other_targets(run._replace(copies=copies))) < copies - 1:
            copies = leaving + 1
        return run._replace(copies=copies)

    def _continues(self, run: _Run, copy: int) -> bool:
        """Whether a copy is wired like the one before it, whose output it takes."""
        start, size = run.start + copy * run.period, run.period
        for place in range(start, start + size):
            sources = [source - start for source in self.sources[place]]
            previous = [source - start + size for source in self.sources[place - size]]
            if not sources or min(sources) < -size:
                return False
            inside = [source for source in sources if source >= 0]
            if inside != [source for source in previous if source >= 0]:
                return False
            if copy > 1 and sources != previous:
                return False
            if not self._same_groups(place, place - size, range(start, start + size), size):
                return False
        return True

    def _same_groups(self, place: int, previous: int, copy: range, size: int) -> bool:
        for name, other in zip(self.groups[place], self.groups[previous], strict=True):
            if name == other:
                continue
            if not all(i in copy for i in self.members[name]):
                return False
            if not all(i + size in copy for i in self.members[other]):
                return False
        return True

    def _copy_with_other_targets(self, run: _Run) -> int:
        """Return the number of the earliest copy with an arrow to a box after the run."""
        end = run.start + run.copies * run.period
        places = range(run.start, end)
        leaving = (i for i in places if any(target >= end for target in self.targets[i]))
        return (next(leaving, end - 1) - run.start) // run.period


def _folded(diagram: Diagram, run: _Run) -> Diagram:
    """Keep the first copy of a block, in a group that says how many there are."""
    numbers = sorted(diagram.boxes)
    inside = numbers[run.start : run.start + run.period * run.copies]
    kept_box = {number: inside[i % run.period] for i, number in enumerate(inside)}
    shared = _shared_groups(diagram, inside, run.period)
    path = next((diagram.boxes[n].path for n in inside if diagram.boxes[n].path), "")
    group = f"{path} x {run.copies}"
    boxes = {}
    for number in numbers:
        box = diagram.boxes[number]
        if kept_box.get(number, number) != number:
            continue
        if number in kept_box:
            groups = (*box.groups[:shared], group, *box.groups[shared:])
            box = box._replace(parameters=box.parameters * run.copies, groups=groups)
        boxes[number] = box
    last = set(inside[-run.period :])
    arrows = []
    for source, target in diagram.arrows:
        if target in kept_box and (kept_box[target] != target):
            continue  # within a copy that is left out, or into it
        if source in kept_box and target not in kept_box and source not in last:
            continue
        arrows.append((kept_box.get(source, source), target))
    return Diagram(boxes, list(dict.fromkeys(arrows)))


def _shared_groups(diagram: Diagram, inside: Sequence[int], period: int) -> int:
    """Return how many outer groups all copies lie in together."""
    own, following = diagram.boxes[inside[0]].groups, diagram.boxes[inside[period]].groups
    shared = 0
    for name, other in zip(own, following, strict=True):
        if name != other:
            break
        shared += 1
    return shared


def _without_middle(diagram: Diagram) -> Diagram:
    """Replace all but the first and the last boxes by one."""
    numbers = sorted(diagram.boxes)
    middle = set(numbers[_AT_EACH_END:-_AT_EACH_END])
    stand_in = numbers[_AT_EACH_END]
    parameters = sum(diagram.boxes[number].parameters for number in middle)
    texts = (f"... {len(middle)} more ...", f"{parameters:,} parameters")
    boxes = {n: box._replace(groups=()) for n, box in diagram.boxes.items() if n not in middle}
    boxes[stand_in] = Box(texts, "", "", 0, ())
    arrows = [
        (stand_in if source in middle else source, stand_in if target in middle else target)
        for source, target in diagram.arrows
    ]
    return Diagram(boxes, list(dict.fromkeys(a for a in arrows if a[0] != a[1])))
