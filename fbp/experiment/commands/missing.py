"""What a run must have among its artifacts and does not: which, of which run, and what to do."""

from collections.abc import Iterable
from pathlib import Path

from fbp.errors import InputError, listed
from fbp.experiment.rundir import journal, layout, tags
from fbp.experiment.rundir.redact import redact
from fbp.experiment.tracking.run_reader import RecordedRun, RunReader

_HISTORY = f"{layout.HISTORY}/{layout.METRICS_CSV}"


def missing_artifacts(runs: RunReader, run: RecordedRun) -> list[str]:
    """Return the names of the artifacts that a run has written, and that its store does not have.

    Args:
        runs: the store.
        run: the run; of one that goes on, nothing is missing.
    """
    if run.status == "RUNNING" or tags.VERSION not in run.tags:
        return []
    names = [layout.ENVIRONMENT]
    if made_by_fbp_run(run):
        names.append(layout.CONFIG)
        is_group = tags.VARIANTS in run.tags
        names += layout.READ_MODEL if run.status == "FINISHED" and not is_group else ()
    if runs.uri is not None:  # in run folders, the journal has the history
        names.append(_HISTORY)
    present = runs.artifact_names(run)
    return [name for name in names if name not in present]


def made_by_fbp_run(run: RecordedRun) -> bool:
    """Return whether ``fbp run`` made a run, not a loop of the user's own."""
    return tags.SEED in run.tags


def message(runs: RunReader, run: RecordedRun, names: Iterable[str]) -> str:
    """Return the line on missing artifacts of a run: which, where, and what to do."""
    place = redact(run.artifact_uri) or redact(runs.uri or "")
    return f"run {run.name}: {_are_missing(list(names), place)}; {_remedy(runs, run)}"


def require_artifacts(runs: RunReader, run: RecordedRun, names: Iterable[str]) -> None:
    """Raise InputError if some of the artifacts of those names are missing, with what to do."""
    present = runs.artifact_names(run)
    absent = [name for name in names if name not in present]
    if absent:
        raise InputError(message(runs, run, absent))


def require_model(folder: Path) -> None:
    """Raise InputError if a run's folder lacks a part of its trained model, with what to do."""
    artifacts = layout.artifacts(folder)
    absent = [name for name in layout.READ_MODEL if not (artifacts / name).exists()]
    if not absent:
        return
    start, end = journal.require_start(folder), journal.read_end(folder)
    if end is None or (end.status != "FINISHED" and len(absent) == len(layout.READ_MODEL)):
        status = end.status if end else "it has not ended"
        raise InputError(
            f"run {start.name}: it has no trained model yet ({status}); go on with: "
            f"fbp resume {folder.name}"
        )
    if not layout.config(folder).exists() and tags.SEED not in start.tags:
        raise InputError(
            f"run {start.name}: it was made by fbp.experiment.track, which stores no model; its "
            "own script can restore its checkpoints"
        )
    raise InputError(f"run {start.name}: {_are_missing(absent, str(artifacts))}; {_FROM_BACKUP}")


_FROM_BACKUP = "put them back from a backup, or from the machine or tracker that has them"


def _are_missing(names: list[str], place: str) -> str:
    verb = "are" if len(names) > 1 else "is"
    return f"{listed(names)} {verb} missing in {place} (removed, or never sent)"


def _remedy(runs: RunReader, run: RecordedRun) -> str:
    folder = layout.run_folder(layout.root(), run.tags.get(tags.FOLDER, ""))
    if runs.uri is not None and folder and (layout.artifacts(folder) / layout.ENVIRONMENT).exists():
        return f"{folder} has them: name that folder, with --tracking-uri folders"
    return _FROM_BACKUP
