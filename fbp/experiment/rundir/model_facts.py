"""`model.json` in the folder of a trained model: what its configuration does not say."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from fbp.errors import InputError
from fbp.experiment.rundir import layout
from fbp.experiment.rundir.npz import write_text


class ModelFacts(BaseModel):
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
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    outputs: Annotated[int, Field(ge=1)]
    classes: tuple[str, ...]
    tokens: tuple[str, ...]
    sequence: bool


def write(folder: Path, facts: ModelFacts) -> None:
    """Write the facts into a model's folder, atomically.

    Raises:
        OSError: if the disk is full.
    """
    write_text(folder / layout.MODEL_FACTS, facts.model_dump_json())


def read(folder: Path) -> ModelFacts:
    """Return the facts in a model's folder.

    Raises:
        InputError: if they are missing, damaged, or of a newer format.
    """
    path, name = folder / layout.MODEL_FACTS, layout.MODEL_FACTS
    try:
        facts = ModelFacts.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: expected a trained model, but {name} is missing") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or name
        raise InputError(
            f"{folder}: the trained model is damaged ({name}: {where}: {problem['msg']})"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: the trained model is damaged ({error})") from None
    layout.check_format(path, facts.format, layout.MODEL_FORMAT)
    return facts
