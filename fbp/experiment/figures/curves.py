"""Metrics over the steps: learning curves, learning rate; the loss over positions."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fbp import _neutral
from fbp.experiment.rundir.metric_table import measured
from fbp.experiment.rundir.series import Series

_WIDE_RANGE = 30  # largest value by smallest value from which the scale is logarithmic
_PANEL_WIDTH = 5.2  # inches
_CHARACTERS_PER_INCH = 11  # of a legend
_DISTINCT_COLORS = 10
_MAX_LABELS = 40  # of a legend


def learning_curves(series: Mapping[str, Series]) -> Figure:
    """Draw loss and accuracy over the steps, on training and validation examples.

    Args:
        series: the run's metrics by name, `train_loss` and `validation_loss` among them.
    """
    metric = _second_metric(series)
    names = ["loss", metric] if metric else ["loss"]
    figure = Figure(figsize=(10 if metric else 5.5, 3.8), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=True):
        for part, color in (("train", "tab:blue"), ("validation", "tab:orange")):
            _plot_series(axes, series[f"{part}_{name}"], label=part, color=color)
        axes.set(xlabel="step", title=_neutral.label(name.replace("_", " ")))
        axes.legend()
    losses = [series["train_loss"].values, series["validation_loss"].values]
    _use_log_scale_if_wide(panels[0], np.concatenate(losses))
    return figure


def compared_curves(runs: Mapping[str, Mapping[str, Series]]) -> Figure | None:
    """Draw the same metrics of several runs in one figure.

    Args:
        runs: the metrics of each run, by the run's label.

    Returns:
        The figure; None if no metric has more than one point.
    """
    keys = _keys_to_compare(runs)
    if not keys:
        return None
    colors = {
        label: f"C{i}"
        if len(runs) <= _DISTINCT_COLORS
        else matplotlib.colormaps["viridis"](i / len(runs))
        for i, label in enumerate(runs)
    }
    figure = Figure(figsize=(_PANEL_WIDTH * len(keys), 4.2), layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False).ravel()
    for axes, key in zip(panels, keys, strict=True):
        curves = {label: series[key] for label, series in runs.items() if key in series}
        for label, points in curves.items():
            _plot_series(axes, points, color=colors[label])
        axes.set(xlabel="step", title=_neutral.label(key.replace("_", " ")))
        values = [points.values for points in curves.values()]
        _use_log_scale_if_wide(axes, np.concatenate(values))
    names = {label: _neutral.label(label) for label in colors}
    handles = [Line2D([], [], color=colors[label], label=name) for label, name in names.items()]
    if len(handles) > _MAX_LABELS:
        stride = -(-len(handles) // _MAX_LABELS)
        rest = len(handles) - len(handles[::stride])
        handles = [*handles[::stride], Line2D([], [], color="none", label=f"and {rest} more")]
    line_length = _PANEL_WIDTH * len(keys) * _CHARACTERS_PER_INCH
    columns = max(1, min(len(handles), int(line_length / (max(map(len, names.values())) + 6))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9)
    return figure


def learning_rate(series: Mapping[str, Series]) -> Figure:
    """Draw the learning rate at every step."""
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axes = figure.subplots()
    points = series["learning_rate"]
    axes.plot(points.steps, points.values)
    axes.set(xlabel="step", title="learning rate", ylim=(0, None))
    return figure


def loss_by_position(losses: np.ndarray) -> Figure:
    """Draw the mean test loss at each position of a sequence.

    Args:
        losses: `(T,)`, NaN at positions without a target.
    """
    positions = np.flatnonzero(np.isfinite(losses))
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axes = figure.subplots()
    marker = "o" if len(positions) < 30 else None
    axes.plot(positions, losses[positions], marker=marker, markersize=3)
    top = 1.08 * float(losses[positions].max(initial=1e-9))
    axes.set(xlabel="position", title="test loss by position", ylim=(0, top))
    return figure


def _keys_to_compare(runs: Mapping[str, Mapping[str, Series]]) -> list[str]:
    """Return losses and second metrics that are curves; the two most common curves if none is."""
    curves = [
        key for series in runs.values() for key, points in series.items() if len(points.steps) > 1
    ]
    metrics = [metric for series in runs.values() if (metric := _second_metric(series))]
    validation = [f"validation_{metric}" for metric in dict.fromkeys(metrics)]
    keys = [key for key in ("train_loss", "validation_loss", *validation) if key in curves]
    return keys or sorted(set(curves), key=lambda key: (-curves.count(key), key))[:2]


def _plot_series(axes: Any, series: Series, **style: Any) -> None:
    marker = "o" if len(series.steps) < 4 else None
    axes.plot(series.steps, series.values, marker=marker, **style)


def _second_metric(series: Mapping[str, Series]) -> str | None:
    names = ("accuracy", "absolute_error", *measured(series))
    others = (name for name in names if name != "loss")
    return next((name for name in others if f"validation_{name}" in series), None)


def _use_log_scale_if_wide(axes: Any, values: np.ndarray) -> None:
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() / values.min() > _WIDE_RANGE:
        axes.set_yscale("log")
