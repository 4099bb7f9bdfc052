"""What the machine does while a run trains: processor, memory, disk, network, and a GPU where MLflow can see one."""

import time
from pathlib import Path
from typing import Any

from fbp.experiment.rundir import journal
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.layout import SYSTEM_JOURNAL

_EVERY_SECONDS = 10.0


class SystemMetrics:
    """Samples into a run's system journal, under the names of MLflow's own system metrics."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._journal: Journal | None = None
        self._monitors: list[Any] = []
        self._step = 0
        self._last = -_EVERY_SECONDS

    def sample(self) -> None:
        """Take a sample, if the one before is long enough ago."""
        if time.monotonic() - self._last < _EVERY_SECONDS:
            return
        self._last = time.monotonic()
        if self._journal is None:
            self._begin()
        assert self._journal is not None
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {
                f"system/{key}": float(value) for key, value in monitor.aggregate_metrics().items()
            }
            monitor.clear_metrics()
        self._journal.metrics(self._step, values)
        self._step += 1

    def _begin(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._step = sum(
            1 for _ in journal.lines(self.folder, name=SYSTEM_JOURNAL)
        )  # a resumed run's go on
        self._journal = Journal(self.folder, SYSTEM_JOURNAL)
        for make in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            try:
                self._monitors.append(make())
            except Exception:
                continue
