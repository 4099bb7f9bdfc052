"""One run from beginning to end: start or resume, train, evaluate, and write down everything about it.

The training process appends to a journal and never imports mlflow; see shipper.py for the other half.
"""

import contextlib
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fbp import _diagram, _summary
from fbp.errors import InputError
from fbp.experiment.config import writing
from fbp.experiment.config.schema import Config
from fbp.experiment.rundir import checkpoints, journal, layout, tags
from fbp.experiment.rundir.checkpoints import Checkpoint, Checkpoints
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.npz import params_digest
from fbp.experiment.rundir.recorder import Recorder, record_start
from fbp.experiment.runner import backend_check, test_evaluation, trained_model
from fbp.experiment.runner.build import Experiment, build
from fbp.experiment.runner.loop import (
    Diverged,
    Interrupted,
    Loop,
    Position,
    Reporter,
    begin,
    restored,
)
from fbp.layer import Params


class RunIdentity(NamedTuple):
    """Where a run comes from.

    Attributes:
        source: the experiment's file.
        label: what the run is called in lists.
        parent: the name of the folder of the run under which it is shown, if any.
        tags: more of them.
        fingerprint: the data must have this one, where it is given.
    """

    source: Path
    label: str
    parent: str | None = None
    tags: dict[str, str] = {}  # noqa: RUF012
    fingerprint: str = ""


class Outcome(NamedTuple):
    """How a run ended: FINISHED, FAILED or KILLED; why, if not well; its last metrics; its folder."""

    status: str
    message: str
    metrics: dict[str, float]
    folder: Path
    signal: int | None = None


def run(
    config: Config,
    origin: RunIdentity,
    folder: Path,
    reporter: Reporter,
    signals: list[int] | None = None,
    checkpoint_steps: Sequence[int] | None = None,
    stop_at: int | None = None,
) -> Outcome:
    """Train, evaluate, and leave in ``folder`` the journal, checkpoints, the results and the trained model.

    A run that ``folder`` holds already goes on from its last checkpoint, and ends as it would have without a break.

    Args:
        config: what to train.
        origin: where it came from, and what it is called.
        folder: the run's own, already there.
        reporter: who shows progress.
        signals: signals that were signals before, if somebody noted them: one in it stops the run at its first chunk.
        checkpoint_steps: the steps at which there are checkpoints, where that is not left to the configuration.
        stop_at: the step at which the run is broken off, as by a signal; None for a whole run.

    Raises:
        InputError: where configuration and data do not fit; the run then does not exist (or stays as it was).
    """
    experiment = build(config)
    begun = journal.read_start(folder)
    resuming = begun is not None
    _check_data(experiment, begun.tags.get(tags.DATA_FINGERPRINT) if begun else origin.fingerprint)
    position, found = (
        _resumed(experiment, folder, reporter) if resuming else (begin(experiment), None)
    )
    writer = Journal(folder)
    record = Recorder(writer, position.at)
    if resuming:
        _write_resume(folder, writer, record, found)
    else:
        _write_start(experiment, origin, writer)
    states = Checkpoints(folder, config.checkpoint.keep, writer)
    status, message, caught = "FINISHED", "", None
    if resuming:
        reporter.note(f"going on from step {position.at} of {experiment.steps}")
    reporter.begin(experiment)
    try:
        with _signals([] if signals is None else signals) as signals:
            loop = Loop(
                experiment, position, record, states, reporter, signals, checkpoint_steps, stop_at
            )
            try:
                loop.train()
                loop.save()
            except Interrupted as interruption:
                status, message = "KILLED", str(interruption)
                loop.save()
            except Diverged as divergence:
                status, message = "FAILED", str(divergence)
            finally:
                reporter.close()
            loop.note_saved()
            _finish(experiment, loop, record, folder, status, message)
            caught = signals[0] if signals else None
            _say_what_was_chosen(experiment, loop, reporter, status)
        if record.first_mismatch:
            reporter.note(
                f"the resumed run gave another {record.first_mismatch} than before: something has "
                "changed"
            )
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        with contextlib.suppress(
            OSError
        ):  # a full disk does not take this line either; the shipper then says KILLED
            status = "KILLED" if stopped else "FAILED"
            writer.end(status, f"{type(error).__name__}: {error}")
        raise
    finally:
        states.close()
        writer.close()
    return Outcome(status, message, record.latest, folder, caught)


def _check_data(experiment: Experiment, expected: str | None) -> None:
    if expected and expected != experiment.dataset.fingerprint:
        raise InputError(
            f"data {experiment.dataset.name}: not what the run was begun with (fingerprint "
            f"{experiment.dataset.fingerprint[:12]}, expected {expected[:12]}); give it the same data, or start a new run"
        )


def _resumed(
    experiment: Experiment, folder: Path, reporter: Reporter
) -> tuple[Position, Checkpoint | None]:
    """The position of the newest good checkpoint before which the journal is good; the run's beginning where there is none."""
    found = checkpoints.latest(folder, reporter.note)
    checkpoints.quarantine_after(folder, found.step if found else -1)
    if found is None:
        return begin(experiment), None
    try:
        return restored(experiment, found), found
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder.name}: its checkpoint does not fit the model: {error}") from None


def _write_resume(
    folder: Path, writer: Journal, record: Recorder, found: Checkpoint | None
) -> None:
    step = found.step if found else 0
    writer.resume(step)
    decision = backend_check.decision()
    if decision:  # it may differ from that at the run's beginning
        writer.tags({tags.BACKEND_CHECK: decision.verdict})
    if found:
        record.latest |= found.metadata["latest"]
        if step not in journal.read_checkpoints(
            folder
        ):  # written, but the process died before it could say so
            where = "state/params"
            params = {
                p.removeprefix(where).lstrip("/"): a
                for p, a in found.arrays.items()
                if p.startswith(where)
            }
            writer.checkpoint(*checkpoints.digests_of(step, params))


def _write_start(experiment: Experiment, origin: RunIdentity, writer: Journal) -> None:
    dataset = experiment.dataset
    inputs = [
        {
            "name": f"{dataset.name}/{part}",
            "digest": dataset._replace(train=examples, test=None).fingerprint[:36],
            "context": context,
            "x": [list(examples.x.shape), str(examples.x.dtype)],
            "y": [list(examples.y.shape), str(examples.y.dtype)],
        }
        for part, context, examples in (
            ("train", "training", experiment.data.train),
            ("validation", "validation", experiment.data.validation),
            ("test", "testing", experiment.data.test),
        )
    ]
    begin_journal(
        writer,
        experiment.config,
        origin,
        {tags.DATA_FINGERPRINT: dataset.fingerprint},
        inputs=inputs,
        parent=origin.parent,
        steps=experiment.steps,
        layers=_summary.layer_names(experiment.model),
    )


def begin_journal(
    writer: Journal, config: Config, origin: RunIdentity, run_tags: dict[str, str], **more: Any
) -> None:
    """What determines a run, or a group of runs: among its artifacts, and as the first line of its journal.

    Args:
        writer: the journal.
        config, origin: the run's.
        run_tags: beside those that every run has.
        more: for :meth:`Journal.start`.
    """
    layout.config(writer.folder).write_text(writing.to_toml(config), encoding="utf-8")
    decision = backend_check.decision()
    record_start(
        writer,
        backend_check=decision.facts() if decision else None,
        source=origin.source,
        repository=origin.source.resolve().parent,
        label=origin.label,
        experiment=config.tracking.experiment or config.name,
        params=writing.flat_params(config),
        run_tags={
            tags.SEED: str(config.seed),
            tags.DESCRIPTION: config.description,
            tags.BACKEND_CHECK: decision.verdict if decision else "",
            **run_tags,
            **origin.tags,
        },
        **more,
    )


@contextlib.contextmanager
def _signals(signals: list[int]) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are noted, not obeyed at once: training stops at the next chunk's end, a second one at once."""

    def note(number: int, frame: Any) -> None:
        signals.append(number)
        if len(signals) > 1:
            raise Interrupted(f"stopped at once by {signal.Signals(number).name}")

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: somebody else's signals
        yield signals
        return
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(
    experiment: Experiment, loop: Loop, record: Recorder, folder: Path, status: str, message: str
) -> None:
    """The last evaluation, the trained model, the digests, and the journal's end."""
    state, at, _, _, best = loop.position
    restore = experiment.config.selection.restore_best and best is not None
    params = best.params if best and restore else loop.usable(state)
    _save(experiment, params, folder)  # first: nothing after this may cost the model
    if status == "FINISHED":
        if best and restore and best.step != at:
            record.metrics(at + 1, best.shown)  # of the model that is kept
        record.metrics(
            at,
            test_evaluation.evaluate_and_write(experiment, params, folder)
            | _best_metrics(experiment, loop),
        )
    _write_summary(experiment, folder)
    stopped_early = at < experiment.steps and status == "FINISHED"
    record.end(
        status,
        message,
        {
            tags.PARAMS_DIGEST: params_digest(params),
            tags.STOPPED_EARLY: f"step {at}" if stopped_early else "",
        },
    )


def _say_what_was_chosen(
    experiment: Experiment, loop: Loop, reporter: Reporter, status: str
) -> None:
    wanted, (_, at, _, _, best) = experiment.config.selection, loop.position
    if best is None or status != "FINISHED":
        return
    stopped = at < experiment.steps
    chosen = f"{wanted.metric} was best ({best.value:.4g}) at step {best.step}"
    if stopped or wanted.restore_best:
        model = f"; the model is that of step {best.step if wanted.restore_best else at}"
        reporter.note(f"{f'stopped early at step {at}: ' if stopped else ''}{chosen}{model}")


def _best_metrics(experiment: Experiment, loop: Loop) -> dict[str, float]:
    best, name = loop.position.best, experiment.config.selection.metric
    return {"best_step": best.step, f"best_{name}": best.value} if best else {}


def _write_summary(experiment: Experiment, folder: Path) -> None:
    """The table of layers, and the boxes and arrows that its picture is drawn from."""
    shape, dtype = experiment.shape, experiment.data.train.x.dtype
    summary = _summary.summarize(experiment.model, shape, dtype)
    layout.summary(folder).write_text(f"{summary}\n", encoding="utf-8")
    drawn = _diagram.to_json(_diagram.make_diagram(experiment.model, summary, shape))
    layout.diagram(folder).write_text(json.dumps(drawn), encoding="utf-8")


def _save(experiment: Experiment, params: Params, folder: Path) -> None:
    dataset, data = experiment.dataset, experiment.data
    trained_model.save(
        layout.model(folder),
        experiment.config,
        params,
        shape=experiment.shape,
        dataset=dataset,
        inputs=data.input_scaling,
        targets=data.target_scaling,
    )
