"""The picture of a model: its diagram as levels of boxes, from top to bottom.

The layered drawing of a directed graph (K. Sugiyama, S. Tagawa and M. Toda, "Methods for Visual
Understanding of Hierarchical System Structures", 1981). Each box is on a level below all boxes that
lead to it. An arrow that passes a level gets a place on it, so that it runs beside boxes and not
through them. The places on a level are ordered by the mean position of their neighbours.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from fbp import _neutral
from fbp._diagram import Box, Diagram
from fbp.experiment.figures.folding import fold

_LINE, _CHARACTER, _GAP, _LANE = 0.165, 0.074, 0.4, 0.22  # inches
_SWEEPS = 8
_MAX_CHARACTERS = 60
_BLUE = "#4a6fa5"


class _Place(NamedTuple):
    """A place on a level: a box, or the passage of an arrow.

    Attributes:
        level: the level, from 0 at the top.
        box: the number of the box; None for an arrow.
        arrow: the index of the arrow that passes; None for a box.
    """

    level: int
    box: int | None
    arrow: int | None


def draw(diagram: Diagram, title: str = "") -> Figure:
    """Draw a diagram in a figure that is large enough to be read; a large one is folded.

    Args:
        diagram: boxes and arrows.
        title: a line above; none if empty.
    """
    diagram = fold(diagram)
    levels, chains = _levels(diagram)
    _order(levels, chains)
    x, y, heights = _positions(diagram, levels)
    left = min(x[p] - _width(diagram, p) / 2 for level in levels for p in level)
    right = max(x[p] + _width(diagram, p) / 2 for level in levels for p in level)
    bottom = y[levels[-1][0]] - heights[-1] / 2
    extra = 0.35 if title else 0.0
    width, height = right - left + 0.7, -bottom + heights[0] / 2 + 0.4 + extra
    figure = Figure(figsize=(max(width, 2.5), height))
    axes = figure.add_axes((0, 0, 1, 1))
    middle = (left + right) / 2
    axes.set(
        xlim=(middle - max(width, 2.5) / 2, middle + max(width, 2.5) / 2),
        ylim=(bottom - 0.2, heights[0] / 2 + 0.2 + extra),
    )
    axes.set_axis_off()
    if title:
        axes.text(
            middle,
            heights[0] / 2 + 0.28,
            _neutral.label(title),
            ha="center",
            va="center",
            fontsize=10,
            weight="bold",
        )
    _draw_groups(axes, diagram, levels, x, y)
    for chain in chains:
        source, target = chain[0], chain[-1]
        start = y[source] - _height(diagram.boxes[source.box or 0]) / 2
        end = y[target] + _height(diagram.boxes[target.box or 0]) / 2
        points = [(x[source], start), *((x[p], y[p]) for p in chain[1:-1]), (x[target], end)]
        _draw_arrow(axes, points, [heights[p.level] for p in chain[1:-1]])
    for level in levels:
        for place in level:
            if place.box is not None:
                _draw_box(axes, diagram.boxes[place.box], x[place], y[place])
    return figure


def _levels(diagram: Diagram) -> tuple[list[list[_Place]], list[list[_Place]]]:
    """Return the places on each level, and for each arrow the places on its way."""
    depth = dict.fromkeys(diagram.boxes, 0)
    for number in sorted(diagram.boxes):  # numbers are in topological order
        depth[number] = max((depth[a] + 1 for a, b in diagram.arrows if b == number), default=0)
    levels: list[list[_Place]] = [[] for _ in range(max(depth.values()) + 1)]
    places = {number: _Place(level, number, None) for number, level in depth.items()}
    for number in sorted(places):
        levels[depth[number]].append(places[number])
    chains = []
    for i, (a, b) in enumerate(diagram.arrows):
        passing = [_Place(level, None, i) for level in range(depth[a] + 1, depth[b])]
        for place in passing:
            levels[place.level].append(place)
        chains.append([places[a], *passing, places[b]])
    return levels, chains


def _order(levels: list[list[_Place]], chains: list[list[_Place]]) -> None:
    """Sort each level by the mean position of neighbours, above and below in turn."""
    above: dict[_Place, list[_Place]] = {}
    below: dict[_Place, list[_Place]] = {}
    for chain in chains:
        for a, b in itertools.pairwise(chain):
            below.setdefault(a, []).append(b)
            above.setdefault(b, []).append(a)
    for sweep in range(_SWEEPS):
        downwards = sweep % 2 == 0
        for level in levels if downwards else reversed(levels):
            neighbours = above if downwards else below
            index = {p: i - (len(other) - 1) / 2 for other in levels for i, p in enumerate(other)}
            mean = {
                p: sum(index[n] for n in neighbours[p]) / len(neighbours[p])
                if p in neighbours
                else index[p]
                for p in level
            }
            level.sort(key=lambda p: mean[p])
    for level in levels:  # a single box stays in the middle; arrows pass on its right
        if sum(p.box is not None for p in level) == 1:
            level.sort(key=lambda p: p.box is None)


def _positions(
    diagram: Diagram, levels: list[list[_Place]]
) -> tuple[dict[_Place, float], dict[_Place, float], list[float]]:
    """Return the coordinates of the centers of all places, and the height of each level."""
    x: dict[_Place, float] = {}
    y: dict[_Place, float] = {}
    heights: list[float] = []
    top = 0.0
    for i, level in enumerate(levels):
        height = max(
            (_height(diagram.boxes[p.box]) for p in level if p.box is not None), default=_LINE
        )
        heights.append(height)
        top -= height / 2 if i else 0
        centers, right = [], 0.0
        for place in level:
            width = _width(diagram, place)
            centers.append(right + width / 2)
            right += width + _LANE
        boxes = [c for c, place in zip(centers, level, strict=True) if place.box is not None]
        middle = sum(boxes) / len(boxes) if boxes else right / 2
        if len(boxes) > 1:
            middle = (right - _LANE) / 2
        for place, center in zip(level, centers, strict=True):
            x[place], y[place] = center - middle, top
        top -= height / 2 + _GAP
    return x, y, heights


def _texts(box: Box) -> list[str]:
    texts = [_neutral.label(shortened(line)) for line in box.lines]
    if box.shape:
        count = f"   {box.parameters:,} parameters" if box.parameters else ""
        texts.append(_neutral.label(shortened(box.shape)) + count)
    return texts


def shortened(text: str) -> str:
    """Return at most 60 characters of a text, which may be somebody's."""
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 4]} ..."


def _height(box: Box) -> float:
    return len(_texts(box)) * _LINE + (0.12 if box.shape else 0.08)


def _width(diagram: Diagram, place: _Place) -> float:
    if place.box is None:
        return 0.1
    box = diagram.boxes[place.box]
    label = len(_neutral.label(shortened(box.path))) * 0.06 if box.path else 0
    return max(max(len(text) for text in _texts(box)) * _CHARACTER + 0.2, label + 0.2, 0.45)


def _draw_box(axes: Any, box: Box, x: float, y: float) -> None:
    texts, height = _texts(box), _height(box)
    width = max(max(len(text) for text in texts) * _CHARACTER + 0.2, 0.45)
    color = "#e8f0fe" if box.parameters else "#f3f3f3" if box.shape else "white"
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=color,
            edgecolor=_BLUE,
            linewidth=0.9,
            zorder=3,
        )
    )
    top = y + height / 2
    for i, text in enumerate(texts):
        is_shape = bool(box.shape) and i == len(texts) - 1
        axes.text(
            x,
            top - (0.06 if box.shape else 0.04) - (i + 0.5) * _LINE,
            text,
            ha="center",
            va="center",
            fontsize=7.5 if is_shape else 8.5,
            parse_math=False,
            color="#555555" if is_shape else "black",
            zorder=4,
        )
    if box.path:
        axes.text(
            x - width / 2,
            top + 0.02,
            _neutral.label(shortened(box.path)),
            ha="left",
            va="bottom",
            fontsize=6,
            color="#777777",
            zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )


def _draw_arrow(axes: Any, points: Sequence[tuple[float, float]], heights: Sequence[float]) -> None:
    """Draw an arrow through points, vertical where it passes the boxes of a level."""
    path = [points[0]]
    for (x, y), height in zip(points[1:-1], heights, strict=True):
        path += [(x, y + height / 2), (x, y - height / 2)]
    axes.plot(
        *zip(*path, strict=True), color=_BLUE, linewidth=0.9, zorder=2, solid_joinstyle="round"
    )
    style = {
        "arrowstyle": "-|>",
        "color": _BLUE,
        "linewidth": 0.9,
        "shrinkA": 0,
        "shrinkB": 0,
        "mutation_scale": 8,
    }
    axes.annotate("", xy=points[-1], xytext=path[-1], zorder=2, arrowprops=style)


def _draw_groups(
    axes: Any,
    diagram: Diagram,
    levels: list[list[_Place]],
    x: dict[_Place, float],
    y: dict[_Place, float],
) -> None:
    """Draw a frame around each repeated part; one frame around parts that are the same boxes."""
    places = [p for level in levels for p in level if p.box is not None]
    names = dict.fromkeys(group for p in places for group in diagram.boxes[p.box or 0].groups)
    frames: dict[tuple[_Place, ...], list[str]] = {}
    for name in names:
        members = tuple(p for p in places if name in diagram.boxes[p.box or 0].groups)
        frames.setdefault(members, []).append(name.rpartition(" x ")[2])
    for inside, times in frames.items():
        span = range(min(p.level for p in inside), max(p.level for p in inside) + 1)
        beside = [p for level in span for p in levels[level]]
        left = min(x[p] - _width(diagram, p) / 2 for p in beside) - 0.12
        right = max(x[p] + _width(diagram, p) / 2 for p in beside) + 0.12
        top = max(y[p] + _height(diagram.boxes[p.box or 0]) / 2 for p in inside) + 0.14
        low = min(y[p] - _height(diagram.boxes[p.box or 0]) / 2 for p in inside) - 0.17
        axes.add_patch(
            Rectangle(
                (left, low),
                right - left,
                top - low,
                facecolor="#fff8e6",
                edgecolor="#c9a227",
                linewidth=0.8,
                zorder=1,
            )
        )
        axes.text(
            right - 0.04,
            low + 0.03,
            f"{' x '.join(map(_neutral.label, times))} times",
            ha="right",
            va="bottom",
            fontsize=7.5,
            color="#8a6d00",
            zorder=2,
        )
