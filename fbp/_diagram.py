"""A model as boxes and arrows, in plain data: what its picture is drawn from."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fbp._summary import LayerRow
from fbp.layer import IN, OUT, Layer

_MOST_LINES = 4  # names in one box


class Box(NamedTuple):
    """One box.

    Attributes:
        lines: names of the layers in it, one or several that follow each other.
        path: of the first of them.
        shape: of the output, as text.
        parameters: how many.
        groups: the repeated parts it stands in, outermost first, as ``path x times``.
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


def diagram(model: Layer, rows: list[LayerRow], shape: tuple[int, ...]) -> Diagram:
    """The boxes of a model's layers and joins, from the wiring of its composites."""
    flatten_by_path = {row.path: row for row in rows}
    boxes: dict[int, Box] = {0: Box(("input",), "", _text(shape), 0, ())}
    arrows: list[tuple[int, int]] = []

    def box(
        lines: tuple[str, ...],
        path: str,
        shape: str,
        parameters: int,
        groups: tuple[str, ...],
        sources: Any,
    ) -> int:
        number = len(boxes)
        boxes[number] = Box(lines, path, shape, parameters, groups)
        arrows.extend((source, number) for source in dict.fromkeys(sources))
        return number

    def expand(layer: Layer, path: str, groups: tuple[str, ...], sources: list[int]) -> list[int]:
        """Draw a layer behind ``sources``; returns where what follows begins."""
        if layer.rebuild is None:
            if layer.name == "identity":
                return sources
            row = flatten_by_path[path or "model"]
            return [box((layer.name,), path, _text(row.shape), row.parameters, groups, sources)]
        if layer.wiring.repeats > 1:
            groups = (*groups, f"{path or 'model'} x {layer.wiring.repeats}")
        ends: dict[str, list[int]] = {IN: sources}
        for key, part in layer.parts.items():
            before = [
                end
                for source, target in layer.wiring.edges
                if target == key
                for end in ends[source]
            ]
            ends[key] = expand(part, "/".join(filter(None, (path, key))), groups, before)
        last = [
            end for source, target in layer.wiring.edges if target == OUT for end in ends[source]
        ]
        if len(last) > 1 and layer.wiring.join:
            return [box((layer.wiring.join,), "", "", 0, groups, last)]
        return last

    expand(model, "", (), [0])
    return _folded(Diagram(boxes, arrows))


def _text(shape: Any) -> str:
    if shape and isinstance(shape[0], tuple | list):
        return ", ".join(map(_text, shape))
    return " x ".join(map(str, shape)) or "scalar"


def _folded(drawn: Diagram) -> Diagram:
    """Layers without parameters join the box before them, where nothing else follows that."""
    boxes, arrows = dict(drawn.boxes), list(drawn.arrows)
    for number in sorted(boxes):
        box = boxes[number]
        before = [source for source, target in arrows if target == number]
        if len(before) != 1 or box.parameters or not box.path:
            continue
        previous = boxes[before[0]]
        alone = sum(source == before[0] for source, _ in arrows) == 1
        if not (alone and previous.path and previous.groups == box.groups):
            continue
        if len(previous.lines) + len(box.lines) > _MOST_LINES:
            continue
        boxes[before[0]] = previous._replace(lines=previous.lines + box.lines, shape=box.shape)
        del boxes[number]
        arrows = [arrow for arrow in arrows if arrow != (before[0], number)]
        arrows = [(before[0] if source == number else source, target) for source, target in arrows]
    return Diagram(boxes, arrows)


def to_json(drawn: Diagram) -> dict[str, Any]:
    """As JSON's types."""
    return {
        "boxes": {str(n): box._asdict() for n, box in drawn.boxes.items()},
        "arrows": drawn.arrows,
    }


def from_json(table: Mapping[str, Any]) -> Diagram:
    """The inverse of :func:`to_json`."""
    boxes = {
        int(n): Box(
            tuple(box["lines"]), box["path"], box["shape"], box["parameters"], tuple(box["groups"])
        )
        for n, box in table["boxes"].items()
    }
    return Diagram(boxes, [(a, b) for a, b in table["arrows"]])
