"""Measure how a training step grows with depth, width, batch and length.

Measured are its time, its scratch memory and the time to compile it.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fbp
from benchmarks.data import numbers, tokens
from fbp import layers, losses, models

# A size is measured at least once, for at most so many seconds and so many times.
MAX_SECONDS, MAX_ROUNDS = 2.0, 30


class Sweep(NamedTuple):
    """One axis: its name, the sizes, and a function from a size to model, loss, x and y."""

    axis: str
    sizes: tuple[int, ...]
    make: Callable[[int], tuple[fbp.Layer, fbp.Loss, Any, Any]]


def _powers(smallest: int, largest: int) -> tuple[int, ...]:
    return tuple(2**i for i in range(smallest.bit_length() - 1, largest.bit_length()))


def _dense(width: int, batch: int, depth: int) -> tuple[fbp.Layer, fbp.Loss, Any, Any]:
    model = fbp.chain(
        *[layer for _ in range(depth) for layer in (layers.dense(width), layers.relu())]
    )
    return model, losses.mean_squared_error, numbers(batch, width), numbers(batch, width, seed=1)


def _repeated(depth: int) -> tuple[fbp.Layer, fbp.Loss, Any, Any]:
    block = fbp.residual(layers.dense(256), layers.relu())
    return (
        fbp.repeat(block, depth),
        losses.mean_squared_error,
        numbers(128, 256),
        numbers(128, 256, seed=1),
    )


def _lstm(length: int) -> tuple[fbp.Layer, fbp.Loss, Any, Any]:
    model = models.lstm(65, (128,), vocabulary=65, sequence=True)
    return model, losses.softmax_cross_entropy, *tokens(8, length)


def _attention(length: int) -> tuple[fbp.Layer, fbp.Loss, Any, Any]:
    x, y = numbers(1, length, 64), numbers(1, length, 64, seed=1)
    return fbp.residual(layers.attention(2, causal=True)), losses.mean_squared_error, x, y


def _chained(depth: int) -> tuple[fbp.Layer, fbp.Loss, Any, Any]:
    blocks = [fbp.residual(layers.dense(256), layers.relu()) for _ in range(depth)]
    return (
        fbp.chain(*blocks),
        losses.mean_squared_error,
        numbers(128, 256),
        numbers(128, 256, seed=1),
    )


SWEEPS = (
    Sweep("depth: residual blocks of width 256, chained", _powers(2, 128), _chained),
    Sweep("depth: the same by repeat", _powers(2, 128), _repeated),
    Sweep("width: 3 dense layers, batch 128", _powers(64, 4096), lambda n: _dense(n, 128, 3)),
    Sweep("batch: 3 dense layers of width 512", _powers(1, 4096), lambda n: _dense(512, n, 3)),
    Sweep("T: an LSTM of 128 units, batch 8", _powers(16, 4096), _lstm),
    Sweep("T: causal attention, width 64, 2 heads", _powers(16, 4096), _attention),
)


def prepare(sweep: Sweep, size: int, by_hand: bool) -> tuple[Callable[[], float], float, float]:
    """Compile a step of SGD.

    Args:
        sweep: the axis.
        size: the size on it.
        by_hand: whether fbp computes the gradient, or jax.grad.

    Returns:
        A function that takes a step and returns its seconds; bytes of scratch memory; seconds to
        compile.
    """
    model, loss, x, y = sweep.make(size)
    params = jax.jit(lambda key: model.init(key, x.shape[1:])[0])(jax.random.key(0))
    x, y = jnp.asarray(x), jnp.asarray(y)

    def cost(params: Any, x: Any, y: Any) -> Any:
        return loss.value(model.forward(params, x)[0], y).mean()

    gradient = fbp.value_and_grad(model, loss) if by_hand else jax.value_and_grad(cost)

    def step(params: Any, x: Any, y: Any) -> Any:
        value, grads = gradient(params, x, y)
        return jax.tree.map(lambda p, g: p - 1e-4 * g, params, grads), value

    lowered = jax.jit(step, donate_argnums=0).lower(params, x, y)
    began = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - began

    def take() -> float:
        nonlocal params
        began = time.perf_counter()
        params, _ = jax.block_until_ready(compiled(params, x, y))
        return time.perf_counter() - began

    take()
    return take, compiled.memory_analysis().temp_size_in_bytes, compile_seconds


def measure(sweep: Sweep, size: int) -> dict[str, tuple[float, float, float]]:
    """Return seconds of a step, bytes of scratch memory and seconds to compile, by contestant.

    The contestants take their steps in turn.
    """
    ready = {"fbp": prepare(sweep, size, True), "jax.grad": prepare(sweep, size, False)}
    times: dict[str, list[float]] = {name: [] for name in ready}
    while not times["fbp"] or (
        len(times["fbp"]) < MAX_ROUNDS and sum(map(sum, times.values())) < MAX_SECONDS
    ):
        for name, (take, _, _) in ready.items():
            times[name].append(take())
    return {name: (statistics.median(times[name]), *costs) for name, (_, *costs) in ready.items()}


def slope(sizes: Any, values: Any) -> float:
    """Return the exponent of growth over the upper half of the sizes, by least squares on logs."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(np.maximum(values[half:], 1e-9)), 1)[0])


def main(folder: Path) -> None:
    """Each axis alone. The slope is the exponent of growth over the upper half of its sizes."""
    measured: dict[str, dict[str, np.ndarray]] = {}
    print(
        "| axis | contestant | time: first to last, ms | slope | scratch: last, MB | slope "
        "| compile: last, s | slope |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for sweep in SWEEPS:
        points = [measure(sweep, size) for size in sweep.sizes]
        measured[sweep.axis] = {
            name: np.array([point[name] for point in points]) for name in points[0]
        }
        for name, rows in measured[sweep.axis].items():
            slopes = [slope(sweep.sizes, rows[:, i]) for i in range(3)]
            print(
                f"| {sweep.axis}, {sweep.sizes[0]} to {sweep.sizes[-1]} | {name} "
                f"| {1e3 * rows[0, 0]:.3g} to {1e3 * rows[-1, 0]:.4g} | {slopes[0]:.2f} "
                f"| {rows[-1, 1] / 1e6:.4g} | {slopes[1]:.2f} "
                f"| {rows[-1, 2]:.2f} | {slopes[2]:.2f} |",
                flush=True,
            )
    draw(measured, folder / "growth.png")
    print(f"\n{folder / 'growth.png'}")


def draw(measured: dict[str, dict[str, np.ndarray]], file: Path) -> None:
    """Draw a column for each axis and a row for each quantity, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    file.parent.mkdir(parents=True, exist_ok=True)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    quantities = [
        ("time of a step, ms", 1e3),
        ("scratch memory, MB", 1e-6),
        ("compile time, s", 1.0),
    ]
    figure, grid = plt.subplots(
        3, len(measured), figsize=(3.1 * len(measured), 7.5), layout="constrained", sharex="col"
    )
    for column, (sweep, rows) in zip(
        grid.T, ((s, measured[s.axis]) for s in SWEEPS if s.axis in measured), strict=True
    ):
        for i, (axes, (label, factor)) in enumerate(zip(column, quantities, strict=True)):
            for name, style in (("jax.grad", "s--"), ("fbp", "o-")):
                values = rows[name][:, i] * factor
                exponent = slope(sweep.sizes, rows[name][:, i])
                axes.loglog(
                    sweep.sizes,
                    np.where(values > 0, values, np.nan),
                    style,
                    markersize=3.5,
                    linewidth=1.2,
                    label=f"{name}, slope {exponent:.2f}",
                )
            axes.legend(fontsize=7, frameon=False)
            axes.grid(alpha=0.3)
            axes.yaxis.set_major_formatter(plain)
            axes.yaxis.set_minor_formatter(
                plain if axes.get_ylim()[1] < 10 * axes.get_ylim()[0] else NullFormatter()
            )
            if axes in grid[:, 0]:
                axes.set_ylabel(label)
        kind, _, description = sweep.axis.partition(": ")
        column[0].set_title(description.replace(", ", ",\n", 1), fontsize=9)
        column[-1].set_xscale("log", base=2)
        column[-1].set_xlabel(kind)
    figure.savefig(file, dpi=150)
    plt.close(figure)
