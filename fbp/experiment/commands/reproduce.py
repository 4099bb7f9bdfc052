"""Run a recorded experiment again, from its record in MLflow alone, and compare bit for bit: what ``fbp reproduce`` does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fbp.errors import InputError
from fbp.experiment.config import reading as configuration
from fbp.experiment.config.catalogue import require_trusted_module
from fbp.experiment.rundir import environment, journal
from fbp.experiment.rundir.journal import Series, is_timing
from fbp.experiment.rundir.npz import READ_ERRORS, digest_of, read_arrays
from fbp.experiment.tracking import mlflow_format, mlflow_runs, shipper
from fbp.experiment.tracking.mlflow_runs import Recorded, Runs

_CHILD = "import sys; from fbp.experiment.commands.reproduce import child; sys.exit(child())"
_DIGESTS = ("fbp.params_digest", "fbp.metrics_digest")
_OURS = (
    "XLA_FLAGS",
    "PJRT_NPROC",
    "NPROC",
)  # with JAX_*: what the child gets from the record, not from here


class Verdict(NamedTuple):
    """How a second run compares with the first.

    Attributes:
        identical: whether no bit differs.
        compared: how many values of metrics, and how many checkpoints, were compared.
        lines: what differs, where first and by how much.
    """

    identical: bool
    compared: tuple[int, int]
    lines: list[str]


def reproduce(
    name: str, tracking_uri: str | None, say: Callable[[str], None], code: Path | None = None
) -> bool:
    """Run a run (or each run of a group) again and say how it compares; returns whether all are identical.

    Args:
        name: the run's id or name in MLflow, or its folder.
        tracking_uri: the store.
        say: takes the report, line by line.
        code: the file of the user's own model, where it is not installed.

    Raises:
        InputError: where there is no such run, or its record or data cannot be used.
    """
    with mlflow_runs.opened(tracking_uri) as runs:
        run = runs.find(name)
        found = runs.children(run) or [run]
        verdicts = [_one(runs, runs.read(each, model=True), say, code) for each in found]
        return all(verdicts)


def _one(runs: Runs, first: Recorded, say: Callable[[str], None], code: Path | None) -> bool:
    from mlflow.exceptions import MlflowException

    config = first.folder / "config.toml"
    if not config.exists():
        raise InputError(
            f"run {first.name}: its record has no config.toml; only runs made by fbp can be run again"
        )
    require_trusted_module(configuration.named_model(config), code)
    record = environment.recorded(first.folder)
    variables, left = environment.variables(record)
    say(f"run {first.name} ({first.run_id}), {first.status}")
    for line in _surroundings(first, record, set(variables)):
        say(f"  {line}")
    for flag in left:
        say(f"  XLA flag {flag} of the record is not taken over: it is not a plain switch")
    series, checkpoints = runs.series(first), mlflow_runs.checkpoints(first)
    if first.status != "FINISHED" and not series and not checkpoints:
        raise InputError(
            f"run {first.name}: its record has neither metrics nor checkpoints; there is nothing to compare"
        )
    contradictions = _contradictions(runs, first, series)
    stop_at = (
        None
        if first.status == "FINISHED"
        else max([*checkpoints, *map(_last, series.values())], default=None)
    )
    folder = _again(first, config, variables, sorted(checkpoints), stop_at, runs.uri)
    start, end = journal.read_start(folder) or {}, journal.read_end(folder) or {}
    data = first.tags.get("fbp.data_fingerprint", "")[:12]
    say(
        f"  run again as {start.get('name')}; {f'the data is the same ({data})' if data else 'of which data is not recorded'}"
    )
    history = journal.history(folder)
    if (first.status, end.get("status")) == (
        "FAILED",
        "FAILED",
    ):  # found out at the end of a chunk, early or late
        until = max(map(_last, history.values()), default=0)
        series = {
            key: Series(*(column[points.steps <= until] for column in points))
            for key, points in series.items()
        }
    verdict = compare(series, history, checkpoints, journal.checkpoints(folder))
    contradictions += _other_digests(first, folder) if first.status == "FINISHED" else []
    if contradictions:
        verdict = Verdict(False, verdict.compared, verdict.lines + contradictions)
    if not verdict.identical and first.status == "FINISHED":
        verdict.lines.extend(
            _tensors(
                first.folder / "model" / "params.npz", folder / "artifacts" / "model" / "params.npz"
            )
        )
    for line in _summary(first, verdict):
        say(f"  {line}")
    second = shipper.shipped(folder).get("run_id")
    if second:
        try:
            runs.client.set_tag(
                second, "fbp.reproduction", "identical" if verdict.identical else verdict.lines[0]
            )
        except MlflowException:
            say(
                f"  the store does not answer: run {start.get('name')} there does not show how it compares"
            )
    return verdict.identical


def _last(points: Series) -> int:
    return int(points.steps[-1]) if len(points.steps) else 0


def _contradictions(runs: Runs, first: Recorded, series: Mapping[str, Series]) -> list[str]:
    """Where a record does not agree with itself: somebody or something has changed it."""
    lines: list[str] = []
    if first.status == "RUNNING":
        return lines
    known = {
        mlflow_format.key_of(key): dict(zip(*points[:2], strict=True))
        for key, points in series.items()
    }
    for key, points in runs.points(first).items():
        for step, value in zip(*points[:2], strict=True):
            kept = known.get(key, {}).get(step)
            if kept is None:
                agrees = (
                    first.status != "FINISHED"
                )  # of a run that died, the history may be from an earlier end
            else:  # MLflow has no infinity, and some stores no -0
                agrees = _same(value, kept) or value == kept or (np.isnan(value) and np.isinf(kept))
            if not agrees:
                lines.append(
                    f"the record contradicts itself: {key} at step {step} is {value!s} in MLflow, "
                    f"and {'missing' if kept is None else kept} in the run's history"
                )
                break
    if first.status != "FINISHED":
        return lines[:5]
    if journal.metrics_digest(series) != first.tags.get("fbp.metrics_digest"):
        lines.append(
            "the record contradicts itself: the run's history is not what fbp.metrics_digest was taken of"
        )
    if not mlflow_runs.checkpoints(first):
        lines.append("the record has no digests of the parameters at checkpoints")
    arrays = _params(first.folder / "model" / "params.npz")
    if arrays is None or digest_of(arrays) != first.tags.get("fbp.params_digest"):
        lines.append(
            "the record contradicts itself: the model's parameters are not what fbp.params_digest was taken of"
        )
    return lines[:5]


def _other_digests(first: Recorded, folder: Path) -> list[str]:
    """Which of a finished run's digests are others when it is run again."""
    tags: dict[str, str] = {}
    for _, line in journal.lines(folder, kinds=["tags"]):
        tags |= line["values"]
    pairs = [(name, first.tags.get(name, "")[:12], tags.get(name, "")[:12]) for name in _DIGESTS]
    return [
        f"{name} was {old or 'nothing'}, is {new or 'nothing'}"
        for name, old, new in pairs
        if old != new
    ]


def _summary(first: Recorded, verdict: Verdict) -> list[str]:
    values, checkpoints = verdict.compared
    if verdict.identical:
        until = (
            ""
            if first.status == "FINISHED"
            else f", as far as the first one's history goes ({first.status})"
        )
        return [
            f"identical to the bit: {values:,} values of metrics and the parameters at {checkpoints} checkpoints{until}"
        ]
    return ["DIFFERENT", *(f"  {line}" for line in verdict.lines)]


def _surroundings(first: Recorded, record: dict[str, Any], given: set[str]) -> list[str]:
    """What is another now than when the run was made, of what the child does not get from the record."""
    now = environment.facts()
    same = {"threads", "XLA_FLAGS"} | {f"jax.{name.removeprefix('JAX_').lower()}" for name in given}
    lines = [
        f"{name}: then {old[:60]}, now {new[:60]}"
        for name, old, new in environment.differences(record, now)
        if name not in same
    ]
    if len(lines) > 20:
        lines[20:] = [f"and {len(lines) - 20} more"]
    commit = first.tags.get("mlflow.source.git.commit")
    here = environment.git(Path.cwd())
    if commit and here and here["commit"] != commit:
        lines.append(f"git commit: then {commit[:12]}, now {here['commit'][:12]}")
    elif commit and here:
        path = first.folder / "git.diff"
        if (path.read_text(encoding="utf-8") if path.exists() else "") != here.get("diff", ""):
            lines.append(
                "git: uncommitted changes are others than then (the run's artifact git.diff has them)"
            )
    return lines or ["the environment is the same"]


def _again(
    first: Recorded,
    config: Path,
    variables: dict[str, str],
    steps: list[int],
    stop_at: int | None,
    uri: str,
) -> Path:
    """Train in a process of its own, which ends with this one; returns the new run's folder."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in _OURS and not key.startswith("JAX_")
    }
    if environment.recorded(first.folder).get("device", {}).get("platform") == "cpu":
        inherited["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        task = {
            "config": str(config),
            "uri": uri,
            "label": f"{first.name}-again"[:100],
            "source": first.tags.get("mlflow.source.name", "config.toml"),
            "fingerprint": first.tags.get("fbp.data_fingerprint", ""),
            "tags": {"fbp.reproduces": first.run_id},
            "checkpoint_steps": steps or None,
            "stop_at": stop_at,
            "answer": str(answer),
        }
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            text=True,
            env=inherited | variables,
            start_new_session=True,  # Ctrl-C is for this process, which ends the other
        )
        try:
            assert process.stdin is not None
            with contextlib.suppress(
                BrokenPipeError
            ):  # it stays open: the child sees by its end that this one is gone
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
            process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if not answer.exists():
            raise InputError(
                f"run {first.name}: it could not be run again (exit status {process.returncode})"
            )
        said = json.loads(answer.read_text(encoding="utf-8"))
    if "problem" in said:
        raise InputError(said["problem"])
    return Path(said["folder"])


def child() -> int:
    """The process that trains: its task comes as JSON on the standard input, its answer goes into a file."""
    from fbp.experiment.commands.launch import launch_config
    from fbp.experiment.commands.progress import Bar
    from fbp.experiment.runner.run import RunIdentity

    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    origin = RunIdentity(
        Path(task["source"]), task["label"], tags=task["tags"], fingerprint=task["fingerprint"]
    )
    try:
        plan = {key: task[key] for key in ("checkpoint_steps", "stop_at")}
        launched = launch_config(Path(task["config"]), origin, Bar, task["uri"], **plan)
        answer = {"folder": str(launched.folder.resolve())}
    except InputError as error:
        answer = {"problem": str(error)}
    Path(task["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def _end_with_parent() -> None:
    """Wait until nobody can write to the standard input any more, then stop training as a SIGTERM does."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def compare(
    first: Mapping[str, Series],
    second: Mapping[str, Series],
    before: Mapping[int, dict[str, Any]],
    now: Mapping[int, dict[str, Any]],
) -> Verdict:
    """Compare two runs' metrics and checkpoints. What the first has, the second must have, to the bit.

    Args:
        first, second: metrics by name.
        before, now: checkpoints by step; ``params`` or ``params_digest`` is of all parameters, ``tensors`` of each.
    """
    lines, found, values = [], [], 0
    for key, series in first.items():
        if is_timing(key):
            continue
        other = second.get(key)
        there = (
            dict(zip(other.steps.tolist(), other.values.tolist(), strict=True))
            if other is not None
            else {}
        )
        for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True):
            values += 1
            if step not in there:
                found.append((step, key, f"{key} was {value!r}, and is missing"))
            elif not _same(value, there[step]):
                gap = abs(there[step] - value)
                found.append(
                    (step, key, f"{key} was {value!r}, is {there[step]!r} (difference {gap:.3g})")
                )
    if found:
        step, _, line = min(found)
        lines.append(
            f"first different metric, at step {step}: {line}; {len(found):,} of {values:,} values differ"
        )
    common = sorted(set(before) & set(now))
    for step in common:
        one, other_one = before[step], now[step]
        if one["params"] != other_one["params_digest"]:
            names = [
                name
                for name, digest in one["tensors"].items()
                if other_one["tensors"].get(name) != digest
            ]
            tensors = (
                f"tensor {names[0]} first, {len(names)} of {len(one['tensors'])} in all"
                if names
                else "all of them"
            )
            same = [earlier for earlier in common if earlier < step]
            lines.append(
                f"parameters first differ at the checkpoint of step {step}: {tensors}"
                + (
                    f"; at step {same[-1]} they were the same"
                    if same
                    else "; that is the first checkpoint"
                )
            )
            break
    if not values and not common:
        lines.append("there is nothing to compare: the record has neither metrics nor checkpoints")
    lost = sorted(set(before) - set(now))
    if lost:
        lines.append(f"no checkpoint at step {', '.join(map(str, lost[:5]))} to compare with")
    return Verdict(not lines, (values, len(common)), lines)


def _same(one: float, other: float) -> bool:
    """To the bit, but for the many forms of NaN."""
    return np.float64(one).tobytes() == np.float64(other).tobytes() or (
        one != one and other != other
    )


def _params(path: Path) -> dict[str, np.ndarray] | None:
    """The parameters in a model's file, by path; None where it is absent or damaged."""
    try:
        return {
            key.partition("/")[2]: array
            for key, array in read_arrays(path).items()
            if key.partition("/")[0] == "params"
        }
    except (OSError, *READ_ERRORS):
        return None


def _tensors(before: Path, now: Path) -> list[str]:
    """By how much the final parameters differ."""
    old, new = _params(before), _params(now)
    if old is None or new is None:
        return []
    lines = []
    for name, array in old.items():
        other = new.get(name)
        if other is None or other.shape != array.shape:
            lines.append(f"{name} is missing or has another shape")
        elif other.tobytes() != array.tobytes():
            gap = np.abs(other.astype(np.float64) - array.astype(np.float64))
            size = float(np.abs(array.astype(np.float64)).max())
            lines.append(
                f"at the end, {name} differs by at most {gap.max():.3g} (its largest number is {size:.3g})"
            )
    return lines[:10] + ([f"and {len(lines) - 10} more"] if len(lines) > 10 else [])
