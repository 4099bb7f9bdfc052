"""Train a recorded run again, from its record alone, and compare it bit for bit.

This is the work of ``fbp reproduce``, in five steps: :func:`.run_record.load_record`,
:func:`.run_record.check_record`, :func:`train_again`, :func:`compare`, :func:`report`.
"""

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
from typing import Any

from fbp.errors import InputError
from fbp.experiment.commands.run_record import (
    Record,
    check_record,
    last_step,
    load_record,
    read_params,
)
from fbp.experiment.commands.verdict import Verdict, compare_runs, shortened, tensor_differences
from fbp.experiment.config import references
from fbp.experiment.rundir import environment, journal, layout, tags
from fbp.experiment.rundir.series import Series, read_series
from fbp.experiment.tracking.readers import open_runs
from fbp.experiment.tracking.run_reader import RecordedRun, RunReader

_CHILD = (
    "from fbp._interruptible import exit_with; "
    "from fbp.experiment.commands.reproduce import child; exit_with(child())"
)
_DIGESTS = (tags.PARAMS_DIGEST, tags.METRICS_DIGEST)
_VARIABLES_FROM_RECORD = ("XLA_FLAGS", "PJRT_NPROC", "NPROC")  # and all JAX_* but its cache
_MAX_LABEL = 100  # characters of the second run's name
_MAX_LINES = 20  # of differences between environments
_SHORT_DIGEST = 12
_LONGEST_VALUE = 60  # characters of a value of the environment


def reproduce(
    name: str, tracking_uri: str | None, say: Callable[[str], None], code: Path | None = None
) -> bool:
    """Train a run (or each run of a group) again and report how it compares.

    Trains in a subprocess, and records each reproduction as a new run.

    Args:
        name: the run's id or name, or its folder.
        tracking_uri: the store. Default: ``MLFLOW_TRACKING_URI``, or the store of this project.
        say: called with each line of the report.
        code: a Python file of the user's own that the configuration names, if not installed.

    Returns:
        Whether all runs are identical to their records.

    Raises:
        InputError: if there is no such run, or if its record or data cannot be used.
    """
    with open_runs(tracking_uri, [name]) as runs:
        run = runs.find(name)
        selected = runs.children(run) or [run]
        results = [_reproduce_run(runs, each, say, code) for each in selected]
        return all(results)


def _reproduce_run(
    runs: RunReader, run: RecordedRun, say: Callable[[str], None], code: Path | None
) -> bool:
    """Reproduce one run; return whether it is identical."""
    record = load_record(runs, run)
    inconsistencies = check_record(runs, record, code)
    for line in _introduction(record):
        say(line)
    folder = train_again(record, runs.uri, code)
    say(f"  {_trained_as(record, folder)}")
    verdict = compare(record, folder, inconsistencies)
    report(runs, record, folder, verdict, say)
    return verdict.identical


def train_again(record: Record, uri: str | None, code: Path | None) -> Path:
    """Train the recorded configuration in a subprocess, in the recorded environment.

    A run that did not finish is trained up to the last step of its record.

    Args:
        record: the run.
        uri: where the new run is tracked; None for the record's own tracker.
        code: a Python file of the user's own that the configuration names, if not installed.

    Returns:
        The new run's folder.

    Raises:
        InputError: if training cannot start, for example because the data are missing.
    """
    task = {
        "config": str(record.config),
        "uri": uri,
        "label": f"{record.run.name}-again"[:_MAX_LABEL],
        "source": record.run.tags.get(tags.SOURCE_NAME, layout.CONFIG),
        "fingerprint": record.run.tags.get(tags.DATA_FINGERPRINT, ""),
        "tags": {tags.REPRODUCES: record.run.run_id},
        "checkpoint_steps": sorted(record.checkpoints) or None,
        "stop_at": None if record.finished else record.last_step,
        "code": None if code is None else str(code.resolve()),
        "imported": references.imported_modules(),
    }
    inherited = {name: value for name, value in os.environ.items() if _is_inherited(name)}
    if record.environment.get("device", {}).get("platform") == "cpu":
        inherited["JAX_PLATFORMS"] = "cpu"
    answer, status = _train_in_subprocess(task, inherited | record.variables)
    if answer is None:
        raise InputError(
            f"run {record.run.name}: it could not be trained again (exit status {status})"
        )
    if "problem" in answer:
        raise InputError(answer["problem"])
    return Path(answer["folder"])


def _is_inherited(variable: str) -> bool:
    """Return whether the subprocess gets an environment variable from this process."""
    if variable in _VARIABLES_FROM_RECORD:
        return False
    return not variable.startswith("JAX_") or "COMPILATION_CACHE" in variable


def compare(record: Record, folder: Path, inconsistencies: list[str]) -> Verdict:
    """Compare a record with the run in `folder` that reproduces it.

    Args:
        record: the first run.
        folder: the second run's.
        inconsistencies: in the record, see :func:`check_record`; they count as differences.
    """
    history, series = read_series(folder), record.series
    end = journal.read_end(folder)
    if (record.run.status, end.status if end else "") == ("FAILED", "FAILED"):
        # a divergence is noticed at the end of a chunk, which may be earlier or later this time
        until = max(map(last_step, history.values()), default=0)
        series = {name: _until(until, points) for name, points in series.items()}
    verdict = compare_runs(series, history, record.checkpoints, journal.read_checkpoints(folder))
    verdict = verdict.with_differences(inconsistencies)
    if not record.finished:
        return verdict
    verdict = verdict.with_differences(_different_digests(record.run, folder))
    if verdict.identical:
        return verdict
    params = read_params(record.artifacts / layout.MODEL / layout.PARAMS)
    new_params = read_params(layout.model(folder) / layout.PARAMS)
    if params is None or new_params is None:
        return verdict
    return verdict.with_differences(tensor_differences(params, new_params))


def report(
    runs: RunReader, record: Record, folder: Path, verdict: Verdict, say: Callable[[str], None]
) -> None:
    """Say how a reproduction compares, and tag its run in the store with the result."""
    for line in _conclusion(record, verdict):
        say(f"  {line}")
    result = "identical" if verdict.identical else verdict.differences[0]
    try:
        runs.tag_local_run(folder, tags.REPRODUCTION, result)
    except OSError:
        name = journal.require_start(folder).name
        say(f"  the store does not answer: run {name} is not tagged with this result")


def _introduction(record: Record) -> list[str]:
    """Return the lines that are shown before training."""
    run = record.run
    differences = _environment_differences(record)
    flags = [
        f"XLA flag {flag} of the record is not passed on, because it is not a plain switch"
        for flag in record.refused_flags
    ]
    lines = [*(differences or ["the environment is the same"]), *flags]
    return [f"run {run.name} ({run.run_id}), {run.status}", *(f"  {line}" for line in lines)]


def _trained_as(record: Record, folder: Path) -> str:
    name = journal.require_start(folder).name
    fingerprint = record.run.tags.get(tags.DATA_FINGERPRINT, "")[:_SHORT_DIGEST]
    data = f"the data are the same ({fingerprint})" if fingerprint else "its data are not recorded"
    return f"trained again as {name}; {data}"


def _conclusion(record: Record, verdict: Verdict) -> list[str]:
    """Return the lines that are shown after the comparison."""
    if not verdict.identical:
        return ["DIFFERENT", *(f"  {line}" for line in verdict.differences)]
    extent = "" if record.finished else f", as far as the record goes ({record.run.status})"
    return [
        f"identical to the bit: {verdict.values:,} metric values and the parameters at "
        f"{verdict.checkpoints} checkpoints{extent}"
    ]


def _until(step: int, points: Series) -> Series:
    """Return the points up to `step`."""
    return points.where(points.steps <= step)


def _different_digests(run: RecordedRun, folder: Path) -> list[str]:
    """Return a line for each digest of a finished run that the run in `folder` does not have."""
    new_tags = journal.read_tags(folder)
    pairs = [
        (name, run.tags.get(name, "")[:_SHORT_DIGEST], new_tags.get(name, "")[:_SHORT_DIGEST])
        for name in _DIGESTS
    ]
    return [
        f"{name} was {old or 'missing'}, is {new or 'missing'}"
        for name, old, new in pairs
        if old != new
    ]


def _environment_differences(record: Record) -> list[str]:
    """Return lines on what has changed since the run and cannot be restored."""
    ignored = {"threads", "XLA_FLAGS"}
    ignored |= {f"jax.{name.removeprefix('JAX_').lower()}" for name in record.variables}
    lines = [
        f"{name}: was {old[:_LONGEST_VALUE]}, is {new[:_LONGEST_VALUE]}"
        for name, old, new in environment.differences(record.environment, environment.describe())
        if name not in ignored
    ]
    lines = shortened(lines, _MAX_LINES)
    commit = record.run.tags.get(tags.GIT_COMMIT)
    repository = environment.git(Path.cwd())
    if not commit or not repository:
        return lines
    if repository["commit"] != commit:
        now = repository["commit"][:_SHORT_DIGEST]
        return [*lines, f"git commit: was {commit[:_SHORT_DIGEST]}, is {now}"]
    path = record.artifacts / layout.GIT_DIFF
    diff = path.read_text(encoding="utf-8") if path.exists() else ""
    if diff != repository.get("diff", ""):
        lines.append("git: the uncommitted changes differ (the run's artifact git.diff has them)")
    return lines


def _train_in_subprocess(
    task: dict[str, Any], variables: Mapping[str, str]
) -> tuple[dict[str, str] | None, int]:
    """Train in a process of its own, which ends when this one does.

    Args:
        task: see :func:`child`; the name of the file for its answer is added.
        variables: the subprocess's environment.

    Returns:
        The answer, None if the process died without one; and its exit status.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "answer.json"
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            text=True,
            env=variables,
            start_new_session=True,  # Ctrl-C is for this process, which stops the other
        )
        assert process.stdin is not None
        try:
            # the pipe stays open; the child notices by its closing that this process has died
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(task | {"answer": str(path)}) + "\n")
                process.stdin.flush()
            process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        answer = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return answer, process.returncode


def child() -> int:
    """Run the training process: read its task from standard input, write its answer to a file."""
    from fbp.experiment.commands.launch import RunRequest, launch_config
    from fbp.experiment.commands.progress import Bar
    from fbp.experiment.config import reading
    from fbp.experiment.runner.run_start import RunIdentity

    line = sys.stdin.readline()
    if not line.endswith("\n"):  # the parent died before it had sent the task
        return 1
    task = json.loads(line)
    threading.Thread(target=_stop_when_parent_dies, daemon=True).start()
    identity = RunIdentity(
        Path(task["source"]), task["label"], tags=task["tags"], fingerprint=task["fingerprint"]
    )
    try:
        steps = {key: task[key] for key in ("checkpoint_steps", "stop_at")}
        request = RunRequest(Bar, task["uri"], **steps)
        code = None if task["code"] is None else Path(task["code"])
        with references.reading_record(code, task["imported"]):
            launched = launch_config(reading.read(Path(task["config"])), identity, request)
        answer = {"folder": str(launched.folder.resolve())}
    except InputError as error:
        answer = {"problem": str(error)}
    Path(task["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def _stop_when_parent_dies() -> None:
    """Block until standard input is closed, then stop training as a SIGTERM does."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
