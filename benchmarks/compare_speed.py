"""Compare two checkouts of fbp: time, FLOPs, bytes and scratch memory of every contest.

    python -m benchmarks.compare_speed OLD NEW [--only lstm,gpt] [--repeats 5] [--rounds 5]

OLD and NEW are folders with a checkout each. Both run in this environment, with the same jaxlib, in
processes of their own that take turns, so that a machine that slows down hurts both alike. Printed
are NEW's figures divided by OLD's: of the time the median over the repeats and their range; of the
compiled program of all steps the FLOPs, bytes and scratch memory, which have no noise. The last row
is ``import fbp``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.works import WORKS

# Run in each checkout; `prepare` gets a `jax.jit` whose compiled program is kept for its costs.
_TRAIN = """
import json, sys, time
import jax
from benchmarks.contestants import ours
from benchmarks.works import WORKS

jit, programs = jax.jit, []

class Recorded:
    def __init__(self, function, **options):
        self.jitted, self.compiled = jit(function, **options), None
        programs.append(self)

    def __call__(self, *values):
        if self.compiled is None:
            self.compiled = self.jitted.lower(*values).compile()
        return self.compiled(*values)

work = WORKS[sys.argv[1]]
initial = work.initial()
jax.jit = Recorded
contestant = ours.prepare(work)
jax.jit = jit
contestant.train(contestant.start())
seconds = []
for _ in range(int(sys.argv[2])):
    state = contestant.start()
    began = time.perf_counter()
    contestant.train(state)
    seconds.append(time.perf_counter() - began)
(compiled,) = [program.compiled for program in programs if program.compiled]
costs = compiled.cost_analysis()
print(json.dumps({"seconds": seconds, "flops": costs["flops"], "bytes": costs["bytes accessed"],
                  "scratch": compiled.memory_analysis().temp_size_in_bytes}))
"""
_IMPORT = """
import json, time
began = time.perf_counter()
import fbp
print(json.dumps({"seconds": [time.perf_counter() - began]}))
"""


def _measure(checkout: Path, code: str, *arguments: str) -> dict[str, Any]:
    """Run code with the modules of a checkout; return the JSON of its last line."""
    output = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout), "JAX_ENABLE_COMPILATION_CACHE": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def _row(name: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Return a line of the table from pairs of old and new figures."""
    old, new = ([figures["seconds"] for figures in side] for side in zip(*pairs, strict=True))
    times = [statistics.median(b) / statistics.median(a) for a, b in zip(old, new, strict=True)]
    first_old, first_new = pairs[0]
    costs = [
        f"{first_new[key] / max(first_old[key], 1):.3f}" if key in first_old else ""
        for key in ("flops", "bytes", "scratch")
    ]
    time = f"{statistics.median(times):.3f} | {min(times):.3f}-{max(times):.3f}"
    return f"| {name} | {time} | {' | '.join(costs)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", default=",".join(WORKS), help="comma-separated contests")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of processes")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of a process")
    options = parser.parse_args()
    checkouts = options.old.resolve(), options.new.resolve()
    print("| contest | time | range | FLOPs | bytes | scratch |\n|---|---|---|---|---|---|")
    rows = [(name, _TRAIN, (name, str(options.rounds))) for name in options.only.split(",")]
    for name, code, arguments in [*rows, ("import fbp", _IMPORT, ())]:
        pairs = [
            tuple(_measure(checkout, code, *arguments) for checkout in checkouts)
            for _ in range(options.repeats)
        ]
        print(_row(name, pairs), flush=True)


if __name__ == "__main__":
    main()
