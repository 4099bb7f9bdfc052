"""Measure the cost of logging every step of mnist_nielsen, as a share of its training time.

The same training runs in turn in one process: without journal and shipper; with both; and with an
MLflow server that is killed after half of the steps. All evaluate and diagnose after every epoch.
Compile time is left out. The difference is smaller than the noise of a shared machine, so the time
inside the journal's calls is measured too, and the cost of ``mlflow.log_metric`` on the same store.
At the end the server is started again, and all records in its store are counted.
"""

import contextlib
import gzip
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.data import pictures
from fbp.experiment.config import reading
from fbp.experiment.rundir import journal, journal_lines, layout, locks
from fbp.experiment.rundir.series import read_series
from fbp.experiment.runner import run as run_module
from fbp.experiment.runner import run_start
from fbp.experiment.runner.run_start import RunIdentity
from fbp.experiment.runner.trained_model import PYFUNC_CODE
from fbp.experiment.tracking import shipper
from fbp.experiment.tracking.mlflow_format import POINTS
from fbp.experiment.tracking.uri import default_uri, destination
from tests.servers import Server

EPOCHS, ROUNDS = 30, 6
EXPERIMENT = Path(__file__).parent.parent / "experiments" / "mnist_nielsen.toml"


class _Watch:
    """A reporter that measures the time between the ends of the first and the last chunk."""

    def __init__(self, at_half: Callable[[], None] = lambda: None):
        self.at_half = at_half

    def begin(self, steps: int, epochs: int) -> None:
        self.start = self.last = 0.0
        self.steps = steps

    def advance(self, step: int, epoch: int, latest: dict[str, float]) -> None:
        self.last = time.perf_counter()
        self.start = self.start or self.last
        if step >= self.steps / 2:
            self.at_half()

    def working(self, task: str, seconds: float) -> None:
        pass

    def note(self, text: str) -> None:
        print(text)

    def close(self) -> None:
        pass


class _Forgetful(journal.Journal):
    """A journal that writes only the beginning and the end of a run."""

    def _append(self, line: journal_lines.Line) -> None:
        if isinstance(line, journal_lines.StartLine | journal_lines.EndLine):
            super()._append(line)


class _Timed(journal.Journal):
    """A journal that adds up the time spent in it."""

    seconds = 0.0

    def steps(self, first_step: int, columns: object) -> None:
        began = time.perf_counter()
        super().steps(first_step, columns)  # calls _append, which adds its own time
        _Timed.seconds += time.perf_counter() - began - self.inner

    def _append(self, line: journal_lines.Line) -> None:
        began = time.perf_counter()
        super()._append(line)
        self.inner = time.perf_counter() - began
        _Timed.seconds += self.inner


def _train(project: Path, folder: str, how: str, server: Server) -> float:
    overrides = [f"training.epochs={EPOCHS}", f"data.folder={folder}"]
    experiment = reading.read(EXPERIMENT, overrides)
    run_folder = layout.new_run_folder(project / "mlruns", how)
    watch, origin = _Watch(), RunIdentity(EXPERIMENT, how)
    if how == "none":
        with mock.patch.object(run_start, "Journal", _Forgetful):
            run_module.run(experiment, origin, run_folder, watch)
        return watch.last - watch.start
    target = destination(project / "mlruns", "mlflow")
    if how == "killed":
        if server.process is None:
            server.start()
        watch = _Watch(server.kill)
        target = destination(project / "mlruns", "mlflow", server.uri)
        layout.destination(run_folder).write_text(target.place)
    with locks.try_hold_training_lock(run_folder):
        process = shipper.launch(run_folder, target, PYFUNC_CODE)
        with mock.patch.object(run_start, "Journal", _Timed):
            run_module.run(experiment, origin, run_folder, watch)
    if how == "killed":  # the rest is sent in the end
        process.kill()
    process.wait()
    return watch.last - watch.start


def _records(project: Path, server: Server) -> tuple[int, int]:
    """Send the rest; return the numbers of records that the server should have and has."""
    server.start()
    expected = 0
    for folder in (project / "mlruns" / "runs").glob("killed-*"):
        target = destination(project / "mlruns", "mlflow", server.uri)
        assert shipper.launch(folder, target, PYFUNC_CODE).wait() == 0
        stride = max(1, -(-journal.require_start(folder).steps // POINTS))
        every = read_series(folder, [journal_lines.MetricsLine])
        steps = read_series(folder, [journal_lines.StepsLine])
        expected += sum(len(points.steps) for points in every.values())
        expected += sum(
            int(((p.steps % stride == 0) | (p.steps == 1)).sum()) for p in steps.values()
        )
    with contextlib.closing(sqlite3.connect(project / "server.db")) as database:
        query = "select count(*) from metrics where key not like 'system/%'"
        return expected, database.execute(query).fetchone()[0]


def _data_folder(project: Path) -> str:
    mnist = Path(os.environ.get("FBP_DATA", "data")).resolve() / "mnist"
    if mnist.is_dir():
        return str(mnist)
    x, y = pictures(70_000)
    folder = project / "mnist"
    folder.mkdir()
    pixels = (x * 255).astype(np.uint8).reshape(-1, 28, 28)
    for part, rows in (("train", slice(0, 60_000)), ("t10k", slice(60_000, None))):
        for name, array in (
            ("images-idx3", pixels[rows]),
            ("labels-idx1", y[rows].astype(np.uint8)),
        ):
            sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
            content = b"\x00\x00\x08" + bytes([array.ndim]) + sizes + array.tobytes()
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content, 1))
    return str(folder)


def _log_metric_seconds(project: Path) -> float:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(default_uri(project / "mlruns"))
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
        server = Server(project, f"sqlite:///{project}/server.db")
        seconds: dict[str, list[float]] = {"none": [], "embedded": [], "killed": []}
        for i in range(ROUNDS):
            names = list(seconds)
            for how in names[i % 3 :] + names[: i % 3]:  # so that none always comes first
                seconds[how].append(_train(project, folder, how, server))
        expected, recorded = _records(project, server)
        server.kill()
        without, with_log, killed = seconds.values()
        steps = EPOCHS * 5000
        alive = [a / b for a, b in zip(with_log, without, strict=True)]
        dead = [a / b for a, b in zip(killed, without, strict=True)]
        inside = _Timed.seconds / ROUNDS / 2
        single = _log_metric_seconds(project)
    print("| | value |")
    print("|---|---|")
    print(
        f"| training {steps:,} steps without logging, seconds (median) "
        f"| {statistics.median(without):.2f} |"
    )
    print(f"| the same with every step logged | {statistics.median(with_log):.2f} |")
    print(f"| ratio (median of {ROUNDS} pairs) | {statistics.median(alive):.3f} |")
    print(f"| spread of the ratio | {min(alive):.3f}-{max(alive):.3f} |")
    print(
        "| ratio with a server that is killed at half (median, spread) "
        f"| {statistics.median(dead):.3f}, {min(dead):.3f}-{max(dead):.3f} |"
    )
    print(f"| records in the server's store at the end | {recorded:,} of {expected:,} |")
    print(
        "| time inside the journal, share of training time "
        f"| {inside / statistics.median(with_log):.4f} |"
    )
    print(
        "| time inside the journal for a step's three metrics, microseconds "
        f"| {inside / steps * 1e6:.2f} |"
    )
    print(
        "| cost of three mlflow.log_metric on the same store, microseconds "
        f"| {3 * single * 1e6:.0f} |"
    )
