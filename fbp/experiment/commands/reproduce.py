"""Train a recorded run again, from its record alone, and compare it bit for bit.

This is the work of ``fbp reproduce``, in five steps: :func:`.run_record.load_record`,
:func:`.run_record.check_record`, :func:`train_again`, :func:`compare`, :func:`report`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fbp.errors import prefixed_by
from fbp.experiment.commands import archive, archive_needs
from fbp.experiment.commands.run_record import (
    UNSEALED,
    Record,
    check_record,
    last_step,
    load_record,
    read_params,
)
from fbp.experiment.commands.training_process import serve, train_in_subprocess
from fbp.experiment.commands.verdict import Verdict, compare_runs, shortened, tensor_differences
from fbp.experiment.config import reading, references, writing
from fbp.experiment.config.trust import NOTHING, Trust
from fbp.experiment.rundir import (
    environment,
    journal,
    layout,
    manifest,
    repository,
    tags,
    trust_store,
)
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.series import Series, read_series
from fbp.experiment.rundir.verification import Verification
from fbp.experiment.runner.trained_model import PYFUNC_CODE
from fbp.experiment.tracking import shipper
from fbp.experiment.tracking.readers import open_runs
from fbp.experiment.tracking.run_reader import RecordedRun, RunReader
from fbp.experiment.tracking.uri import recorded_destination

_CHILD = (
    "from fbp._interruptible import exit_with; "
    "from fbp.experiment.commands.reproduce import child; exit_with(child())"
)
_DIGESTS = (tags.PARAMS_DIGEST, tags.METRICS_DIGEST)
_MAX_LABEL = 100  # characters of the second run's name
_MAX_LINES = 20  # of differences between environments
_SHORT_DIGEST = 12
_LONGEST_VALUE = 60  # characters of a value of the environment
_NOT_SEALED = "its record is not sealed: nothing else that is shown of it was checked"


def reproduce(
    name: str, tracking_uri: str | None, say: Callable[[str], None], trust: Trust = NOTHING
) -> bool:
    """Train a run (or each run of a group) again and report how it compares.

    Trains in a subprocess, and records each reproduction as a new run.

    Args:
        name: the run's id or name, its folder, or the file of an archive.
        tracking_uri: the store. Default: ``MLFLOW_TRACKING_URI``, or the store of this project.
        say: called with each line of the report.
        trust: which code of the user's own the configuration may name.

    Returns:
        Whether all runs are identical to their records.

    Raises:
        InputError: if there is no such run, or if its record or data cannot be used.
    """
    if archive.is_archive(name):
        with archive.opened(Path(name)) as (folders, root):
            results = [
                _reproduce_run(folders, run, say, trust, root)
                for run in reversed(folders.search())
                if not folders.children(run)
            ]
            return all(results)
    with open_runs(tracking_uri, [name]) as runs:
        run = runs.find(name)
        selected = runs.children(run) or [run]
        results = [_reproduce_run(runs, each, say, trust) for each in selected]
        return all(results)


def _reproduce_run(
    runs: RunReader,
    run: RecordedRun,
    say: Callable[[str], None],
    trust: Trust,
    unpacked: Path | None = None,
) -> bool:
    """Reproduce one run; return whether it is identical.

    Args:
        runs: the store.
        run: the run.
        say: called with each line of the report.
        trust: which code of the user's own the configuration may name.
        unpacked: the folder of an unpacked archive, which may have the data.
    """
    record = load_record(runs, run)
    local = layout.run_folder(layout.root(), run.tags.get(tags.FOLDER))
    if local is not None:
        trust = trust.joined(trust_store.lookup(local, record.config))
    verification = check_record(runs, record, trust)
    for line in [*_introduction(record), *_record_lines(verification)]:
        say(line)
    folder = train_again(record, runs.uri, trust, unpacked)
    say(f"  {_trained_as(record, folder)}")
    verdict = compare(record, folder, verification)
    report(runs, record, folder, verdict, verification, say)
    return verdict.identical


def train_again(
    record: Record, uri: str | None, trust: Trust, unpacked: Path | None = None
) -> Path:
    """Train the recorded configuration in a subprocess, in the recorded environment.

    A run that did not finish is trained up to the last step of its record.

    Args:
        record: the run.
        uri: where the new run is tracked; None for the record's own tracker.
        trust: which code of the user's own the configuration may name.
        unpacked: the folder of an unpacked archive, which may have the data.

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
        "trust": trust.to_json(),
        "data": None if unpacked is None else str(unpacked),
        "folder_name": record.run.tags.get(tags.FOLDER, ""),
    }
    with prefixed_by(f"run {record.run.name}"):
        answer = train_in_subprocess(task, record.environment, record.variables, _CHILD)
    return Path(answer["folder"])


def compare(record: Record, folder: Path, verification: Verification) -> Verdict:
    """Compare a record with the run in `folder` that reproduces it.

    Args:
        record: the first run.
        folder: the second run's.
        verification: how the record compares with its manifest, see :func:`check_record`.
    """
    history, series = read_series(folder), record.series
    end = journal.read_end(folder)
    if (record.run.status, end.status if end else "") == ("FAILED", "FAILED"):
        # a divergence is noticed at the end of a chunk, which may be earlier or later this time
        until = max(map(last_step, history.values()), default=0)
        series = {name: _until(until, points) for name, points in series.items()}
    verdict = compare_runs(series, history, record.checkpoints, journal.read_checkpoints(folder))
    verdict = verdict.with_differences(
        [*_changes(verification), *_changed_facts(verification.sealed, record, folder)]
    )
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
    runs: RunReader,
    record: Record,
    folder: Path,
    verdict: Verdict,
    verification: Verification,
    say: Callable[[str], None],
) -> None:
    """Say how a reproduction compares, and tag its run in the store with the result."""
    for line in _conclusion(record, verdict, verification):
        say(f"  {line}")
    writer = Journal(folder)
    result = "identical" if verdict.identical else verdict.differences[0]
    if verdict.identical and verification is UNSEALED:
        result += f"; {_NOT_SEALED}"
    writer.tags({tags.REPRODUCTION: result[: journal.LONGEST_MESSAGE]})
    writer.close()
    process = shipper.launch(folder, recorded_destination(folder, runs.uri), PYFUNC_CODE)
    if not shipper.wait(process, shipper.SEND_SECONDS):
        name = journal.require_start(folder).name
        say(f"  the tag {tags.REPRODUCTION} of run {name} is not sent yet; do that with: fbp sync")


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
    return f"trained again as {name}; {data}{_own_code(record, folder)}"


def _own_code(record: Record, folder: Path) -> str:
    """Return whether the user's own code was the same; empty if there is none."""
    recorded = record.environment.get("own_code", {})
    present = environment.read(layout.artifacts(folder)).get("own_code", {})
    if not recorded and not present:
        return ""
    changed = [name for name in {**recorded, **present} if recorded.get(name) != present.get(name)]
    if not changed:
        return "; your own code is the same"
    return f"; your own code is another in {', '.join(changed[:_MAX_LINES])}"


def _conclusion(record: Record, verdict: Verdict, verification: Verification) -> list[str]:
    """Return the lines that are shown after the comparison."""
    if not verdict.identical:
        return ["DIFFERENT", *(f"  {line}" for line in verdict.differences)]
    extent = "" if record.finished else f", as far as the record goes ({record.run.status})"
    compared = f"{verdict.values:,} metric values and the parameters at {verdict.checkpoints}"
    lines = [f"identical to the bit: {compared} checkpoints{extent}"]
    return [*lines, f"but {_NOT_SEALED}"] if verification is UNSEALED else lines


def _record_lines(verification: Verification) -> list[str]:
    """Return the line that says how the record compares with its manifest."""
    if verification is UNSEALED:
        return ["  its record is not sealed yet, so it cannot be checked for changes"]
    if not verification.holds:
        return ["  its record was changed; the lines below DIFFERENT say where"]
    return [f"  its record is as it was recorded; not covered: {verification.not_covered}"]


def _changes(verification: Verification) -> list[str]:
    """Return a line for each change of the record, of the first few."""
    lines = [f"changed in the record: {line}" for line in verification.differences]
    return shortened(lines, _MAX_LINES)


def _changed_facts(sealed: Mapping[str, Any], record: Record, folder: Path) -> list[str]:
    """Return a line for each fact of the second run that the first one's manifest has otherwise."""
    if not sealed:
        return []
    present = manifest.make(folder, {})
    changed = writing.changed_params(sealed["params"], present["params"])
    lines = [
        *manifest.differences(
            {name: sealed["params"].get(name) for name in changed},
            {name: present["params"].get(name) for name in changed},
            "params",
        ),
        *manifest.differences(sealed["datasets"], present["datasets"], "datasets"),
    ]
    if record.finished:
        old, new = _model_files(sealed), _model_files(present)
        config = f"{layout.MODEL}/{layout.CONFIG}"
        if reading.same_but_for_places(
            record.artifacts / config, layout.artifacts(folder) / config
        ):
            old.pop(config, None), new.pop(config, None)
        lines += manifest.differences(old, new, "model")
    return shortened([f"trained again: {line}" for line in lines], _MAX_LINES)


def _model_files(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the digests of the files of the trained model."""
    files = tree["artifacts"].items()
    return {name: entry for name, entry in files if name.startswith(f"{layout.MODEL}/")}


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
    state = repository.git(Path.cwd())
    if not commit or not state:
        return lines
    unknown = [
        f"git: {reason}"
        for reason in (record.environment.get("unknown", {}).get("git"), state.get("problem"))
        if reason
    ]
    if unknown:  # which is not the same as clean
        return [*lines, "git: whether the code is the same is unknown", *unknown]
    if state["commit"] != commit:
        now = state["commit"][:_SHORT_DIGEST]
        return [*lines, f"git commit: was {commit[:_SHORT_DIGEST]}, is {now}"]
    no_diff = record.environment.get("unknown", {}).get(layout.GIT_DIFF)
    if no_diff:
        return [*lines, f"git: whether the uncommitted changes are the same is unknown: {no_diff}"]
    path = record.artifacts / layout.GIT_DIFF
    diff = path.read_text(encoding="utf-8") if path.exists() else ""
    if diff != state.get("diff", ""):
        lines.append("git: the uncommitted changes differ (the run's artifact git.diff has them)")
    return lines


def child() -> int:
    """Train a task of :func:`train_again` in this process."""
    return serve(_train_task)


def _train_task(task: dict[str, Any]) -> str:
    from fbp.experiment.commands.launch import RunRequest, launch_config
    from fbp.experiment.commands.progress import Bar
    from fbp.experiment.runner.run_start import RunIdentity

    identity = RunIdentity(
        Path(task["source"]), task["label"], tags=task["tags"], fingerprint=task["fingerprint"]
    )
    steps = {key: task[key] for key in ("checkpoint_steps", "stop_at")}
    data = None
    if task["data"] is not None:
        data = archive_needs.read_dataset(Path(task["data"]), task["folder_name"])
    request = RunRequest(Bar, task["uri"], **steps, dataset=data)
    with references.reading_record(Trust.from_json(task["trust"])):
        launched = launch_config(reading.read(Path(task["config"])), identity, request)
    return str(launched.folder.resolve())
