"""What it costs to log every step of mnist_nielsen to MLflow, as a share of its training time.

The same runs in turn in one process: with the journal and a live shipper, and with a journal that forgets and no shipper.
Both evaluate and diagnose after every epoch; the difference is what logging costs. Compile time is left out. The difference
is smaller than the noise of a shared machine, so the time that training spends inside the journal's calls is measured too; and
beside it, the cost of one ``mlflow.log_metric`` on the same store.
"""

import gzip
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

import fbp.experiment.run
from benchmarks.data import pictures
from fbp.experiment import config, shipper, store
from fbp.experiment.run import Origin

EPOCHS, ROUNDS = 30, 6
EXPERIMENT = Path(__file__).parent.parent / "experiments" / "mnist_nielsen.toml"


class _Watch:
    """A reporter that takes the time from the first chunk's end to the last's."""

    def begin(self, experiment: object) -> None:
        self.first = self.last = 0.0

    def advance(self, step: int, epoch: int, latest: dict[str, float]) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last

    def close(self) -> None:
        pass


class _Forgetful(fbp.experiment.run.Journal):
    """A journal that writes only how the run begins and ends."""

    def write(self, kind: str, **fields: object) -> None:
        if kind in ("start", "end"):
            super().write(kind, **fields)

    def steps(self, first: int, columns: object) -> None:
        pass


class _Timed(fbp.experiment.run.Journal):
    """A journal that adds up the time spent in it."""

    seconds = 0.0

    def steps(self, first: int, columns: object) -> None:
        began = time.perf_counter()
        super().steps(first, columns)  # calls write, which adds its own time
        _Timed.seconds += time.perf_counter() - began - self.inner

    def write(self, kind: str, **fields: object) -> None:
        began = time.perf_counter()
        super().write(kind, **fields)
        self.inner = time.perf_counter() - began
        _Timed.seconds += self.inner


def _train(project: Path, folder: str, logged: bool) -> float:
    overrides = [f"training.epochs={EPOCHS}", f"data.folder={folder}"]
    experiment = config.read(EXPERIMENT, overrides)
    run_folder, watch = store.new_run_folder(project / "mlruns", "benchmark"), _Watch()
    if not logged:
        with mock.patch.object(fbp.experiment.run, "Journal", _Forgetful):
            fbp.experiment.run.run(experiment, Origin(EXPERIMENT, "benchmark"), run_folder, watch)
        return watch.last - watch.first
    process = shipper.launch(run_folder, store.default_uri(project / "mlruns"))
    with mock.patch.object(fbp.experiment.run, "Journal", _Timed):
        fbp.experiment.run.run(experiment, Origin(EXPERIMENT, "benchmark"), run_folder, watch)
    process.wait()
    return watch.last - watch.first


def _data_folder(project: Path) -> str:
    given = Path(os.environ.get("FBP_DATA", "data")).resolve() / "mnist"
    if given.is_dir():
        return str(given)
    x, y = pictures(70_000)
    folder = project / "mnist"
    folder.mkdir()
    pixels = (x * 255).astype(np.uint8).reshape(-1, 28, 28)
    for part, rows in (("train", slice(0, 60_000)), ("t10k", slice(60_000, None))):
        for name, array in (("images-idx3", pixels[rows]), ("labels-idx1", y[rows].astype(np.uint8))):
            sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
            content = b"\x00\x00\x08" + bytes([array.ndim]) + sizes + array.tobytes()
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content, 1))
    return str(folder)


def _log_metric_seconds(project: Path) -> float:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store.default_uri(project / "mlruns"))
    run_id = client.create_run("0").info.run_id
    times = []
    for step in range(100):
        began = time.perf_counter()
        client.log_metric(run_id, "loss", 1.0, step=step)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary)
        (project / "mlruns").mkdir()
        folder = _data_folder(project)
        with_log, without = [], []
        for i in range(ROUNDS):
            for logged in (False, True) if i % 2 else (True, False):  # so that neither always comes first
                (with_log if logged else without).append(_train(project, folder, logged))
        steps = EPOCHS * 5000
        ratio = statistics.median(a / b for a, b in zip(with_log, without, strict=True))
        inside = _Timed.seconds / ROUNDS
        single = _log_metric_seconds(project)
    print("| | value |")
    print("|---|---|")
    print(f"| training {steps:,} steps without logging, seconds (median) | {statistics.median(without):.2f} |")
    print(f"| the same with every step logged | {statistics.median(with_log):.2f} |")
    print(f"| ratio (median of {ROUNDS} pairs) | {ratio:.3f} |")
    print(f"| spread of the ratio | {min(a / b for a, b in zip(with_log, without, strict=True)):.3f}-"
          f"{max(a / b for a, b in zip(with_log, without, strict=True)):.3f} |")  # fmt: skip
    print(f"| time inside the journal, share of training time | {inside / statistics.median(with_log):.4f} |")
    print(f"| time inside the journal for a step's three metrics, microseconds | {inside / steps * 1e6:.2f} |")
    print(f"| cost of three mlflow.log_metric on the same store, microseconds | {3 * single * 1e6:.0f} |")
