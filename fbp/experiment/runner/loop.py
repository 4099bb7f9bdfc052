"""The training loop of a run: compiled chunks of steps, and between them the journal, progress, checkpoints and signals."""

import math
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fbp import diagnostics, optimizers, training
from fbp.experiment.rundir.checkpoints import Checkpoint, Checkpoints
from fbp.experiment.rundir.npz import unflatten_like
from fbp.experiment.rundir.recorder import Recorder
from fbp.experiment.runner import selection
from fbp.experiment.runner.build import Experiment
from fbp.experiment.runner.selection import Best
from fbp.layer import Params
from fbp.training import StepInfo, TrainState

_CHUNK_SECONDS = (
    1.0  # how long one call to the compiled program should take: signals and progress wait for it
)
_PROBE = 128  # how many training examples the norms by layer are measured on
_EVALUATED = 500  # examples at a time, where nothing is learned
_POPULATION = 4096  # how many the statistics of normalization layers are taken from


class Reporter(Protocol):
    """Who is told how training goes."""

    def begin(self, experiment: Experiment) -> None: ...
    def advance(self, step: int, epoch: int, latest: dict[str, float]) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class Diverged(Exception):
    """The loss is no longer a finite number."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop."""


class Position(NamedTuple):
    """Where training stands: all that a checkpoint must hold.

    Attributes:
        state: parameters, optimizer state, step, key.
        at: the step, as a number.
        infos: what was observed since the last evaluation, in chunks.
        seconds: how long that took.
        best: the best evaluation so far.
    """

    state: TrainState
    at: int
    infos: tuple[StepInfo, ...] = ()
    seconds: float = 0.0
    best: Best | None = None


def begin(experiment: Experiment) -> Position:
    """The position before the first step."""
    key = jax.random.key(experiment.config.seed)
    return Position(
        training.initial_state(experiment.model, experiment.optimizer, key, experiment.shape), 0
    )


def restored(experiment: Experiment, checkpoint: Checkpoint) -> Position:
    """The position that a checkpoint holds.

    Raises:
        ValueError: where it is of another model.
    """
    like = jax.eval_shape(lambda: begin(experiment).state)
    parts: dict[str, dict[str, np.ndarray]] = {"state": {}, "best": {}, "infos": {}}
    for path, array in checkpoint.arrays.items():
        part, _, rest = path.partition("/")
        parts[part][rest] = array
    state = unflatten_like(parts["state"], like)
    facts, best = checkpoint.metadata, None
    infos: tuple[StepInfo, ...] = ()
    if facts["best"]:
        best = Best(params=unflatten_like(parts["best"], like.params), **facts["best"])
    if parts["infos"]:
        columns: dict[str, Any] = dict(parts["infos"])
        observed = {name: columns[f"metrics/{name}"] for name in experiment.metrics}
        infos = (StepInfo(columns["cost"], columns["gradient_norm"], observed),)
    return Position(state, checkpoint.step, infos, facts["seconds"], best)


class Loop:
    """One run's training.

    Args:
        experiment: what is trained.
        position: where to begin.
        record: where metrics go.
        checkpoints: where states go.
        reporter: who is told.
        signals: signals; one in it stops the training at the next chunk's end.
        checkpoint_steps: the steps of the checkpoints, where they are not left to the configuration.
        stop_at: the step at which training is broken off, if any.
    """

    def __init__(
        self,
        experiment: Experiment,
        position: Position,
        record: Recorder,
        checkpoints: Checkpoints,
        reporter: Reporter,
        signals: list[int],
        checkpoint_steps: Sequence[int] | None = None,
        stop_at: int | None = None,
    ):
        self.experiment, self.position, self.record = experiment, position, record
        self.checkpoints, self.reporter, self.signals = checkpoints, reporter, signals
        self.checkpoint_steps = None if checkpoint_steps is None else sorted(checkpoint_steps)
        self.stop_at = stop_at
        self.usable = _usable(experiment)
        self._began = self._saved = time.monotonic()
        self._chunk, self._before = 1, (position.state, position.at)

    def train(self) -> None:
        """All steps; ``position`` is the last good one at any time.

        Raises:
            Diverged, Interrupted: where it ends early.
            OSError: where the disk is full.
        """
        experiment = self.experiment
        x, y = jnp.asarray(experiment.data.train.x), jnp.asarray(experiment.data.train.y)
        steps = training.make_steps(
            experiment.model,
            experiment.loss,
            experiment.optimizer,
            batch_size=experiment.batch_size,
            max_steps=experiment.interval,
            shuffle=experiment.config.training.shuffle,
            metrics=experiment.metrics,
            augment=experiment.augment,
        )
        program = jax.jit(steps, donate_argnums=0).lower(self.position.state, x, y, 1).compile()
        self._advance = lambda state, count: program(_copy(state), x, y, count)
        self._evaluate_validation = _evaluation(experiment)
        diagnose = jax.jit(
            diagnostics.layer_norms(experiment.model, experiment.loss, experiment.optimizer)
        )
        probe = x[:_PROBE], y[:_PROBE]
        self._norms = lambda state: diagnostics.as_metrics(
            jax.device_get(diagnose(state.params, state.opt_state, *probe))
        )
        interval = experiment.interval
        self._rates = jax.jit(
            lambda first: jax.vmap(experiment.schedule)(first + jnp.arange(interval))
        )
        if self.position.at == 0:
            self.record.metrics(0, self._norms(self.position.state))
            self._save_if_due()
        self._began = self._saved = time.monotonic()
        while not self._is_over():
            if not self._evaluation_is_due():  # it is, where the last attempt was broken off in it
                self._until_evaluation()
            self._evaluate()
            self._save_if_due()

    def _is_over(self) -> bool:
        wanted, position = self.experiment.config.selection, self.position
        stopped = selection.exhausted(wanted, position.best)
        return not self._evaluation_is_due() and (position.at >= self.experiment.steps or stopped)

    def _evaluation_is_due(self) -> bool:
        at, experiment = self.position.at, self.experiment
        return bool(self.position.infos) and (
            at % experiment.interval == 0 or at == experiment.steps
        )

    def _until_evaluation(self) -> None:
        """Chunks of about a second, up to the next multiple of the interval."""
        experiment = self.experiment
        stop = min(
            (self.position.at // experiment.interval + 1) * experiment.interval, experiment.steps
        )
        while self.position.at < stop:
            if self.signals:
                name = signal.Signals(self.signals[0]).name
                raise Interrupted(f"stopped by {name} at step {self.position.at}")
            if self.position.at == self.stop_at:
                raise Interrupted(f"stopped at step {self.stop_at}, as asked for")
            began = time.perf_counter()
            state, at, infos, seconds, best = self.position
            count = min(self._chunk, min(stop, self._next_save()) - at)
            new_state, info, taken = self._advance(state, count)
            taken = int(taken)
            info = jax.tree.map(lambda column, n=taken: np.asarray(column[:n]), info)
            rates = np.asarray(self._rates(at))[:taken]
            self.record.steps(
                at + 1,
                {"loss": info.cost, "gradient_norm": info.gradient_norm, "learning_rate": rates},
            )
            if not np.isfinite(info.cost[-1]):
                self._diverged(info)
            spent = time.perf_counter() - began
            self._before = state, at
            self.position = Position(new_state, at + taken, (*infos, info), seconds + spent, best)
            self._chunk = min(_next_chunk(taken, spent), experiment.interval)
            self.reporter.advance(self.position.at, self._epoch(), self._progress(info))
            if not self.checkpoints.busy:
                self.note_saved()
            if self.position.at < stop:
                self._save_if_due()

    def _evaluate(self) -> None:
        """What an interval ends with: the means over it, the validation part, the norms by layer, and who is best."""
        experiment, (state, at, infos, seconds, best) = self.experiment, self.position
        columns: StepInfo = jax.tree.map(lambda *parts: np.concatenate(parts), *infos)
        params = self.usable(state)
        values: dict[str, Any] = {"train_loss": columns.cost.mean(dtype=np.float64)}
        values |= {
            f"train_{name}": column.mean(dtype=np.float64)
            for name, column in columns.metrics.items()
        }
        values |= {
            f"validation_{name}": value for name, value in self._evaluate_validation(params).items()
        }
        values |= {
            "examples_per_second": len(columns.cost) * experiment.batch_size / max(seconds, 1e-9),
            "epoch": at / experiment.steps_per_epoch,
        }
        shown = self.record.metrics(at, values)
        if not math.isfinite(shown["validation_loss"]):
            if not is_finite(state.params):
                self._back_to_finite(*self._before, at)
            raise Diverged(
                f"the validation loss became {shown['validation_loss']} after step {at}; the learning rate was "
                f"{float(experiment.schedule(jnp.asarray(at - 1))):.3g}; likely the steps are too large: lower "
                "optimizer.learning_rate or set optimizer.clip_global_norm"
            )
        shown |= self.record.metrics(at, self._norms(state))
        assert columns.gradient_norm is not None
        shown |= {
            "loss": float(columns.cost[-1]),
            "gradient_norm": float(columns.gradient_norm[-1]),
        }
        shown |= {"learning_rate": float(self._rates(at - 1)[0])}
        best = selection.updated(experiment.config.selection, best, at, shown, params)
        self.position = Position(state, at, best=best)
        self.reporter.advance(at, self._epoch(), self.record.latest)

    def _epoch(self) -> int:
        return -(-self.position.at // self.experiment.steps_per_epoch)

    def _progress(self, info: StepInfo) -> dict[str, float]:
        steps = sum(len(part.cost) for part in self.position.infos)
        shown = {"loss": float(info.cost.mean())}
        shown |= {name: float(column.mean()) for name, column in info.metrics.items()}
        rate = steps * self.experiment.batch_size / max(self.position.seconds, 1e-9)
        return shown | {"examples_per_second": rate}

    def _next_save(self) -> int:
        """The step at which the next checkpoint must be, where steps decide that."""
        at, every = self.position.at, self.experiment.config.checkpoint.every_steps
        wanted = [
            step
            for step in (*(self.checkpoint_steps or ()), self.stop_at or 0, self.experiment.steps)
            if step > at
        ]
        if every and self.checkpoint_steps is None:
            wanted.append((at // every + 1) * every)
        return min(wanted)

    def _save_if_due(self) -> None:
        at, wanted = self.position.at, self.experiment.config.checkpoint
        now = time.monotonic()
        if self.checkpoint_steps is not None:
            due = at in self.checkpoint_steps
        elif wanted.every_steps:
            due = at % wanted.every_steps == 0
        else:  # often at first: after 1, 2, 4, ... seconds
            pause = min(wanted.every_seconds, max(1.0, (self._saved - self._began)))
            due = (at == 0 or now - self._saved >= pause) and not self.checkpoints.busy
        if due:
            self.save()
            self._saved = now

    def save(self) -> None:
        """Begin to write a checkpoint of the position."""
        self.note_saved()
        state, at, infos, seconds, best = self.position
        joined = [jax.tree.map(lambda *parts: np.concatenate(parts), *infos)] if infos else []
        tree = {
            "state": state,
            "best": best.params if best else (),
            "infos": joined[0] if joined else (),
        }
        found = (
            {key: value for key, value in best._asdict().items() if key != "params"}
            if best
            else None
        )
        facts = {"seconds": seconds, "best": found, "latest": dict(self.record.latest)}
        self.checkpoints.save(at, tree, state.params, facts)

    def note_saved(self) -> None:
        """Write into the journal which checkpoint was written last, if one was."""
        try:
            self.checkpoints.wait()
        except OSError as error:
            self.reporter.note(
                f"{error.filename}: the checkpoint could not be written ({error.strerror})"
            )

    def _diverged(self, info: StepInfo) -> None:
        """Keep the last finite parameters and say what happened."""
        step = self.position.at + len(info.cost)
        self._back_to_finite(self.position.state, self.position.at, step)
        rate = float(self.experiment.schedule(jnp.asarray(step - 1)))
        norms = np.asarray(info.gradient_norm)
        norms = norms[np.isfinite(norms)]
        grew = (
            f"the gradient's norm was last {norms[-1]:.3g}"
            if len(norms)
            else "the gradient was not finite either"
        )
        raise Diverged(
            f"the loss became {info.cost[-1]} at step {step} (epoch {(step - 1) // self.experiment.steps_per_epoch + 1}); "
            f"{grew}, the learning rate {rate:.3g}; likely the steps are too large: lower optimizer.learning_rate or set "
            "optimizer.clip_global_norm"
        )

    def _back_to_finite(self, state: TrainState, begin: int, end: int) -> None:
        """Stand at the last step from ``begin`` to before ``end`` whose parameters are finite; steps can be taken again."""
        for at in range(end - 1, begin - 1, -1):
            before, _, _ = self._advance(state, at - begin)
            if is_finite(before.params):
                self.position = self.position._replace(state=before, at=at)
                break


def _copy(state: TrainState) -> TrainState:
    """A copy to donate, so that the state before a chunk outlives it."""
    return jax.tree.map(jnp.copy, state)


def is_finite(params: Params) -> bool:
    """Whether every parameter is a finite number."""
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))


def _next_chunk(count: int, seconds: float) -> int:
    """So many steps that they take about _CHUNK_SECONDS, at most eight times as many as before."""
    return max(1, min(round(count * _CHUNK_SECONDS / max(seconds, 1e-6)), 8 * count))


def _evaluation(experiment: Experiment) -> Callable[[Params], dict[str, Any]]:
    """Loss and metrics on the validation part."""
    x, y = (jnp.asarray(part) for part in experiment.data.validation)
    batch_size = min(_EVALUATED, len(x))
    evaluate = training.make_evaluate(
        experiment.model, experiment.loss, batch_size=batch_size, metrics=experiment.metrics
    )
    measure = jax.jit(evaluate)
    return lambda params: measure(params, x, y)


def _usable(experiment: Experiment) -> Callable[[TrainState], Params]:
    """The parameters to evaluate and to keep: their average where one is kept, with the statistics of training examples."""
    average = lambda state: optimizers.averaged(state.opt_state, state.params)
    if not training.has_statistics(experiment.model):
        return average
    x = jnp.asarray(experiment.data.train.x[: max(_POPULATION, experiment.batch_size)])
    fill = jax.jit(
        training.make_fill_statistics(experiment.model, batch_size=experiment.batch_size)
    )
    return lambda state: fill(average(state), x, state.key)
