"""`model.json` in the folder of a trained model: what its configuration does not say."""

import math
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError, model_validator

from fbp.errors import InputError, first_line
from fbp.experiment.config import bounded
from fbp.experiment.rundir import layout
from fbp.experiment.rundir.npz import write_text

_LARGEST = 2**31 - 1  # numbers of an example, and of an output
_Size = Annotated[int, Field(ge=1, le=_LARGEST)]


class ModelFacts(BaseModel, strict=True):
    """Shape, classes and tokens of a trained model.

    Attributes:
        format: the format of the model's folder.
        shape: the shape of one example.
        outputs: the number of outputs.
        classes: the names of the classes; empty for regression.
        tokens: the meanings of the whole numbers of an input; empty if the inputs are numbers.
        sequence: whether the model has an output at each position.
    """

    format: int = 0
    shape: Annotated[tuple[_Size, ...], Field(max_length=8)]
    outputs: _Size
    classes: tuple[str, ...]
    tokens: tuple[str, ...]
    sequence: bool

    @model_validator(mode="after")
    def _fit_together(self) -> "ModelFacts":
        if math.prod(self.shape) > _LARGEST:
            raise ValueError(f"an example has more than {_LARGEST:,} numbers")
        if self.classes and len(self.classes) != self.outputs:
            raise ValueError(f"it has {self.outputs:,} outputs for {len(self.classes):,} classes")
        return self


def write(folder: Path, facts: ModelFacts) -> None:
    """Write the facts into a model's folder, atomically.

    Raises:
        OSError: if the disk is full.
    """
    write_text(folder / layout.MODEL_FACTS, facts.model_dump_json())


def read(folder: Path) -> ModelFacts:
    """Return the facts in a model's folder.

    Raises:
        NewerFormat: if a newer fbp wrote them.
        InputError: if they are missing or damaged, or do not fit together.
    """
    path, name = folder / layout.MODEL_FACTS, layout.MODEL_FACTS
    try:
        content = bounded.read_bytes(path, bounded.LARGEST_JSON)
        table = bounded.parse_json(content)
        number = table.get("format") if isinstance(table, dict) else None
        if type(number) is int and number > layout.MODEL_FORMAT:  # its fields may be others
            layout.check_format(path, number, layout.MODEL_FORMAT)
        facts = ModelFacts.model_validate_json(content)
        layout.check_format(path, facts.format, layout.MODEL_FORMAT)
        return facts
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{folder}: expected a trained model, but {name} is missing") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or name
        raise InputError(
            f"{folder}: the trained model is damaged ({name}: {where}: {problem['msg']})"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: the trained model is damaged ({first_line(error)})") from None
