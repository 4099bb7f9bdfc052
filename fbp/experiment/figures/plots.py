"""Pictures of a run, drawn from what it stored: its journal and its ``results.npz``. Training never draws."""

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fbp import _diagram
from fbp.experiment.figures import model_drawing
from fbp.experiment.rundir import journal, layout
from fbp.experiment.rundir.npz import read_arrays
from fbp.experiment.rundir.series import Series, read_series

_SIDE_BY_SIDE = 4  # maps in a row
_MOST_CLASSES = 30  # beyond, the cells of a confusion matrix cannot be read
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.dpi": 110,
    "font.size": 10,
    "axes.titlesize": 11,
    "legend.frameon": False,
}


def draw(folder: Path, children: Sequence[Path] = ()) -> list[str]:
    """Draw every picture that fits the run into ``artifacts/plots``; returns what could not be drawn, and why."""
    target = layout.plots(folder)
    target.mkdir(parents=True, exist_ok=True)
    problems = []
    with matplotlib.rc_context(STYLE):
        pictures = _group_pictures(children) if children else _pictures(folder)
        for name, picture in pictures.items():
            try:
                figure = picture()
                if figure is not None:
                    figure.savefig(target / f"{name}.png", bbox_inches="tight")
                    if name == "model":  # large ones are better looked at without pixels
                        figure.savefig(target / f"{name}.svg")
            except Exception as error:  # a picture that fails must not cost the run its record
                problems.append(f"{name}: {type(error).__name__}: {error}")
    return problems


def _pictures(folder: Path) -> dict[str, Callable[[], Figure | None]]:
    series = read_series(folder)
    results = read_arrays(layout.results(folder)) if layout.results(folder).exists() else {}
    start = journal.read_start(folder)
    layers = start.layers if start else {}
    classes, shape = _classes_and_shape(layout.model_facts(folder))
    return {
        "learning_curves": lambda: learning_curves(series),
        "learning_rate": lambda: learning_rate(series),
        "delta_norms": lambda: delta_norms({"": (series, layers)}),
        "confusion_matrix": lambda: confusion_matrix(results, classes),
        "misclassified": lambda: misclassified(results, classes),
        "first_layer_weights": lambda: first_layer_weights(results, shape),
        "decision_boundary": lambda: decision_boundary(results, classes),
        "predictions": lambda: predictions(results),
        "model": lambda: model(folder),
        "reconstructions": lambda: reconstructions(results),
        "loss_by_position": lambda: loss_by_position(results),
    }


def _classes_and_shape(path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return a trained model's classes and the shape of its inputs; empty if there is no model."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return tuple(map(str, facts["classes"])), tuple(map(int, facts["shape"]))
    except (OSError, ValueError, KeyError, TypeError):  # the pictures that need it are left out
        return (), ()


def _group_pictures(children: Sequence[Path]) -> dict[str, Callable[[], Figure | None]]:
    named = {}
    for child in children:
        start = journal.read_start(child)
        if start:
            named[start.label] = (read_series(child), start.layers)
    return {
        "delta_norms": lambda: delta_norms(named),
        "learning_curves": lambda: compared_curves(
            {name: series for name, (series, _) in named.items()}
        ),
    }


def _axes(figure: Figure, rows: int, columns: int) -> list[Any]:
    return list(figure.subplots(rows, columns, squeeze=False).ravel())


def _curve(axes: Any, series: Series, **style: Any) -> None:
    marker = "o" if len(series.steps) < 4 else None
    axes.plot(series.steps, series.values, marker=marker, **style)


def _second_metric(series: dict[str, Series]) -> str | None:
    return next(
        (name for name in ("accuracy", "absolute_error") if f"validation_{name}" in series), None
    )


def learning_curves(series: dict[str, Series]) -> Figure | None:
    """Loss and accuracy over the steps, on training and validation examples."""
    if "train_loss" not in series:
        return None
    metric = _second_metric(series)
    figure = Figure(figsize=(10 if metric else 5.5, 3.8), layout="constrained")
    all_axes = _axes(figure, 1, 2 if metric else 1)
    for axes, name in zip(all_axes, ["loss", metric], strict=False):
        for part, color in (("train", "tab:blue"), ("validation", "tab:orange")):
            _curve(axes, series[f"{part}_{name}"], label=part, color=color)
        axes.set(xlabel="step", title=str(name).replace("_", " "))
        axes.legend()
    losses = np.concatenate([series["train_loss"].values, series["validation_loss"].values])
    _log_scale_if_wide(all_axes[0], losses)
    return figure


def compared_curves(named: dict[str, dict[str, Series]]) -> Figure | None:
    """The same metric of several runs in one picture."""
    several = [
        key for series in named.values() for key, points in series.items() if len(points.steps) > 1
    ]
    metrics = [metric for series in named.values() if (metric := _second_metric(series))]
    keys = [
        "train_loss",
        "validation_loss",
        *(f"validation_{metric}" for metric in dict.fromkeys(metrics)),
    ]
    keys = [key for key in keys if key in several] or sorted(
        set(several), key=lambda key: (-several.count(key), key)
    )[:2]
    if not keys:
        return None
    colors = {
        name: f"C{i}" if len(named) <= 10 else matplotlib.colormaps["viridis"](i / len(named))
        for i, name in enumerate(named)
    }
    figure = Figure(figsize=(5.2 * len(keys), 4.2), layout="constrained")
    for axes, key in zip(_axes(figure, 1, len(keys)), keys, strict=True):
        shown = {name: series[key] for name, series in named.items() if key in series}
        for name, points in shown.items():
            _curve(axes, points, label=name, color=colors[name])
        axes.set(xlabel="step", title=key.replace("_", " "))
        _log_scale_if_wide(axes, np.concatenate([points.values for points in shown.values()]))
    handles = [Line2D([], [], color=color, label=name) for name, color in colors.items()]
    across = max(1, min(len(handles), int(5.2 * len(keys) * 11 / (max(map(len, colors)) + 6))))
    figure.legend(handles=handles, loc="outside lower center", ncols=across, fontsize=9)
    return figure


def _log_scale_if_wide(axes: Any, values: np.ndarray) -> None:
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() / values.min() > 30:
        axes.set_yscale("log")


def model(folder: Path) -> Figure | None:
    """The model's layers and how they are connected."""
    path = layout.diagram(folder)
    if not path.exists():
        return None
    return model_drawing.draw(_diagram.from_json(json.loads(path.read_text(encoding="utf-8"))))


def learning_rate(series: dict[str, Series]) -> Figure | None:
    """The learning rate at every step."""
    if "learning_rate" not in series:
        return None
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(series["learning_rate"].steps, series["learning_rate"].values)
    axes.set(xlabel="step", title="learning rate", ylim=(0, None))
    return figure


def delta_norms(named: Mapping[str, tuple[dict[str, Series], Mapping[str, str]]]) -> Figure | None:
    """A heat map for each run: the norm of delta at each layer with parameters (there, delta is dC/dz), over the steps."""
    drawn = {name: _delta_map(series, layers) for name, (series, layers) in named.items()}
    maps = {name: found for name, found in drawn.items() if found is not None}
    if not maps:
        return None
    logs = np.concatenate([np.log10(values[values > 0]) for _, _, values in maps.values()])
    if not len(logs):
        return None
    low, high = np.floor(logs.min()), np.ceil(logs.max())
    rows = max(len(labels) for labels, _, _ in maps.values())
    width = 4.6 if len(maps) > 1 else 6.5
    columns = min(len(maps), _SIDE_BY_SIDE)
    lines = -(-len(maps) // columns)
    height = max(2.6, 0.22 * rows + 1.4)
    figure = Figure(figsize=(width * columns + 1, height * lines), layout="constrained")
    image: Any = None
    every_axes = _axes(figure, lines, columns)
    for axes in every_axes[len(maps) :]:
        axes.set_axis_off()
    for axes, (name, (labels, steps, values)) in zip(every_axes, maps.items(), strict=False):
        with np.errstate(divide="ignore"):
            shown = np.log10(values)
        middles = (steps[1:] + steps[:-1]) / 2
        edges = np.concatenate(
            [steps[:1], middles, steps[-1:] + (len(steps) == 1)]
        )  # each measure reaches halfway
        image = axes.pcolormesh(
            edges, np.arange(len(labels) + 1), shown, vmin=low, vmax=high, cmap="viridis"
        )
        axes.invert_yaxis()
        every = -(-len(labels) // 40)
        axes.set_yticks(np.arange(len(labels))[::every] + 0.5, labels[::every], fontsize=8)
        axes.set(
            xlabel="step", title="\n".join(textwrap.wrap(name, 34)) or "norm of delta at each layer"
        )
        axes.grid(visible=False)
    bar = figure.colorbar(image, ax=figure.axes, label="log10 of the norm of delta", extend="min")
    bar.ax.grid(visible=False)
    return figure


def _delta_map(
    series: dict[str, Series], layers: Mapping[str, str]
) -> tuple[list[str], np.ndarray, np.ndarray] | None:
    """Labels of layers with parameters, steps, and the norms ``(layers, steps)``."""
    learned = {
        key.removeprefix("gradient_norm/") for key in series if key.startswith("gradient_norm/")
    }
    paths = [
        path
        for path in layers
        if f"delta_norm/{path}" in series and any(name.startswith(f"{path}/") for name in learned)
    ]
    if not paths:
        return None
    values = np.stack([series[f"delta_norm/{path}"].values for path in paths])
    return (
        [f"{path} {layers[path]}" for path in paths],
        series[f"delta_norm/{paths[0]}"].steps,
        values,
    )


def confusion_matrix(results: dict[str, np.ndarray], classes: tuple[str, ...]) -> Figure | None:
    """How often each true class was taken for each class, on the test part."""
    counts = results.get("confusion")
    if counts is None or len(counts) > _MOST_CLASSES:
        return None
    size = max(3.6, 0.5 * len(counts) + 1.6)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(counts)):
        for column in range(len(counts)):
            if counts[row, column]:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(
                    column,
                    row,
                    counts[row, column],
                    ha="center",
                    va="center",
                    color=color,
                    fontsize=9,
                )
    ticks = np.arange(len(counts))
    axes.set_xticks(ticks, classes, rotation=45 if max(map(len, classes)) > 3 else 0)
    axes.set_yticks(ticks, classes)
    right = np.trace(counts) / counts.sum()
    axes.set(
        xlabel="predicted", ylabel="true", title=f"test: {right:.1%} of {counts.sum():,} right"
    )
    axes.grid(visible=False)
    return figure


def misclassified(results: dict[str, np.ndarray], classes: tuple[str, ...]) -> Figure | None:
    """The test pictures that the model got wrong with the most confidence."""
    pictures = results.get("wrong_x")
    if pictures is None or pictures.ndim != 4:
        return None
    columns = min(5, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(1.7 * columns, 2.0 * rows + 0.4), layout="constrained")
    for i, axes in enumerate(_axes(figure, rows, columns)):
        axes.set_axis_off()
        if i < len(pictures):
            _picture(axes, pictures[i])
            true, predicted = (
                classes[results[key][i]] for key in ("wrong_true", "wrong_predicted")
            )
            axes.set_title(
                f"{true} taken for {predicted}\n({results['wrong_confidence'][i]:.0%})", fontsize=8
            )
    figure.suptitle("misclassified test examples, surest first", fontsize=10)
    return figure


def _picture(axes: Any, picture: np.ndarray) -> None:
    if picture.shape[-1] == 3:
        axes.imshow(np.clip(picture, 0, 1))
    else:
        axes.imshow(picture[..., 0], cmap="gray_r")


def first_layer_weights(results: dict[str, np.ndarray], shape: tuple[int, ...]) -> Figure | None:
    """The weights that lead to each neuron of the first hidden layer, laid out as the picture they look at."""
    weights = results.get("first_weights")
    if weights is None or len(shape) != 3 or shape[-1] != 1 or len(weights) != np.prod(shape):
        return None
    shown = min(weights.shape[1], 40)
    columns = min(10, shown)
    rows = -(-shown // columns)
    figure = Figure(figsize=(1.0 * columns, 1.0 * rows + 0.5), layout="constrained")
    for i, axes in enumerate(_axes(figure, rows, columns)):
        axes.set_axis_off()
        if i < shown:
            limit = max(float(np.abs(weights[:, i]).max()), 1e-12)
            axes.imshow(weights[:, i].reshape(shape[:2]), cmap="RdBu_r", vmin=-limit, vmax=limit)
    figure.suptitle(
        f"weights into the first {shown} neurons (red +, blue -, each on its own scale)", fontsize=9
    )
    return figure


def decision_boundary(results: dict[str, np.ndarray], classes: tuple[str, ...]) -> Figure | None:
    """What the model says all over the plane, and the training examples on it."""
    grid = results.get("grid")
    if grid is None:
        return None
    (left, bottom), (right, top) = results["grid_extent"]
    figure = Figure(figsize=(5.4, 5), layout="constrained")
    axes = figure.subplots()
    extent = (left, right, bottom, top)
    if grid.shape[-1] == 2:
        image = axes.imshow(
            grid[..., 1] / np.maximum(grid.sum(axis=-1), 1e-30),
            extent=extent, origin="lower", cmap="RdBu_r", vmin=0, vmax=1, alpha=0.6, aspect="auto",
        )  # fmt: skip
        figure.colorbar(image, ax=axes, label=f"share of {classes[1]!r}").ax.grid(visible=False)
        colors = ["tab:blue", "tab:red"]
    else:
        axes.imshow(
            grid.argmax(axis=-1),
            extent=extent,
            origin="lower",
            cmap="tab10",
            vmin=0,
            vmax=9,
            alpha=0.3,
            aspect="auto",
        )
        colors = [f"C{i}" for i in range(grid.shape[-1])]
    for label, name in enumerate(classes):
        chosen = results["points"][results["point_labels"] == label]
        axes.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=9,
            color=colors[label],
            edgecolors="white",
            linewidths=0.3,
            label=name,
        )
    axes.locator_params(nbins=6)
    axes.set(title="decision boundary and training examples")
    axes.legend(loc="upper right", frameon=True)
    axes.grid(visible=False)
    return figure


def predictions(results: dict[str, np.ndarray]) -> Figure | None:
    """For a regression: predicted against true, on the test part."""
    if "predicted" not in results:
        return None
    true, predicted = results["true"].ravel(), results["predicted"].ravel()
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.scatter(true, predicted, s=12, alpha=0.7)
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(ends, ends, color="gray", linewidth=1, linestyle="--")
    axes.set(xlabel="true", ylabel="predicted", title="test examples")
    return figure


def reconstructions(results: dict[str, np.ndarray]) -> Figure | None:
    """For an autoencoder of pictures: test pictures above what it made of them."""
    originals = results.get("originals")
    if originals is None or originals.ndim != 4:
        return None
    shown = min(len(originals), 12)
    figure = Figure(figsize=(0.9 * shown + 0.4, 2.3), layout="constrained")
    for i, axes in enumerate(_axes(figure, 2, shown)):
        axes.set_axis_off()
        _picture(axes, (originals if i < shown else results["reconstructions"])[i % shown])
    figure.suptitle("test pictures (above) and their reconstructions (below)", fontsize=10)
    return figure


def loss_by_position(results: dict[str, np.ndarray]) -> Figure | None:
    """For sequences: the mean test loss at each position that has a target."""
    if "loss_by_position" not in results:
        return None
    values = results["loss_by_position"]
    places = np.flatnonzero(np.isfinite(values))
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(places, values[places], marker="o" if len(places) < 30 else None, markersize=3)
    axes.set(
        xlabel="position",
        title="test loss by position",
        ylim=(0, 1.08 * float(values[places].max(initial=1e-9))),
    )
    return figure
