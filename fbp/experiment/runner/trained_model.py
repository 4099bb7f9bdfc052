"""A trained model on disk: its arrays by path, and the configuration that gives them their structure."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, Field, ValidationError

from fbp import training
from fbp._backprop import count_parameters
from fbp.datasets import Dataset, Standardization
from fbp.errors import InputError
from fbp.experiment.config import reading, writing
from fbp.experiment.config.schema import Config
from fbp.experiment.rundir import layout
from fbp.experiment.rundir.npz import (
    READ_ERRORS,
    flatten_by_path,
    read_arrays,
    unflatten_like,
    write_arrays,
    write_text,
)
from fbp.experiment.runner.build import build_model, output_transform
from fbp.layer import Array, Layer, Params, Shape


class Trained(NamedTuple):
    """A trained model, ready to use.

    Attributes:
        model: the layer; ``model.forward(params, x)`` works on scaled inputs and gives the raw output.
        params: its parameters.
        config: the experiment that made it.
        shape: one example's.
        classes: the names of the classes; empty for regression.
        tokens: what the whole numbers of an input stand for; empty where the input is numbers.
        sequence: whether the model answers at each position.
        inputs, targets: the scalings of the training data, None where it was not scaled.
        forward: the jitted forward pass over scaled inputs.
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
        return f"Trained({self.config.name}: {self.config.model.name}, {size:,} parameters, inputs (N, {shape}))"

    def predict(self, x: Any) -> np.ndarray:
        """Predictions ``(N, K)``, or ``(N, T, K)``, for inputs in the data set's own units, ``(N, *shape)`` or flat ``(N, F)``.

        Probabilities of the classes where the loss worked on logits; for a regression, numbers in the target's own units.
        """
        x = np.asarray(x) if self.tokens else np.asarray(x, np.float32)
        if self.tokens and not (
            x.dtype.kind in "iu" and x.size and x.min() >= 0 and x.max() < len(self.tokens)
        ):
            raise InputError(
                f"predict: expected tokens, whole numbers from 0 to {len(self.tokens) - 1}"
            )
        if x.shape[1:] != self.shape:
            if x.ndim < 2 or not len(x) or x[0].size != np.prod(self.shape):
                raise InputError(
                    f"predict: expected inputs of shape (N, {', '.join(map(str, self.shape))}), got {x.shape}"
                )
            x = x.reshape(len(x), *self.shape)
        x = self.inputs.apply(x) if self.inputs else x
        output = np.asarray(
            output_transform(self.config)(self.forward(self.params, jnp.asarray(x)))
        )
        return self.targets.undo(output) if self.targets else output


class _Facts(BaseModel):
    """``model.json``: what the configuration does not say; see :class:`Trained`."""

    format: int = 0
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    outputs: Annotated[int, Field(ge=1)]
    classes: tuple[str, ...]
    tokens: tuple[str, ...]
    sequence: bool


def save(
    folder: Path,
    config: Config,
    params: Params,
    *,
    shape: Shape,
    dataset: Dataset,
    inputs: Standardization | None,
    targets: Standardization | None,
) -> None:
    """Write a trained model into ``folder``: three files that :func:`read` needs, nothing executable among them."""
    folder.mkdir(parents=True, exist_ok=True)
    scalings = {"inputs": inputs, "targets": targets}
    arrays = {f"params/{path}": array for path, array in flatten_by_path(params).items()}
    arrays |= {
        f"{part}/{field}": getattr(s, field)
        for part, s in scalings.items()
        if s
        for field in s._fields
    }
    write_arrays(folder / layout.PARAMS, arrays)
    write_text(folder / layout.CONFIG, writing.to_toml(config))
    facts = _Facts(
        format=layout.MODEL_FORMAT,
        shape=shape,
        outputs=dataset.outputs,
        classes=dataset.classes,
        tokens=dataset.tokens,
        sequence=dataset.sequence,
    )
    write_text(folder / layout.MODEL_FACTS, facts.model_dump_json())


def read(folder: Path) -> Trained:
    """The trained model that :func:`save` wrote.

    Raises:
        InputError: where files are missing or do not belong together.
    """
    try:
        facts = _Facts.model_validate_json(
            (folder / layout.MODEL_FACTS).read_text(encoding="utf-8")
        )
        layout.check_format(folder / layout.MODEL_FACTS, facts.format, layout.MODEL_FORMAT)
        arrays = read_arrays(folder / layout.PARAMS)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: expected a trained model, but {Path(error.filename).name} is missing"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or layout.MODEL_FACTS
        raise InputError(
            f"{folder}: the trained model is damaged ({layout.MODEL_FACTS}: {where}: {first['msg']})"
        ) from None
    except (OSError, *READ_ERRORS) as error:
        raise InputError(f"{folder}: the trained model is damaged ({error})") from None
    config = reading.read(folder / layout.CONFIG)
    model = build_model(config, facts.outputs, len(facts.tokens), facts.sequence)
    template = jax.eval_shape(lambda key: model.init(key, facts.shape)[0], jax.random.key(0))
    found = {
        key.removeprefix("params/"): value
        for key, value in arrays.items()
        if key.startswith("params/")
    }
    try:
        params = unflatten_like(found, template)
    except ValueError as error:
        raise InputError(
            f"{folder}: the parameters do not fit the model of config.toml: {error}"
        ) from None
    inputs, targets = (
        Standardization(arrays[f"{part}/mean"], arrays[f"{part}/scale"])
        if f"{part}/mean" in arrays
        else None
        for part in ("inputs", "targets")
    )
    forward = jax.jit(training.make_predict(model, batch_size=1000))
    return Trained(
        model,
        params,
        config,
        facts.shape,
        facts.classes,
        facts.tokens,
        facts.sequence,
        inputs,
        targets,
        forward,
    )
