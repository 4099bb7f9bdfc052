"""The beginning of a run: where it comes from, its first journal lines, or its resumption."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fbp import _summary
from fbp.errors import InputError
from fbp.experiment.config import writing
from fbp.experiment.config.schema import Config
from fbp.experiment.rundir import checkpoints, journal, layout, tags
from fbp.experiment.rundir.checkpoints import Checkpoint
from fbp.experiment.rundir.journal import Journal, read_checkpoints
from fbp.experiment.rundir.npz import leaf_digest
from fbp.experiment.rundir.recorder import Recorder, record_start
from fbp.experiment.runner import backend_check
from fbp.experiment.runner.build import Experiment
from fbp.experiment.runner.changes import check_resumed, current_folder, note_changes
from fbp.experiment.runner.loop import (
    LoopState,
    Reporter,
    initial_loop_state,
    restore_loop_state,
)


class RunIdentity(NamedTuple):
    """Where a run comes from.

    Attributes:
        source: the experiment's file. It is shown and no more, because a record may have named it.
        label: the run's name in lists.
        parent: the folder name of the run under which it is shown; None for a run of its own.
        tags: additional tags.
        fingerprint: the fingerprint that the data must have; any if empty.
        code_folder: the folder of which the git commit is recorded, where the user's own experiment
            lies; by default the current one.
        accepts_changes: whether a run is resumed although the user's own code is another.
    """

    source: Path
    label: str
    parent: str | None = None
    tags: dict[str, str] = {}  # noqa: RUF012
    fingerprint: str = ""
    code_folder: Path | None = None
    accepts_changes: bool = False


class Start(NamedTuple):
    """A run that can be trained.

    Attributes:
        state: where the loop begins.
        recorder: takes the metrics.
    """

    state: LoopState
    recorder: Recorder


def start_or_resume(
    experiment: Experiment, identity: RunIdentity, folder: Path, reporter: Reporter
) -> Start:
    """Write the first journal line of a run, or the line that resumes the run of the folder.

    Args:
        experiment: what is trained.
        identity: where it comes from; a resumed run keeps what it has.
        folder: the run's folder.
        reporter: takes the notes about the data, the step of a resumption and warnings about
            damaged checkpoints.

    Raises:
        InputError: if the data, the configuration, the user's own code or the checkpoint is not
            what the run was begun with; nothing is written then.
    """
    start = journal.read_start(folder)
    fingerprint = start.tags.get(tags.DATA_FINGERPRINT) if start else identity.fingerprint
    _check_fingerprint(experiment, fingerprint)
    for note in experiment.notes:
        reporter.note(note)
    if start is None:
        state = initial_loop_state(experiment)  # may need more memory than there is: no run then
        recorder = Recorder(Journal(folder))
        problem = _write_start(experiment, identity, recorder.journal)
        if problem:
            reporter.note(
                f"to resume this run will need --trust, because nothing is kept: {problem}"
            )
        return Start(state, recorder)
    changes = check_resumed(experiment.config, identity, folder)
    checkpoint = _newest_checkpoint(folder, reporter)
    state = _restored_or_initial(experiment, folder, checkpoint)
    recorder = Recorder(Journal(folder), state.step)
    _write_resume(recorder, checkpoint)
    note_changes(recorder.journal, changes, reporter)
    reporter.note(f"going on from step {state.step} of {experiment.steps}")
    return Start(state, recorder)


def _check_fingerprint(experiment: Experiment, expected: str | None) -> None:
    dataset = experiment.dataset
    if expected and expected != experiment.fingerprint:
        raise InputError(
            f"data {dataset.name}: not what the run was begun with (fingerprint "
            f"{experiment.fingerprint[:12]}, expected {expected[:12]}); give it the same data, or "
            "start a new run"
        )


def _newest_checkpoint(folder: Path, reporter: Reporter) -> Checkpoint | None:
    """Quarantine checkpoints that cannot be used; return the newest one that can."""
    checkpoint = checkpoints.latest(folder, reporter.note)
    checkpoints.quarantine_after(folder, checkpoint.step if checkpoint else -1)
    return checkpoint


def _restored_or_initial(
    experiment: Experiment, folder: Path, checkpoint: Checkpoint | None
) -> LoopState:
    if checkpoint is None:
        return initial_loop_state(experiment)
    try:
        return restore_loop_state(experiment, checkpoint)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder.name}: its checkpoint does not fit the model: {error}") from None


def _write_resume(recorder: Recorder, checkpoint: Checkpoint | None) -> None:
    step, journal = checkpoint.step if checkpoint else 0, recorder.journal
    journal.resume(step)
    decision = backend_check.decision()
    if decision:  # it may differ from that at the run's start
        journal.tags({tags.BACKEND_CHECK: decision.verdict})
    if checkpoint is None:
        return
    recorder.latest |= checkpoint.metadata["latest"]
    if step not in read_checkpoints(journal.folder):  # the process died before it could write it
        prefix = "state/params"
        params = {
            path.removeprefix(prefix).lstrip("/"): array
            for path, array in checkpoint.arrays.items()
            if path.startswith(prefix)
        }
        state = {path: leaf_digest(array) for path, array in checkpoint.arrays.items()}
        journal.checkpoint(*checkpoints.digests_of(step, params, state))


def _write_start(experiment: Experiment, identity: RunIdentity, writer: Journal) -> str:
    dataset = experiment.dataset
    parts = (
        ("train", "training", experiment.data.train),
        ("validation", "validation", experiment.data.validation),
        ("test", "testing", experiment.data.test),
    )
    inputs = [
        {
            "name": f"{dataset.name}/{part}",
            "digest": dataset._replace(train=examples, test=None).fingerprint[:36],
            "context": context,
            "x": [list(examples.x.shape), str(examples.x.dtype)],
            "y": [list(examples.y.shape), str(examples.y.dtype)],
        }
        for part, context, examples in parts
    ]
    return begin_journal(
        writer,
        experiment.config,
        identity,
        {tags.DATA_FINGERPRINT: experiment.fingerprint},
        inputs=inputs,
        parent=identity.parent,
        steps=experiment.steps,
        layers=_summary.layer_names(experiment.model),
    )


def begin_journal(
    writer: Journal,
    config: Config,
    identity: RunIdentity,
    run_tags: dict[str, str],
    *,
    variants: Iterable[Config] = (),
    **more: Any,
) -> str:
    """Write configuration and environment among the artifacts, and the first line of the journal.

    Args:
        writer: the journal of the run, or of the group of runs.
        config: the experiment.
        identity: where it comes from.
        run_tags: tags beside those that every run has.
        variants: the configurations of its variants, if it is a group.
        more: for :meth:`Journal.start`.

    Returns:
        Why the user's own code cannot be remembered, see :func:`.recorder.record_start`.
    """
    record = writing.written(config, variants)
    layout.config(writer.folder).write_text(record.text, encoding="utf-8")
    decision = backend_check.decision()
    return record_start(
        writer,
        code_folder=identity.code_folder or current_folder(),
        names=record.names,
        backend_check=decision.facts() if decision else None,
        run_tags={
            tags.SOURCE_NAME: identity.source.as_posix(),
            tags.SEED: str(config.seed),
            tags.DESCRIPTION: config.description,
            tags.BACKEND_CHECK: decision.verdict if decision else "",
            **run_tags,
            **identity.tags,
        },
        label=identity.label,
        experiment=config.tracking.experiment or config.name,
        sink=config.tracking.sink,
        with_diff=config.tracking.diff,
        params=record.params,
        **more,
    )
