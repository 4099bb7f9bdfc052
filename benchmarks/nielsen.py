"""One epoch of 784-30-10, sigmoid, quadratic cost, SGD, batch 10, over 12,800 examples, called from Python.

Contestants take turns in one process; medians of the rounds after the first, compile time left out. All start from the same
weights and see the examples in the same order; their losses must agree.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import fbp
from benchmarks.data import pictures
from fbp import layers

EXAMPLES, BATCH, ROUNDS, RATE = 12_800, 10, 6, 3.0
Epoch = Callable[[], float]  # trains one epoch from the initial weights, returns the mean cost of its steps


def _initial() -> tuple[dict, dict]:
    random = np.random.default_rng(0)
    return tuple(
        {"w": random.normal(size=(i, o)).astype(np.float32), "b": random.normal(size=o).astype(np.float32)}
        for i, o in ((784, 30), (30, 10))
    )


MODEL = fbp.chain(layers.dense(30), layers.sigmoid(), layers.dense(10), layers.sigmoid())
OPTIMIZER = fbp.optimizers.sgd(RATE)
SEED = 0


def _params() -> tuple:
    first, second = _initial()
    return jax.tree.map(jnp.array, (first, (), second, ()))


def ours(x: jax.Array, y: jax.Array, order: np.ndarray) -> Epoch:
    steps = fbp.training.take_steps(
        MODEL, fbp.losses.quadratic, OPTIMIZER, batch_size=BATCH, capacity=EXAMPLES // BATCH
    )
    run = jax.jit(steps, donate_argnums=0)

    def epoch() -> float:
        params = _params()
        state = fbp.training.TrainState(params, OPTIMIZER.init(params), jnp.int32(0), jax.random.key(SEED))
        _, history, _ = run(state, x, y, EXAMPLES // BATCH)
        return float(history.cost.mean())

    return epoch


def autodiff_in_one_scan(x: jax.Array, y: jax.Array, order: np.ndarray) -> Epoch:
    def cost(params: tuple, x: jax.Array, y: jax.Array) -> jax.Array:
        return fbp.losses.quadratic.value(MODEL.forward(params, x)[0], y).mean()

    @jax.jit
    def run(params: tuple, x: jax.Array, y: jax.Array) -> jax.Array:
        def step(params: tuple, rows: jax.Array) -> tuple:
            value, grads = jax.value_and_grad(cost)(params, x[rows], y[rows])
            return jax.tree.map(lambda p, g: p - RATE * g, params, grads), value

        rows = fbp.training.example_order(jax.random.key(SEED), 0, EXAMPLES).reshape(-1, BATCH)
        return jax.lax.scan(step, params, rows)[1].mean()

    return lambda: float(run(_params(), x, y))


def flax_and_optax(x: jax.Array, y: jax.Array, order: np.ndarray) -> Epoch:
    """As the tutorials train: a module, an optimizer object, a jitted step, a Python loop over batches."""
    import optax
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.first, self.second = nnx.Linear(784, 30, rngs=rngs), nnx.Linear(30, 10, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return nnx.sigmoid(self.second(nnx.sigmoid(self.first(x))))

    @nnx.jit
    def step(model: Network, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
        def cost(model: Network) -> jax.Array:
            return 0.5 * ((model(x) - y) ** 2).sum(axis=1).mean()

        value, grads = nnx.value_and_grad(cost)(model)
        optimizer.update(model, grads)
        return value

    host_x, host_y = np.asarray(x), np.asarray(y)

    def epoch() -> float:
        model = Network(nnx.Rngs(0))
        for layer, drawn in zip((model.first, model.second), _initial(), strict=True):
            layer.kernel[...], layer.bias[...] = jnp.asarray(drawn["w"]), jnp.asarray(drawn["b"])
        optimizer = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param)
        costs = [step(model, optimizer, host_x[rows], host_y[rows]) for rows in order.reshape(-1, BATCH)]
        return float(jnp.stack(costs).mean())

    return epoch


def main() -> None:
    x, labels = pictures(EXAMPLES)
    x, y = jnp.asarray(x), jax.nn.one_hot(labels, 10)
    order = np.asarray(fbp.training.example_order(jax.random.key(SEED), 0, EXAMPLES))
    contestants: dict[str, Epoch] = {
        "fbp": ours(x, y, order),
        "jax.grad in one scan": autodiff_in_one_scan(x, y, order),
    }
    if importlib.util.find_spec("flax") and importlib.util.find_spec("optax"):
        contestants["Flax NNX + Optax"] = flax_and_optax(x, y, order)
    else:
        print("Flax NNX + Optax left out: not installed (.venv/bin/pip install --group peers)\n")
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    costs = {}
    for _ in range(ROUNDS):
        for name, epoch in contestants.items():
            began = time.perf_counter()
            costs[name] = epoch()
            seconds[name].append(time.perf_counter() - began)
    print("| contestant | seconds an epoch (median) | spread | time / time of fbp | mean cost |")
    print("|---|---|---|---|---|")
    base = statistics.median(seconds["fbp"][1:])
    for name, times in seconds.items():
        median = statistics.median(times[1:])
        disagree = "" if abs(costs[name] - costs["fbp"]) < 1e-3 * costs["fbp"] else " DISAGREES"
        print(
            f"| {name} | {median:.3f} | {min(times[1:]):.3f}-{max(times[1:]):.3f} | {median / base:.2f} | "
            f"{costs[name]:.5f}{disagree} |"
        )
