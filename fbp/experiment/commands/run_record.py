"""The record of a run, read back for a reproduction and checked for inconsistencies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fbp.errors import InputError
from fbp.experiment.commands.verdict import same_number
from fbp.experiment.config import reading as configuration
from fbp.experiment.rundir import environment, layout, tags
from fbp.experiment.rundir.checkpoints import CheckpointDigests
from fbp.experiment.rundir.npz import READ_ERRORS, digest_of, read_arrays
from fbp.experiment.rundir.series import Series, metrics_digest
from fbp.experiment.tracking import mlflow_format
from fbp.experiment.tracking.run_reader import RecordedRun, RunReader

_MAX_INCONSISTENCIES = 5


class Record(NamedTuple):
    """All that a run has recorded, as far as a reproduction needs it.

    Attributes:
        run: the run.
        artifacts: the folder of its artifacts.
        config: the file of its resolved configuration.
        environment: what it ran on.
        variables: environment variables that restore that.
        refused_flags: XLA flags of the record that are not passed on.
        series: metrics by name.
        checkpoints: digests of the parameters by step.
    """

    run: RecordedRun
    artifacts: Path
    config: Path
    environment: dict[str, Any]
    variables: dict[str, str]
    refused_flags: list[str]
    series: dict[str, Series]
    checkpoints: dict[int, CheckpointDigests]

    @property
    def finished(self) -> bool:
        """Whether the run ended well; otherwise its history may be incomplete."""
        return self.run.status == "FINISHED"

    @property
    def last_step(self) -> int | None:
        """The last step of the record; None if it has neither metrics nor checkpoints."""
        return max([*self.checkpoints, *map(last_step, self.series.values())], default=None)


def load_record(runs: RunReader, run: RecordedRun) -> Record:
    """Read the record of a run; nothing that it names is imported.

    Raises:
        InputError: if the record has no configuration, or is damaged.
    """
    artifacts = runs.artifacts(run, model=True)
    config = artifacts / layout.CONFIG
    if not config.exists():
        raise InputError(
            f"run {run.name}: its record has no config.toml; only runs made by fbp can be "
            "reproduced"
        )
    facts = environment.read(artifacts)
    variables, refused_flags = environment.restorable_variables(facts)
    return Record(
        run,
        artifacts,
        config,
        facts,
        variables,
        refused_flags,
        runs.series(run),
        runs.checkpoints(run),
    )


def check_record(runs: RunReader, record: Record, code: Path | None) -> list[str]:
    """Check that a record can be reproduced, and that its parts agree with each other.

    Returns:
        A line for each inconsistency, which shows that the record was changed.

    Raises:
        InputError: if it names code that is neither installed nor given by `code`, or if it has
            nothing to compare.
    """
    configuration.require_trusted_names(record.config, code)
    if not record.finished and record.last_step is None:
        raise InputError(
            f"run {record.run.name}: its record has neither metrics nor checkpoints; "
            "there is nothing to compare"
        )
    return _inconsistencies_in_record(runs, record)


def _inconsistencies_in_record(runs: RunReader, record: Record) -> list[str]:
    """Return lines on where a record disagrees with itself; then something has changed it."""
    if record.run.status == "RUNNING":
        return []
    lines = _inconsistent_metrics(runs.indexed_series(record.run), record)
    if not record.finished:
        return lines[:_MAX_INCONSISTENCIES]
    run_tags = record.run.tags
    if metrics_digest(record.series) != run_tags.get(tags.METRICS_DIGEST):
        lines.append("the record is inconsistent: its history does not match fbp.metrics_digest")
    if not record.checkpoints:
        lines.append("the record has no digests of the parameters at checkpoints")
    params = read_params(record.artifacts / layout.MODEL / layout.PARAMS)
    if params is None or digest_of(params) != run_tags.get(tags.PARAMS_DIGEST):
        lines.append(
            "the record is inconsistent: the model's parameters do not match fbp.params_digest"
        )
    return lines[:_MAX_INCONSISTENCIES]


def _inconsistent_metrics(shown: Mapping[str, Series], record: Record) -> list[str]:
    """Return a line for each metric that the store shows with a value that the history lacks."""
    history = {
        mlflow_format.key_of(name): dict(zip(*points[:2], strict=True))
        for name, points in record.series.items()
    }
    lines = []
    for key, points in shown.items():
        for step, value in zip(*points[:2], strict=True):
            recorded = history.get(key, {}).get(step)
            # the history of a run that died may have been written at an earlier end
            agrees = not record.finished if recorded is None else _same_in_store(value, recorded)
            if not agrees:
                lines.append(
                    f"the record is inconsistent: {key} at step {step} is {value!s} in MLflow, "
                    f"and {'missing' if recorded is None else recorded} in the run's history"
                )
                break
    return lines


def _same_in_store(shown: float, recorded: float) -> bool:
    """Return whether a store shows `recorded`; MLflow has no infinity, and some stores no -0."""
    infinite = bool(np.isnan(shown) and np.isinf(recorded))
    return same_number(shown, recorded) or shown == recorded or infinite


def read_params(path: Path) -> dict[str, np.ndarray] | None:
    """Return the parameters in a model's file by path; None if it is missing or damaged."""
    try:
        arrays = read_arrays(path)
    except (OSError, *READ_ERRORS):
        return None
    return {
        key.removeprefix("params/"): array
        for key, array in arrays.items()
        if key.startswith("params/")
    }


def last_step(points: Series) -> int:
    """Return the last step of a metric; 0 if it has no points."""
    return int(points.steps[-1]) if len(points.steps) else 0
