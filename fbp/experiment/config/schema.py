"""The sections of a configuration, as typed models; those that name something take its arguments besides, see signatures.py."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

_Share = Annotated[float, Field(ge=0, lt=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]
_Name = Annotated[str, Field(pattern=r"^\w[\w.\- ]*$", max_length=100)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class DataSection(_Section):
    """``[data]``: what to learn from, and how it is split."""

    name: str
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: _Share = 0.1
    limit: _Count | None = None
    standardize: bool = False
    standardize_targets: bool = False
    reconstruct: bool = False


class AugmentationSection(_Section):
    """``[augmentation]``: how training pictures are changed at random, in this order; all in pixels."""

    crop: Annotated[int, Field(ge=0)] = 0
    shift: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    cutout: Annotated[int, Field(ge=0)] = 0


class ModelSection(_Section):
    """``[model]``: what learns."""

    name: str


class LossSection(_Section):
    """``[loss]``: what is made small."""

    name: str
    label_smoothing: _Share = 0.0


class OptimizerSection(_Section):
    """``[optimizer]``: the rule, and the transforms around it."""

    name: str
    clip_value: _Positive | None = None
    clip_norm: _Positive | None = None
    clip_global_norm: _Positive | None = None
    clip_adaptive: _Positive | None = None
    l1: _NotNegative = 0.0
    l2: _NotNegative = 0.0
    accumulate: _Count = 1
    average: _Share | None = None


class ScheduleSection(_Section):
    """``[schedule]``: how the learning rate moves from ``optimizer.learning_rate``."""

    name: str = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0


class TrainingSection(_Section):
    """``[training]``: how long, and in what portions; ``steps``, where it is given, in place of ``epochs``.

    ``strict`` trains with one thread, so that no number of cores can change a bit; ``deterministic`` sets what a GPU needs
    to give the same bits again.
    """

    epochs: _Count = 10
    steps: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    evaluate_every: _Count | None = None
    batch_size: _Count | Literal["full"] = 32
    shuffle: bool = True
    strict: bool = False
    deterministic: bool = True


class SelectionSection(_Section):
    """``[selection]``: by which logged metric an evaluation is the best, and what follows from it.

    Training stops after ``patience`` evaluations that were not better by more than ``min_delta``; ``restore_best`` makes the
    best parameters the run's model, not the last ones. ``goal`` is "min" or "max"; by default what the metric's name tells.
    """

    metric: str = "validation_loss"
    goal: Literal["min", "max"] | None = None
    patience: _Count | None = None
    min_delta: _NotNegative = 0.0
    restore_best: bool = False


class CheckpointSection(_Section):
    """``[checkpoint]``: when the run is saved so that it can be resumed, and how many such states are kept.

    By time, at most every so many seconds (more often at first); or, where ``every_steps`` is given, by steps.
    """

    every_seconds: _Positive = 30.0
    every_steps: _Count | None = None
    keep: _Count = 2


class TrackingSection(_Section):
    """``[tracking]``: where the run appears in MLflow."""

    experiment: Annotated[str, Field(min_length=1)] | None = None


class VariantSection(_Section):
    """``[[variant]]``: one of several runs of an experiment; ``set`` overrides keys of the other sections."""

    name: _Name
    set: dict[str, Any]


class Config(_Section):
    """A whole experiment, every default filled in."""

    name: _Name
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataSection
    model: ModelSection
    loss: LossSection
    optimizer: OptimizerSection
    schedule: ScheduleSection = ScheduleSection()
    augmentation: AugmentationSection = AugmentationSection()
    training: TrainingSection = TrainingSection()
    selection: SelectionSection = SelectionSection()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()
    variant: list[VariantSection] = []

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)  # as it came, without defaults


NAMED: Mapping[str, type[_Section]] = {
    "data": DataSection,
    "model": ModelSection,
    "loss": LossSection,
    "optimizer": OptimizerSection,
    "schedule": ScheduleSection,
}

PLAIN: Mapping[str, type[_Section]] = {
    "augmentation": AugmentationSection,
    "training": TrainingSection,
    "selection": SelectionSection,
    "checkpoint": CheckpointSection,
    "tracking": TrackingSection,
    "variant": VariantSection,
}


def settings() -> dict[str, dict[str, str]]:
    """The keys of the sections that name nothing, such as ``training``, each with its default."""
    plain = {key: model for key, model in PLAIN.items() if key != "variant"}
    return {
        key: {
            name: "" if field.default is None else f"= {field.default!r}"
            for name, field in model.model_fields.items()
        }
        for key, model in plain.items()
    }


def arguments(section: BaseModel) -> dict[str, Any]:
    """The constructor's arguments that a section holds."""
    own = set(next(base for base in NAMED.values() if isinstance(section, base)).model_fields)
    return {key: getattr(section, key) for key in type(section).model_fields if key not in own}
