"""Check the record of a run against its manifest, without training: ``fbp verify``."""

from collections.abc import Callable
from pathlib import Path

from fbp.errors import InputError
from fbp.experiment.commands import archive as archives
from fbp.experiment.commands import archive_needs
from fbp.experiment.commands.segment import verify_segment
from fbp.experiment.config import reading
from fbp.experiment.config.trust import Trust
from fbp.experiment.rundir import layout, signatures, trust_store
from fbp.experiment.rundir.verification import Verification
from fbp.experiment.tracking.folder_runs import find_folder
from fbp.experiment.tracking.readers import open_runs
from fbp.experiment.tracking.run_reader import RecordedRun

_MAX_LINES = 20


def verify(
    name: str,
    tracking_uri: str | None,
    say: Callable[[str], None],
    signers: Path | None = None,
) -> bool:
    """Check the record of a run, and of each run under it; report what is not as it was.

    Args:
        name: the run's id or name, its folder, or the file of an archive.
        tracking_uri: the store. Default: ``MLFLOW_TRACKING_URI``, or the store of this project.
        say: called with each line of the report.
        signers: a file of allowed signers, see ``man ssh-keygen``. One of them must have signed.

    Returns:
        Whether everything is as it was recorded.

    Raises:
        InputError: if there is no such run, or if its record is not sealed yet.
    """
    if archives.is_archive(name):
        with archives.opened(Path(name)) as (folders, root):
            results = []
            for run in reversed(folders.search()):
                folder = folders.folder(run)
                changes = archive_needs.changes(root, folder)
                verification = folders.verify(run).with_differences(changes)
                results.append(_report(run, verification, layout.artifacts(folder), signers, say))
            return all(results)
    with open_runs(tracking_uri, [name]) as runs:
        run = runs.find(name)
        results = [
            _report(each, runs.verify(each), runs.signed_artifacts(each), signers, say)
            for each in (run, *runs.children(run))
        ]
        return all(results)


def verify_part(name: str, start: int, stop: int, say: Callable[[str], None], trust: Trust) -> bool:
    """Train the steps between two checkpoints again; return whether they are the same to the bit.

    Args:
        name: the run's folder, name or id, or the file of an archive of one run.
        start: the step of a checkpoint that was kept.
        stop: the step of a later one.
        say: called with each line of the report.
        trust: which code of the user's own the configuration may name.

    Raises:
        InputError: if the run's folder is not on this machine, or see :func:`verify_segment`.
    """
    task = {"trust": trust.to_json(), "data": None}
    if archives.is_archive(name):
        with archives.opened(Path(name)) as (folders, root):
            runs = [run for run in folders.search() if not folders.children(run)]
            if len(runs) != 1:
                raise InputError(f"{name}: expected an archive of one run, got {len(runs)}")
            folder = folders.folder(runs[0])
            reading.require_trusted_names(layout.config(folder), trust)
            return verify_segment(folder, start, stop, say, {**task, "data": str(root)})
    local = find_folder(layout.root(), name)
    if local is None or not layout.config(local).exists():
        raise InputError(f"run {name!r}: --from and --to need the folder of a run made by fbp run")
    trust = trust.joined(trust_store.lookup(local))
    reading.require_trusted_names(layout.config(local), trust)
    return verify_segment(local, start, stop, say, {**task, "trust": trust.to_json()})


def _report(
    run: RecordedRun,
    verification: Verification,
    artifacts: Path,
    signers: Path | None,
    say: Callable[[str], None],
) -> bool:
    """Report on one run; return whether its record holds."""
    checked = signatures.verify(artifacts, signers)
    verification = verification.with_differences(checked.problems)
    say(f"run {run.name} ({run.run_id}), {run.status}")
    for line in [*report(verification), *checked.signers]:
        say(f"  {line}")
    return verification.holds


def report(verification: Verification) -> list[str]:
    """Return the lines that say how a record compares with its manifest."""
    if not verification.holds:
        lines = list(verification.differences)
        rest = [f"and {len(lines) - _MAX_LINES} more"] if len(lines) > _MAX_LINES else []
        return ["DIFFERENT from what was recorded", *(f"  {x}" for x in lines[:_MAX_LINES] + rest)]
    return [
        f"as it was recorded: {', '.join(verification.covered)}",
        f"root {verification.root}",
        f"not covered: {verification.not_covered}",
    ]
