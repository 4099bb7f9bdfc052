"""Measure single layers: repeated ones, and those whose backward pass costs more on paper."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fbp
from fbp import blocks, layers, losses

ROUNDS, TURNS = 9, 8


def _numbers(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _in_turns(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return medians in milliseconds; each function runs once before it is timed."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def repeat() -> None:
    """32 blocks by repeat, and by repeat of recompute, divided by jax.grad of repeat.

    The last column is the compile time of 64 blocks divided by that of 2.
    """
    cases = {
        "norm, dense 64-256-64, gelu": (
            fbp.residual(layers.layer_norm(), layers.dense(256), layers.gelu(), layers.dense(64)),
            (64,),
            128,
        ),
        "transformer, width 64, T 32": (blocks.transformer_block(64, 4, causal=True), (32, 64), 16),
        "dense 128, tanh": (fbp.residual(layers.dense(128), layers.tanh()), (128,), 128),
    }
    print(
        "| block | bytes / jax.grad's | scratch / jax.grad's "
        "| with recompute: scratch / jax.grad's | compile 64 / 2 |"
    )
    print("|---|---|---|---|---|")
    for name, (block, shape, batch) in cases.items():
        x, y = _numbers(batch, *shape), _numbers(batch, *shape, seed=1)

        def compiled(
            model: fbp.Layer, by_hand: bool = True, x: Any = x, y: Any = y
        ) -> tuple[float, float, float]:
            def cost(params: Any, x: Any, y: Any) -> Any:
                return losses.quadratic.value(model.forward(params, x)[0], y).mean()

            params, _ = model.init(jax.random.key(0), x.shape[1:])
            gradient = (
                fbp.value_and_grad(model, losses.quadratic) if by_hand else jax.value_and_grad(cost)
            )
            began = time.perf_counter()
            done = jax.jit(gradient).lower(params, x, y).compile()
            seconds = time.perf_counter() - began
            return (
                done.cost_analysis()["bytes accessed"],
                done.memory_analysis().temp_size_in_bytes,
                seconds,
            )

        plain, frugal = fbp.repeat(block, 32), fbp.repeat(fbp.recompute(block), 32)
        ours, recomputed, theirs = compiled(plain), compiled(frugal), compiled(plain, by_hand=False)
        few, many = (
            statistics.median(compiled(fbp.repeat(block, n))[2] for _ in range(5)) for n in (2, 64)
        )
        print(
            f"| {name} | {ours[0] / theirs[0]:.2f} | {ours[1] / theirs[1]:.2f} "
            f"| {recomputed[1] / theirs[1]:.2f} | {many / few:.2f} |"
        )


def exceptions() -> None:
    """Layers whose FLOPs, bytes or scratch memory exceed autodiff's.

    Measured is the time of forward and backward pass in a scan.
    """
    picture = (64, 14, 14, 32)
    cases: dict[str, tuple[fbp.Layer, tuple[int, ...]]] = {
        "conv1d(64, 5)": (layers.conv1d(64, 5), (64, 64, 32)),
        "conv2d(64, 3)": (layers.conv2d(64, 3), picture),
        "conv2d(64, 3, stride=2)": (layers.conv2d(64, 3, stride=2), picture),
        "conv2d(32, 3, groups=32)": (layers.conv2d(32, 3, groups=32), picture),
        "conv2d(32, 5) of 1 channel": (layers.conv2d(32, 5), (64, 28, 28, 1)),
        "conv_transpose2d(16, 3, stride=2)": (layers.conv_transpose2d(16, 3, stride=2), picture),
        "max_pool(2)": (layers.max_pool(2), picture),
        "max_pool(3, stride=2, SAME)": (layers.max_pool(3, stride=2, padding="SAME"), picture),
        "rms_norm": (layers.rms_norm(), (16, 64, 128)),
        "rnn(128)": (layers.rnn(128), (32, 32, 64)),
        "gru(128)": (layers.gru(128), (32, 32, 64)),
    }
    print("| layer | fbp, ms | jax.grad, ms | ratio |\n|---|---|---|---|")
    for name, (layer, shape) in cases.items():
        params, out_shape = layer.init(jax.random.key(0), shape[1:])
        x, delta = _numbers(TURNS, *shape), _numbers(TURNS, shape[0], *out_shape, seed=1)

        def ours(params: Any, x: Any, delta: Any, layer: fbp.Layer = layer) -> Any:
            _, cache = layer.forward(params, x)
            return layer.backward(params, cache, delta)

        def autodiff(params: Any, x: Any, delta: Any, layer: fbp.Layer = layer) -> Any:
            grads, input_delta = jax.vjp(lambda p, x: layer.forward(p, x)[0], params, x)[1](delta)
            return input_delta, grads

        def scanned(
            passes: Callable[..., Any], params: Any = params, x: Any = x, delta: Any = delta
        ) -> Callable[[], Any]:
            def turn(params: Any, x_and_delta: Any) -> Any:
                input_delta, grads = passes(params, *x_and_delta)
                stepped = jax.tree.map(lambda p, g: p - 1e-6 * g, params, grads)
                return stepped, input_delta  # written, as for a layer before

            run = jax.jit(lambda params, x, delta: jax.lax.scan(turn, params, (x, delta)))
            return lambda: jax.block_until_ready(run(params, x, delta))

        medians = _in_turns({"fbp": scanned(ours), "jax.grad": scanned(autodiff)})
        print(
            f"| {name} | {medians['fbp'] / TURNS:.2f} | {medians['jax.grad'] / TURNS:.2f} | "
            f"{medians['fbp'] / medians['jax.grad']:.2f} |"
        )


ITEMS = {"repeat": repeat, "layers": exceptions}
