"""Measure runs of deep models: the wait for the first step, the end, the picture, and signals.

python -m benchmarks.deep_networks --scale 0.1
"""

import argparse
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DENSE, CONVOLUTIONS, NODES, LSTMS, TENSORS = 1000, 300, 500, 40, 20_000

_OWN = """
import fbp
from fbp import layers

def convolutions(outputs: int, count: int) -> fbp.Layer:
    parts = [part for _ in range(count) for part in (layers.conv2d(4, 3), layers.relu())]
    return fbp.chain(*parts, layers.global_average_pool(), layers.dense(outputs))

def nodes(outputs: int, count: int) -> fbp.Layer:
    table = {"0": (layers.dense(8), "input")}
    for i in range(1, count):
        table[str(i)] = (layers.dense(8), str(i - 1))
    return fbp.graph({**table, "output": (layers.dense(outputs), str(count - 1))}, output="output")

def lstms(outputs: int, count: int) -> fbp.Layer:
    parts = [layers.lstm(8, output="sequence") for _ in range(count - 1)]
    return fbp.chain(*parts, layers.lstm(8), layers.dense(outputs))
"""

_CONFIG = """
[data]
{data}
[model]
{model}
[loss]
name = "softmax_cross_entropy"
[optimizer]
name = "adam"
learning_rate = 0.001
[training]
steps = 4
batch_size = 32
evaluate_every = 2
"""


class Deep(NamedTuple):
    """A deep model: sections of its configuration."""

    data: str
    model: str


class Phase(NamedTuple):
    """A moment of a run, and how a line of its standard error shows it."""

    name: str
    shows: str


PHASES = (
    Phase("compiling", "compiling the training program"),
    Phase("norms", "compiling the program for norms"),
    Phase("first step", "step 1/"),
    Phase("evaluation", "compiling the validation program"),
    Phase("test", "compiling the test program"),
    Phase("drawing", "sending the rest"),
)


def models(scale: float) -> dict[str, Deep]:
    """Return the models, with so much of their layers."""
    plane, digits = 'name = "moons"', 'name = "digits"\nlimit = 300'
    rows = 'name = "sequential_digits"\nlimit = 300'
    size = lambda count: max(3, round(scale * count))
    mlp = lambda count: f'name = "mlp"\nhidden = {[16] * count}'
    own = lambda name, count: f'name = "own:{name}"\ncount = {count}'
    return {
        f"{size(DENSE)} dense layers": Deep(plane, mlp(size(DENSE))),
        f"{size(CONVOLUTIONS)} convolutions": Deep(digits, own("convolutions", size(CONVOLUTIONS))),
        f"a graph of {size(NODES)} nodes": Deep(plane, own("nodes", size(NODES))),
        f"{size(LSTMS)} LSTM layers": Deep(rows, own("lstms", size(LSTMS))),
        f"{size(TENSORS)} parameter tensors": Deep(plane, mlp(size(TENSORS) // 2)),
    }


@contextlib.contextmanager
def _started(project: Path, deep: Deep) -> Iterator[subprocess.Popen[str]]:
    (project / "mlruns").mkdir(exist_ok=True)
    (project / "own.py").write_text(_OWN)
    (project / "deep.toml").write_text(_CONFIG.format(data=deep.data, model=deep.model))
    words = [sys.executable, "-c", "from fbp.cli import main; main()", "run", "deep.toml"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(project), str(Path(__file__).parent.parent)]),
        "XDG_CACHE_HOME": str(project / "cache"),
        "PYTHONUNBUFFERED": "1",
    }
    with subprocess.Popen(
        words,
        cwd=project,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def whole_run(deep: Deep) -> dict[str, Any]:
    """Run to the end, with no compiled program in the cache; return what a person waits for."""
    with tempfile.TemporaryDirectory() as name:
        project, began = Path(name), time.time()
        with _started(project, deep) as process:
            lines = list(process.stderr or [])
        ended = time.time()
        if process.returncode:
            return {"problem": lines[-1].strip() if lines else process.returncode}
        (folder,) = (project / "mlruns" / "runs").iterdir()
        text = (folder / "journal.jsonl").read_text(encoding="utf-8")
        journal = [json.loads(line) for line in text.splitlines()]
        steps = [line["time"] / 1000 for line in journal if line["kind"] == "steps"]
        metrics = [
            line["time"] / 1000
            for line in journal
            if line["kind"] == "metrics" and "validation_loss" in line["values"]
        ]
        end = next(line["time"] / 1000 for line in journal if line["kind"] == "end")
        return {
            "first step": steps[0] - began,
            "to the end of training": end - metrics[-1],
            "to the end of the process": ended - metrics[-1],
            "picture": _pixels(folder / "artifacts" / "plots" / "model.png"),
        }


def _pixels(path: Path) -> str:
    """Return the size of a PNG, which is in its header."""
    if not path.exists():
        return "none"
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return f"{width} x {height}"


def stopped_run(deep: Deep, phase: Phase, number: int) -> str:
    """Send a signal when a phase begins; return how long the record's end and the process took."""
    with tempfile.TemporaryDirectory() as name:
        project = Path(name)
        with _started(project, deep) as process:
            for line in process.stderr or []:
                if phase.shows in line:
                    break
            else:
                return "not met"
            sent = time.time()
            process.send_signal(number)
            for _ in process.stderr or []:
                pass
        ended = time.time()
        (folder,) = (project / "mlruns" / "runs").iterdir()
        lines = (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
        end = next(line for line in map(json.loads, reversed(lines)) if line["kind"] == "end")
        seconds = max(end["time"] / 1000 - sent, 0.0)
        return f"{end['status']} {seconds:.1f} s, {process.returncode} {ended - sent:.1f} s"


def main() -> None:
    """Print two tables: whole runs, and runs that a signal stops."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--scale", type=float, default=0.1, help="times the layers of each model")
    parser.add_argument("--only", default="", help="models whose name has this in it")
    parser.add_argument("--whole", action="store_true", help="send no signals")
    options = parser.parse_args()
    chosen = {name: deep for name, deep in models(options.scale).items() if options.only in name}
    print("| model | first step, s | last metric to end, s | and of process, s | picture |")
    print("|---|---|---|---|---|", flush=True)
    for name, deep in chosen.items():
        row = whole_run(deep)
        cells = [f"{value:.1f}" if isinstance(value, float) else value for value in row.values()]
        print(f"| {name} | {' | '.join(map(str, cells))} |", flush=True)
    if options.whole:
        return
    print(
        textwrap.dedent(
            """
            status of the record and seconds from the signal to it; exit status and seconds to it

            | model | signal | {} |
            |---|---|{}"""
        ).format(" | ".join(phase.name for phase in PHASES), "---|" * len(PHASES)),
        flush=True,
    )
    for name, deep in chosen.items():
        for number in (signal.SIGTERM, signal.SIGINT):
            cells = [stopped_run(deep, phase, number) for phase in PHASES]
            print(f"| {name} | {number.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
