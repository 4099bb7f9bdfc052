"""Training as pure functions: a state, a step, and many steps as one program on the device.

The order of the examples and every random number are functions of (key, step) alone. So cutting a
run into pieces, or resuming it, does not change a bit.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp._backprop import backpropagate
from fbp._kernels import delay_until_backward_done
from fbp._observation import (
    Position,
    layer_params,
    observe_forward,
    positions,
    with_entry,
)
from fbp._serialization import serializable
from fbp.augmentation import Augmentation
from fbp.errors import InputError
from fbp.layer import (
    Array,
    Cache,
    Key,
    Layer,
    Loss,
    Optimizer,
    Params,
    Shape,
    require_layer,
    require_loss,
)
from fbp.losses._targets import labelled_examples, mean_over_labelled
from fbp.optimizers import apply_updates, global_norm

Metric = Callable[[Array, Array], Array]  # (output, target) -> (B,)


# fold_in constants: independent keys for shuffling, layers, augmentation
_SHUFFLING, _LAYERS, _AUGMENTATION = 0, 1, 2


@serializable
class TrainState(NamedTuple):
    """Everything that training carries from step to step.

    Attributes:
        params: the parameters.
        opt_state: the optimizer's state.
        step: the number of steps taken, int32.
        key: the root of every random number in training; it never changes.
    """

    params: Params
    opt_state: Any
    step: Array
    key: Key


@serializable
class StepInfo(NamedTuple):
    """Observations of one step.

    Attributes:
        cost: the batch's cost before the update.
        gradient_norm: the Euclidean norm of the whole gradient; None if it is not observed.
        metrics: each metric's mean over the batch.
    """

    cost: Array
    gradient_norm: Array | None
    metrics: dict[str, Array]


def initial_state(model: Layer, optimizer: Optimizer, key: Key, shape: Shape) -> TrainState:
    """Return the state before the first step.

    Args:
        model: any layer.
        optimizer: its ``init`` makes the optimizer's state.
        key: a JAX random key, the root of the initial parameters and of training.
        shape: one example's, without the batch axis.
    """
    init_key, train_key = jax.random.split(key)
    params, _ = require_layer("initial_state", model).init(init_key, shape)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), train_key)


def _count(x: Any) -> int:
    """Return the number of examples in an array, or in each of several."""
    return int(jax.tree.leaves(x)[0].shape[0])


def _rows(examples: Any, index: Any) -> Any:
    """Index the examples of an array, or of each of several."""
    return jax.tree.map(lambda array: array[index], examples)


def make_step(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    metrics: Mapping[str, Metric] | None = None,
    *,
    gradient_norm: bool = True,
) -> Callable[[TrainState, Any, Array], tuple[TrainState, StepInfo]]:
    """Return a function that takes one step: forward, backward, update.

    Args:
        model: any layer.
        loss: a pair of value and delta.
        optimizer: turns gradients into updates.
        metrics: further observations by name, ``(output, target) -> (B,)``.
        gradient_norm: observe the gradient's norm. It costs one more pass over all gradients, 3 to
            5 % of a dense network's step.

    Returns:
        A pure function ``(state, x (B, ...), y (B, ...)) -> (state, info)``; jit it, donating the
        state.
    """
    require_layer("make_step", model)
    require_loss("make_step", loss)
    run = backpropagate(model, loss)

    def step(state: TrainState, x: Any, y: Array) -> tuple[TrainState, StepInfo]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, _LAYERS), state.step)
        result = run(state.params, x, y, key)
        grads = delay_until_backward_done(result.grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = apply_updates(state.params, updates)
        labelled = labelled_examples(loss, y)
        means = {
            name: mean_over_labelled(metric(result.output, y), labelled)
            for name, metric in (metrics or {}).items()
        }
        norm = global_norm(result.grads) if gradient_norm else None
        new_state = TrainState(params, opt_state, state.step + 1, state.key)
        return new_state, StepInfo(result.cost, norm, means)

    return step


def example_order(key: Key, epoch: Array | int, examples: int) -> Array:
    """Return the order of the examples in an epoch, a permutation of ``arange(examples)``.

    Args:
        key: that of the training state.
        epoch: counted from 0.
        examples: how many there are.
    """
    shuffling_key = jax.random.fold_in(jax.random.fold_in(key, _SHUFFLING), epoch)
    return jax.random.permutation(shuffling_key, examples)


def make_steps(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    *,
    batch_size: int,
    max_steps: int,
    shuffle: bool = True,
    metrics: Mapping[str, Metric] | None = None,
    augment: Augmentation | None = None,
    gradient_norm: bool = True,
) -> Callable[[TrainState, Any, Array, Any], tuple[TrainState, StepInfo, Array]]:
    """Return a function that takes many steps of mini-batch descent as one program.

    Each epoch visits the examples in an order of its own and takes ``examples // batch_size``
    steps; the few examples that remain differ from epoch to epoch. ``batch_size=1`` is the
    textbook's per-example descent, ``batch_size=len(x)`` full-batch descent.

    Args:
        model: any layer.
        loss: a pair of value and delta.
        optimizer: turns gradients into updates.
        batch_size: examples per step.
        max_steps: the largest number of steps of one call: the length of the returned history.
        shuffle: draw a new order for each epoch; else the examples are taken in their order.
        augment: ``(key, x (B, ...)) -> x``, changes the examples of each step; see
            :mod:`fbp.augmentation`.
        metrics: further observations by name.
        gradient_norm: observe the gradient's norm, see :func:`make_step`.

    Returns:
        A pure function ``(state, x (N, ...), y (N, ...), count) -> (state, history, taken)``.
        ``count`` (at most ``max_steps``) may be traced: one compiled program serves any number of
        steps. ``history`` is a StepInfo of arrays ``(max_steps,)``, of which the first ``taken``
        are filled. It stops early, ``taken < count``, after a step whose cost is not finite. jit it
        with ``donate_argnums=0``; the input state, its key included, is then invalid; copy what you
        still need.

    Raises:
        InputError: when called, if there are fewer examples than ``batch_size``.
    """
    require_layer("make_steps", model)
    require_loss("make_steps", loss)
    # jitted inline, it is traced once for the history's shapes and the loop, and leaves no call
    step = jax.jit(
        make_step(model, loss, optimizer, metrics, gradient_norm=gradient_norm), inline=True
    )

    def steps(
        state: TrainState, x: Any, y: Array, count: Any
    ) -> tuple[TrainState, StepInfo, Array]:
        x, y = jax.tree.map(jnp.asarray, (x, y))
        _check_batch_size(batch_size, _count(x))
        batches = _Batches(x, y, batch_size, shuffle, augment)
        return _take(step, batches, state, jnp.minimum(count, max_steps), max_steps)

    return steps


def _check_batch_size(batch_size: int, examples: int) -> None:
    if not 1 <= batch_size <= examples:
        raise InputError(
            f"batch_size must lie between 1 and the {examples} training examples, got {batch_size}"
        )


class _Batches(NamedTuple):
    """Training examples, and how a step's batch is taken from them."""

    x: Any
    y: Any
    batch_size: int
    shuffle: bool
    augment: Augmentation | None

    @property
    def per_epoch(self) -> int:
        """Steps per epoch."""
        return _count(self.x) // self.batch_size

    def order(self, key: Key, epoch: Array) -> Array | None:
        """Return the order of the examples in an epoch; None for their own order."""
        return example_order(key, epoch, _count(self.x)) if self.shuffle else None

    def batch(self, order: Array | None, state: TrainState) -> tuple[Any, Any]:
        """Return the inputs and targets of the step that follows ``state``."""
        start, size = state.step % self.per_epoch * self.batch_size, self.batch_size
        examples = self.x, self.y
        if order is None:
            x, y = jax.tree.map(
                lambda array: jax.lax.dynamic_slice_in_dim(array, start, size), examples
            )
        else:
            x, y = _rows(examples, jax.lax.dynamic_slice_in_dim(order, start, size))
        if self.augment:
            key = jax.random.fold_in(jax.random.fold_in(state.key, _AUGMENTATION), state.step)
            x = self.augment(key, x)
        return x, y


def _take(
    step: Callable[[TrainState, Any, Array], tuple[TrainState, StepInfo]],
    batches: _Batches,
    state: TrainState,
    count: Array,
    max_steps: int,
) -> tuple[TrainState, StepInfo, Array]:
    """Take ``count`` steps; see :func:`make_steps`."""
    key, per_epoch = state.key, batches.per_epoch

    def take_epoch(carry: Any) -> Any:
        """Take the steps up to the end of an epoch, or of the call."""
        epoch = carry[0].step // per_epoch
        order = batches.order(key, epoch)

        def proceed(carry: Any) -> Array:
            state, _, taken, finite = carry
            return (taken < count) & finite & (state.step // per_epoch == epoch)

        return jax.lax.while_loop(proceed, lambda carry: next_step(order, *carry), carry)

    def next_step(
        order: Array | None, state: TrainState, history: StepInfo, taken: Array, _: Array
    ) -> Any:
        state, info = step(state, *batches.batch(order, state))
        history = jax.tree.map(
            lambda column, value: jax.lax.dynamic_update_index_in_dim(column, value, taken, 0),
            history,
            info,
        )
        return state, history, taken + 1, jnp.isfinite(info.cost)

    first_rows = slice(batches.batch_size)
    shapes = jax.eval_shape(step, state, *_rows((batches.x, batches.y), first_rows))[1]
    history = jax.tree.map(lambda leaf: jnp.zeros((max_steps,), leaf.dtype), shapes)
    carry = (state, history, jnp.zeros((), jnp.int32), jnp.array(True))
    state, history, taken, _ = jax.lax.while_loop(
        lambda carry: (carry[2] < count) & carry[3], take_epoch, carry
    )
    return state, history, taken


def make_evaluate(
    model: Layer, loss: Loss, *, batch_size: int, metrics: Mapping[str, Metric] | None = None
) -> Callable[[Params, Any, Array], dict[str, Array]]:
    """Return a function for the mean cost and metrics over a whole data set, batch by batch.

    Every example that has a target counts the same. The last batch may be short: it is computed at
    its own size, neither dropped nor padded.

    Args:
        model: any layer.
        loss: a pair of value and delta.
        batch_size: examples at a time.
        metrics: further measures by name, ``(output, target) -> (B,)``.

    Returns:
        A pure function ``(params, x (N, ...), y (N, ...)) -> {"loss": ..., metric: ...}``; jit it.

    Raises:
        InputError: when called without an example.
    """
    require_layer("make_evaluate", model)
    require_loss("make_evaluate", loss)

    def evaluate(params: Params, x: Any, y: Array) -> dict[str, Array]:
        def sums_and_count(x: Any, y: Array) -> tuple[dict[str, Array], Any]:
            output, _ = model.forward(params, x)
            values = {name: metric(output, y) for name, metric in (metrics or {}).items()}
            labelled = labelled_examples(loss, y)
            if labelled is not None:
                values = {name: jnp.where(labelled, value, 0) for name, value in values.items()}
            values["loss"] = loss.value(output, y)  # 0 where there is no target
            count = _count(x) if labelled is None else labelled.sum()
            return {name: value.sum() for name, value in values.items()}, count

        stacked, rest = _map_batches(
            lambda batch: sums_and_count(*batch), (x, y), batch_size, "evaluate"
        )
        parts = [] if stacked is None else [jax.tree.map(lambda s: s.sum(axis=0), stacked)]
        parts += [] if rest is None else [rest]
        totals, count = jax.tree.map(lambda *values: sum(values), *parts)
        examples = _count(x)
        share = count / examples  # exactly 1 if all have a target: then no bit moves
        return {name: total / examples / share for name, total in totals.items()}

    return evaluate


def make_predict(model: Layer, *, batch_size: int) -> Callable[[Params, Any], Any]:
    """Return a function for the model's output on a whole data set, batch by batch.

    Args:
        model: any layer.
        batch_size: examples at a time; the last batch is computed at its own size.

    Returns:
        A pure function ``(params, x (N, ...)) -> output (N, ...)``; jit it.

    Raises:
        InputError: when called without an example.
    """
    require_layer("make_predict", model)

    def predict(params: Params, x: Any) -> Any:
        def output(batch: Any) -> Any:
            return model.forward(params, batch)[0]

        stacked, rest = _map_batches(output, x, batch_size, "predict")
        outputs = [] if rest is None else [rest]
        if stacked is not None:
            flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), stacked)
            outputs.insert(0, flat)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)

    return predict


def _map_batches(
    f: Callable[[Any], Any], examples: Any, batch_size: int, name: str
) -> tuple[Any, Any]:
    """Apply ``f`` to each full batch, and to the short one that may remain.

    Args:
        f: a function of one batch.
        examples: a pytree of arrays (N, ...).
        batch_size: examples at a time.
        name: the beginning of an error message.

    Returns:
        The results of the full batches, stacked, or None; that of the short batch, or None.
    """
    count = _count(examples)
    if not count:
        raise InputError(f"{name}: expected at least one example, got none")
    full = count // batch_size * batch_size
    stacked = rest = None
    if full:
        batches = jax.tree.map(lambda a: a[:full].reshape(-1, batch_size, *a.shape[1:]), examples)
        stacked = jax.lax.map(f, batches)
    if full < count:
        rest = f(_rows(examples, slice(full, None)))
    return stacked, rest


def has_statistics(model: Layer) -> bool:
    """Return whether a layer of the model has statistics to fill, such as ``batch_norm``."""
    require_layer("has_statistics", model)
    return any(place.layer.statistics is not None for place in positions(model))


def make_fill_statistics(model: Layer, *, batch_size: int) -> Callable[[Params, Any, Key], Params]:
    """Return a function that fills the population statistics of a model's layers from data.

    Fill them before evaluating a model with a ``batch_norm``. Each batch passes through the model
    as in training, and the input of each such layer is measured. Examples beyond the last full
    batch do not count.

    Args:
        model: any layer.
        batch_size: examples at a time.

    Returns:
        A pure function ``(params, x (N, ...), key) -> params`` with new statistics, all else
        unchanged. ``key`` is for layers that draw random numbers. jit it.

    Raises:
        InputError: when called with fewer examples than ``batch_size``.
    """
    require_layer("make_fill_statistics", model)
    places = {place.path: place for place in positions(model) if place.layer.statistics}

    def measure(
        place: Position, params: Params, x: Any, y: Any, cache: Cache, key: Key | None
    ) -> dict[str, Array]:
        assert place.layer.statistics is not None
        return place.layer.statistics.measure(params, x)

    run = observe_forward(model, measure, list(places))

    def fill(params: Params, x: Any, key: Key) -> Params:
        batches = _count(x) // batch_size
        if not batches:
            raise InputError(
                f"fill_statistics: expected at least batch_size = {batch_size} examples, got "
                f"{_count(x)}"
            )
        rows = jax.tree.map(
            lambda a: a[: batches * batch_size].reshape(batches, batch_size, *a.shape[1:]), x
        )
        keys = jax.random.split(key, batches)
        measured = jax.lax.map(lambda batch: run(params, batch[0], key=batch[1])[1], (rows, keys))
        for place, own, path in layer_params(model, params):
            statistics = place.layer.statistics
            if statistics is not None:
                new = statistics.combine(measured[place.path])
                new = {name: value.astype(own[name].dtype) for name, value in new.items()}
                params = with_entry(params, path, {**own, **new})
        return params

    return fill
