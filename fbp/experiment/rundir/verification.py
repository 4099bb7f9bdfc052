"""The check of a run's record against its manifest, without training."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fbp.errors import InputError
from fbp.experiment.rundir import journal, layout, locks, manifest, tags
from fbp.experiment.rundir.journal import Sealed
from fbp.experiment.rundir.manifest import Tree

NOT_COVERED = "files that others added"

_MAX_NAMES = 5  # of files, in a note


class NotSealed(InputError):
    """A run's record has no manifest yet, because the run goes on or is still to be sent."""


class Verification(NamedTuple):
    """How a record compares with its manifest.

    Attributes:
        root: SHA-256 of the manifest; empty if it has none.
        differences: a line for each recorded thing that is not as it was; empty if all are.
        covered: how many of each kind were compared, as texts.
        not_covered: what was not compared.
        sealed: the manifest; empty if it has none, or a damaged one.
    """

    root: str
    differences: tuple[str, ...]
    covered: tuple[str, ...] = ()
    not_covered: str = NOT_COVERED
    sealed: Mapping[str, Any] = {}

    def with_differences(self, lines: Iterable[str]) -> "Verification":
        """Return this result with more differences."""
        return self._replace(differences=(*self.differences, *lines))

    @property
    def holds(self) -> bool:
        """Whether everything is as it was recorded."""
        return not self.differences


def verify_folder(folder: Path) -> Verification:
    """Check the record in a run's folder: its journal, its artifacts, and all other files.

    Args:
        folder: the run's.

    Raises:
        NotSealed: if the run has no seal yet, because it goes on or is still to be sent.
    """
    seal = journal.read_seal(folder)
    path = layout.manifest(layout.artifacts(folder))
    if seal is None or seal.later:
        return _unsealed(folder, seal, path)
    if not path.is_file():
        return Verification("", (f"{path.name} is missing",))
    content = path.read_bytes()
    root = manifest.root_of(content)
    changes = [] if root == seal.root else [f"{path.name} is not that of the journal's seal"]
    try:
        sealed = manifest.parse(content, path.name)
    except InputError as error:
        return Verification(root, (*changes, str(error)))
    present = manifest.make(folder, sealed["tracker"], sealed)
    changes += manifest.differences(sealed, present)
    if journal.size(folder) != seal.end:
        changes.append("journal: something was added after its seal")
    return Verification(root, tuple(changes), covered(sealed), _not_covered(folder), sealed)


def _unsealed(folder: Path, seal: Sealed | None, path: Path) -> Verification:
    """Return what to say of a run whose journal does not end with a seal."""
    name = journal.require_start(folder).name
    parent = journal.require_start(folder).parent
    top = layout.safe_child(folder.parent, parent) or folder
    if locks.is_training(top):
        raise NotSealed(f"run {name}: it goes on; its record is sealed when it ends")
    if seal is None and not path.exists() and tags.MANIFEST not in journal.read_tags(folder):
        raise NotSealed(
            f"run {name}: its record is not sealed yet, because not all of it was sent to the "
            "tracker; do that with: fbp sync"
        )
    reason = "was added to after its seal" if seal else "has no seal"
    return Verification("", (f"journal: it {reason}; if it was just resumed, first: fbp sync",))


def covered(sealed: Tree, *, in_tracker: bool = False) -> tuple[str, ...]:
    """Return how many things of each kind a manifest covers, as texts.

    Args:
        sealed: the manifest.
        in_tracker: whether this is about what a tracker shows, not about the run's folder.
    """
    points = sum(entry.get("points", 0) for entry in sealed["metrics"].values())
    files = len(sealed["artifacts"]) + (0 if in_tracker else len(sealed["folder"]))
    models = len(sealed["tracker"].get("models", {})) if in_tracker else 0
    counts = (
        (len(sealed["params"]), "param"),
        (len(sealed["tags"]), "tag"),
        (len(sealed["datasets"]), "data set"),
        (len(sealed["metrics"]), "metric"),
        (points, "value"),
        (len(sealed["checkpoints"]), "checkpoint"),
        (files, "artifact" if in_tracker else "file"),
        (models, "logged model"),
    )
    return tuple(f"{count:,} {name}{'s' * (count != 1)}" for count, name in counts if count)


def _not_covered(folder: Path) -> str:
    """Return what the check of a folder leaves out: files that fbp did not write."""
    known = {
        layout.journal(folder).name,
        layout.journal(folder, layout.SYSTEM_JOURNAL).name,
        layout.results(folder).name,
        layout.diagram(folder).name,
        layout.destination(folder).name,
        layout.sent(folder).name,
        layout.problem(folder).name,
        layout.shipper_log(folder).name,
        layout.training_lock(folder).name,
        layout.shipper_lock(folder).name,
        layout.checkpoints(folder).name,
        layout.artifacts(folder).name,
    }
    others = sorted(path.name for path in folder.iterdir() if path.name not in known)
    return f"{NOT_COVERED}: {', '.join(others[:_MAX_NAMES])}" if others else NOT_COVERED
