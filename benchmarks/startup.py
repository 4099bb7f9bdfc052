"""Measure how long a user waits for the first figures of the default experiment."""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 3
ROOT = Path(__file__).parent.parent


def _run(project: Path, cache: Path) -> tuple[float, float]:
    """Return the seconds until ``fbp run`` shows its first figures, and until it ends."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONUNBUFFERED": "1"}
    words = [
        sys.executable,
        "-c",
        "from fbp.cli import main; main()",
        "run",
        str(ROOT / "experiments" / "digits_mlp.toml"),
    ]
    began, first_figures = time.perf_counter(), 0.0
    with subprocess.Popen(
        words,
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout:  # type: ignore[union-attr]
            if not first_figures and re.search(r"epoch \d+/\d+", line):
                first_figures = time.perf_counter() - began
    return first_figures or time.perf_counter() - began, time.perf_counter() - began


def main() -> None:
    """`fbp run digits_mlp` in an empty project, with an empty compilation cache, and then again."""
    seconds: dict[str, list[tuple[float, float]]] = {"first run": [], "again": []}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as name:
            project = Path(name)
            (project / "mlruns").mkdir()
            for kind in seconds:
                seconds[kind].append(_run(project, project / "cache"))
            entries = len(list((project / "cache").glob("fbp/*/*-cache")))
            shutil.rmtree(project / "mlruns", ignore_errors=True)
    print("| | first figures, s (median) | whole run, s |\n|---|---|---|")
    for kind, times in seconds.items():
        figures, whole = (statistics.median(t[i] for t in times) for i in (0, 1))
        print(f"| {kind} | {figures:.1f} | {whole:.1f} |")
    print(f"\nprograms in the compilation cache after two runs: {entries}")
