"""A tracker that is a plain file of JSON lines, which any program can read.

Each line is an object with `run` (the run's id) and `event`: run, params, inputs, metric, tags,
artifacts, model or end. Several runs may share a file. A line may come twice, after an
interruption. A line that was cut off by a death or a full disk is removed.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from fbp.errors import InputError
from fbp.experiment.rundir import journal
from fbp.experiment.rundir.layout import local_run_id
from fbp.experiment.rundir.locks import locked
from fbp.experiment.rundir.redact import redact
from fbp.experiment.tracking.sink import Point, RunInfo

_BEGINNING = b'{"run": '


def check_address(uri: str) -> None:
    """Raise InputError if an address is that of a server or a database."""
    if "://" in uri:
        raise InputError(
            f"tracker jsonl: expected the path of a file, got {redact(uri)!r}; "
            "give a path, or choose another tracker with tracking.sink"
        )


class JsonlSink:
    """Appends what happens to a run to the file at `uri`.

    Safe between processes, which may share the file. Each run has an object of its own, which one
    thread uses at a time: not safe between threads.
    """

    def __init__(self, uri: str, root: Path) -> None:
        check_address(uri)
        self._path = Path(uri)
        self._run_id = ""
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def open(self, run: RunInfo) -> str:
        self._run_id = run.run_id or local_run_id(run.folder)
        self._append({"event": "run", **run._asdict(), "run_id": self._run_id})
        return self._run_id

    def log_params(self, params: Mapping[str, str]) -> None:
        self._append({"event": "params", "params": params})

    def log_inputs(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        self._append({"event": "inputs", "inputs": inputs})

    def log_metrics(self, points: Sequence[Point]) -> None:
        self._append(*({"event": "metric", **point._asdict()} for point in points))

    def set_tags(self, values: Mapping[str, str]) -> None:
        self._append({"event": "tags", "tags": values})

    def log_artifacts(self, folder: Path) -> None:
        self._append({"event": "artifacts", "folder": str(folder.resolve())})

    def log_model(self, folder: Path, code: Path) -> None:
        self._append({"event": "model", "folder": str(folder.resolve())})

    def finish(self, status: str, time: int) -> None:
        self._append({"event": "end", "status": status, "time": time})

    def _append(self, *events: dict[str, Any]) -> None:
        for event in events:
            value = event.get("value")
            if value is not None and not math.isfinite(value):
                event["value"] = str(value)  # JSON has neither NaN nor infinity
        text = "".join(json.dumps({"run": self._run_id, **event}) + "\n" for event in events)
        with locked(self._path), open(self._path, "ab", buffering=0) as file:
            self._close_last_line(file)
            length = os.fstat(file.fileno()).st_size
            try:
                _write(file, text.encode())
            except BaseException:  # a full disk: nothing of these events stays
                with contextlib.suppress(OSError):
                    file.truncate(length)
                raise

    def _close_last_line(self, file: FileIO) -> None:
        """Remove a part of a line of this sink's at the end; end any other line."""
        end = journal.length(self._path.parent, self._path.name)
        if os.fstat(file.fileno()).st_size <= end:
            return
        with open(self._path, "rb") as reader:
            reader.seek(end)
            rest = reader.read()
        if _is_part(rest):
            file.truncate(end)
        else:
            _write(file, b"\n")


def _is_part(line: bytes) -> bool:
    """Return whether a line without a newline is the beginning of one that this sink writes."""
    if not (line.startswith(_BEGINNING) or _BEGINNING.startswith(line)):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _write(file: FileIO, content: bytes) -> None:
    """Write all of some bytes to an unbuffered file, which may take fewer at once."""
    written = 0
    while written < len(content):
        written += file.write(content[written:])
