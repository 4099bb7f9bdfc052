"""Contestants take turns at the same training work in one process; medians, compile time apart, losses compared.

A work item is a model, a batch for each step, and the same network in PyTorch, if that is installed. All start from the same
weights and take the same steps of Adam. ``jax.grad`` differentiates the forward pass of the very same layers, and its steps run
in one ``lax.scan``, as an expert would write it.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fbp

ROUNDS = 7
Contestant = Callable[[], list[float]]  # takes all steps from the initial weights, returns the cost of each


class Work(NamedTuple):
    """One item.

    Attributes:
        model, loss: fbp's.
        x, y: examples, as many as ``batch * steps``, taken in their order.
        batch: examples in a step.
        torch_model: from fbp's parameters to a module that gives logits.
        learning_rate: Adam's.
    """

    model: fbp.Layer
    loss: fbp.Loss
    x: np.ndarray
    y: np.ndarray
    batch: int
    torch_model: Callable[[Any], Any] | None = None
    learning_rate: float = 1e-3

    @property
    def steps(self) -> int:
        return len(self.x) // self.batch

    def params(self) -> Any:
        shape = self.x.shape[1:]
        return jax.jit(lambda: self.model.init(jax.random.key(0), shape)[0])()


def ours(work: Work) -> Contestant:
    optimizer = fbp.optimizers.adam(work.learning_rate)
    steps = fbp.training.take_steps(
        work.model, work.loss, optimizer, batch_size=work.batch, capacity=work.steps, shuffle=False
    )
    run, x, y = jax.jit(steps, donate_argnums=0), jnp.asarray(work.x), jnp.asarray(work.y)
    initial = work.params()

    def all_steps() -> list[float]:
        params = jax.tree.map(jnp.copy, initial)
        state = fbp.training.TrainState(params, optimizer.init(params), jnp.int32(0), jax.random.key(0))
        return np.asarray(run(state, x, y, work.steps)[1].cost).tolist()

    return all_steps


def autodiff(work: Work) -> Contestant:
    optimizer = fbp.optimizers.adam(work.learning_rate)

    def cost(params: Any, x: Any, y: Any) -> Any:
        return work.loss.value(work.model.forward(params, x, key=jax.random.key(0))[0], y).mean()

    @jax.jit
    def run(params: Any, x: Any, y: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(cost)(params, *batch)
            updates, state = optimizer.update(grads, state, params)
            return (fbp.optimizers.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), (x, y))[1]

    batches = [jnp.asarray(a).reshape(work.steps, work.batch, *a.shape[1:]) for a in (work.x, work.y)]
    initial = work.params()
    return lambda: np.asarray(run(initial, *batches)).tolist()


def torch_eager(work: Work) -> Contestant:
    import torch

    tokens = np.issubdtype(work.x.dtype, np.integer)
    x = torch.from_numpy(work.x.astype(np.int64) if tokens else np.asarray(work.x))
    y = torch.from_numpy(work.y.astype(np.int64))
    initial = jax.tree.map(np.array, work.params())

    def all_steps() -> list[float]:
        model = work.torch_model(initial)  # type: ignore[misc]
        optimizer, costs = torch.optim.Adam(model.parameters(), lr=work.learning_rate), []
        for first in range(0, len(x), work.batch):
            rows = slice(first, first + work.batch)
            logits = model(x[rows])
            cost = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), y[rows].reshape(-1))
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
            costs.append(cost.detach())
        return torch.stack(costs).tolist()

    return all_steps


def contest(work: Work, only: tuple[str, ...] = ()) -> dict[str, float]:
    """Print a table; returns the medians in seconds by contestant."""
    made: dict[str, Contestant] = {"fbp": ours(work), "jax.grad": autodiff(work)}
    if work.torch_model and importlib.util.find_spec("torch"):
        made["PyTorch eager"] = torch_eager(work)
    elif work.torch_model:
        print("PyTorch left out: not installed (.venv/bin/pip install --group peers)\n")
    made = {name: contestant for name, contestant in made.items() if not only or name in only}
    costs, first, seconds = {}, {}, {name: [] for name in made}
    for name, contestant in made.items():
        began = time.perf_counter()
        costs[name] = contestant()
        first[name] = time.perf_counter() - began
    for _ in range(ROUNDS):
        for name, contestant in made.items():
            began = time.perf_counter()
            contestant()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print("| contestant | ms a step (median) | spread | time of fbp / its time | first call, s | last cost |")
    print("|---|---|---|---|---|---|")
    for name, times in seconds.items():
        per_step = [1e3 * t / work.steps for t in times]
        apart = np.abs(np.subtract(costs[name], costs["fbp"])).max() if "fbp" in costs else 0
        verdict = "" if apart < 0.02 * abs(costs["fbp"][0]) else f" DISAGREES by {apart:.3g}"
        print(
            f"| {name} | {statistics.median(per_step):.2f} | {min(per_step):.2f}-{max(per_step):.2f} | "
            f"{medians.get('fbp', np.nan) / medians[name]:.2f} | {first[name]:.1f} | {costs[name][-1]:.4f}{verdict} |"
        )
    return medians
