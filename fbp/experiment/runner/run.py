"""One run from beginning to end: start or resume, train, evaluate, and record everything about it.

The training process appends to a journal and never imports mlflow; the shipper sends the journal.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fbp import _diagram, _summary
from fbp._interruptible import Interrupted, StopRequest
from fbp.datasets import Dataset
from fbp.errors import first_line
from fbp.experiment.config.schema import Config
from fbp.experiment.rundir import layout, tags
from fbp.experiment.rundir.checkpoints import Checkpoints
from fbp.experiment.rundir.npz import params_digest
from fbp.experiment.rundir.recorder import Recorder
from fbp.experiment.runner import test_evaluation, trained_model
from fbp.experiment.runner.build import Experiment, build
from fbp.experiment.runner.divergence import Diverged
from fbp.experiment.runner.loop import Loop, Reporter
from fbp.experiment.runner.run_start import RunIdentity, start_or_resume
from fbp.experiment.runner.selection import Best
from fbp.layer import Layer, Params, Shape


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
        status: FINISHED, FAILED or KILLED.
        message: why it did not finish; empty if it did.
        metrics: the last value of each metric.
        folder: the run's folder.
        signal: the signal that came while it was trained; None if none came.
    """

    status: str
    message: str
    metrics: dict[str, float]
    folder: Path
    signal: int | None = None


def run(
    config: Config,
    identity: RunIdentity,
    folder: Path,
    reporter: Reporter,
    *,
    signals: list[int] | None = None,
    checkpoint_steps: Sequence[int] | None = None,
    stop_at: int | None = None,
    dataset: Dataset | None = None,
) -> Outcome:
    """Train and evaluate; write journal, checkpoints, results and the trained model.

    A run that has begun is resumed from its last checkpoint, and ends as it would have without.

    Args:
        config: what to train.
        identity: where it comes from and its name.
        folder: the run's folder, which exists.
        reporter: shows the progress.
        signals: signals that came already; with one in it the run stops at its first chunk.
        checkpoint_steps: the steps of the checkpoints; None leaves them to the configuration.
        stop_at: the step at which the run is broken off, as by a signal; None for a whole run.
        dataset: the data, see :func:`.build.build`.

    Raises:
        InputError: if configuration and data do not fit; no run exists then, or it stays as it was.
    """
    experiment = build(config, dataset)
    state, recorder = start_or_resume(experiment, identity, folder, reporter)
    journal = recorder.journal
    checkpoints = Checkpoints(folder, config.checkpoint.keep, journal)
    reporter.begin(experiment.steps, -(-experiment.steps // experiment.steps_per_epoch))
    stop = StopRequest(signals)
    try:
        with stop.received():
            loop = Loop(
                experiment,
                state,
                recorder,
                checkpoints,
                reporter,
                stop=stop,
                checkpoint_steps=checkpoint_steps,
                stop_at=stop_at,
            )
            status, message = _train_and_finish(loop, folder)
        _report_selection(loop, status)
        _report_mismatch(recorder, reporter)
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        # a full disk does not take this line either; the shipper then closes the run
        with contextlib.suppress(OSError):
            journal.end(status, f"{type(error).__name__}: {error}")
        raise
    finally:
        reporter.close()
        checkpoints.close()
        journal.close()
    return Outcome(status, message, recorder.latest, folder, stop.first_signal)


def _train_and_finish(loop: Loop, folder: Path) -> tuple[str, str]:
    """Train and write the run's end; return its status and message."""
    status, message = _train(loop, folder)
    try:
        _finish(loop, folder, status, message)
    except Interrupted as interruption:
        if loop.stop.is_obeyed:  # a second signal
            raise
        loop.stop.is_obeyed = True
        status, message = "KILLED", str(interruption)
        _finish(loop, folder, status, message)
    return status, message


def _train(loop: Loop, folder: Path) -> tuple[str, str]:
    """Train, save the last checkpoint, and return the run's status and message."""
    status, message = "FINISHED", ""
    model, x = loop.experiment.model, loop.experiment.data.train.x
    try:
        loop.train(lambda: _write_summary(model, x.shape[1:], x.dtype, folder, loop.reporter))
        loop.save()
    except Interrupted as interruption:
        loop.stop.is_obeyed = True
        status, message = "KILLED", str(interruption)
        loop.save()
    except Diverged as divergence:
        status, message = "FAILED", str(divergence)
    loop.journal_finished_checkpoint()
    return status, message


def _finish(loop: Loop, folder: Path, status: str, message: str) -> None:
    """Write the trained model, the last evaluation, and the journal's end."""
    experiment, recorder, state = loop.experiment, loop.recorder, loop.state
    run_tags = {}
    params = _params_of_model(loop)
    if params is not None:
        _write_model(experiment, params, folder)  # nothing after this may cost the model
        run_tags[tags.PARAMS_DIGEST] = params_digest(params)
    if status == "FINISHED":
        best = _restored(loop)
        if best and best.step != state.step:
            recorder.metrics(state.step + 1, best.metrics)  # of the model that is saved
        tested = test_evaluation.evaluate_and_write(
            experiment, params, folder, loop.compiler, loop.reporter.note
        )
        recorder.metrics(state.step, tested | _best_metrics(loop))
        if state.step < experiment.steps:
            run_tags[tags.STOPPED_EARLY] = f"step {state.step}"
    recorder.end(status, message, run_tags)


def _restored(loop: Loop) -> Best | None:
    """Return the evaluation whose parameters the model has; None if it has the last ones."""
    return loop.state.best if loop.experiment.config.selection.restore_best else None


def _params_of_model(loop: Loop) -> Params | None:
    """Return the parameters to keep; None if a signal came and they cannot be had at once.

    A model with normalization layers needs statistics, by a program that may take long. Without
    them it would give wrong answers. The checkpoint has what a resumed run needs.
    """
    if best := _restored(loop):
        return best.params
    if loop.stop.is_obeyed:
        return loop.evaluation_params.at_once(loop.state.train_state)
    return loop.evaluation_params(loop.state.train_state)


def _report_selection(loop: Loop, status: str) -> None:
    """Tell the user which evaluation was best, if that decides anything."""
    section, state, best = loop.experiment.config.selection, loop.state, loop.state.best
    if best is None or status != "FINISHED":
        return
    stopped_early = state.step < loop.experiment.steps
    if stopped_early or section.restore_best:
        prefix = f"stopped early at step {state.step}: " if stopped_early else ""
        step = best.step if section.restore_best else state.step
        loop.reporter.note(
            f"{prefix}{section.metric} was best ({best.value:.4g}) at step {best.step}; "
            f"the model is that of step {step}"
        )


def _report_mismatch(recorder: Recorder, reporter: Reporter) -> None:
    if recorder.first_mismatch:
        reporter.note(
            f"the resumed run gave another {recorder.first_mismatch} than before: something has "
            "changed"
        )


def _best_metrics(loop: Loop) -> dict[str, float]:
    best, name = loop.state.best, loop.experiment.config.selection.metric
    return {"best_step": best.step, f"best_{name}": best.value} if best else {}


def _write_summary(
    model: Layer, shape: Shape, dtype: np.dtype, folder: Path, reporter: Reporter
) -> None:
    """Write the table of layers, and the boxes and arrows of the model's picture.

    A user's own layer that cannot be summarized costs both files, but not the run.
    """
    try:
        summary = _summary.summarize(model, shape, dtype)
        text = f"{summary}\n"
        diagram = json.dumps(_diagram.to_json(_diagram.make_diagram(model, summary, shape)))
    except Exception as error:
        line = first_line(error)
        reporter.note(f"the model has no summary and no picture: {type(error).__name__}: {line}")
        return
    layout.summary(folder).write_text(text, encoding="utf-8")
    layout.diagram(folder).write_text(diagram, encoding="utf-8")


def _write_model(experiment: Experiment, params: Params, folder: Path) -> None:
    trained_model.write(
        layout.model(folder),
        experiment.config,
        params,
        shape=experiment.shape,
        dataset=experiment.dataset,
        inputs=experiment.data.input_scaling,
        targets=experiment.data.target_scaling,
    )
