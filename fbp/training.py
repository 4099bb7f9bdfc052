"""Training as pure functions: a state, a step, and any number of steps as one program on the device.

The order of the examples and every random number are functions of (key, step) alone, so cutting a run into pieces, or
resuming it, changes nothing: not one bit.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp._backprop import backpropagate, path_of
from fbp._kernels import delay_until_backward_done
from fbp.augmentation import Augmentation
from fbp.errors import InputError
from fbp.layer import (
    STATISTICS,
    Array,
    Cache,
    Grads,
    Key,
    Layer,
    Loss,
    Optimizer,
    Params,
    Shape,
    map_layers,
)
from fbp.layers.normalization import statistics
from fbp.optimizers import apply_updates, global_norm

Metric = Callable[[Array, Array], Array]  # (output, target) -> (B,)

# what the root key is folded with: the order of examples, the layers' own randomness, changes of the examples
_ORDER, _LAYERS, _CHANGES = 0, 1, 2


class TrainState(NamedTuple):
    """All that training carries from step to step.

    Attributes:
        params: the parameters.
        opt_state: the optimizer's state.
        step: how many steps were taken, int32.
        key: the root of every random number in training; it never changes.
    """

    params: Params
    opt_state: Any
    step: Array
    key: Key


class StepInfo(NamedTuple):
    """What is observed at a step.

    Attributes:
        cost: the batch's cost before the update.
        gradient_norm: the Euclidean norm of the whole gradient; None where it is not asked for.
        metrics: each metric's mean over the batch.
    """

    cost: Array
    gradient_norm: Array | None
    metrics: dict[str, Array]


def initial_state(model: Layer, optimizer: Optimizer, key: Key, shape: Shape) -> TrainState:
    """The state before the first step: parameters drawn from ``key`` for examples of ``shape``."""
    init_key, train_key = jax.random.split(key)
    params, _ = model.init(init_key, shape)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), train_key)


def _count(x: Any) -> int:
    """How many examples there are."""
    return int(jax.tree.leaves(x)[0].shape[0])


def _rows(examples: Any, chosen: Any) -> Any:
    """The chosen examples of an array, or of each of several."""
    return jax.tree.map(lambda a: a[chosen], examples)


def make_step(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    metrics: Mapping[str, Metric] | None = None,
    *,
    gradient_norm: bool = True,
) -> Callable[[TrainState, Any, Array], tuple[TrainState, StepInfo]]:
    """One step: forward, backward, update.

    Args:
        metrics: more to observe, by name.
        gradient_norm: observe the gradient's norm: one more pass over all gradients, 3 to 5 % of a dense network's step.

    Returns:
        A pure function ``(state, x (B, ...), y (B, ...)) -> (state, info)``; jit it, donating the state.
    """
    run = backpropagate(model, loss)

    def step(state: TrainState, x: Any, y: Array) -> tuple[TrainState, StepInfo]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, _LAYERS), state.step)
        result = run(state.params, x, y, key)
        updates, opt_state = optimizer.update(
            delay_until_backward_done(result.grads), state.opt_state, state.params
        )
        params = apply_updates(state.params, updates)
        means = {name: metric(result.output, y).mean() for name, metric in (metrics or {}).items()}
        info = StepInfo(result.cost, global_norm(result.grads) if gradient_norm else None, means)
        return TrainState(params, opt_state, state.step + 1, state.key), info

    return step


def example_order(key: Key, epoch: Array | int, examples: int) -> Array:
    """The order of the examples in an epoch, a permutation of ``arange(examples)``; ``key`` is the state's."""
    return jax.random.permutation(
        jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch), examples
    )


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
    """Many steps of mini-batch descent as one program: a chunk, an epoch, or several epochs.

    Each epoch visits the examples in an order of its own and takes ``examples // batch_size`` steps; the few that are left
    over change from epoch to epoch. ``batch_size=1`` is the textbook's per-example descent, ``batch_size=len(x)`` full-batch.

    Args:
        batch_size: examples per step.
        max_steps: the most steps one call may take: the length of the returned history.
        shuffle: draw a new order for each epoch, or take the examples as they lie.
        metrics: more to observe, by name.
        augment: ``(key, x (B, ...)) -> x``, what changes the examples of each step; see :mod:`fbp.augmentation`.
        gradient_norm: observe it, see :func:`make_step`.

    Returns:
        A pure function ``(state, x (N, ...), y (N, ...), count) -> (state, history, taken)``. ``count`` (at most ``max_steps``)
        may be traced: one compiled program serves any number of steps. ``history`` is a StepInfo of arrays ``(max_steps,)``,
        of which the first ``taken`` are filled. It stops early, ``taken < count``, after a step whose cost is not finite.
        jit it with ``donate_argnums=0``; then the state that is given (its key too) is used up, so keep copies of what you
        need of it.

    Raises:
        InputError: where there are fewer examples than ``batch_size``.
    """
    one = make_step(model, loss, optimizer, metrics, gradient_norm=gradient_norm)

    def steps(
        state: TrainState, x: Any, y: Array, count: Any
    ) -> tuple[TrainState, StepInfo, Array]:
        x, y = jax.tree.map(jnp.asarray, (x, y))
        count = jnp.minimum(count, max_steps)
        examples = _count(x)
        if not 1 <= batch_size <= examples:
            raise InputError(
                f"batch_size must lie between 1 and the {examples} training examples, got {batch_size}"
            )
        per_epoch = examples // batch_size

        def epoch(carry: Any) -> Any:
            """The steps up to the end of an epoch, or of the call."""
            number = carry[0].step // per_epoch
            order = example_order(state.key, number, examples) if shuffle else None

            def proceed(carry: Any) -> Array:
                now, _, taken, finite = carry
                return (taken < count) & finite & (now.step // per_epoch == number)

            return jax.lax.while_loop(proceed, lambda carry: next_step(order, *carry), carry)

        def next_step(
            order: Array | None, state: TrainState, history: StepInfo, taken: Array, _: Array
        ) -> Any:
            first = state.step % per_epoch * batch_size
            if order is None:
                batch, targets = jax.tree.map(
                    lambda a: jax.lax.dynamic_slice_in_dim(a, first, batch_size), (x, y)
                )
            else:
                batch, targets = _rows(
                    (x, y), jax.lax.dynamic_slice_in_dim(order, first, batch_size)
                )
            if augment:
                key = jax.random.fold_in(jax.random.fold_in(state.key, _CHANGES), state.step)
                batch = augment(key, batch)
            state, info = one(state, batch, targets)
            history = jax.tree.map(
                lambda column, value: jax.lax.dynamic_update_index_in_dim(column, value, taken, 0),
                history,
                info,
            )
            return state, history, taken + 1, jnp.isfinite(info.cost)

        shapes = jax.eval_shape(one, state, *(_rows(part, slice(batch_size)) for part in (x, y)))[1]
        history = jax.tree.map(lambda leaf: jnp.zeros((max_steps,), leaf.dtype), shapes)
        carry = (state, history, jnp.zeros((), jnp.int32), jnp.array(True))
        state, history, taken, _ = jax.lax.while_loop(
            lambda carry: (carry[2] < count) & carry[3], epoch, carry
        )
        return state, history, taken

    return steps


def make_evaluate(
    model: Layer, loss: Loss, *, batch_size: int, metrics: Mapping[str, Metric] | None = None
) -> Callable[[Params, Any, Array], dict[str, Array]]:
    """The mean cost and metrics over a whole data set, batch by batch, every example counting the same.

    The last batch may be short: it is computed at its own size, neither dropped nor padded.

    Returns:
        A pure function ``(params, x (N, ...), y (N, ...)) -> {"loss": ..., metric: ...}``; jit it.
    """

    def sums(params: Params, x: Any, y: Array) -> dict[str, Array]:
        output, _ = model.forward(params, x)
        values = {"loss": loss.value(output, y)}
        values |= {name: metric(output, y) for name, metric in (metrics or {}).items()}
        return {name: value.sum() for name, value in values.items()}

    def run(params: Params, x: Any, y: Array) -> dict[str, Array]:
        return _mapped_in_batches(lambda x, y: sums(params, x, y), x, y, batch_size=batch_size)

    return run


def _mapped_in_batches(
    f: Callable[[Any, Array], dict[str, Array]], x: Any, y: Array, *, batch_size: int
) -> dict[str, Array]:
    examples = _count(x)
    if not examples:
        raise InputError("evaluate: expected at least one example, got none")
    full = examples // batch_size * batch_size
    totals = []
    if full:
        batches = jax.tree.map(lambda a: a[:full].reshape(-1, batch_size, *a.shape[1:]), (x, y))
        stacked = jax.lax.map(lambda batch: f(*batch), batches)
        totals.append(jax.tree.map(lambda s: s.sum(axis=0), stacked))
    if full < examples:
        totals.append(f(*(_rows(part, slice(full, None)) for part in (x, y))))
    return jax.tree.map(lambda *parts: sum(parts) / examples, *totals)


def make_predict(model: Layer, *, batch_size: int) -> Callable[[Params, Any], Array]:
    """``(params, x (N, ...)) -> output (N, ...)``, batch by batch, the last one at its own size; jit it."""

    def run(params: Params, x: Any) -> Array:
        examples = _count(x)
        if not examples:
            raise InputError("predict: expected at least one example, got none")
        full = examples // batch_size * batch_size
        outputs = []
        if full:
            batches = jax.tree.map(lambda a: a[:full].reshape(-1, batch_size, *a.shape[1:]), x)
            mapped = jax.lax.map(lambda batch: model.forward(params, batch)[0], batches)
            outputs.append(jax.tree.map(lambda a: a.reshape(full, *a.shape[2:]), mapped))
        if full < examples:
            outputs.append(model.forward(params, _rows(x, slice(full, None)))[0])
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)

    return run


def has_statistics(model: Layer, shape: Shape) -> bool:
    """Whether some of the model's parameters are statistics of data (see ``batch_norm``)."""
    params = jax.eval_shape(lambda key: model.init(key, shape)[0], jax.random.key(0))
    return any(
        path_of(keys).split("/")[-1] in STATISTICS
        for keys, _ in jax.tree_util.tree_leaves_with_path(params)
    )


def make_fill_statistics(model: Layer, *, batch_size: int) -> Callable[[Params, Any, Key], Params]:
    """Fill the population statistics of every ``batch_norm`` from data; do so before evaluating such a model.

    Each batch passes through the model as in training, and each normalization's input is measured. The population's
    variance is the mean of the batches' variances and the variance of their means. Examples beyond the last whole batch
    do not count.

    Returns:
        A pure function ``(params, x (N, ...), key) -> params`` with new ``mean`` and ``variance``, all else unchanged.
        ``key`` is for layers that draw random numbers. jit it.
    """

    reached: set[str] = set()

    def measuring(path: str, layer: Layer) -> Layer:
        if layer.name != "batch_norm":
            return layer
        reached.add("" if path == "model" else path)

        def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
            y, cache = layer.forward(params, x, key=key)
            return y, (cache, statistics(x))

        def backward(params: Params, cache: Cache, delta: Array) -> tuple[Any, Grads]:
            layer_cache, (mean, variance) = cache
            input_delta, grads = layer.backward(params, layer_cache, delta)
            return input_delta, grads | {
                "mean": mean,
                "variance": variance,
            }  # where they stand among the parameters

        return layer._replace(forward=forward, backward=backward)

    measured = map_layers(measuring, model)

    def of_batch(params: Params, x: Any, key: Key) -> Grads:
        y, cache = measured.forward(params, x, key=key)
        return measured.backward(params, cache, jax.tree.map(jnp.zeros_like, y))[1]

    def filled(params: Params, x: Any, key: Key) -> Params:
        batches = _count(x) // batch_size
        if not batches:
            raise InputError(
                f"make_fill_statistics: expected at least batch_size = {batch_size} examples, got {_count(x)}"
            )
        rows = jax.tree.map(
            lambda a: a[: batches * batch_size].reshape(batches, batch_size, *a.shape[1:]), x
        )
        keys = jax.random.split(key, batches)
        found = jax.lax.map(lambda batch: of_batch(params, *batch), (rows, keys))
        flatten_by_path = {
            path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(found)
        }

        def new(keys: Any, old: Array) -> Array:
            path = path_of(keys)
            layer, _, name = path.rpartition("/")
            if name in STATISTICS and layer not in reached:
                raise InputError(
                    f"make_fill_statistics: {path!r} stands in a layer whose parts cannot be reached"
                )
            if name == "mean":
                return flatten_by_path[path].mean(axis=0).astype(old.dtype)
            if name == "variance":
                means = flatten_by_path[f"{layer}/mean" if layer else "mean"]
                return (flatten_by_path[path].mean(axis=0) + means.var(axis=0)).astype(old.dtype)
            return old

        return jax.tree_util.tree_map_with_path(new, params)

    return filled
