"""A trained model in a folder of files: parameters by path, configuration, and facts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fbp import training
from fbp._backprop import count_parameters
from fbp.datasets import Dataset, Standardization
from fbp.errors import InputError, first_line
from fbp.experiment.config import reading, writing
from fbp.experiment.config.schema import Config
from fbp.experiment.rundir import layout, model_facts
from fbp.experiment.rundir.model_facts import ModelFacts
from fbp.experiment.rundir.npz import (
    READ_ERRORS,
    Header,
    flatten_by_path,
    read_arrays,
    shapes_by_path,
    unflatten_like,
    write_arrays,
    write_text,
)
from fbp.experiment.runner.build import build_loss, build_model
from fbp.layer import Array, Layer, Params, Shape

_PARAMS = "params/"  # the beginning of the names of parameters in their file
PREDICTION_BATCH = 1000
"""Batch size of predictions."""

PYFUNC_CODE = Path(__file__).with_name("pyfunc_model.py")
"""The file that MLflow runs to load a model."""


class Trained(NamedTuple):
    """A trained model, ready to use.

    Safe between threads and between processes: nothing in it changes.

    Attributes:
        model: the layer; `model.forward(params, x)` takes scaled inputs and gives the raw output.
        params: its parameters.
        config: the experiment that it comes from.
        shape: the shape of one example.
        classes: the names of the classes; empty for regression.
        tokens: the meanings of the whole numbers of an input; empty if the inputs are numbers.
        sequence: whether the model has an output at each position.
        inputs: the scaling of the inputs; None if they were not scaled.
        targets: the scaling of the targets; None if they were not scaled.
        forward: the jitted forward pass for scaled inputs.
    """

    model: Layer
    params: Params
    config: Config
    shape: Shape
    classes: tuple[str, ...]
    tokens: tuple[str, ...]
    sequence: bool
    inputs: Standardization | None
    targets: Standardization | None
    forward: Callable[[Params, Array], Array]

    def __repr__(self) -> str:
        size, shape = count_parameters(self.params), ", ".join(map(str, self.shape))
        name = f"{self.config.name}: {self.config.model.name}"
        return f"Trained({name}, {size:,} parameters, inputs (N, {shape}))"

    def predict(self, x: Any) -> np.ndarray:
        """Return predictions in units that a person can read.

        Args:
            x: inputs in the data set's own units, `(N, *shape)` or flat, `(N, F)`.

        Returns:
            `(N, K)`, or `(N, T, K)` for a model with an output at each position. Probabilities of
            the classes if the loss works on logits; for a regression, numbers in the target's own
            units.

        Raises:
            InputError: if `x` has another shape, or is not of the model's tokens.
        """
        x = np.asarray(x)
        x = self._with_shape(x if self.tokens or x.dtype.kind in "biuf" else x.astype(np.float64))
        if not self.tokens:  # narrowed after scaling
            x = self.inputs.apply(x) if self.inputs else x.astype(np.float32)
        raw = self.forward(self.params, jnp.asarray(x))
        output = np.asarray(build_loss(self.config).inverse_link(raw))
        return self.targets.undo(output) if self.targets else output

    def _with_shape(self, x: np.ndarray) -> np.ndarray:
        """Return `x` as `(N, *shape)`; raise InputError if it is not of this model."""
        if self.tokens:
            is_whole = x.dtype.kind in "iu" and x.size
            if not (is_whole and x.min() >= 0 and x.max() < len(self.tokens)):
                raise InputError(
                    f"predict: expected tokens, whole numbers from 0 to {len(self.tokens) - 1}"
                )
        if x.shape[1:] == self.shape:
            return x
        if x.ndim < 2 or not len(x) or x[0].size != np.prod(self.shape):
            sizes = ", ".join(map(str, self.shape))
            raise InputError(f"predict: expected inputs of shape (N, {sizes}), got {x.shape}")
        return x.reshape(len(x), *self.shape)


def write(
    folder: Path,
    config: Config,
    params: Params,
    *,
    shape: Shape,
    dataset: Dataset,
    inputs: Standardization | None,
    targets: Standardization | None,
) -> None:
    """Write a trained model as three files, each atomically; nothing in them is executable.

    Args:
        folder: where to write; made if it does not exist.
        config: the experiment.
        params: the trained parameters.
        shape: the shape of one example.
        dataset: the data, for the names of classes and tokens.
        inputs: the scaling of the inputs; None if they were not scaled.
        targets: the scaling of the targets; None if they were not scaled.

    Raises:
        OSError: if the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"{_PARAMS}{path}": array for path, array in flatten_by_path(params).items()}
    for part, scaling in (("inputs", inputs), ("targets", targets)):
        if scaling:
            arrays |= {f"{part}/{field}": array for field, array in scaling._asdict().items()}
    write_arrays(folder / layout.PARAMS, arrays)
    write_text(folder / layout.CONFIG, writing.to_toml(config))
    facts = ModelFacts(
        format=layout.MODEL_FORMAT,
        shape=shape,
        outputs=dataset.outputs,
        classes=dataset.classes,
        tokens=dataset.tokens,
        sequence=dataset.sequence,
    )
    model_facts.write(folder, facts)


def read(folder: Path) -> Trained:
    """Return the trained model in a folder, as :func:`write` wrote it.

    Raises:
        InputError: if files are missing, damaged, of a newer format, or do not fit together.
    """
    facts = model_facts.read(folder)
    if not (folder / layout.PARAMS).exists():
        raise InputError(f"{folder}: expected a trained model, but {layout.PARAMS} is missing")
    config = reading.read(folder / layout.CONFIG)
    model, template = _model_and_shapes(folder, config, facts)
    scalings = {  # an autoencoder's targets are its inputs
        "inputs": ((), facts.shape),
        "targets": ((), (facts.outputs,), facts.shape),
    }
    try:
        arrays = read_arrays(
            folder / layout.PARAMS, lambda headers: _check_headers(headers, template, scalings)
        )
        saved = {
            key.removeprefix(_PARAMS): array
            for key, array in arrays.items()
            if key.startswith(_PARAMS)
        }
        params = unflatten_like(saved, template)
    except InputError as error:
        raise InputError(
            f"{folder}: the parameters do not fit the model of {layout.CONFIG}: {error}"
        ) from None
    except (OSError, *READ_ERRORS) as error:
        raise InputError(f"{folder}: the trained model is damaged ({first_line(error)})") from None
    return Trained(
        model=model,
        params=params,
        config=config,
        shape=facts.shape,
        classes=facts.classes,
        tokens=facts.tokens,
        sequence=facts.sequence,
        inputs=_scaling(arrays, "inputs"),
        targets=_scaling(arrays, "targets"),
        forward=jax.jit(training.make_predict(model, batch_size=PREDICTION_BATCH)),
    )


def _model_and_shapes(folder: Path, config: Config, facts: ModelFacts) -> tuple[Layer, Params]:
    """Return the model of a configuration, and the shapes of its parameters."""
    try:
        model = build_model(config, facts.outputs, len(facts.tokens), sequence=facts.sequence)
        shapes = jax.eval_shape(lambda key: model.init(key, facts.shape)[0], jax.random.key(0))
    except InputError:
        raise
    except (ArithmeticError, TypeError, ValueError, MemoryError, RecursionError) as error:
        raise InputError(
            f"{folder}: no model can have the sizes of {layout.CONFIG} and {layout.MODEL_FACTS} "
            f"({first_line(error)})"
        ) from None
    return model, shapes


def _check_headers(
    headers: Mapping[str, Header], template: Params, scalings: Mapping[str, Sequence[Shape]]
) -> None:
    """Check the names, shapes and dtypes of a trained model's arrays, before any is read.

    Args:
        headers: of the file.
        template: the parameters that the model has, as shapes.
        scalings: the shapes that the scaling of each part of the data can have.

    Raises:
        InputError: if they are others.
    """
    expected = {
        f"{_PARAMS}{path}": (tuple(leaf.shape), leaf.dtype)
        for path, leaf in shapes_by_path(template).items()
    }
    present = {name: (header.shape, header.dtype) for name, header in headers.items()}
    for part, shapes in scalings.items():
        names = [f"{part}/{field}" for field in Standardization._fields]
        scaling = [present.pop(name) for name in names if name in present]
        sizes = {size for size, dtype in scaling if dtype.kind == "f"}
        fits = len(sizes) == 1 and len(scaling) == len(names) and sizes <= set(shapes)
        if scaling and not fits:
            raise InputError(f"the scaling of the {part} has another shape than the {part}")
    for name in sorted({*expected, *present}):
        if expected.get(name) != present.get(name):
            path = name.removeprefix(_PARAMS)
            raise InputError(
                f"{path}: expected {_shown(expected.get(name))}, got {_shown(present.get(name))}"
            )


def _shown(array: tuple[Shape, np.dtype] | None) -> str:
    return "nothing" if array is None else f"{array[1]}{list(array[0])}"


def _scaling(arrays: dict[str, np.ndarray], part: str) -> Standardization | None:
    if f"{part}/mean" not in arrays:
        return None
    return Standardization(arrays[f"{part}/mean"], arrays[f"{part}/scale"])
