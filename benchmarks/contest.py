"""Contestants take turns at the same training work: a process each, one of them working at a time; medians over rounds.

So a machine that slows down hurts all alike, and no library's threads stand in another's way. Before anything is timed, each
trains once from the same initial weights: that is the compile time, and the costs of all steps, which must agree.
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

TOLERANCE = (
    0.02  # of the first cost: what other orders of summation may grow to over the steps of a work
)
FIRST = 1e-4  # of the first cost, before any step was taken


class Result(NamedTuple):
    """One contestant at one work; times in seconds for all steps together.

    Attributes:
        seconds: of each round; empty where its costs disagree.
        first: of the first training, which traces and compiles, less the median of the rounds.
        memory: the largest the process ever was, in bytes.
        costs: of each step.
        error: why it was not timed, or None.
    """

    contestant: str
    seconds: list[float]
    first: float
    memory: int
    costs: list[float]
    packages: dict[str, str]
    error: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Stopped(Exception):
    """A contestant's process ended before its time."""


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
            said = self.process.stderr.read().strip().splitlines()  # type: ignore[union-attr]
            raise Stopped(said[-1] if said else f"ended with status {self.process.wait()}")
        return json.loads(line)

    def go(self) -> dict[str, Any]:
        self.process.stdin.write("go\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def agree(costs: Sequence[float], with_those: Sequence[float]) -> str | None:
    """Why two contestants' costs are not those of the same training, or None."""
    if len(costs) != len(with_those):
        return f"took {len(costs)} steps, not {len(with_those)}"
    scale = abs(with_those[0])
    apart = [abs(a - b) for a, b in zip(costs, with_those, strict=True)]
    if not apart[0] <= FIRST * scale:
        return f"costs disagree before the first update: {costs[0]:.6g}, not {with_those[0]:.6g}"
    worst = max(range(len(apart)), key=lambda i: apart[i] if apart[i] == apart[i] else float("inf"))
    if not apart[worst] <= TOLERANCE * scale:
        return (
            f"costs disagree at step {worst + 1}: {costs[worst]:.6g}, not {with_those[worst]:.6g}"
        )
    return None


def contest(work: str, contestants: Sequence[str], rounds: int) -> list[Result]:
    """The results of those who can take part; others are said on the standard error, and left out."""
    processes: dict[str, _Process] = {}
    ready: dict[str, dict[str, Any]] = {}
    errors: dict[str, str] = {}
    seconds: dict[str, list[float]] = {}
    memory: dict[str, int] = {}
    try:
        for name in contestants:
            if missing := ENTRIES[name].missing():
                print(
                    f"{ENTRIES[name].label} left out: {', '.join(missing)} not installed; pip install --group peers",
                    file=sys.stderr,
                )
                continue
            processes[name] = _Process(work, name)
            try:
                said = processes[name].answer()
            except Stopped as stopped:
                said = {"costs": [], "first": 0.0, "packages": {}}
                errors[name] = str(stopped)
            if "left out" in said:
                print(
                    f"{ENTRIES[name].label} left out of {work}: {said['left out']}", file=sys.stderr
                )
                processes.pop(name).close()
                continue
            ready[name] = said
            reference = next(iter(ready))
            if name not in errors and (why := agree(said["costs"], ready[reference]["costs"])):
                errors[name] = f"{why} ({ENTRIES[reference].label})"
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
    for name, said in ready.items():
        first = said["first"] - (statistics.median(seconds[name]) if seconds[name] else 0.0)
        results.append(
            Result(
                name,
                seconds[name],
                first,
                memory.get(name, 0),
                said["costs"],
                said["packages"],
                errors.get(name),
            )
        )
    return results


@functools.cache
def steps_of(work: str) -> int:
    """How many steps a training takes."""
    return len(WORKS[work].examples()[0]) // WORKS[work].batch
