"""The memory that reading a file of one's own takes at its peak, by its size.

    python -m benchmarks.reading_memory [--megabytes 400] [--formats npz,parquet,csv]

Each file holds random numbers. A process of its own imports fbp and the readers, then reads, checks
and splits the data as a run does (`prepare(..., overwrite=True)`), plain or standardized; and once
as a script does, whose data set stays as it is. Printed is the peak of the resident memory above
that after the imports, divided by the size of the file; for text and compressed tables also by the
size of the numbers in memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_FEATURES = 500
_CHILD = """
import json, resource, sys
import fbp.datasets, pandas, pyarrow.csv, pyarrow.parquet  # pyarrow imports pandas when it reads
path, standardize, overwrite = json.loads(sys.argv[1])
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
before = peak()
dataset = fbp.datasets.check(fbp.datasets.file(path, task="classification"))
fbp.datasets.prepare(dataset, seed=0, standardize=standardize, overwrite=overwrite)
print(json.dumps(peak() - before))
"""


def files(folder: Path, megabytes: int, formats: list[str]) -> Iterator[tuple[str, Path, int]]:
    """Write one file at a time; yield its description, path, and the bytes of its numbers."""
    for name in formats:
        dtypes = (np.float32, np.float64) if name != "csv" else (np.float64,)
        for dtype in dtypes:
            size = np.dtype(dtype).itemsize
            rows = megabytes * 2**20 // (_FEATURES * (19 if name == "csv" else size))
            x = np.random.default_rng(0).normal(size=(rows, _FEATURES)).astype(dtype)
            y = np.arange(rows) % 2
            path = folder / f"data.{name}"
            _write(path, x, y)
            yield f"{name}, {np.dtype(dtype).name}", path, x.nbytes
            path.unlink()


def _write(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    if path.suffix == ".npz":
        np.savez(path, x=x, y=y)
        return
    import pyarrow as pa
    from pyarrow import csv, parquet

    columns = {f"x{i}": x[:, i] for i in range(x.shape[1])}
    table = pa.table({**columns, "label": pa.array([f"c{label}" for label in y])})
    csv.write_csv(table, path) if path.suffix == ".csv" else parquet.write_table(table, path)


def measured(path: Path, *, standardize: bool, overwrite: bool) -> int:
    """Return the peak in bytes of a process that reads a file."""
    argument = json.dumps([str(path), standardize, overwrite])
    command = [sys.executable, "-c", _CHILD, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: Any = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading_memory")
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--formats", default="npz,parquet,csv")
    options = parser.parse_args()
    print("| file | size in MB | a run | a run, standardized | a script, standardized | of |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        formats = options.formats.split(",")
        for name, path, numbers in files(Path(folder), options.megabytes, formats):
            peaks = [
                measured(path, standardize=standardize, overwrite=overwrite)
                for standardize, overwrite in ((False, True), (True, True), (True, False))
            ]
            size = path.stat().st_size
            for unit, whole in (("the file", size), ("its numbers", numbers)):
                cells = " | ".join(f"{peak / whole:.2f}" for peak in peaks)
                print(f"| {name} | {whole / 2**20:.0f} | {cells} | {unit} |", flush=True)


if __name__ == "__main__":
    main()
