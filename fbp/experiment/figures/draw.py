"""Which pictures a run gets. They are drawn from its stored files; training never draws."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.figure import Figure

from fbp import _diagram
from fbp.errors import InputError
from fbp.experiment.config import bounded
from fbp.experiment.figures import (
    classification,
    curves,
    images,
    model_drawing,
    norms,
    regression,
)
from fbp.experiment.rundir import journal, layout, model_facts, results
from fbp.experiment.rundir.results import Results
from fbp.experiment.rundir.series import read_series

_MAX_PIXELS = 6000  # along each side of a picture
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
"""Settings of matplotlib for all pictures."""

_Pictures = dict[str, Callable[[], Figure | None]]


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Draw in fbp's style inside the block; letters that the font lacks are drawn as boxes."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        yield


def draw(folder: Path, children: Sequence[Path] = ()) -> list[str]:
    """Draw the pictures that fit a run into `artifacts/plots`.

    Args:
        folder: the run's folder, or the group's.
        children: the folders of the group's runs; empty for a single run.

    Returns:
        What could not be drawn and why, a line each.
    """
    target = layout.plots(folder)
    target.mkdir(parents=True, exist_ok=True)
    problems = []
    with drawing():
        pictures = _pictures_of_group(children) if children else _pictures_of_run(folder)
        for name, picture in pictures.items():
            try:
                figure = picture()
                if figure is not None:
                    dpi = min(figure.dpi, _MAX_PIXELS / max(figure.get_size_inches()))
                    figure.savefig(target / f"{name}.png", bbox_inches="tight", dpi=dpi)
                    if name == "model":  # a large model needs more than pixels
                        figure.savefig(target / f"{name}.svg")
            except Exception as error:  # a picture that fails must not cost the run its record
                problems.append(f"{name}: {type(error).__name__}: {error}")
    return problems


def _pictures_of_run(folder: Path) -> _Pictures:
    series, start = read_series(folder), journal.read_start(folder)
    layers = start.layers if start else {}
    pictures: _Pictures = {
        "delta_norms": lambda: norms.delta_norms({"": norms.norm_map(series, layers)})
    }
    if "train_loss" in series:
        pictures["learning_curves"] = lambda: curves.learning_curves(series)
    if "learning_rate" in series:
        pictures["learning_rate"] = lambda: curves.learning_rate(series)
    if layout.diagram(folder).exists():
        pictures["model"] = lambda: _model(folder)
    try:
        facts = model_facts.read(layout.model(folder))
        classes, shape = facts.classes, facts.shape
    except InputError:  # the pictures that need it are left out
        classes, shape = (), ()
    return pictures | _pictures_of_results(results.read(folder), classes, shape)


def _pictures_of_group(children: Sequence[Path]) -> _Pictures:
    starts = {child: journal.read_start(child) for child in children}
    runs = {
        start.label: (read_series(child), start.layers) for child, start in starts.items() if start
    }
    maps = {label: norms.norm_map(series, layers) for label, (series, layers) in runs.items()}
    return {
        "delta_norms": lambda: norms.delta_norms(maps),
        "learning_curves": lambda: curves.compared_curves(
            {label: series for label, (series, _) in runs.items()}
        ),
    }


def _pictures_of_results(
    data: Results, classes: tuple[str, ...], shape: tuple[int, ...]
) -> _Pictures:
    """Return the pictures for which a run has arrays."""
    pictures: _Pictures = {}
    confusion, weights = data.confusion, data.first_weights
    if classes and confusion is not None:
        pictures["confusion_matrix"] = lambda: _confusion_matrix(data, classes)
    if classes and data.misclassified_x is not None and data.misclassified_x.ndim == 4:
        pictures["misclassified"] = lambda: _misclassified(data, classes)
    if classes and data.grid is not None:
        pictures["decision_boundary"] = lambda: _decision_boundary(data, classes)
    is_gray_image = len(shape) == 3 and shape[-1] == 1
    if weights is not None and is_gray_image and len(weights) == np.prod(shape):
        pictures["first_layer_weights"] = lambda: images.first_layer_weights(weights, shape)
    true, predicted = data.true, data.predicted
    if true is not None and predicted is not None:
        pictures["predictions"] = lambda: regression.predictions(true, predicted)
    originals, outputs = data.originals, data.reconstructions
    if originals is not None and outputs is not None and originals.ndim == 4:
        pictures["reconstructions"] = lambda: images.reconstructions(originals, outputs)
    losses = data.loss_by_position
    if losses is not None:
        pictures["loss_by_position"] = lambda: curves.loss_by_position(losses)
    return pictures


def _model(folder: Path) -> Figure:
    table = bounded.read_json(layout.diagram(folder))
    return model_drawing.draw(_diagram.from_json(table))


def _confusion_matrix(data: Results, classes: Sequence[str]) -> Figure:
    shown = [classes[label] for label in _required(data.confusion_classes)]
    return classification.confusion_matrix(_required(data.confusion), shown, of=len(classes))


def _misclassified(data: Results, classes: Sequence[str]) -> Figure:
    return images.misclassified(
        _required(data.misclassified_x),
        [classes[i] for i in _required(data.misclassified_true)],
        [classes[i] for i in _required(data.misclassified_predicted)],
        _required(data.misclassified_confidence),
    )


def _decision_boundary(data: Results, classes: Sequence[str]) -> Figure:
    return classification.decision_boundary(
        _required(data.grid),
        _required(data.grid_extent),
        _required(data.points),
        _required(data.point_labels),
        classes,
    )


def _required(array: np.ndarray | None) -> np.ndarray:
    if array is None:
        raise InputError("results.npz: expected an array that is missing; the file is damaged")
    return array
