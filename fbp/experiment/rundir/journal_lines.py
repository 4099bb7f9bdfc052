"""The kinds of lines of a journal, and what each may hold: see journal.py for the file itself.

Per-step numbers are stored as the bytes of a float32 array: exact, and faster to write than digits.
"""

import base64
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, get_type_hints

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the journal.

    Attributes:
        time: when it was written, in milliseconds since 1970.
    """

    kind: ClassVar[str]
    time: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON's types."""
        return {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> "Line | None":
        """Return the line; None if a field is missing or of another type, or absurd.

        Unknown entries are ignored.
        """
        validator = _validator(cls.kind)
        known = {key: entries[key] for key in validator.model_fields if key in entries}
        try:
            validator.model_validate(known)
            return cls(**known)
        except (TypeError, ValueError):
            return None


@dataclass(frozen=True, kw_only=True)
class StartLine(Line):
    """The line that makes a folder a run: what a tracker needs to create it.

    Attributes:
        format: the journal's format number.
        label: the run's name without the four characters that tell equals apart.
        name: the run's name.
        experiment: the experiment that the run belongs to.
        params, tags: texts by name.
        inputs: descriptions of data sets: name, digest, context, shape and dtype of x and y.
        parent: the name of the folder of the run under which this one is shown, if any.
        steps: the number of steps that were planned; 0 if unknown.
        layers: names of the model's layers by path.
        sink: the tracker that the run is sent to, see :mod:`fbp.experiment.tracking.sink`.
        config: SHA-256 of the configuration's file; empty if there is none.
    """

    kind = "start"
    format: int
    label: str
    name: str
    experiment: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    inputs: Sequence[Mapping[str, Any]] = ()
    parent: str | None = None
    steps: int = 0
    layers: Mapping[str, str] = field(default_factory=dict)
    sink: str = "mlflow"
    config: str = ""


@dataclass(frozen=True, kw_only=True)
class StepsLine(Line):
    """A chunk of per-step metrics, without gaps.

    Attributes:
        first_step: the step of the first row.
        began: when the chunk began (the time of the line before), in milliseconds since 1970.
        columns: float32 numbers, one for each step, by the metric's name.
    """

    kind = "steps"
    first_step: int
    began: int
    columns: Mapping[str, np.ndarray]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON's types; columns as base64 of little-endian float32."""
        columns = {
            key: base64.b64encode(np.ascontiguousarray(column, "<f4").data).decode()
            for key, column in self.columns.items()
        }
        return {**super().to_json(), "columns": columns}

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> "Line | None":
        """Return the line, its columns decoded; None as :meth:`Line.from_json`."""
        line = super().from_json(entries)
        if line is None:
            return None
        try:
            columns = {
                key: np.frombuffer(base64.b64decode(column), "<f4")
                for key, column in entries["columns"].items()
            }
        except (TypeError, ValueError):
            return None
        return dataclasses.replace(line, columns=columns)  # type: ignore[call-arg]

    def __len__(self) -> int:
        return max((len(column) for column in self.columns.values()), default=0)

    @property
    def times(self) -> np.ndarray:
        """The times of the steps, in milliseconds: evenly spaced over the chunk."""
        return np.linspace(self.began, self.time, len(self) + 1)[1:].astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class MetricsLine(Line):
    """Metrics of one step that are not measured at every step.

    Attributes:
        step: the step.
        values: numbers by name.
    """

    kind = "metrics"
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TagsLine(Line):
    """Tags that are known only after the start.

    Attributes:
        values: texts by name.
    """

    kind = "tags"
    values: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class CheckpointLine(Line):
    """A checkpoint that is on the disk.

    Attributes:
        step: the step.
        params_digest: SHA-256 of all parameters.
        tensors: the beginning of the SHA-256 of each parameter, by path.
        state_digest: SHA-256 of the whole state: optimizer state and random key, too.
    """

    kind = "checkpoint"
    step: int
    params_digest: str
    tensors: Mapping[str, str]
    state_digest: str


@dataclass(frozen=True, kw_only=True)
class ChildLine(Line):
    """A run that is shown under this one.

    Attributes:
        folder: the name of its folder.
        variant: the variant's name.
    """

    kind = "child"
    folder: str
    variant: str


@dataclass(frozen=True, kw_only=True)
class EndLine(Line):
    """The run's end.

    Attributes:
        status: FINISHED, FAILED or KILLED.
        message: why it did not finish; empty if it did.
    """

    kind = "end"
    status: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ResumeLine(Line):
    """The run goes on, after an end or after its process died.

    Attributes:
        step: the step of the checkpoint from which it goes on.
    """

    kind = "resume"
    step: int


@dataclass(frozen=True, kw_only=True)
class SealLine(Line):
    """The run's record is complete, and its manifest covers it; see manifest.py.

    Attributes:
        root: SHA-256 of the manifest, which has the digest of the journal up to this line.
    """

    kind = "seal"
    root: str


KINDS: dict[str, type[Line]] = {
    line.kind: line
    for line in (
        StartLine,
        StepsLine,
        MetricsLine,
        TagsLine,
        CheckpointLine,
        ChildLine,
        EndLine,
        ResumeLine,
        SealLine,
    )
}
_Count = Annotated[int, Field(ge=0, le=2**62)]
_Time = Annotated[int, Field(ge=0, lt=253_402_300_800_000)]  # before the year 10000


def _is_array(entry: list[Any]) -> list[Any]:
    """Check that an entry is the shape and the dtype of an array."""
    match entry:
        case [list() as shape, str()] if shape and all(type(size) is int for size in shape):
            return entry
    raise ValueError("expected a shape and a dtype")


_Array = Annotated[list[Any], AfterValidator(_is_array)]


class _Input(BaseModel):
    """The description of a data set."""

    model_config = ConfigDict(strict=True)

    name: str
    digest: str
    context: str = ""
    x: _Array | None = None
    y: _Array | None = None


_ENCODED = {
    "columns": Mapping[str, str],
    "inputs": Sequence[_Input],
    "time": _Time,
    "began": _Time,
}


@functools.cache
def _validator(name: str) -> type[BaseModel]:
    """Return a model that takes those entries of a line that are there, if they fit."""
    hints = get_type_hints(KINDS[name])
    types = {part.name: hints[part.name] for part in dataclasses.fields(KINDS[name])}
    types |= {entry: encoded for entry, encoded in _ENCODED.items() if entry in types}
    fields: dict[str, Any] = {
        entry: (_Count if each is int else each, None) for entry, each in types.items()
    }
    return create_model(name, __config__=ConfigDict(strict=True), **fields)
