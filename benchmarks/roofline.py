"""Measure which share of the machine's own matrix-product rate a training step reaches."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.contestants import ours
from benchmarks.works import WORKS

ROUNDS = 7
SIZES = (1024, 2048, 4096)


def _seconds(run: Any, *arguments: Any) -> float:
    jax.block_until_ready(run(*arguments))
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def gemm_rate() -> dict[str, float]:
    """Return FLOP/s of ``jnp.dot`` alone: of squares, and of products in the work `wide`."""
    rates = {}
    for n in SIZES:
        a = jax.random.normal(jax.random.key(0), (n, n))
        rates[f"{n} x {n} x {n}"] = 2 * n**3 / _seconds(jax.jit(jnp.dot), a, a)
    x, w, delta = (
        jax.random.normal(jax.random.key(i), s)
        for i, s in enumerate([(256, 4096), (4096, 4096), (256, 4096)])
    )
    products = {
        "x w": (lambda x, w: x @ w, x, w),
        "delta w^T": (lambda d, w: d @ w.T, delta, w),
        "x^T delta": (lambda x, d: x.T @ d, x, delta),
    }
    for name, (product, left, right) in products.items():
        steps = 10

        def many(left: Any, right: Any, product: Any = product, steps: int = steps) -> Any:
            """Loop over products that depend on the previous one, so that its buffer is reused."""

            def turn(_: int, carry: Any) -> Any:
                left, out = carry
                return left.at[0, 0].add(1e-9 * out[0, 0]), product(left, right)

            out = jnp.zeros(jax.eval_shape(product, left, right).shape)
            return jax.lax.fori_loop(0, steps, turn, (left, out))[1]

        rates[f"256 x 4096 x 4096: {name}"] = (
            2 * 256 * 4096**2 * steps / _seconds(jax.jit(many), left, right)
        )
    return rates


def products_of(params: Any, batch: int) -> int:
    """Return the FLOPs of a dense network's products in a step.

    There are three for each layer, except for the input delta of the lowest one.
    """
    sizes = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    return sum(3 * 2 * batch * i * o for i, o in sizes) - 2 * batch * sizes[0][0] * sizes[0][1]


def main() -> None:
    """The rate of the products in a whole training step, divided by the best of `jnp.dot` alone."""
    rates = gemm_rate()
    print("| product alone | GFLOP/s |\n|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate / 1e9:.0f} |")
    mixed = [rate for name, rate in rates.items() if ":" in name]
    three = len(mixed) / sum(1 / rate for rate in mixed)
    best = max(rates.values())
    print(f"| those three in turn | {three / 1e9:.0f} |")
    print(
        "\n| training step | GFLOP/s of its products | share of the three in turn "
        "| share of the best |\n|---|---|---|---|"
    )
    for name in ("wide", "mlp"):
        work = WORKS[name]
        contestant = ours.prepare(work)
        contestant.train(contestant.start())
        times = []
        for _ in range(ROUNDS):
            state = contestant.start()
            began = time.perf_counter()
            steps = len(contestant.train(state))
            times.append((time.perf_counter() - began) / steps)
        flops = products_of(work.initial(), work.batch)
        rate = flops / statistics.median(times)
        print(f"| {name} | {rate / 1e9:.0f} | {rate / three:.2f} | {rate / best:.2f} |")
