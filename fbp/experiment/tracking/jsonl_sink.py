"""A tracker that is a plain file of JSON lines, which any program can read.

Each line is an object with `run` (the run's id) and `event`: run, params, inputs, metric, tags,
artifacts, model or end. Several runs may share a file. A line may come twice, after an
interruption.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fbp.experiment.rundir.layout import local_run_id
from fbp.experiment.rundir.locks import locked
from fbp.experiment.tracking.sink import Point, RunInfo


class JsonlSink:
    """Appends what happens to a run to the file at `uri`."""

    def __init__(self, uri: str, root: Path) -> None:
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
        with locked(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(text)
