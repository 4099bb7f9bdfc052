"""Measure how long a checkpoint of 1 GB of parameters blocks the training loop.

The loop's call only hands the arrays to a thread. On a CPU the thread reads them in place. The copy
of the same bytes that is timed too is the least that an accelerator's memory would need.
"""

import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fbp.experiment.rundir.checkpoints import Checkpoints, files, read
from fbp.experiment.rundir.journal import Journal

GIGABYTE = 2**30
ROUNDS = 3


def main() -> None:
    params = {f"layer{i}": jnp.full((GIGABYTE // 4 // 8,), float(i), jnp.float32) for i in range(8)}
    jax.block_until_ready(params)
    step = jax.jit(lambda x: jnp.tanh(x @ x))
    x = jnp.ones((500, 500)) / 500
    step(x).block_until_ready()
    calls, copies, whole, alone, beside = [], [], [], [], []

    def steps() -> float:
        began = time.perf_counter()
        for _ in range(50):
            step(x).block_until_ready()
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as name:
        states = Checkpoints(Path(name), 1, Journal(Path(name)))
        for i in range(ROUNDS):
            began = time.perf_counter()
            jax.tree.map(lambda leaf: np.array(leaf, copy=True), params)
            copies.append(time.perf_counter() - began)
            alone.append(steps())
            began = time.perf_counter()
            states.save(i, {"params": params}, params, {})
            calls.append(time.perf_counter() - began)
            beside.append(steps())
            states.wait()
            whole.append(time.perf_counter() - began)
        states.close()
        began = time.perf_counter()
        read(files(Path(name))[0])
        reading = time.perf_counter() - began
    print("| a checkpoint of 1 GB | seconds (median) |")
    print("|---|---|")
    print(f"| the training loop is blocked for | {statistics.median(calls):.4f} |")
    print(f"| a copy of 1 GB in memory takes | {statistics.median(copies):.3f} |")
    print(f"| until it is on the disk, with its SHA-256 | {statistics.median(whole):.2f} |")
    print(f"| reading and checking it | {reading:.2f} |")
    ratio = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
    print(f"| time of a step while it is written / alone | {ratio:.2f} |")
