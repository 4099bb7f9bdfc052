"""The record of a run, read back for a reproduction and checked against its manifest."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fbp.errors import InputError
from fbp.experiment.commands import missing
from fbp.experiment.config import reading as configuration
from fbp.experiment.config.trust import Trust
from fbp.experiment.rundir import environment, layout
from fbp.experiment.rundir.checkpoints import CheckpointDigests
from fbp.experiment.rundir.npz import READ_ERRORS, read_arrays
from fbp.experiment.rundir.series import Series
from fbp.experiment.rundir.verification import NotSealed, Verification
from fbp.experiment.tracking.run_reader import RecordedRun, RunReader

UNSEALED = Verification("", ())
"""Stands for the check of a run that goes on."""


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
        InputError: if the record has no configuration, if artifacts were removed, or if it is
            damaged.
    """
    artifacts = runs.artifacts(run, model=True)
    config = artifacts / layout.CONFIG
    if not config.exists() and not missing.made_by_fbp_run(run):
        raise InputError(
            f"run {run.name}: fbp run did not make it, so it has no {layout.CONFIG} from which it "
            "can be reproduced"
        )
    absent = missing.missing_artifacts(runs, run)
    if absent:
        raise InputError(missing.message(runs, run, absent))
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


def check_record(runs: RunReader, record: Record, trust: Trust) -> Verification:
    """Check that a record can be reproduced, and that it is as it was when the run ended.

    Raises:
        InputError: if it names code that is neither fbp's own nor trusted, or if it has
            nothing to compare.
    """
    configuration.require_trusted_names(record.config, trust)
    if not record.finished and record.last_step is None:
        raise InputError(
            f"run {record.run.name}: its record has neither metrics nor checkpoints; "
            "there is nothing to compare"
        )
    try:
        return runs.verify(record.run)
    except NotSealed:
        return UNSEALED


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
