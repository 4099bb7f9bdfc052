"""Time contestants at the same training work in turn, each in a process of its own.

Only one process works at a time, so a machine that slows down affects all alike, and no library's
threads compete with another's. Before anything is timed, each contestant trains once from the same
initial weights. That gives the compile time and the costs of all steps, which must agree.
"""

import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.contestants import ENTRIES
from benchmarks.works import WORKS

# Shares of the initial cost by which costs may differ: before any update, and at later steps, where
# differences from another order of summation have grown.
INITIAL_TOLERANCE, TOLERANCE = 1e-4, 0.02


class Result(NamedTuple):
    """Result of one contestant at one work; times in seconds for all steps together.

    Attributes:
        contestant: its key in `ENTRIES`.
        seconds: the time of each round; empty if its costs disagree.
        compile_seconds: the time of the first training, which traces and compiles, less the median
            of the rounds.
        memory: the largest resident size of the process, in bytes.
        costs: the cost at each step.
        packages: versions by name.
        error: why it was not timed, or None.
    """

    contestant: str
    seconds: list[float]
    compile_seconds: float
    memory: int
    costs: list[float]
    packages: dict[str, str]
    error: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Stopped(Exception):
    """Raised when a contestant's process ends early."""


class _Process:
    """A contestant's process, see worker.py."""

    def __init__(self, work: str, contestant: str):
        root = Path(__file__).parent.parent
        words = [sys.executable, "-m", "benchmarks.worker", work, contestant]
        self.process = subprocess.Popen(
            words,
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            errors = self.process.stderr.read().strip().splitlines()  # type: ignore[union-attr]
            raise Stopped(errors[-1] if errors else f"ended with status {self.process.wait()}")
        return json.loads(line)

    def go(self) -> dict[str, Any]:
        self.process.stdin.write("go\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def disagreement(costs: Sequence[float], reference: Sequence[float]) -> str | None:
    """Return why two contestants' costs are not those of the same training; None if they are."""
    if len(costs) != len(reference):
        return f"took {len(costs)} steps, not {len(reference)}"
    scale = abs(reference[0])
    gaps = [abs(a - b) for a, b in zip(costs, reference, strict=True)]
    if not gaps[0] <= INITIAL_TOLERANCE * scale:
        return f"costs disagree before the first update: {costs[0]:.6g}, not {reference[0]:.6g}"
    worst = max(range(len(gaps)), key=lambda i: gaps[i] if gaps[i] == gaps[i] else float("inf"))
    if not gaps[worst] <= TOLERANCE * scale:
        return f"costs disagree at step {worst + 1}: {costs[worst]:.6g}, not {reference[worst]:.6g}"
    return None


def contest(work: str, contestants: Sequence[str], rounds: int) -> list[Result]:
    """Return the results; contestants that cannot take part are named on the standard error."""
    processes: dict[str, _Process] = {}
    ready: dict[str, dict[str, Any]] = {}
    errors: dict[str, str] = {}
    seconds: dict[str, list[float]] = {}
    memory: dict[str, int] = {}
    try:
        for name in contestants:
            if missing := ENTRIES[name].missing():
                print(
                    f"{ENTRIES[name].label} left out: {', '.join(missing)} not installed; "
                    "pip install --group peers",
                    file=sys.stderr,
                )
                continue
            processes[name] = _Process(work, name)
            try:
                trained = processes[name].answer()
            except Stopped as stopped:
                trained = {"costs": [], "first": 0.0, "packages": {}}
                errors[name] = str(stopped)
            if "left out" in trained:
                print(
                    f"{ENTRIES[name].label} left out of {work}: {trained['left out']}",
                    file=sys.stderr,
                )
                processes.pop(name).close()
                continue
            ready[name] = trained
            baseline = next(iter(ready))
            why = disagreement(trained["costs"], ready[baseline]["costs"])
            if name not in errors and why:
                errors[name] = f"{why} ({ENTRIES[baseline].label})"
            seconds[name] = []
        timed = [name for name in ready if name not in errors]
        for _ in range(rounds):
            for name in timed:
                answer = processes[name].go()
                seconds[name].append(answer["seconds"])
                memory[name] = answer["memory"]
    finally:
        for process in processes.values():
            process.close()
    results = []
    for name, trained in ready.items():
        median = statistics.median(seconds[name]) if seconds[name] else 0.0
        results.append(
            Result(
                name,
                seconds[name],
                trained["first"] - median,
                memory.get(name, 0),
                trained["costs"],
                trained["packages"],
                errors.get(name),
            )
        )
    return results


@functools.cache
def steps_of(work: str) -> int:
    """Return the number of steps of one training."""
    return len(WORKS[work].examples()[0]) // WORKS[work].batch
