"""Metrics over the steps of a run, read from its journal; their digest, and where they are odd."""

import hashlib
import struct
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fbp.experiment.rundir import journal
from fbp.experiment.rundir.journal_lines import Line, MetricsLine, StepsLine
from fbp.experiment.rundir.layout import JOURNAL
from fbp.experiment.rundir.metric_table import is_timing

_LONGEST_TEXT = 5000  # characters of a tag


class Series(NamedTuple):
    """One metric over a run: steps (int64), values (float64), times (milliseconds, int64)."""

    steps: np.ndarray
    values: np.ndarray
    times: np.ndarray

    def where(self, mask: np.ndarray) -> "Series":
        """Return the points at which ``mask`` is true."""
        return Series(*(column[mask] for column in self))


class _Points:
    """Points that are read one by one: 24 bytes each, because a run may have millions."""

    def __init__(self) -> None:
        self._columns: tuple[array[Any], ...] = (array("q"), array("d"), array("q"))

    def add(self, step: int, value: float, time: int) -> None:
        for column, number in zip(self._columns, (step, value, time), strict=True):
            column.append(number)

    def series(self) -> Series:
        steps, values, times = map(np.array, self._columns)
        return Series(steps, values, times)


def read_series(
    folder: Path, kinds: Sequence[type[Line]] = (StepsLine, MetricsLine), name: str = JOURNAL
) -> dict[str, Series]:
    """Return every metric of a run by name, its points in the order of steps.

    Args:
        folder: the run's folder.
        kinds: the classes of the lines to read.
        name: the journal's file name.
    """
    parts: dict[str, list[Series | _Points]] = {}
    for _, line in journal.lines(folder, name=name, kinds=kinds):
        if isinstance(line, StepsLine):
            for key, column in line.columns.items():
                steps = np.arange(line.first_step, line.first_step + len(column))
                chunk = Series(steps, column.astype(np.float64), line.times[: len(column)])
                parts.setdefault(key, []).append(chunk)
        elif isinstance(line, MetricsLine):
            for key, value in line.values.items():
                chunks = parts.setdefault(key, [])
                last = chunks[-1] if chunks else None
                if not isinstance(last, _Points):
                    last = _Points()
                    chunks.append(last)
                last.add(line.step, float(value), line.time)
    return {
        key: joined(
            [part.series() if isinstance(part, _Points) else part for part in parts.pop(key)]
        )
        for key in list(parts)
    }


def joined(chunks: Sequence[Series]) -> Series:
    """Return the points of all chunks in the order of steps; equal steps stay in their order."""
    series = Series(*(np.concatenate(columns) for columns in zip(*chunks, strict=True)))
    return series.where(np.argsort(series.steps, kind="stable"))


def last_values(folder: Path) -> dict[str, float]:
    """Return the last value of every metric of a run."""
    return {key: float(series.values[-1]) for key, series in read_series(folder).items()}


def metrics_digest(metrics: Mapping[str, Series]) -> str:
    """Return SHA-256 of every metric's name, steps and values.

    Times are left out, and so are metrics that measure time.
    """
    digest = hashlib.sha256()
    for key in sorted(metrics):
        if not is_timing(key):
            name, values = key.encode(), metrics[key].values
            values = np.where(np.isnan(values), np.nan, values)  # NaN has many bit patterns
            # with their lengths, so that no two sets of metrics give the same bytes
            digest.update(struct.pack("<QQ", len(name), len(values)) + name)
            digest.update(metrics[key].steps.astype("<i8").data)
            digest.update(values.astype("<f8").data)
    return digest.hexdigest()


def nonfinite(metrics: Mapping[str, Series]) -> str:
    """Return as a text where metrics were first NaN or infinite; MLflow has NaN for both."""
    places = []
    for key, series in metrics.items():
        rows = np.flatnonzero(~np.isfinite(series.values))
        if len(rows):
            places.append(f"{key} {series.values[rows[0]]} at step {series.steps[rows[0]]}")
    return ", ".join(places)[:_LONGEST_TEXT]
