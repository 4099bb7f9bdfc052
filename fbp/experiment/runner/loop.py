"""The training loop of a run.

It calls a compiled program for a chunk of steps. Between chunks come the journal, the progress bar,
checkpoints and signals.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fbp import training
from fbp._interruptible import Interrupted, StopRequest, call_apart
from fbp.experiment.rundir.checkpoints import Checkpoint, Checkpoints
from fbp.experiment.rundir.npz import unflatten_like
from fbp.experiment.rundir.recorder import Recorder
from fbp.experiment.runner import divergence, norm_programs, selection
from fbp.experiment.runner.build import Experiment
from fbp.experiment.runner.compilation import Compiler
from fbp.experiment.runner.divergence import Diverged
from fbp.experiment.runner.evaluation_params import EvaluationParams
from fbp.experiment.runner.selection import Best
from fbp.layer import Params
from fbp.training import StepInfo, TrainState

DIAGNOSIS_EXAMPLES = 128
"""Number of training examples on which the norms of each layer are measured."""
EVALUATION_BATCH = 500
"""Batch size of evaluations on the validation part and the test part."""
STATISTICS_EXAMPLES = 4096
"""Number of training examples from which the statistics of normalization layers are taken."""

_CHUNK_SECONDS = 1.0  # signals and progress wait for one call to the compiled program
_MAX_CHUNK_GROWTH = 8


class Reporter(Protocol):
    """Shows the progress of a run."""

    def begin(self, steps: int, epochs: int) -> None:
        """Announce that training compiles and will take `steps` steps in `epochs` epochs."""

    def advance(self, step: int, epoch: int, latest: dict[str, float]) -> None:
        """Show that training has reached `step`."""

    def working(self, task: str, seconds: float) -> None:
        """Show that `task`, such as compiling a program, has taken `seconds` so far.

        Called about twice a second, from another thread.
        """

    def note(self, text: str) -> None:
        """Show a message to the user."""

    def close(self) -> None:
        """End the display; training is over."""


class LoopState(NamedTuple):
    """The state of the loop: all that a checkpoint must hold.

    Attributes:
        train_state: parameters, optimizer state, step and key, as the compiled program has them.
        step: the number of steps that were taken.
        history_since_evaluation: the observations since the last evaluation, chunk by chunk.
        seconds_since_evaluation: the time that these steps took.
        best: the best evaluation so far.
    """

    train_state: TrainState
    step: int
    history_since_evaluation: tuple[StepInfo, ...] = ()
    seconds_since_evaluation: float = 0.0
    best: Best | None = None

    def joined_history(self) -> StepInfo:
        """Return the observations since the last evaluation as one chunk."""
        return _concatenate(self.history_since_evaluation)


def initial_loop_state(experiment: Experiment) -> LoopState:
    """Return the state before the first step."""
    key = jax.random.key(experiment.config.seed)
    state = training.initial_state(experiment.model, experiment.optimizer, key, experiment.shape)
    return LoopState(state, 0)


def restore_loop_state(experiment: Experiment, checkpoint: Checkpoint) -> LoopState:
    """Return the state that a checkpoint holds.

    Raises:
        ValueError: if it is a checkpoint of another model.
    """
    like = jax.eval_shape(lambda: initial_loop_state(experiment).train_state)
    parts: dict[str, dict[str, np.ndarray]] = {"state": {}, "best": {}, "history": {}}
    for path, array in checkpoint.arrays.items():
        part, _, rest = path.partition("/")
        parts[part][rest] = array
    metadata, best = checkpoint.metadata, None
    if metadata["best"]:
        best = Best(params=unflatten_like(parts["best"], like.params), **metadata["best"])
    history: tuple[StepInfo, ...] = ()
    if parts["history"]:
        columns: dict[str, Any] = dict(parts["history"])
        metrics = {name: columns[f"metrics/{name}"] for name in experiment.metrics}
        history = (StepInfo(columns["cost"], columns["gradient_norm"], metrics),)
    state = unflatten_like(parts["state"], like)
    return LoopState(state, checkpoint.step, history, metadata["seconds"], best)


class Programs(NamedTuple):
    """The compiled functions of a training loop.

    Attributes:
        advance: `(train_state, count) -> (train_state, observations, steps taken)`; its input stays
            valid.
        evaluate: `params -> loss and metrics on the validation part`.
        layer_norms: `train_state -> norms of each layer's deltas, gradients and updates by name`.
        learning_rates: `step -> (interval,)` learning rates from that step on.
    """

    advance: Callable[[TrainState, int], tuple[TrainState, StepInfo, jax.Array]]
    evaluate: Callable[[Params], dict[str, Any]]
    layer_norms: Callable[[TrainState], dict[str, Any]]
    learning_rates: Callable[[int], jax.Array]


def compile_programs(
    experiment: Experiment,
    state: TrainState,
    compiler: Compiler,
    meanwhile: Callable[[], None] = lambda: None,
) -> Programs:
    """Compile what the loop calls; only the training program is compiled at once.

    Args:
        experiment: what is trained.
        state: a state, for its shapes.
        compiler: compiles, and is left if a signal comes.
        meanwhile: called while XLA compiles.

    Raises:
        Interrupted: if a signal comes.
    """
    model, loss, optimizer = experiment.model, experiment.loss, experiment.optimizer
    x, y = jnp.asarray(experiment.data.train.x), jnp.asarray(experiment.data.train.y)
    steps = training.make_steps(
        model,
        loss,
        optimizer,
        batch_size=experiment.batch_size,
        max_steps=experiment.interval,
        shuffle=experiment.config.training.shuffle,
        metrics=experiment.metrics,
        augment=experiment.augment,
    )
    title = "the training program"
    program = compiler.program(title, steps, donate_argnums=[0])
    train = program.compile(state, x, y, 1, meanwhile=meanwhile)
    probe = x[:DIAGNOSIS_EXAMPLES], y[:DIAGNOSIS_EXAMPLES]
    offsets = jnp.arange(experiment.interval)

    def advance(state: TrainState, count: int) -> tuple[TrainState, StepInfo, jax.Array]:
        # the program donates its input: a copy lets the state before a chunk outlive it
        copy = jax.tree.map(jnp.copy, state)
        return call_apart(
            lambda: jax.block_until_ready(train(copy, x, y, count)), compiler.stop.check_after_grace
        )

    return Programs(
        advance=advance,
        evaluate=_validation_program(experiment, compiler),
        layer_norms=norm_programs.make_layer_norms(model, loss, optimizer, state, probe, compiler),
        learning_rates=jax.jit(lambda step: jax.vmap(experiment.schedule)(step + offsets)),
    )


def _validation_program(
    experiment: Experiment, compiler: Compiler
) -> Callable[[Params], dict[str, Any]]:
    x, y = (jnp.asarray(part) for part in experiment.data.validation)
    evaluate = compiler.program(
        "the validation program",
        training.make_evaluate(
            experiment.model,
            experiment.loss,
            batch_size=min(evaluation_batch(experiment), len(x)),
            metrics=experiment.metrics,
        ),
    )
    return lambda params: evaluate(params, x, y)


def evaluation_batch(experiment: Experiment) -> int:
    """Return the batch size of evaluations: that of training if the loss couples examples."""
    return experiment.batch_size if experiment.loss.coupled else EVALUATION_BATCH


class Loop:
    """One run's training.

    Args:
        experiment: what is trained.
        state: where to begin.
        recorder: takes the metrics.
        checkpoints: takes the states.
        reporter: shows the progress.
        stop: training stops at the end of the chunk if it has a signal.
        checkpoint_steps: the steps of the checkpoints; None leaves them to the configuration.
        stop_at: the step at which training is broken off; None for all steps.

    Attributes:
        state: the last good state, at any time.
        compiler: compiles the run's programs.
        evaluation_params: from a state to the parameters that are evaluated and kept.
    """

    def __init__(
        self,
        experiment: Experiment,
        state: LoopState,
        recorder: Recorder,
        checkpoints: Checkpoints,
        reporter: Reporter,
        *,
        stop: StopRequest,
        checkpoint_steps: Sequence[int] | None = None,
        stop_at: int | None = None,
    ):
        self.experiment = experiment
        self.state = state
        self.recorder = recorder
        self.checkpoints = checkpoints
        self.reporter = reporter
        self.stop = stop
        self.checkpoint_steps = None if checkpoint_steps is None else sorted(checkpoint_steps)
        self.stop_at = stop_at
        self.compiler = Compiler(reporter, stop)
        examples = max(STATISTICS_EXAMPLES, experiment.batch_size)
        self.evaluation_params = EvaluationParams(
            experiment.model,
            experiment.data.train.x[:examples],
            experiment.batch_size,
            self.compiler,
        )
        self._state_before_chunk = state
        self._chunk = 1
        self._start_time = self._save_time = time.monotonic()

    def train(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Compile, and take all steps; a run that has all of them compiles nothing.

        Args:
            meanwhile: called once, while XLA compiles.

        Raises:
            Diverged: if the loss is no longer finite.
            Interrupted: if a signal came, or at `stop_at`.
            OSError: if the disk is full.
        """
        if self._is_over():
            meanwhile()
            return
        train_state = self.state.train_state
        self._programs = compile_programs(self.experiment, train_state, self.compiler, meanwhile)
        self.evaluation_params.compile(train_state)  # a run that is stopped needs it, too
        if self.state.step == 0:
            self.recorder.metrics(0, self._programs.layer_norms(self.state.train_state))
            self._save_if_due()
        self._start_time = self._save_time = time.monotonic()
        while not self._is_over():
            # already due if the previous attempt stopped during this evaluation
            if not self._evaluation_is_due():
                self._train_until_evaluation()
            self._evaluate()
            self._save_if_due()

    def _is_over(self) -> bool:
        if self._evaluation_is_due():
            return False
        section = self.experiment.config.selection
        all_steps = self.state.step >= self.experiment.steps
        return all_steps or selection.should_stop(section, self.state.best)

    def _evaluation_is_due(self) -> bool:
        step, experiment = self.state.step, self.experiment
        at_interval = step % experiment.interval == 0 or step == experiment.steps
        return bool(self.state.history_since_evaluation) and at_interval

    def _train_until_evaluation(self) -> None:
        """Take steps in chunks of about a second, up to the next multiple of the interval."""
        interval = self.experiment.interval
        end = min((self.state.step // interval + 1) * interval, self.experiment.steps)
        while self.state.step < end:
            self._check_for_interruption()
            self._take_chunk(min(self._chunk, min(end, self._next_save()) - self.state.step))
            if not self.checkpoints.busy:
                self.journal_finished_checkpoint()
            if self.state.step < end:
                self._save_if_due()

    def _check_for_interruption(self) -> None:
        with self.stop.obeyed_at_once(f"at step {self.state.step}"):
            pass
        if self.state.step == self.stop_at:
            raise Interrupted(f"stopped at step {self.stop_at}, as asked for")

    def _take_chunk(self, count: int) -> None:
        """Take at most `count` steps: compute, journal, check, and move the state."""
        start = time.perf_counter()
        state = self.state
        train_state, info, steps_taken = self._programs.advance(state.train_state, count)
        taken = int(steps_taken)
        # cut on the host: on the device, each number of steps would be a program to compile
        info = jax.tree.map(lambda column: np.asarray(column)[:taken], info)
        rates = np.asarray(self._programs.learning_rates(state.step))[:taken]
        self.recorder.steps(
            state.step + 1,
            {"loss": info.cost, "gradient_norm": info.gradient_norm, "learning_rate": rates},
        )
        if not np.isfinite(info.cost[-1]):
            self._raise_diverged(info)
        seconds = time.perf_counter() - start
        self._state_before_chunk = state
        self.state = state._replace(
            train_state=train_state,
            step=state.step + taken,
            history_since_evaluation=(*state.history_since_evaluation, info),
            seconds_since_evaluation=state.seconds_since_evaluation + seconds,
        )
        self._chunk = min(_next_chunk(taken, seconds), self.experiment.interval)
        self.reporter.advance(self.state.step, self._epoch(), self._progress(info))

    def _evaluate(self) -> None:
        """End an interval: journal its means, the validation metrics and the norms; update `best`.

        Raises:
            Diverged: if the validation loss is not finite.
        """
        state = self.state
        history = state.joined_history()
        params = self.evaluation_params(state.train_state)
        values = self._interval_means(history)
        values |= {
            f"validation_{name}": value for name, value in self._programs.evaluate(params).items()
        }
        values |= {
            "examples_per_second": self._examples_per_second(len(history.cost)),
            "epoch": state.step / self.experiment.steps_per_epoch,
        }
        metrics = self.recorder.metrics(state.step, values)
        if not math.isfinite(metrics["validation_loss"]):
            self._raise_diverged_validation(metrics["validation_loss"])
        metrics |= self.recorder.metrics(state.step, self._programs.layer_norms(state.train_state))
        metrics |= {
            "loss": float(history.cost[-1]),
            "gradient_norm": float(np.asarray(history.gradient_norm)[-1]),
            "learning_rate": float(self._programs.learning_rates(state.step - 1)[0]),
        }
        section, observed = self.experiment.config.selection, self.experiment.metrics
        best = selection.update(section, observed, state.best, state.step, metrics, params)
        self.state = LoopState(state.train_state, state.step, best=best)
        self.reporter.advance(state.step, self._epoch(), self.recorder.latest)

    def _interval_means(self, history: StepInfo) -> dict[str, Any]:
        columns = {"loss": history.cost, **history.metrics}
        return {f"train_{name}": column.mean(dtype=np.float64) for name, column in columns.items()}

    def _examples_per_second(self, steps: int) -> float:
        seconds = max(self.state.seconds_since_evaluation, 1e-9)
        return steps * self.experiment.batch_size / seconds

    def _epoch(self) -> int:
        return -(-self.state.step // self.experiment.steps_per_epoch)

    def _progress(self, info: StepInfo) -> dict[str, float]:
        steps = sum(len(chunk.cost) for chunk in self.state.history_since_evaluation)
        means = {name: float(column.mean()) for name, column in info.metrics.items()}
        rate = self._examples_per_second(steps)
        return {"loss": float(info.cost.mean()), **means, "examples_per_second": rate}

    def _next_save(self) -> int:
        """Return the step of the next checkpoint, as far as steps decide it, not the clock."""
        step, every = self.state.step, self.experiment.config.checkpoint.every_steps
        fixed = (*(self.checkpoint_steps or ()), self.stop_at or 0, self.experiment.steps)
        candidates = [candidate for candidate in fixed if candidate > step]
        if every and self.checkpoint_steps is None:
            candidates.append((step // every + 1) * every)
        return min(candidates)

    def _save_if_due(self) -> None:
        step, section = self.state.step, self.experiment.config.checkpoint
        now = time.monotonic()
        if self.checkpoint_steps is not None:
            due = step in self.checkpoint_steps
        elif section.every_steps:
            due = step % section.every_steps == 0
        else:  # often in the beginning: after 1, 2, 4, ... seconds
            pause = min(section.every_seconds, max(1.0, self._save_time - self._start_time))
            due = (step == 0 or now - self._save_time >= pause) and not self.checkpoints.busy
        if due:
            self.save()
            self._save_time = now

    def save(self) -> None:
        """Begin to write a checkpoint of the state, in another thread."""
        self.journal_finished_checkpoint()
        state, best = self.state, self.state.best
        tree = {
            "state": state.train_state,
            "best": best.params if best else (),
            "history": state.joined_history() if state.history_since_evaluation else (),
        }
        metadata = {
            "seconds": state.seconds_since_evaluation,
            "best": best.facts() if best else None,
            "latest": dict(self.recorder.latest),
        }
        self.checkpoints.save(state.step, tree, state.train_state.params, metadata)

    def journal_finished_checkpoint(self) -> None:
        """Wait for the checkpoint that is being written, if there is one; it is then journaled."""
        try:
            self.checkpoints.wait()
        except OSError as error:
            self.reporter.note(
                f"{error.filename}: the checkpoint could not be written ({error.strerror})"
            )

    def _raise_diverged(self, info: StepInfo) -> None:
        """Rewind to finite parameters; say at which step of the chunk the loss was not finite."""
        step = self.state.step + len(info.cost)
        self._rewind(self.state, step)
        epoch = (step - 1) // self.experiment.steps_per_epoch + 1
        raise Diverged(divergence.explain_loss(info, step, epoch, self._learning_rate(step)))

    def _raise_diverged_validation(self, loss: float) -> None:
        step = self.state.step
        if not divergence.is_finite(self.state.train_state.params):
            self._rewind(self._state_before_chunk, step)
        raise Diverged(divergence.explain_validation_loss(loss, step, self._learning_rate(step)))

    def _learning_rate(self, step: int) -> float:
        """Return the learning rate of the update that led to `step`."""
        return float(self.experiment.schedule(jnp.asarray(step - 1)))

    def _rewind(self, begin: LoopState, end: int) -> None:
        """Move to the last step before `end` with finite parameters, recomputing from `begin`."""
        finite = divergence.rewind_to_finite(
            self._programs.advance, begin.train_state, begin.step, end
        )
        if finite is not None:
            train_state, step = finite
            self.state = self.state._replace(train_state=train_state, step=step)


def _concatenate(chunks: Sequence[StepInfo]) -> StepInfo:
    joined: StepInfo = jax.tree.map(lambda *columns: np.concatenate(columns), *chunks)
    return joined


def _next_chunk(count: int, seconds: float) -> int:
    """Return the number of steps that take about _CHUNK_SECONDS, at most 8 times `count`."""
    steps = round(count * _CHUNK_SECONDS / max(seconds, 1e-6))
    return max(1, min(steps, _MAX_CHUNK_GROWTH * count))
