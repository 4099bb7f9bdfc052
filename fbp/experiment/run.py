"""Train what a configuration describes, and write down everything about it.

The training process appends to a journal and never imports mlflow; see shipper.py for the other half.
"""

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fbp import diagnostics, optimizers, training
from fbp.experiment import config as configuration
from fbp.experiment import diagram, environment, results, saving, summary
from fbp.experiment.build import Experiment, build
from fbp.experiment.config import Config
from fbp.experiment.journal import Journal, history, metrics_digest
from fbp.layer import Params
from fbp.training import StepInfo, TrainState

_CHUNK_SECONDS = 1.0  # how long one call to the compiled program should take: signals and progress wait for it
_PROBE = 128  # how many training examples the norms by layer are measured on
_EVALUATED = 500  # examples at a time, where nothing is learned
_POPULATION = 4096  # how many the statistics of normalization layers are taken from


class Reporter(Protocol):
    """Who is told how training goes."""

    def begin(self, experiment: Experiment) -> None: ...
    def advance(self, step: int, epoch: int, latest: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class Origin(NamedTuple):
    """Where a run comes from: the experiment's file, the run's label in lists, and the folder's name of its parent, if any."""

    source: Path
    label: str
    parent: str | None = None


class Outcome(NamedTuple):
    """How a run ended: FINISHED, FAILED or KILLED; why, if not well; its last metrics; its folder."""

    status: str
    message: str
    metrics: dict[str, float]
    folder: Path
    signal: int | None = None


class Diverged(Exception):
    """The loss is no longer a finite number."""


class Interrupted(Exception):
    """A signal asked the run to stop."""


def run(config: Config, origin: Origin, folder: Path, reporter: Reporter, received: list[int] | None = None) -> Outcome:
    """Train, evaluate, and leave in ``folder`` the journal, the results and the trained model.

    Args:
        config: what to train.
        origin: where it came from, and what it is called.
        folder: the run's own, already there.
        reporter: who shows progress.
        received: signals that were received before, if somebody noted them: one in it stops the run at its first chunk.

    Raises:
        InputError: where configuration and data do not fit; the run then does not exist.
    """
    experiment = build(config)
    journal = Journal(folder)
    record = _Record(experiment, journal, folder)
    state = _start(experiment)
    _write_start(experiment, origin, folder, journal)
    status, message, caught = "FINISHED", "", None
    reporter.begin(experiment)
    try:
        with _signals([] if received is None else received) as received:
            try:
                state = _train(experiment, state, record, reporter, received)
            except Interrupted as interruption:
                status, message = "KILLED", str(interruption)
            except Diverged as divergence:
                status, message = "FAILED", str(divergence)
            finally:
                reporter.close()
            _finish(experiment, record.state or state, record, status, message)
            caught = received[0] if received else None
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        journal.write("end", status="KILLED" if stopped else "FAILED", message=f"{type(error).__name__}: {error}")
        raise
    finally:
        journal.close()
    return Outcome(status, message, record.latest, folder, caught)


class _Record:
    """What a run has shown so far, and where it is written."""

    def __init__(self, experiment: Experiment, journal: Journal, folder: Path):
        self.experiment, self.journal, self.folder = experiment, journal, folder
        self.latest: dict[str, float] = {}
        self.state: TrainState | None = None  # the last good state, while steps are under way

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        numbers = {key: float(value) for key, value in values.items()}
        self.journal.write("metrics", step=step, values=numbers)
        self.latest |= {key: value for key, value in numbers.items() if "/" not in key}


def _start(experiment: Experiment) -> TrainState:
    key = jax.random.key(experiment.config.seed)
    return training.start(experiment.model, experiment.optimizer, key, experiment.shape)


def _write_start(experiment: Experiment, origin: Origin, folder: Path, journal: Journal) -> None:
    config, dataset = experiment.config, experiment.dataset
    artifacts = folder / "artifacts"
    (artifacts / "config.toml").write_text(configuration.to_toml(config), encoding="utf-8")
    (artifacts / "environment.json").write_text(json.dumps(environment.facts(), indent=1), encoding="utf-8")
    repository = environment.git(origin.source.resolve().parent)
    if "diff" in repository:
        (artifacts / "git.diff").write_text(repository["diff"], encoding="utf-8")
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
    journal.start(
        folder,
        label=origin.label,
        experiment=config.tracking.experiment or config.name,
        params=configuration.flat(config),
        tags=environment.tags(origin.source, config.seed, repository)
        | {"fbp.data_fingerprint": dataset.fingerprint, "mlflow.note.content": config.description},
        inputs=inputs,
        parent=origin.parent,
        steps=experiment.steps,
        layers=summary.layer_names(experiment.model),
    )


@contextlib.contextmanager
def _signals(received: list[int]) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are noted, not obeyed at once: training stops at the next chunk's end, a second one at once."""

    def note(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise Interrupted(f"stopped at once by {signal.Signals(number).name}")

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: somebody else's signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train(
    experiment: Experiment, state: TrainState, record: _Record, reporter: Reporter, received: list[int]
) -> TrainState:
    """All steps, in chunks of about a second; between them come the journal, the progress and the signals."""
    data, interval, per_epoch = experiment.data, experiment.interval, experiment.steps_per_epoch
    x, y = jnp.asarray(data.train.x), jnp.asarray(data.train.y)
    steps = training.take_steps(
        experiment.model,
        experiment.loss,
        experiment.optimizer,
        batch_size=experiment.batch_size,
        capacity=interval,
        shuffle=experiment.config.training.shuffle,
        metrics=experiment.metrics,
        augment=experiment.augment,
    )
    advance = jax.jit(steps, donate_argnums=0).lower(state, x, y, 1).compile()
    evaluate = _evaluation(experiment)
    diagnose = jax.jit(diagnostics.diagnose(experiment.model, experiment.loss, experiment.optimizer))
    rates = jax.jit(lambda first: jax.vmap(experiment.schedule)(first + jnp.arange(interval)))
    chunk, at = 1, 0
    record.state = before = state = _copy(state)
    _write_diagnosis(record, diagnose, state, x, y, at)
    while at < experiment.steps:
        next_stop, parts = min(at + interval, experiment.steps), []
        began = time.perf_counter()
        while at < next_stop:
            if received:
                raise Interrupted(f"stopped by {signal.Signals(received[0]).name} at step {at}")
            count, chunk_began = min(chunk, next_stop - at), time.perf_counter()
            new_state, info, taken = advance(_copy(state), x, y, count)
            taken = int(taken)
            info = jax.tree.map(lambda column, n=taken: np.asarray(column[:n]), info)
            _write_steps(record, info, at, np.asarray(rates(at))[:taken])
            parts.append(info)
            if not np.isfinite(info.cost[-1]):
                _diverge(experiment, record, state, advance, x, y, at, info)
            before, record.state, state = state, new_state, new_state
            at += taken
            chunk = min(_next_chunk(taken, time.perf_counter() - chunk_began), interval)
            reporter.advance(at, -(-at // per_epoch), _progress(info, began, parts, experiment))
        seconds = time.perf_counter() - began
        _write_evaluation(record, evaluate(state), parts, seconds, at)
        if not math.isfinite(record.latest["validation_loss"]):
            record.state = state if _is_finite(state.params) else before
            rate = float(experiment.schedule(jnp.asarray(at - 1)))
            raise Diverged(
                f"the validation loss became {record.latest['validation_loss']} after step {at}; the learning rate was "
                f"{rate:.3g}; likely the steps are too large: lower optimizer.learning_rate or set optimizer.clip_global_norm"
            )
        _write_diagnosis(record, diagnose, state, x, y, at)
        reporter.advance(at, -(-at // per_epoch), record.latest)
    return state


def _copy(state: TrainState) -> TrainState:
    """A copy to donate, so that the state before a chunk outlives it."""
    return jax.tree.map(jnp.copy, state)


def _is_finite(params: Params) -> bool:
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))


def _next_chunk(count: int, seconds: float) -> int:
    """So many steps that they take about _CHUNK_SECONDS, at most eight times as many as before."""
    return max(1, min(round(count * _CHUNK_SECONDS / max(seconds, 1e-6)), 8 * count))


def _evaluation(experiment: Experiment) -> Callable[[TrainState], dict[str, Any]]:
    """Loss and metrics on the validation part."""
    x, y = (jnp.asarray(part) for part in experiment.data.validation)
    measure = jax.jit(
        training.evaluate(
            experiment.model, experiment.loss, batch_size=min(_EVALUATED, len(x)), metrics=experiment.metrics
        )
    )
    usable = _usable(experiment)
    return lambda state: measure(usable(state), x, y)


def _usable(experiment: Experiment) -> Callable[[TrainState], Params]:
    """The parameters to evaluate and to keep: their average where one is kept, with the statistics of training examples."""
    average = lambda state: optimizers.averaged(state.opt_state, state.params)
    if not training.has_statistics(experiment.model, experiment.shape):
        return average
    x = jnp.asarray(experiment.data.train.x[: max(_POPULATION, experiment.batch_size)])
    fill = jax.jit(training.with_statistics(experiment.model, batch_size=experiment.batch_size))
    return lambda state: fill(average(state), x, state.key)


def _progress(info: StepInfo, began: float, parts: list[StepInfo], experiment: Experiment) -> dict[str, float]:
    steps = sum(len(part.cost) for part in parts)
    shown = {"loss": float(info.cost.mean())} | {name: float(column.mean()) for name, column in info.metrics.items()}
    return shown | {"examples_per_second": steps * experiment.batch_size / max(time.perf_counter() - began, 1e-9)}


def _write_steps(record: _Record, info: StepInfo, first: int, rates: np.ndarray) -> None:
    columns = {"loss": np.asarray(info.cost), "gradient_norm": np.asarray(info.gradient_norm), "learning_rate": rates}
    record.journal.steps(first + 1, columns)


def _write_evaluation(
    record: _Record, validation: dict[str, Any], parts: list[StepInfo], seconds: float, at: int
) -> None:
    experiment = record.experiment
    joined: StepInfo = jax.tree.map(lambda *columns: np.concatenate(columns).mean(dtype=np.float64), *parts)
    values: dict[str, Any] = {"train_loss": joined.cost} | {
        f"train_{name}": mean for name, mean in joined.metrics.items()
    }
    values |= {f"validation_{name}": value for name, value in validation.items()}
    steps = sum(len(part.cost) for part in parts)
    values |= {
        "examples_per_second": steps * experiment.batch_size / seconds,
        "epoch": at / experiment.steps_per_epoch,
    }
    record.metrics(at, values)


def _write_diagnosis(record: _Record, diagnose: Any, state: TrainState, x: Any, y: Any, at: int) -> None:
    found = diagnose(state.params, state.opt_state, x[:_PROBE], y[:_PROBE])
    values = {f"{kind}/{path}": np.asarray(v) for kind, norms in found._asdict().items() for path, v in norms.items()}
    for path in [path for path, value in values.items() if value.ndim]:  # a norm for each copy inside a repeat
        values |= {f"{path}/{i}": value for i, value in enumerate(values.pop(path).ravel())}
    record.metrics(at, values)


def _diverge(
    experiment: Experiment, record: _Record, state: TrainState, advance: Any, x: Any, y: Any, at: int, info: StepInfo
) -> None:
    """Keep the last finite parameters and say what happened. Steps are repeatable, so they are simply taken again."""
    taken = len(info.cost)
    for count in range(taken - 1, -1, -1):
        before, _, _ = advance(_copy(state), x, y, count)
        if _is_finite(before.params):
            record.state = before
            break
    step = at + taken
    rate = float(experiment.schedule(jnp.asarray(step - 1)))
    norms = info.gradient_norm[np.isfinite(info.gradient_norm)]
    grew = f"the gradient's norm was last {norms[-1]:.3g}" if len(norms) else "the gradient was not finite either"
    raise Diverged(
        f"the loss became {info.cost[-1]} at step {step} (epoch {(step - 1) // experiment.steps_per_epoch + 1}); {grew}, the "
        f"learning rate {rate:.3g}; likely the steps are too large: lower optimizer.learning_rate or set "
        "optimizer.clip_global_norm"
    )


def _finish(experiment: Experiment, state: TrainState, record: _Record, status: str, message: str) -> None:
    """The last evaluation, the trained model, the digests, and the journal's end."""
    params = _usable(experiment)(state)
    _save(experiment, params, record.folder)  # first: nothing after this may cost the model
    if status == "FINISHED":
        record.metrics(int(state.step), results.evaluate_and_write(experiment, params, record.folder))
    _write_summary(experiment, record.folder)
    tags = {
        "fbp.params_digest": saving.params_digest(params),
        "fbp.metrics_digest": metrics_digest(history(record.folder)),
    }
    if message:
        tags["fbp.message"] = message
    if any(not math.isfinite(value) for value in record.latest.values()) or status == "FAILED":
        tags["fbp.nonfinite"] = "true"
    record.journal.write("tags", values=tags)
    record.journal.write("end", status=status, message=message)


def _write_summary(experiment: Experiment, folder: Path) -> None:
    """The table of layers, and the boxes and arrows that its picture is drawn from."""
    rows = summary.layer_rows(experiment.model, experiment.shape, experiment.data.train.x.dtype)
    (folder / "artifacts" / "summary.txt").write_text(summary.as_text(rows) + "\n", encoding="utf-8")
    drawn = diagram.to_json(diagram.diagram(experiment.model, rows, experiment.shape))
    (folder / diagram.NAME).write_text(json.dumps(drawn), encoding="utf-8")


def _save(experiment: Experiment, params: Params, folder: Path) -> None:
    dataset, data = experiment.dataset, experiment.data
    saving.save(
        folder / "artifacts" / "model",
        experiment.config,
        params,
        shape=experiment.shape,
        dataset=dataset,
        inputs=data.inputs,
        targets=data.targets,
    )
