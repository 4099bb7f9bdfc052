"""The reader of runs in a project's own run folders; it needs no tracker."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from fbp.errors import InputError
from fbp.experiment.rundir import journal, layout, locks, manifest, signatures
from fbp.experiment.rundir.checkpoints import CheckpointDigests
from fbp.experiment.rundir.journal_lines import StartLine
from fbp.experiment.rundir.series import Series, last_values, read_series
from fbp.experiment.rundir.verification import Verification, verify_folder
from fbp.experiment.tracking.run_filter import parse_filter, sort_runs
from fbp.experiment.tracking.run_reader import RecordedRun, matching_runs, single_match
from fbp.experiment.tracking.shipment import changes_of_sent, read_sent

_END = 4  # characters that tell runs apart


class FolderRuns:
    """The runs of a project's ``mlruns/runs``; a :class:`.run_reader.RunReader`.

    Safe between processes: it only reads. Not safe between threads.
    """

    uri = None

    def __init__(self, root: Path):
        """Read which runs `root`, the folder ``mlruns``, has; the newest first."""
        self._root = root
        self._folders: dict[str, Path] = {}
        self._identities: list[RecordedRun] = []  # without status, end and metrics
        self._read: dict[str, RecordedRun] = {}
        for folder, start in reversed(list(journal.started_runs(root))):
            run = _identity(folder, start)
            self._folders[run.run_id] = folder
            self._identities.append(run)

    def _complete(self, run: RecordedRun) -> RecordedRun:
        """Return a run with its status and metrics, which need all of its journal."""
        if run.run_id not in self._read:
            self._read[run.run_id] = _read_outcome(run, self.folder(run))
        return self._read[run.run_id]

    def search(
        self, condition: str = "", order: Sequence[str] = (), limit: int | None = None
    ) -> list[RecordedRun]:
        """Return the runs that satisfy a condition, see :meth:`.RunReader.search`."""
        clauses = parse_filter(condition)
        every = [self._complete(run) for run in self._identities]
        runs = [run for run in every if all(clause.holds(run) for clause in clauses)]
        runs.sort(key=lambda run: run.start, reverse=True)
        return sort_runs(runs, order)[:limit]

    def find(self, name: str) -> RecordedRun:
        """Return exactly one run, see :meth:`.RunReader.find`."""
        where, matches = str(layout.runs(self._root)), self.matches(name)
        if not matches:
            _refuse_newer(self._root, name)
        return self._complete(single_match(name, matches, self._identities, where))

    def matches(self, name: str) -> list[RecordedRun]:
        """Return the runs that `name` may mean, see :func:`.run_reader.matching_runs`."""
        path = Path(name)
        name = path.name if layout.journal(path).exists() else name
        return matching_runs(name, self._identities)

    def children(self, run: RecordedRun) -> list[RecordedRun]:
        """Return the runs shown under `run`, the oldest first."""
        children = [other for other in self._identities if other.parent_id == run.run_id]
        return [self._complete(child) for child in sorted(children, key=lambda child: child.start)]

    def folder(self, run: RecordedRun) -> Path:
        """Return the folder of a run."""
        return self._folders[run.run_id]

    def artifacts(self, run: RecordedRun, *, model: bool = False) -> Path:
        """Return the folder of a run's artifacts."""
        return layout.artifacts(self.folder(run))

    def artifact_names(self, run: RecordedRun) -> set[str]:
        """Return the names of those artifacts of a run that fbp reads, and that are there."""
        folder = layout.artifacts(self.folder(run))
        return {name for name in (*layout.READ, *layout.READ_MODEL) if (folder / name).exists()}

    def series(self, run: RecordedRun) -> dict[str, Series]:
        """Return every metric of a run, from its journal."""
        return read_series(self.folder(run))

    def checkpoints(self, run: RecordedRun) -> dict[int, CheckpointDigests]:
        """Return the digests of the parameters at each checkpoint, by step."""
        return {
            step: CheckpointDigests(step, line.params_digest, dict(line.tensors), line.state_digest)
            for step, line in journal.read_checkpoints(self.folder(run)).items()
        }

    def layers(self, run: RecordedRun) -> dict[str, str]:
        """Return the names of the model's layers by path."""
        return dict(journal.require_start(self.folder(run)).layers)

    def signed_artifacts(self, run: RecordedRun) -> Path:
        """Return the folder of a run's artifacts."""
        return layout.artifacts(self.folder(run))

    def add_signatures(self, run: RecordedRun, folder: Path) -> None:
        """Add a folder of signatures to the run's artifacts."""
        signatures.copy(folder, layout.artifacts(self.folder(run)))

    def verify(self, run: RecordedRun) -> Verification:
        """Check the record of a run against its manifest, without training."""
        return verify_local(self.folder(run))


def is_folder_of(folder: Path, run_id: str) -> bool:
    """Return whether a run's folder is that of a tracker's run, as far as can be known.

    It is not if the run was sent again, to another tracker.
    """
    path = layout.manifest(layout.artifacts(folder))
    sealed_id = ""
    with contextlib.suppress(InputError, OSError):
        sealed_id = manifest.parse(path.read_bytes(), path.name)["tracker"].get("run_id", "")
    known = {read_sent(folder).run_id, sealed_id} - {""}
    return not known or run_id in known


def verify_local(folder: Path) -> Verification:
    """Check all files in a run's folder, see :func:`.verification.verify_folder`.

    Raises:
        NotSealed: if the run goes on, or is still to be sent.
    """
    if journal.read_start(folder) is None:
        return Verification("", ("the journal has no first line",))
    return verify_folder(folder).with_differences(changes_of_sent(folder))


def run_id_of(folder: Path) -> str:
    """Return the id of a run: the tracker's, or a digest of the folder's name if it has none."""
    return read_sent(folder).run_id or layout.local_run_id(folder.name)


def _identity(folder: Path, start: StartLine) -> RecordedRun:
    """Return what the first line of a journal says of its run."""
    parent = layout.safe_child(folder.parent, start.parent)
    return RecordedRun(
        run_id_of(folder),
        start.name,
        start.experiment,
        "RUNNING",
        start.time,
        None,
        dict(start.params),
        dict(start.tags),
        {},
        run_id_of(parent) if parent else "",
        str(layout.artifacts(folder)),
        tuple((entry["name"], entry["digest"]) for entry in start.inputs),
    )


def _read_outcome(run: RecordedRun, folder: Path) -> RecordedRun:
    """Return `run` with its status, end, tags and metrics."""
    start, end = journal.require_start(folder), journal.read_end(folder)
    trained = layout.safe_child(folder.parent, start.parent) or folder
    alive = "RUNNING" if locks.is_training(trained) else "KILLED"
    return run._replace(
        status=end.status if end else alive,
        end=end.time if end else None,
        tags=journal.read_tags(folder),
        metrics=last_values(folder),
    )


def _refuse_newer(root: Path, name: str) -> None:
    """Raise NewerFormat if `name` may be that of a run that a newer fbp wrote."""
    for folder in journal.newer_runs(root):
        if folder.name[-_END:] == name[-_END:]:  # which a run's name has, too
            journal.read_start(folder)


def find_folder(root: Path, run: str) -> Path | None:
    """Return the local folder of a run; None if there is none, or if `run` is ambiguous.

    Args:
        root: the project's ``mlruns`` folder.
        run: a path, the folder's name, the run's name, its id, or (in at least four characters)
            the beginning of the id or the end of the name.

    Raises:
        NewerFormat: if a newer fbp wrote it.
    """
    path = Path(run)
    if journal.read_start(path):
        return path.resolve()
    runs = FolderRuns(root)
    matches = runs.matches(run)
    if not matches:
        _refuse_newer(root, run)
    return runs.folder(matches[0]) if len(matches) == 1 else None
