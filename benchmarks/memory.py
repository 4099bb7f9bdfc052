"""Memory of a long run: of the process that trains, and of the one that sends.

``python -m benchmarks.memory`` tracks a loop of 300,000 steps with two metrics each over an hour,
in a process of its own, and samples the resident memory of that process and of its shipper. It
prints a table with the slopes and draws `memory.svg` into the folder of ``--output``. Memory is
flat if nothing of a step is kept: what either process needs does not depend on how many steps there
were. ``--minutes 8`` takes the same steps faster. The first quarter is left out of the slopes,
because both processes warm up. The end of a run is not among the samples of the slopes either: it
reads the whole history once, for its digests; the peak shows what that takes.
"""

import argparse
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

WARM_UP = 0.25  # of the time
MEBI = 2**20

LOOP = """
import sys, time
from fbp.experiment import track
steps, seconds = int(sys.argv[1]), float(sys.argv[2])
with track({"steps": steps}, wait=600) as run:
    began = time.monotonic()
    for step in range(1, steps + 1):
        run.log(step, {"loss": 1 / step, "norm": {"w": step % 1000}})
        ahead = began + step * seconds / steps - time.monotonic()
        if ahead > 0.01:
            time.sleep(ahead)
    print("end", flush=True)
"""


class Samples(NamedTuple):
    """Resident memory over time.

    Attributes:
        seconds: since the beginning.
        mebibytes: at these times.
    """

    seconds: list[float]
    mebibytes: list[float]

    def slope(self, begin: float, end: float) -> float:
        """Return MiB per second between two times, by least squares; NaN without two samples."""
        x, y = np.array(self.seconds), np.array(self.mebibytes)
        inside = (x >= begin) & (x <= end)
        if inside.sum() < 2:
            return float("nan")
        return float(np.polyfit(x[inside], y[inside], 1)[0])

    def at(self, second: float) -> float:
        """Return the memory at the first sample from a time on."""
        later = [m for s, m in zip(self.seconds, self.mebibytes, strict=True) if s >= second]
        return later[0] if later else float("nan")


def resident(process: psutil.Process) -> float | None:
    """Return the resident memory of a process in MiB; None if it has ended."""
    try:
        return float(process.memory_info().rss) / MEBI
    except psutil.Error:
        return None


def shipper_of(training: psutil.Process) -> psutil.Process | None:
    """Return the process that sends a training process's run, not that which draws for it."""
    try:
        children = training.children()
    except psutil.Error:
        return None
    return children[0] if children else None


def measure(steps: int, seconds: float, every: float) -> tuple[dict[str, Samples], float]:
    """Track a loop; return the samples of both processes, and when the loop ended."""
    samples = {"training": Samples([], []), "shipper": Samples([], [])}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "mlruns").mkdir()
        words = [sys.executable, "-c", LOOP, str(steps), str(seconds)]
        with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE) as loop:
            assert loop.stdout is not None
            began, ended = time.monotonic(), 0.0
            training = psutil.Process(loop.pid)
            with selectors.DefaultSelector() as selector:
                selector.register(loop.stdout, selectors.EVENT_READ)
                while loop.poll() is None:
                    now = time.monotonic() - began
                    processes = {"training": training, "shipper": shipper_of(training)}
                    for name, process in processes.items():
                        size = resident(process) if process else None
                        if size:
                            samples[name].seconds.append(now)
                            samples[name].mebibytes.append(size)
                    if not ended and selector.select(0) and loop.stdout.readline():
                        ended = time.monotonic() - began
                    time.sleep(every)
    return samples, ended or time.monotonic() - began


def table(samples: dict[str, Samples], steps: int, ended: float) -> str:
    """Return the Markdown table of both processes."""
    lines = [
        "| process | MiB at 25 % | at 50 % | at 100 % of the steps | slope, KiB per 1,000 steps "
        "| peak, MiB, the end included |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in samples.items():
        quarter, half, last = (each.at(ended * share) for share in (0.25, 0.5, 0.99))
        slope = each.slope(WARM_UP * ended, ended) * ended / steps * 1024 * 1000
        lines.append(
            f"| {name} | {quarter:.1f} | {half:.1f} | {last:.1f} | {slope:+.2f} "
            f"| {max(each.mebibytes, default=float('nan')):.1f} |"
        )
    return "\n".join(lines)


def draw(samples: dict[str, Samples], ended: float, path: Path) -> None:
    """Draw the memory of both processes over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, each in samples.items():
        axes.plot(np.array(each.seconds) / 60, each.mebibytes, label=name)
    axes.axvline(ended / 60, color="grey", linestyle=":", label="last step")
    axes.set(xlabel="minutes", ylabel="resident memory, MiB", ylim=(0, None))
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between samples")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "latest")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    samples, ended = measure(arguments.steps, arguments.minutes * 60, arguments.every)
    draw(samples, ended, arguments.output / "memory.svg")
    text = table(samples, arguments.steps, ended)
    (arguments.output / "memory.md").write_text(f"{text}\n", encoding="utf-8")
    print(f"{arguments.steps:,} steps in {ended / 60:.1f} minutes\n\n{text}")


if __name__ == "__main__":
    main()
