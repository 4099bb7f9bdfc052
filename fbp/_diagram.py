"""A model as boxes and arrows, in plain data: the description that its picture is drawn from."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fbp._summary import LayerRow, Summary, shape_text
from fbp.errors import InputError
from fbp.layer import IN, OUT, Layer, join_path

_MAX_LINES = 4  # names in one box
_MAX_GROUPS = 10  # repeated parts around a box
_MAX_BOXES, _MAX_ARROWS = 20_000, 100_000


class Box(NamedTuple):
    """One box.

    Attributes:
        lines: names of the layers in it, one or several in sequence.
        path: of the first of them.
        shape: of the output, as text.
        parameters: how many.
        groups: the repeated parts around it, outermost first, as ``path x repeats``.
    """

    lines: tuple[str, ...]
    path: str
    shape: str
    parameters: int
    groups: tuple[str, ...]


class Diagram(NamedTuple):
    """Boxes by number, and arrows as pairs of numbers; box 0 is the input."""

    boxes: dict[int, Box]
    arrows: list[tuple[int, int]]


def make_diagram(model: Layer, summary: Summary, shape: Any) -> Diagram:
    """Return the boxes of a model's layers and joins, from the wiring of its composites.

    Args:
        model: any layer.
        summary: its table of layers, see :func:`fbp.summarize`.
        shape: one example's.
    """
    builder = _Builder(summary.rows, shape)
    builder.expand(model, "", (), [0])
    return _fold(Diagram(builder.boxes, builder.arrows))


class _Builder:
    """Collects boxes and arrows while it walks through a model."""

    def __init__(self, rows: Sequence[LayerRow], shape: Any):
        self.rows = {row.path: row for row in rows}
        self.boxes: dict[int, Box] = {0: Box(("input",), "", shape_text(shape), 0, ())}
        self.arrows: list[tuple[int, int]] = []

    def add(self, box: Box, sources: Sequence[int]) -> int:
        """Add a box behind others; return its number."""
        number = len(self.boxes)
        self.boxes[number] = box
        self.arrows.extend((source, number) for source in dict.fromkeys(sources))
        return number

    def expand(
        self, layer: Layer, path: str, groups: tuple[str, ...], sources: list[int]
    ) -> list[int]:
        """Add a layer's boxes behind ``sources``; return the boxes that its output comes from."""
        if layer.rebuild is None:
            if layer.kind == "identity":
                return sources
            row = self.rows[path or "model"]
            box = Box((layer.name,), path, shape_text(row.shape), row.parameters, groups)
            return [self.add(box, sources)]
        if layer.wiring.repeats > 1:
            groups = (*groups, f"{path or 'model'} x {layer.wiring.repeats}")
        ends: dict[str, list[int]] = {IN: sources}
        for key, part in layer.parts.items():
            ends[key] = self.expand(part, join_path(path, key), groups, _ends(layer, ends, key))
        last = _ends(layer, ends, OUT)
        if len(last) > 1 and layer.wiring.join:
            return [self.add(Box((layer.wiring.join,), "", "", 0, groups), last)]
        return last


def _ends(layer: Layer, ends: Mapping[str, list[int]], target: str) -> list[int]:
    """Return the boxes from which arrows lead to a part, or to the composite's output."""
    sources = [source for source, end in layer.wiring.edges if end == target]
    return [number for source in sources for number in ends[source]]


def _fold(diagram: Diagram) -> Diagram:
    """Merge layers without parameters into the box before them, if nothing else follows that."""
    boxes = dict(diagram.boxes)
    sources: dict[int, list[int]] = {number: [] for number in boxes}
    followers: dict[int, int] = dict.fromkeys(boxes, 0)
    for source, target in diagram.arrows:
        sources[target].append(source)
        followers[source] += 1
    merged: dict[int, int] = {}  # boxes that are gone, and the box that has taken them in
    for number in sorted(boxes):
        box = boxes[number]
        if len(sources[number]) != 1 or box.parameters or not box.path:
            continue
        source = merged.get(sources[number][0], sources[number][0])
        previous = boxes[source]
        if not (followers[source] == 1 and previous.path and previous.groups == box.groups):
            continue
        if len(previous.lines) + len(box.lines) > _MAX_LINES:
            continue
        boxes[source] = previous._replace(lines=previous.lines + box.lines, shape=box.shape)
        followers[source] = followers[number]
        merged[number] = source
        del boxes[number]
    return Diagram(
        boxes,
        [
            (merged.get(source, source), target)
            for source, target in diagram.arrows
            if target not in merged
        ],
    )


def to_json(diagram: Diagram) -> dict[str, Any]:
    """Return a diagram as JSON's types."""
    boxes = {str(number): box._asdict() for number, box in diagram.boxes.items()}
    return {"boxes": boxes, "arrows": diagram.arrows}


def from_json(table: Mapping[str, Any]) -> Diagram:
    """Return the diagram that :func:`to_json` wrote.

    Raises:
        InputError: if it is damaged: other types, arrows from nowhere or back, too many boxes.
    """
    try:
        boxes = {
            int(number): Box(
                tuple(map(str, box["lines"][:_MAX_LINES])),
                str(box["path"]),
                str(box["shape"]),
                int(box["parameters"]),
                tuple(map(str, box["groups"][:_MAX_GROUPS])),
            )
            for number, box in table["boxes"].items()
        }
        arrows = [(int(start), int(target)) for start, target in table["arrows"]]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise InputError("expected the diagram of a model, but it is damaged") from None
    is_drawn = all(
        start in boxes and target in boxes and start < target for start, target in arrows
    )
    if not (is_drawn and 0 in boxes and len(boxes) <= _MAX_BOXES and len(arrows) <= _MAX_ARROWS):
        raise InputError("expected the diagram of a model, but its boxes and arrows fit no model")
    return Diagram(boxes, arrows)
