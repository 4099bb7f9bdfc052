"""Compare the runs of two versions of fbp bit for bit: final parameters, metrics, checkpoints.

    python -m benchmarks.compare_runs OLD_MLRUNS NEW_MLRUNS

Takes two folders `mlruns` in which the same experiments were run, on the same machine and jaxlib,
and compares the newest finished run of each experiment that both have. Names that were changed
between the versions are mapped by the tables below, so that only numbers count. The journals are
read as JSON lines, because no version of fbp reads those of all others. Exit status 1 if a bit
differs, or if there is nothing to compare.
"""

import argparse
import base64
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Old names of the parts of a path, as regular expressions, and what they are now.
PATH_NAMES = {
    r"(\d+) (\dx\d)": r"\1_\2",  # nodes of the inception graph
    r"(\d+) pool": r"\1_pool_1x1",
    r"(\d+) together": r"\1_concat",
    r"(\d+) halved": r"\1_pool",
}
METRIC_NAMES: dict[str, str] = {}  # the first part of a metric's name

_RUN = re.compile(r"(?P<experiment>.+)-\d{8}-\d{6}-[0-9a-z]+")
_TIMINGS = ("examples_per_second", "best_examples_per_second", "seconds", "time")


class Run(NamedTuple):
    """All numbers of a run.

    Attributes:
        status: how it ended.
        params: the trained model's arrays, by today's path.
        metrics: values by today's name and by step, without those that measure time.
        checkpoints: the digest of each tensor, by step and by the path that is hashed with it.
    """

    status: str
    params: dict[str, np.ndarray]
    metrics: dict[str, dict[int, float]]
    checkpoints: dict[int, dict[str, str]]


class Comparison(NamedTuple):
    """How many numbers were compared, and which of them differ.

    Attributes:
        tensors, values, digests: how many were compared.
        renamed: digests at checkpoints that cannot be compared, because the path is hashed too.
        added: metrics that only the new run has.
        differences: a line for each difference.
    """

    tensors: int
    values: int
    digests: int
    renamed: int
    added: int
    differences: list[str]


def new_name(path: str) -> str:
    """Return today's name of a parameter, layer or metric of an old run; a new name stays."""
    parts = path.split("/")
    parts[0] = METRIC_NAMES.get(parts[0], parts[0])
    for i, part in enumerate(parts):
        for old, new in PATH_NAMES.items():
            if re.fullmatch(old, part):
                parts[i] = re.sub(old, new, part)
                break
    return "/".join(parts)


def read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run's journal; damaged ones are left out."""
    with (folder / "journal.jsonl").open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and "kind" in line:
                yield line


def is_timing(name: str) -> bool:
    """Return whether a metric measures time, and so differs between two equal runs."""
    return name.rpartition("/")[2] in _TIMINGS or name.startswith("system/")


def read_run(folder: Path) -> Run:
    """Read a run's journal and trained model."""
    status, metrics, checkpoints = "unfinished", {}, {}
    for line in read_lines(folder):
        if line["kind"] == "steps":
            first = line["first_step"] if "first_step" in line else line["first"]
            for name, column in line["columns"].items():
                values = np.frombuffer(base64.b64decode(column), "<f4").tolist()
                metrics.setdefault(name, {}).update(enumerate(values, first))
        elif line["kind"] == "metrics":
            for name, value in line["values"].items():
                metrics.setdefault(name, {})[line["step"]] = value
        elif line["kind"] == "checkpoint":
            checkpoints[line["step"]] = line["tensors"]
        elif line["kind"] == "end":
            status = line["status"]
    path = folder / "artifacts" / "model" / "params.npz"
    params = {}
    if path.exists():
        with np.load(path) as arrays:
            params = {new_name(name.replace("|", "/")): arrays[name] for name in arrays.files}
    metrics = {new_name(name): values for name, values in metrics.items() if not is_timing(name)}
    return Run(status, params, metrics, checkpoints)


def newest_runs(mlruns: Path) -> dict[str, Path]:
    """Return the folder of the newest run of each experiment, and of each variant of one."""
    folders = {}
    for folder in sorted((mlruns / "runs").iterdir()):
        name = _RUN.fullmatch(folder.name)
        if name and (folder / "journal.jsonl").exists():
            folders[name["experiment"]] = folder
    return folders


def same_bits(old: float, new: float) -> bool:
    """Return whether two numbers are equal to the bit; all NaN are equal."""
    return np.float64(old).tobytes() == np.float64(new).tobytes() or (old != old and new != new)


def compare_params(old: Run, new: Run) -> Iterator[str]:
    """Yield a line for each parameter of the trained model that differs."""
    yield from (f"parameter {path}: new" for path in sorted(new.params.keys() - old.params))
    for path, array in old.params.items():
        other = new.params.get(path)
        if other is None:
            yield f"parameter {path}: missing"
        elif (array.dtype, array.shape) != (other.dtype, other.shape):
            yield (
                f"parameter {path}: was {array.dtype}{array.shape}, is {other.dtype}{other.shape}"
            )
        elif array.tobytes() != other.tobytes():
            gap = np.abs(array.astype(np.float64) - other.astype(np.float64)).max()
            yield f"parameter {path}: differs by at most {gap:.3g}"


def compare_metrics(old: Run, new: Run) -> Iterator[str]:
    """Yield a line for each metric that differs, with the first step where it does."""
    for name, series in old.metrics.items():
        others = new.metrics.get(name)
        if others is None:
            yield f"metric {name}: missing"
            continue
        differ = [
            step
            for step in sorted(series.keys() | others.keys())
            if step not in series or step not in others or not same_bits(series[step], others[step])
        ]
        if differ:
            step = differ[0]
            yield (
                f"metric {name}: was {series.get(step)!r}, is {others.get(step)!r} at step {step}; "
                f"{len(differ)} of {len(series)} steps differ"
            )


def compare_checkpoints(old: Run, new: Run) -> Iterator[str | None]:
    """Yield a line for each digest that differs; None for each that cannot be compared."""
    for step, tensors in old.checkpoints.items():
        others = new.checkpoints.get(step)
        if others is None:
            continue  # some are written by the clock
        for path, digest in tensors.items():
            if path not in others and new_name(path) in others:
                yield None
            elif others.get(path) != digest:
                yield f"checkpoint of step {step}: {path} differs"


def compare(old: Run, new: Run) -> Comparison:
    """Compare two runs of the same experiment."""
    status = [] if old.status == new.status else [f"status: was {old.status}, is {new.status}"]
    digests = list(compare_checkpoints(old, new))
    differences = [*status, *compare_params(old, new), *compare_metrics(old, new)]
    common = old.checkpoints.keys() & new.checkpoints.keys()
    renamed = digests.count(None)
    return Comparison(
        tensors=len(old.params),
        values=sum(map(len, old.metrics.values())),
        digests=sum(len(old.checkpoints[step]) for step in common) - renamed,
        renamed=renamed,
        added=len(new.metrics.keys() - old.metrics),
        differences=differences + [line for line in digests if line is not None],
    )


def main() -> int:
    """Print a table of all experiments that both folders have, and the first differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, metavar="OLD_MLRUNS")
    parser.add_argument("new", type=Path, metavar="NEW_MLRUNS")
    options = parser.parse_args()
    old, new = newest_runs(options.old), newest_runs(options.new)
    common = sorted(old.keys() & new.keys())
    print("| experiment | tensors | metric values | digests (renamed) | new metrics | result |")
    print("|---|---|---|---|---|---|")
    lines = []
    for name in common:
        result = compare(read_run(old[name]), read_run(new[name]))
        verdict = f"{len(result.differences)} DIFFER" if result.differences else "identical"
        print(
            f"| {name} | {result.tensors} | {result.values:,} | {result.digests} "
            f"({result.renamed}) | {result.added} | {verdict} |"
        )
        lines += [f"{name}: {line}" for line in result.differences[:10]]
    only = sorted(old.keys() ^ new.keys())
    print("", *lines, sep="\n")
    if only:
        print(f"only in one of the folders: {', '.join(only)}")
    if not common:
        print("no experiment is in both folders")
    return int(bool(lines) or not common)


if __name__ == "__main__":
    sys.exit(main())
