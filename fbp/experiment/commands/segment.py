"""Verify a part of a training by training it again: ``fbp verify RUN --from STEP --to STEP``.

The run is put back, in a temporary folder, as it was at a checkpoint, and resumed from there. What
it then records must be, to the bit, what it recorded the first time. So a reader can spot-check a
long training. The digest of a checkpoint covers the optimizer state and the random key, too.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fbp.errors import InputError, prefixed_by
from fbp.experiment.commands.training_process import serve, train_in_subprocess
from fbp.experiment.commands.verdict import compare_runs
from fbp.experiment.config import reading, references
from fbp.experiment.config.trust import Trust
from fbp.experiment.rundir import checkpoints, environment, journal, layout
from fbp.experiment.rundir.checkpoints import Checkpoint
from fbp.experiment.rundir.journal_lines import CheckpointLine
from fbp.experiment.rundir.npz import digest_of
from fbp.experiment.rundir.series import Series, read_series

_CHILD = "import sys; from fbp.experiment.commands.segment import child; sys.exit(child())"
_MAX_STEPS = 10  # that a message names


def verify_segment(
    folder: Path,
    start: int,
    stop: int,
    say: Callable[[str], None],
    task: Mapping[str, Any],
) -> bool:
    """Train a run again from one checkpoint to another; report how it compares.

    Args:
        folder: the run's folder, whose record holds.
        start: the step of a checkpoint that the folder has.
        stop: the step of a later checkpoint, of which the digests are enough.
        say: called with each line of the report.
        task: what the training process needs beside the folder, see :func:`child`.

    Returns:
        Whether the parameters, the state and all metrics in between are the same to the bit.

    Raises:
        InputError: if there are no such checkpoints, or if training cannot start.
    """
    digests = journal.read_checkpoints(folder)
    path = _file_of_checkpoint(folder, start, stop, digests)
    checkpoint = checkpoints.read(path)
    if digest_of(checkpoint.arrays) != digests[start].state_digest:
        say(f"DIFFERENT: the checkpoint of step {start} is not the one in the journal")
        return False
    with tempfile.TemporaryDirectory() as scratch:
        copy = layout.runs(Path(scratch) / "mlruns") / folder.name
        _put_back(folder, copy, path, checkpoint)
        facts = environment.read(layout.artifacts(folder))
        variables, _ = environment.restorable_variables(facts)
        with prefixed_by(f"run {folder.name}"):
            train_in_subprocess(
                {**task, "folder": str(copy), "stop_at": stop}, facts, variables, _CHILD
            )
        again = _part(copy, start, stop)
        recorded = {
            name: points for name, points in _part(folder, start, stop).items() if name in again
        }
        verdict = compare_runs(
            recorded, again, {stop: digests[stop]}, journal.read_checkpoints(copy)
        )
    for line in verdict.differences:
        say(f"DIFFERENT: {line}")
    if verdict.identical:
        say(
            f"steps {start} to {stop} are identical to the bit: {verdict.values:,} metric values, "
            "the parameters, the optimizer state and the random key"
        )
    return verdict.identical


def _file_of_checkpoint(
    folder: Path, start: int, stop: int, digests: Mapping[int, CheckpointLine]
) -> Path:
    """Return the file of the checkpoint at `start`; raise InputError if there is none."""
    for option, step in (("--from", start), ("--to", stop)):
        if step not in digests:
            raise InputError(f"{option} {step}: expected a checkpoint's step: {_steps(digests)}")
    if not start < stop:
        raise InputError(f"--to {stop}: expected a step after {start}")
    files = {checkpoints.step_of(path): path for path in checkpoints.files(folder)}
    if start not in files:
        raise InputError(
            f"--from {start}: the checkpoint of this step was not kept; kept are {_steps(files)}"
        )
    return files[start]


def _part(folder: Path, start: int, stop: int) -> dict[str, Series]:
    """Return the metrics of a run after one step, up to another."""
    return {
        name: points.where((points.steps > start) & (points.steps <= stop))
        for name, points in read_series(folder).items()
    }


def _steps(known: Mapping[int, Any]) -> str:
    steps = sorted(known)
    rest = f" and {len(steps) - _MAX_STEPS} more" if len(steps) > _MAX_STEPS else ""
    return f"{', '.join(map(str, steps[:_MAX_STEPS]))}{rest}" if steps else "there are none"


def _put_back(folder: Path, copy: Path, path: Path, checkpoint: Checkpoint) -> None:
    """Make a copy of a run's folder as it was when a checkpoint was written."""
    layout.artifacts(copy).mkdir(parents=True)
    layout.checkpoints(copy).mkdir()
    for name in (layout.CONFIG, layout.ENVIRONMENT):
        source = layout.artifacts(folder) / name
        if source.exists():
            shutil.copyfile(source, layout.artifacts(copy) / name)
    shutil.copyfile(path, layout.checkpoints(copy) / path.name)
    length = checkpoint.metadata["journal"][0]
    with open(layout.journal(folder), "rb") as file:
        layout.journal(copy).write_bytes(file.read(length))


def child() -> int:
    """Train a task of :func:`verify_segment` in this process."""
    return serve(_train_task)


def _train_task(task: dict[str, Any]) -> str:
    from fbp.experiment.commands.archive_needs import read_dataset
    from fbp.experiment.commands.progress import Bar
    from fbp.experiment.runner.jax_setup import configure_jax
    from fbp.experiment.runner.run import run
    from fbp.experiment.runner.run_start import RunIdentity

    folder = Path(task["folder"])
    with references.reading_record(Trust.from_json(task["trust"])):
        config = reading.read(layout.config(folder))
        configure_jax(config.training, environment.read(layout.artifacts(folder)))
        run(
            config,
            RunIdentity(Path(layout.CONFIG), folder.name, accepts_changes=True),
            folder,
            Bar(folder.name),
            checkpoint_steps=[task["stop_at"]],
            stop_at=task["stop_at"],
            dataset=read_dataset(Path(task["data"]), folder.name) if task["data"] else None,
        )
    return str(folder)
