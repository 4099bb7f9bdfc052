"""Heat maps of the norms of each layer's delta over the steps."""

import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from fbp import _neutral
from fbp.experiment.rundir.series import Series

_MAX_COLUMNS = 4
_MAX_LABELS = 40  # beyond, rows get lower, and every second, third, ... layer has a label
_MAX_MAPS = 24
_MAX_CHARACTERS = 40  # of a label


class NormMap(NamedTuple):
    """The norms of the deltas of one run.

    Attributes:
        labels: the paths and names of the L layers with parameters.
        steps: `(T,)`, the steps at which the norms were measured.
        norms: `(L, T)`.
    """

    labels: list[str]
    steps: np.ndarray
    norms: np.ndarray


def norm_map(series: Mapping[str, Series], layers: Mapping[str, str]) -> NormMap | None:
    """Collect the norms of delta at the layers with parameters; there, delta is dC/dz.

    Args:
        series: the run's metrics by name.
        layers: names of the model's layers by path.

    Returns:
        The norms; None if none was measured.
    """
    prefix = "gradient_norm/"
    tensors = [key.removeprefix(prefix) for key in series if key.startswith(prefix)]
    paths = [
        path
        for path in layers
        if f"delta_norm/{path}" in series
        and any(tensor.startswith(f"{path}/") for tensor in tensors)
    ]
    if not paths:
        return None
    rows = [series[f"delta_norm/{path}"] for path in paths]
    labels = [f"{path} {layers[path]}" for path in paths]
    return NormMap(labels, rows[0].steps, np.stack([row.values for row in rows]))


def delta_norms(maps: Mapping[str, NormMap | None]) -> Figure | None:
    """Draw a heat map for each run.

    Args:
        maps: the norms of each run by its label; runs without norms are left out.

    Returns:
        The figure, of at most 24 runs; None if there is no norm above 0.
    """
    with_norms = [(label, norms) for label, norms in maps.items() if norms is not None]
    measured = dict(with_norms[:_MAX_MAPS])
    positive = [row.norms[row.norms > 0] for row in measured.values()]
    logs = np.log10(np.concatenate(positive)) if positive else np.zeros(0)
    if not len(logs):
        return None
    rows = max(len(norms.labels) for norms in measured.values())
    columns = min(len(measured), _MAX_COLUMNS)
    lines = -(-len(measured) // columns)
    width = 4.6 if len(measured) > 1 else 6.5
    height = max(2.6, 0.22 * min(rows, _MAX_LABELS) + 1.4)
    figure = Figure(figsize=(width * columns + 1, height * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(measured) :]:
        axes.set_axis_off()
    limits = {"vmin": np.floor(logs.min()), "vmax": np.ceil(logs.max())}
    image: Any = None
    for axes, (label, norms) in zip(panels, measured.items(), strict=False):
        image = _draw_map(axes, label, norms, limits)
    bar = figure.colorbar(image, ax=figure.axes, label="log10 of the norm of delta", extend="min")
    bar.ax.grid(visible=False)
    if len(with_norms) > _MAX_MAPS:
        figure.suptitle(f"the first {_MAX_MAPS} of {len(with_norms)} runs", fontsize=10)
    return figure


def _draw_map(axes: Any, label: str, norms: NormMap, limits: Mapping[str, float]) -> Any:
    steps = norms.steps
    middles = (steps[1:] + steps[:-1]) / 2  # a measurement's cell reaches halfway to the next one
    edges = np.concatenate([steps[:1], middles, steps[-1:] + (len(steps) == 1)])
    with np.errstate(divide="ignore"):
        logs = np.log10(norms.norms)
    count = len(norms.labels)
    image = axes.pcolormesh(edges, np.arange(count + 1), logs, cmap="viridis", **limits)
    axes.invert_yaxis()
    stride = -(-count // _MAX_LABELS)
    names = [
        _neutral.label(textwrap.shorten(text, _MAX_CHARACTERS)) for text in norms.labels[::stride]
    ]
    axes.set_yticks(np.arange(count)[::stride] + 0.5, names, fontsize=8)
    title = "\n".join(textwrap.wrap(_neutral.label(label), 34)) or "norm of delta at each layer"
    axes.set(xlabel="step", title=title)
    axes.grid(visible=False)
    return image
