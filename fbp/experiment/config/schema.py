"""The sections of a configuration, as typed models.

Those that name something take the arguments of what they name besides, see
:mod:`fbp.experiment.config.arguments`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr

from fbp.errors import InputError
from fbp.experiment.config import references
from fbp.experiment.config.arguments import NamedSection, NestedSection, Section, nested
from fbp.experiment.config.catalogue import TRACKERS, lookup

_Share = Annotated[float, Field(ge=0, lt=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]
_Pixels = Annotated[int, Field(ge=0)]
_Name = Annotated[str, Field(pattern=r"^\w[\w.\- ]*$", max_length=100)]


class DataSection(NamedSection):
    """``[data]``: the data set, and how it is split."""

    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: _Share = 0.1
    limit: _Count | None = None
    standardize: bool = False
    standardize_targets: bool = False
    reconstruct: bool = False


class AugmentationSection(Section):
    """``[augmentation]``: random changes of training examples, in this order; sizes in pixels.

    ``names`` are further ones: names, references, or tables with a name and arguments.
    """

    crop: _Pixels = 0
    shift: _Pixels = 0
    flip: bool = False
    cutout: _Pixels = 0
    names: list[nested("augmentation")] = Field([])  # type: ignore[valid-type]


class ModelSection(NamedSection):
    """``[model]``: the model."""


class LossSection(NamedSection):
    """``[loss]``: the cost that training minimizes."""

    label_smoothing: _Share = 0.0


class OptimizerSection(NamedSection):
    """``[optimizer]``: the rule, and the transforms around it."""

    clip_value: _Positive | None = None
    clip_norm: _Positive | None = None
    clip_global_norm: _Positive | None = None
    clip_adaptive: _Positive | None = None
    l1: _NotNegative = 0.0
    l2: _NotNegative = 0.0
    accumulate: _Count = 1
    average: _Share | None = None


class ScheduleSection(NamedSection):
    """``[schedule]``: the learning rate over the steps, from ``optimizer.learning_rate`` on."""

    name: str = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0


class MetricSection(NestedSection):
    """An entry of ``[metrics] names``; ``label`` is the name under which it is logged."""

    label: Annotated[str, Field(pattern=r"^[A-Za-z]\w*$", max_length=50)] | None = None


class MetricsSection(Section):
    """``[metrics]``: what is observed beside the loss.

    ``names`` lists names, references, or tables with a name and arguments. By default it is
    accuracy for classes and the absolute error for numbers.
    """

    names: list[nested("metric", MetricSection)] | None = None  # type: ignore[valid-type]


class TrainingSection(Section):
    """``[training]``: the length and the batches; ``steps``, if set, replaces ``epochs``.

    ``strict`` trains with one thread, so that the number of cores cannot change a bit.
    ``deterministic`` sets what a GPU needs to give the same bits again.
    """

    epochs: _Count = 10
    steps: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    evaluate_every: _Count | None = None
    batch_size: _Count | Literal["full"] = 32
    shuffle: bool = True
    strict: bool = False
    deterministic: bool = True


class SelectionSection(Section):
    """``[selection]``: the logged metric by which an evaluation is the best, and what follows.

    Training stops after ``patience`` evaluations that were not better by more than ``min_delta``.
    ``restore_best`` makes the best parameters the run's model, not the last ones. ``goal`` is
    "min" or "max"; by default it is the metric's better direction.
    """

    metric: str = "validation_loss"
    goal: Literal["min", "max"] | None = None
    patience: _Count | None = None
    min_delta: _NotNegative = 0.0
    restore_best: bool = False


class CheckpointSection(Section):
    """``[checkpoint]``: when the run is saved so that it can be resumed, and how often it is kept.

    It is saved at most every ``every_seconds`` (more often at first), or, if ``every_steps`` is
    set, by steps. The last ``keep`` checkpoints stay.
    """

    every_seconds: _Positive = 30.0
    every_steps: _Count | None = None
    keep: _Count = 2


def _tracker(name: str) -> str:
    """Return the canonical name of a tracker; of a user's own one, its module is imported."""
    name = references.canonical("tracker", name)
    if name not in TRACKERS:
        try:
            lookup("tracker", name)
        except InputError as error:
            raise ValueError(str(error)) from None
    return name


class TrackingSection(Section):
    """``[tracking]``: the tracker that shows the run, and the experiment under which it does.

    ``sink`` is "mlflow", "jsonl", or a reference to a class of the user's own. Without ``diff``,
    uncommitted changes of the code are not recorded.
    """

    experiment: Annotated[str, Field(min_length=1)] | None = None
    sink: Annotated[str, AfterValidator(_tracker)] = "mlflow"
    diff: bool = True


class VariantSection(Section):
    """``[[variant]]``: one of several runs; ``set`` overrides keys of the other sections."""

    name: _Name
    set: dict[str, Any]


class TopLevel(Section):
    """The keys of a configuration that are not sections, and the variants."""

    name: _Name
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    variant: list[VariantSection] = Field([])


class Config(Section):
    """A whole experiment, every default filled in.

    Safe between threads and between processes: nothing in it changes.
    """

    name: _Name
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataSection
    model: ModelSection
    loss: LossSection
    optimizer: OptimizerSection
    schedule: ScheduleSection
    augmentation: AugmentationSection
    metrics: MetricsSection
    training: TrainingSection
    selection: SelectionSection
    checkpoint: CheckpointSection
    tracking: TrackingSection
    variant: list[VariantSection]

    _table: dict[str, Any] = PrivateAttr(default_factory=dict)  # as it was read, without defaults


NAMED: Mapping[str, type[NamedSection]] = {
    "data": DataSection,
    "model": ModelSection,
    "loss": LossSection,
    "optimizer": OptimizerSection,
    "schedule": ScheduleSection,
}

PLAIN: Mapping[str, type[Section]] = {
    "augmentation": AugmentationSection,
    "metrics": MetricsSection,
    "training": TrainingSection,
    "selection": SelectionSection,
    "checkpoint": CheckpointSection,
    "tracking": TrackingSection,
}


def settings() -> dict[str, dict[str, str]]:
    """Return the keys of the sections that name nothing, such as ``training``, with defaults."""
    return {
        key: {
            name: "" if field.default is None else f"= {field.default!r}"
            for name, field in model.model_fields.items()
        }
        for key, model in PLAIN.items()
    }
