"""Write a contest's results: Markdown tables, a JSON file with every round, a bar chart."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contest import Result, steps_of
from benchmarks.contestants import ENTRIES
from benchmarks.works import WORKS


def table(work: str, results: Sequence[Result]) -> str:
    """Return a table with a row for each contestant; the baseline of ratios is the first."""
    steps, base = steps_of(work), next((r.median for r in results if r.seconds), None)
    lines = [
        "| contestant | ms a step (median) | spread | its time / time of the first "
        "| compile, s | memory, MB | last cost |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        label = ENTRIES[result.contestant].label
        if result.error:
            lines.append(f"| {label} | not timed: {result.error} | | | | | |")
            continue
        each = [1e3 * s / steps for s in result.seconds]
        lines.append(
            f"| {label} | {statistics.median(each):.3g} | {min(each):.3g}-{max(each):.3g} "
            f"| {result.median / base:.2f} | {max(result.compile_seconds, 0):.1f} "
            f"| {result.memory / 1e6:.0f} | {result.costs[-1]:.4f} |"
        )
    return "\n".join(lines)


def summary(results_by_work: Mapping[str, Sequence[Result]]) -> str:
    """One row for each work: every contestant's time divided by that of the first."""
    names = list(
        dict.fromkeys(r.contestant for results in results_by_work.values() for r in results)
    )
    lines = [
        "| work | " + " | ".join(ENTRIES[n].label for n in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for work, results in results_by_work.items():
        times = {r.contestant: r.median for r in results if r.seconds}
        base = times.get(names[0])
        cells = [f"{times[n] / base:.2f}" if n in times and base else "" for n in names]
        lines.append(f"| {work} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        names = [
            line.split(":")[1].strip()
            for line in described.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def write(results_by_work: Mapping[str, Sequence[Result]], folder: Path) -> list[Path]:
    """Write ``contest.md``, ``contest.json`` and ``contest.png`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = ["# Time of each contestant / time of the first\n", summary(results_by_work), ""]
    for work, results in results_by_work.items():
        text += [f"## {work}: {WORKS[work].about}\n", table(work, results), ""]
    packages = {
        n: v for results in results_by_work.values() for r in results for n, v in r.packages.items()
    }
    versions = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
    computer = machine()
    text.append(
        f"{computer['cpu']}, {computer['cores']} cores, Python {computer['python']}; {versions}\n"
    )
    written = [folder / name for name in ("contest.md", "contest.json", "contest.png")]
    written[0].write_text("\n".join(text))
    content = {
        "machine": computer,
        "packages": packages,
        "works": {
            work: {
                "about": WORKS[work].about,
                "steps": steps_of(work),
                "results": [r._asdict() for r in results],
            }
            for work, results in results_by_work.items()
        },
    }
    written[1].write_text(json.dumps(content, indent=1) + "\n")
    draw(results_by_work, written[2])
    return written


def draw(results_by_work: Mapping[str, Sequence[Result]], file: Path) -> None:
    """Draw each contestant's time divided by that of the first, a group of bars for each work."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    names = list(
        dict.fromkeys(
            r.contestant for results in results_by_work.values() for r in results if r.seconds
        )
    )
    figure, axes = plt.subplots(
        figsize=(max(6.0, 1.5 * len(results_by_work) + 1), 4.2), layout="constrained"
    )
    width = 0.85 / max(len(names) - 1, 1)
    for i, name in enumerate(names[1:], start=1):  # the first is the line at 1
        positions, heights = [], []
        for j, results in enumerate(results_by_work.values()):
            times = {r.contestant: r.median for r in results if r.seconds}
            if name in times and names[0] in times:
                positions.append(j + (i - len(names) / 2) * width)
                heights.append(times[name] / times[names[0]])
        bars = axes.bar(
            positions,
            [h - 1 for h in heights],
            width * 0.92,
            bottom=1,
            label=ENTRIES[name].label,
            color=plt.get_cmap("tab10")(i),
        )
        axes.bar_label(bars, [f"{h:.2g}" for h in heights], fontsize=6, rotation=90, padding=2)
    axes.axhline(1, color="black", linewidth=0.8, label=ENTRIES[names[0]].label if names else None)
    axes.set_yscale("log")
    axes.set_ylim(0.5, axes.get_ylim()[1] * 1.6)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xticks(range(len(results_by_work)), list(results_by_work))
    axes.set_ylabel(f"time / time of {ENTRIES[names[0]].label if names else ''}")
    axes.legend(ncols=4, fontsize=8, loc="upper right", frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)
