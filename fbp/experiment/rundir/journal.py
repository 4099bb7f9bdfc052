"""The journal: a file of JSON lines in a run's folder, to which training appends and from which all else reads.

Each line is an object with ``kind`` and ``time`` (milliseconds since 1970), and with a checksum; one that is damaged does not
count:

    start       label, experiment, params, tags, inputs, parent, steps, layers: what MLflow needs to create the run
    steps       first (step), until (time of the last), columns {key: float32 numbers as base64}: per-step metrics
    metrics     step, values {key: number}: everything that is not per step
    tags        values {key: text}
    checkpoint  step, params_digest, tensors {path: digest}: the parameters at that step
    child       folder, variant: another run, to be shown under this one
    end         status (FINISHED, FAILED, KILLED), message
    resume      step: the run goes on from there, after an end or a death

Numbers per step travel as the bytes of a float32 array: exact, and cheaper to write than digits. What is written stays
written: a resumed run does not repeat the metrics that the journal has (see record.py).
"""

import base64
import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NAME = "journal.jsonl"
_CHECKSUM = b', "crc32": '
_TIMINGS = ("examples_per_second", "best_examples_per_second", "seconds", "time")


def is_timing(key: str) -> bool:
    """Whether a metric measures time or the machine, and so is no function of the configuration."""
    return key in _TIMINGS or key.startswith("system/")


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Mark(NamedTuple):
    """The beginning of a journal: how many bytes, and their CRC-32. Who kept one can tell whether they are still there."""

    length: int = 0
    crc32: int = 0


_NOTHING = Mark()


class Journal:
    """Appends to a run's journal; every line is handed to the operating system before the call returns.

    A line that a death or a full disk cut in two is removed: by the next Journal on that folder, or at once.

    Attributes:
        mark: of all that it holds.
    """

    def __init__(self, folder: Path, name: str = NAME):
        self.folder = folder
        self._file = os.open(
            folder / name, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        self._last_time = now()
        end = _end_of_lines(self._file)
        os.ftruncate(self._file, end)
        self.mark = mark(folder, end, name)

    def write(self, kind: str, **fields: Any) -> None:
        """Append one line.

        Raises:
            OSError: where the disk is full; nothing of the line is written then.
        """
        self._last_time = now()
        line = _with_checksum(
            json.dumps({"kind": kind, "time": self._last_time, **fields}).encode()
        )
        before = self.mark.length
        try:
            if os.fstat(self._file).st_size > before:  # a part of a line that could not be removed
                os.ftruncate(self._file, before)
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
            self.mark = Mark(before + len(line), zlib.crc32(line, self.mark.crc32))
        except BaseException as error:  # a full disk, or a second Ctrl-C
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(self.folder / NAME)) from None
            raise

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        os.fsync(self._file)

    def start(
        self,
        folder: Path,
        *,
        label: str,
        experiment: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        inputs: Sequence[Mapping[str, Any]] = (),
        parent: str | None = None,
        steps: int = 0,
        layers: Mapping[str, str] | None = None,
    ) -> None:
        """Append the line that makes this a run.

        Args:
            folder: the run's.
            label: what the run is called in lists; the end of the folder's name is added to tell equals apart.
            experiment: the MLflow experiment it belongs to.
            params, tags: MLflow's; empty tags are left out.
            inputs: descriptions of data sets: name, digest, context, shape and dtype of x and y.
            parent: the name of the folder of the run under which this one is shown.
            steps: how many steps it will take.
            layers: names of the model's layers by path.
        """
        self.write(
            "start",
            label=label,
            name=f"{label}-{folder.name[-4:]}",
            experiment=experiment,
            params=params,
            tags={key: value for key, value in tags.items() if value} | {"fbp.folder": folder.name},
            inputs=inputs,
            parent=parent,
            steps=steps,
            layers=layers or {},
        )

    def steps(self, first: int, columns: Mapping[str, np.ndarray]) -> None:
        """Append a chunk of per-step metrics that ends now and began when the line before was written."""
        began = self._last_time
        encoded = {
            key: base64.b64encode(np.ascontiguousarray(column, "<f4").data).decode()
            for key, column in columns.items()
        }
        self.write("steps", first=first, began=began, columns=encoded)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def decode(column: str) -> np.ndarray:
    """The numbers of one column of a ``steps`` line."""
    return np.frombuffer(base64.b64decode(column), "<f4")


def _end_of_lines(file: int) -> int:
    """Where the last whole line of an open file ends, looked for from the back."""
    end = os.fstat(file).st_size
    while end:
        begin = max(0, end - 65536)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def length(folder: Path, name: str = NAME) -> int:
    """How many bytes of whole lines, damaged ones too, a journal holds."""
    path = folder / name
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        return _end_of_lines(file.fileno())


def _with_checksum(line: bytes) -> bytes:
    """A line of JSON with a checksum of itself as its last entry."""
    return b"%s%s%d}\n" % (line[:-1], _CHECKSUM, zlib.crc32(line))


def lines(
    folder: Path, offset: int = 0, name: str = NAME, kinds: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(offset after the line, line)`` for every whole line from ``offset`` on, or only for those of some kinds."""
    path = folder / name
    wanted = tuple(f'{{"kind": "{kind}"'.encode() for kind in kinds)
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):
                return  # still being written
            offset += len(raw)
            if wanted and not raw.startswith(wanted):
                continue
            body = raw.rpartition(_CHECKSUM)[0] + b"}"
            if _with_checksum(body) == raw:  # otherwise damaged, by a loss of power
                yield offset, json.loads(body)


def mark(folder: Path, length: int, name: str = NAME, after: Mark = _NOTHING) -> Mark:
    """The mark of a journal's first bytes, ``length`` of them or as many as there are.

    Args:
        folder: the run's.
        length: how many bytes.
        name: the journal's file.
        after: a mark of fewer bytes, from which to go on.
    """
    path, (at, crc32) = folder / name, after
    if path.exists():
        with open(path, "rb") as file:
            file.seek(at)
            while part := file.read(min(length - at, 2**20)):
                at, crc32 = at + len(part), zlib.crc32(part, crc32)
    return Mark(at, crc32)


def has_prefix(folder: Path, kept: Mark, name: str = NAME) -> bool:
    """Whether a journal still begins with what ``kept`` is the mark of: nothing in it was changed, and nothing is missing."""
    return mark(folder, kept.length, name) == kept


class Series(NamedTuple):
    """One metric over a run: steps (int64), values (float64), times (milliseconds, int64)."""

    steps: np.ndarray
    values: np.ndarray
    times: np.ndarray


def step_times(line: Mapping[str, Any], count: int) -> np.ndarray:
    """The time stamps of a chunk's steps: evenly from the end of the line before to the chunk's own end."""
    return np.linspace(line["began"], line["time"], count + 1)[1:].astype(np.int64)


def history(folder: Path, kinds: Sequence[str] = ("steps", "metrics")) -> dict[str, Series]:
    """Every metric of a run, by key, in the order of its steps; or only those of one kind of line."""
    gathered: dict[str, list[Series]] = {}
    for _, line in lines(folder, kinds=kinds):
        if line["kind"] == "steps":
            for key, column in line["columns"].items():
                values = decode(column).astype(np.float64)
                steps = np.arange(line["first"], line["first"] + len(values))
                gathered.setdefault(key, []).append(
                    Series(steps, values, step_times(line, len(values)))
                )
        elif line["kind"] == "metrics":
            for key, value in line["values"].items():
                point = Series(
                    np.array([line["step"]]), np.array([float(value)]), np.array([line["time"]])
                )
                gathered.setdefault(key, []).append(point)
    joined = {
        key: [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        for key, parts in gathered.items()
    }
    orders = {key: np.argsort(columns[0], kind="stable") for key, columns in joined.items()}
    return {
        key: Series(*(column[orders[key]] for column in columns)) for key, columns in joined.items()
    }


def metrics_digest(metrics: Mapping[str, Series]) -> str:
    """SHA-256 over every metric's key, steps and values (not its times, nor metrics that measure time)."""
    digest = hashlib.sha256()
    for key in sorted(metrics):
        if not is_timing(key):
            digest.update(key.encode() + b"\0")
            digest.update(metrics[key].steps.astype("<i8").data)
            values = metrics[key].values
            digest.update(
                np.where(np.isnan(values), np.nan, values).astype("<f8").data
            )  # NaN has many forms
    return digest.hexdigest()


def nonfinite(metrics: Mapping[str, Series]) -> str:
    """Where metrics were NaN or infinite for the first time, as a text for a tag; MLflow itself has NaN for both."""
    found = []
    for key, points in metrics.items():
        where = np.flatnonzero(~np.isfinite(points.values))
        if len(where):
            found.append(f"{key} {points.values[where[0]]} at step {points.steps[where[0]]}")
    return ", ".join(found)[:5000]


def read_start(folder: Path) -> dict[str, Any] | None:
    """The journal's ``start`` line, if the run got so far."""
    return next((line for _, line in lines(folder, kinds=["start"])), None)


def read_end(folder: Path) -> dict[str, Any] | None:
    """The journal's last ``end`` line, None while the run goes on (or after it died)."""
    last = None
    for _, line in lines(folder, kinds=["end", "resume"]):
        last = line
    return last if last and last["kind"] == "end" else None


def checkpoints(folder: Path) -> dict[int, dict[str, Any]]:
    """The ``checkpoint`` lines of a run by step."""
    return {line["step"]: line for _, line in lines(folder, kinds=["checkpoint"])}
