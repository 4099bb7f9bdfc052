"""What a store of recorded runs must offer to the commands that read it, and how a run is found.

Two readers implement :class:`RunReader`: :class:`.mlflow_runs.MlflowRuns` for an MLflow store, and
:class:`.folder_runs.FolderRuns` for the run folders of a project without MLflow.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from fbp.errors import InputError, did_you_mean
from fbp.experiment.rundir import tags
from fbp.experiment.rundir.checkpoints import CheckpointDigests
from fbp.experiment.rundir.series import Series
from fbp.experiment.rundir.verification import Verification

_MAX_IDS = 5  # in a message about an ambiguous name
_MAX_NAMES = 10  # that are suggested for an unknown name
_MAX_METRICS = 60  # that are suggested for an unknown one
_NEWEST = 200  # runs in which names of a filter are looked up
FILTER_HINT = (
    "write metrics.NAME, params.NAME, tags.NAME or attributes.NAME, such as "
    "\"metrics.validation_accuracy > 0.97 and params.optimizer_name = 'adam'\""
)


class RecordedRun(NamedTuple):
    """A run as a store has it.

    Attributes:
        run_id: the store's id.
        name: the run's name.
        experiment: the experiment's name.
        status: RUNNING, FINISHED, FAILED or KILLED.
        start: milliseconds since 1970.
        end: milliseconds since 1970; None while the run goes on.
        params: the configuration, as text by name.
        tags: text by name.
        metrics: the last value of each metric.
        parent_id: the id of the run under which this one is shown; empty if there is none.
        artifact_uri: address of the run's artifacts.
        datasets: (name, digest) of each data set.
    """

    run_id: str
    name: str
    experiment: str
    status: str
    start: int
    end: int | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    parent_id: str = ""
    artifact_uri: str = ""
    datasets: tuple[tuple[str, str], ...] = ()


class RunReader(Protocol):
    """A store of recorded runs. Nothing that it reads is imported or executed."""

    @property
    def uri(self) -> str | None:
        """The tracking URI of the store; None if runs are recorded in their folders only."""

    def search(
        self, condition: str = "", order: Sequence[str] = (), limit: int | None = None
    ) -> list[RecordedRun]:
        """Return the runs that satisfy a condition, by default the newest first.

        Args:
            condition: in MLflow's search language; empty for all runs.
            order: sort keys such as ``"metrics.loss ASC"``.
            limit: maximal number of runs; None for all.

        Raises:
            InputError: if `condition` or `order` is not valid.
        """

    def find(self, name: str) -> RecordedRun:
        """Return exactly one run, by its id, name or folder; see :func:`matching_runs`.

        Raises:
            InputError: if there is no such run, or more than one.
        """

    def children(self, run: RecordedRun) -> list[RecordedRun]:
        """Return the runs shown under `run`, the oldest first."""

    def artifacts(self, run: RecordedRun, *, model: bool = False) -> Path:
        """Return a folder with the artifacts that fbp reads; copies them if they are remote.

        Args:
            run: the run.
            model: whether the trained model is needed too.
        """

    def artifact_names(self, run: RecordedRun) -> set[str]:
        """Return the names of those artifacts of a run that fbp reads, and that are there."""

    def series(self, run: RecordedRun) -> dict[str, Series]:
        """Return every metric of a run, without those of the machine."""

    def checkpoints(self, run: RecordedRun) -> dict[int, CheckpointDigests]:
        """Return the digests of the parameters at each checkpoint, by step."""

    def layers(self, run: RecordedRun) -> dict[str, str]:
        """Return the names of the model's layers by path."""

    def signed_artifacts(self, run: RecordedRun) -> Path:
        """Return a folder with the manifest of a run and its signatures, if there are any."""

    def add_signatures(self, run: RecordedRun, folder: Path) -> None:
        """Add a folder of signatures to the run's artifacts."""

    def verify(self, run: RecordedRun) -> Verification:
        """Check the record of a run against its manifest, without training.

        Raises:
            NotSealed: if the run goes on, or is still to be sent.
        """


def matching_runs(name: str, runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """Return the runs that `name` may mean.

    Args:
        name: a run's id, its name or its folder's name; or else, in at least four characters, the
            beginning of an id or the end of a name.
        runs: the candidates.
    """
    exact = [run for run in runs if name in (run.run_id, run.name, run.tags.get(tags.FOLDER))]
    if exact or not is_abbreviation(name):
        return exact
    by_id = [run for run in runs if run.run_id.startswith(name)]
    return by_id or [run for run in runs if run.name.endswith(f"-{name}")]


def is_abbreviation(name: str) -> bool:
    """Return whether `name` can be the beginning of an id, or the end of a name."""
    return re.fullmatch(r"[0-9a-f]{4,31}", name) is not None


def single_match(
    name: str, matches: Sequence[RecordedRun], newest: Sequence[RecordedRun], where: str
) -> RecordedRun:
    """Return the only one of `matches`.

    Args:
        name: by which the runs were searched.
        matches: the runs that it may mean.
        newest: runs to suggest instead.
        where: the store, for the message.

    Raises:
        InputError: if there are no matches, or several.
    """
    if len(matches) == 1:
        return matches[0]
    if matches:
        ids = ", ".join(run.run_id for run in matches[:_MAX_IDS])
        raise InputError(
            f"run {name!r}: {len(matches)} runs in {where} have this name; "
            f"give one of the ids {ids}"
        )
    names = [run.name for run in newest]
    hint = did_you_mean(name, names[:_MAX_NAMES]) if names else "it has no runs"
    raise InputError(f"run {name!r}: no run of that name or id in {where}; {hint}")


def require_known_names(names: Sequence[tuple[str, str]], reader: RunReader) -> None:
    """Check that a filter names known metrics and params; a misspelt one would match nothing.

    Args:
        names: (kind, name) pairs, see :func:`fbp.experiment.commands.tables.names_in_filter`.
        reader: the store, in whose newest runs the names are looked up.

    Raises:
        InputError: if none of the newest runs has one of them.
    """
    newest = reader.search(limit=_NEWEST) if names else []
    for kind, name in names:
        known = {key for run in newest for key in getattr(run, kind)}
        if newest and name not in known:
            similar = sorted(key for key in known if ("/" in key) == ("/" in name))
            hint = did_you_mean(name, similar[:_MAX_METRICS])
            raise InputError(f"no run has {kind}.{name}; {hint}")
