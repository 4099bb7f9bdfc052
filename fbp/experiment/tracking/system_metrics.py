"""Measures the machine while a run trains: processor, memory, disk, network, and a GPU."""

import sys
import time
from pathlib import Path
from typing import Any

from fbp.experiment.rundir import journal
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.layout import SYSTEM_JOURNAL
from fbp.experiment.rundir.metric_table import MACHINE

_EVERY_SECONDS = 10.0


class SystemMetrics:
    """Writes samples into a journal of its own, under the names of MLflow's system metrics.

    MLflow's monitors take them. So there are none unless the tracker has imported MLflow, which
    takes seconds.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._journal: Journal | None = None
        self._monitors: list[Any] = []
        self._step = 0
        self._last_sample = -_EVERY_SECONDS

    def sample(self) -> None:
        """Take a sample if the last one is ten seconds old."""
        is_due = time.monotonic() - self._last_sample >= _EVERY_SECONDS
        if not is_due or "mlflow" not in sys.modules:
            return
        self._last_sample = time.monotonic()
        if self._journal is None:
            # a resumed run's samples go on counting
            self._step = sum(1 for _ in journal.lines(self.folder, name=SYSTEM_JOURNAL))
            self._journal = Journal(self.folder, SYSTEM_JOURNAL)
            self._monitors = _monitors()
        values: dict[str, float] = {}
        for monitor in list(self._monitors):
            try:
                monitor.collect_metrics()
                samples = monitor.aggregate_metrics()
                values |= {f"{MACHINE}{key}": float(value) for key, value in samples.items()}
                monitor.clear_metrics()
            except Exception:  # a machine that cannot be measured costs its samples only
                self._monitors.remove(monitor)
        if values:
            self._journal.metrics(self._step, values)
            self._step += 1


def _monitors() -> list[Any]:
    """Return MLflow's monitors, those that work on this machine."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = []
    for make in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        try:
            monitors.append(make())
        except Exception:
            continue
    return monitors
