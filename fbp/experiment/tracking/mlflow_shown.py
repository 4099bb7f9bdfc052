"""What an MLflow store shows of a run, as a tree that can be compared with the run's manifest.

What people may rightly change in MLflow is left out: the names of runs and experiments, notes,
their own tags, the model registry, and files that they add outside fbp's folders.
"""

import posixpath
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fbp.errors import InputError
from fbp.experiment.rundir import layout, manifest, signatures, tags
from fbp.experiment.rundir.manifest import Tree
from fbp.experiment.rundir.series import Series, joined
from fbp.experiment.rundir.verification import NotSealed, Verification, covered
from fbp.experiment.tracking import mlflow_format
from fbp.experiment.tracking.mlflow_format import LONGEST_PARAM, LONGEST_TAG, key_of
from fbp.experiment.tracking.run_reader import RecordedRun

NOT_COVERED = "display names, notes, tags and files that others added, and the model registry"

_SET_BY_FBP = (
    tags.PARENT_ID,
    tags.USER,
    tags.SOURCE_NAME,
    tags.SOURCE_TYPE,
    tags.GIT_COMMIT,
    tags.GIT_BRANCH,
    tags.GIT_REPOSITORY,
)
_FOLDERS = (layout.MODEL, layout.HISTORY, "plots")
_MAX_FILES = 20_000
_MAX_DEPTH = 20
_MAX_NAMES = 5


def verify(client: Any, run: RecordedRun) -> Verification:
    """Check what MLflow shows of a run against the manifest among its artifacts.

    Args:
        client: MLflow's client.
        run: the run.

    Raises:
        NotSealed: if the run goes on.
    """
    content = _manifest_content(client, run.run_id)
    root = run.tags.get(tags.MANIFEST, "")
    if not root and run.status == "RUNNING":
        raise NotSealed(f"run {run.name}: it goes on; its record is sealed when it ends")
    if content is None:
        return Verification("", (f"{layout.MANIFEST} is missing among its artifacts",))
    actual = manifest.root_of(content)
    changes = [] if root == actual else [f"{layout.MANIFEST} is not that of {tags.MANIFEST}"]
    try:
        sealed = manifest.parse(content, layout.MANIFEST)
        sealed_view = expected(sealed, actual)
        if sealed["tracker"].get("run_id") != run.run_id:
            changes.append(f"{layout.MANIFEST} is that of another run")
        shown, others = present(client, run.run_id, sealed)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):
        return Verification(actual, (*changes, f"{layout.MANIFEST} is damaged"))
    except InputError as error:
        return Verification(actual, (*changes, str(error)))
    changes += manifest.differences(sealed_view, shown)
    names = f"{NOT_COVERED} ({', '.join(others[:_MAX_NAMES])})" if others else NOT_COVERED
    return Verification(actual, tuple(changes), covered(sealed, in_tracker=True), names, sealed)


def _manifest_content(client: Any, run_id: str) -> bytes | None:
    """Return the manifest among a run's artifacts; None if there is none, or if it is absurd."""
    repository = _repository(client.get_run(run_id).info.artifact_uri)
    entries = [entry for entry in repository.list_artifacts() if entry.path == layout.MANIFEST]
    if not entries or entries[0].is_dir or int(entries[0].file_size or 0) > manifest.LARGEST:
        return None
    with tempfile.TemporaryDirectory() as folder:
        repository.download_artifacts(layout.MANIFEST, folder)
        return (Path(folder) / layout.MANIFEST).read_bytes()


def copy_signed(artifact_uri: str, target: Path) -> None:
    """Copy the manifest of a run and its signatures into a folder, which is made."""
    repository = _repository(artifact_uri)
    target.mkdir(exist_ok=True)
    entries = [*repository.list_artifacts(), *repository.list_artifacts(layout.SIGNATURES)]
    for entry in entries:
        name, size = str(entry.path), int(entry.file_size or 0)
        largest = manifest.LARGEST if name == layout.MANIFEST else signatures.LARGEST
        is_safe = layout.is_about_manifest(name) and signatures.is_name(name.rpartition("/")[2])
        if not entry.is_dir and is_safe and size <= largest:
            repository.download_artifacts(name, str(target))


# --- what the manifest expects ----------------------------------------------------------------


def expected(sealed: Tree, root: str) -> Tree:
    """Return what MLflow must show of a run.

    Args:
        sealed: the run's manifest.
        root: SHA-256 of the manifest.
    """
    run, tracker = sealed["run"], sealed["tracker"]
    parent = {tags.PARENT_ID: tracker["parent_id"]} if tracker.get("parent_id") else {}
    run_tags = {**sealed["tags"], **parent, tags.MANIFEST: root}
    content = manifest.to_bytes(sealed)
    about = {layout.MANIFEST: {"bytes": len(content), "sha256": root}}
    return {
        "run": {key: run[key] for key in ("status", "start", "end")},
        "params": {key_of(key): text[:LONGEST_PARAM] for key, text in sealed["params"].items()},
        "tags": {
            key_of(key): text[:LONGEST_TAG] for key, text in run_tags.items() if _is_covered(key)
        },
        "metrics": dict(tracker.get("metrics", {})),
        "datasets": dict(map(_dataset, map(mlflow_format.dataset_input, sealed["datasets"]))),
        "artifacts": {**sealed["artifacts"], **about},
        "models": dict(tracker.get("models", {})),
        "outputs": sorted(tracker.get("models", {})),
    }


def _is_covered(tag: str) -> bool:
    return tag in _SET_BY_FBP or tag.startswith("fbp.")


def _dataset(entry: Any) -> tuple[str, Tree]:
    """Return the name of a data set in MLflow, or of one that is sent there, and all its texts."""
    dataset = entry.dataset
    return dataset.name, {
        "digest": dataset.digest,
        "source": [dataset.source_type, dataset.source],
        "schema": str(dataset.schema),
        "profile": str(dataset.profile),
        "context": sorted(f"{tag.key}={tag.value}" for tag in entry.tags),
    }


# --- what is there ----------------------------------------------------------------------------


def present(client: Any, run_id: str, sealed: Tree) -> tuple[Tree, list[str]]:
    """Return what MLflow shows of a run, and the artifacts that others added to it.

    Files are copied only if the manifest has them, with the size that it has.

    Args:
        client: MLflow's client.
        run_id: the run.
        sealed: the manifest, which says which files are needed.
    """
    run = client.get_run(run_id)
    repository = _repository(run.info.artifact_uri)
    listing = _list(repository)
    needed = {**sealed["artifacts"], layout.MANIFEST: {}}
    files = {name: size for name, size in listing.items() if name in needed or _is_ours(name)}
    datasets = run.inputs.dataset_inputs if run.inputs else []
    outputs = run.outputs.model_outputs if run.outputs else []
    return {
        "run": {
            "status": run.info.status,
            "start": run.info.start_time,
            "end": run.info.end_time,
        },
        "params": dict(run.data.params),
        "tags": {key: text for key, text in run.data.tags.items() if _is_covered(key)},
        "metrics": metric_digests(points_in_store(client, run_id, run), dict(run.data.metrics)),
        "datasets": dict(map(_dataset, datasets)),
        "artifacts": _digests(files, needed, repository),
        "models": models(client, run_id, sealed["tracker"].get("models", {})),
        "outputs": sorted(output.model_id for output in outputs),
    }, sorted(name for name in listing if name not in files and not layout.is_about_manifest(name))


def _is_ours(name: str) -> bool:
    """Return whether an artifact lies in a folder that only fbp writes to."""
    return name.partition("/")[0] in _FOLDERS


def points_in_store(client: Any, run_id: str, run: Any = None) -> dict[str, Series]:
    """Return every metric of a run as MLflow has it."""
    run = run or client.get_run(run_id)
    series = {}
    for key in run.data.metrics:
        points = client.get_metric_history(run_id, key)
        series[key] = _canonical(
            Series(
                np.array([point.step for point in points], "i8"),
                np.array([point.value for point in points], "f8"),
                np.array([point.timestamp for point in points], "i8"),
            )
        )
    return series


def as_shown(series: Mapping[str, Series]) -> dict[str, Series]:
    """Return metrics as MLflow shows them: by its keys, NaN in place of infinity."""
    chunks: dict[str, list[Series]] = {}
    for name, points in series.items():
        chunks.setdefault(key_of(name), []).append(points)
    return {key: _canonical(joined(parts)) for key, parts in chunks.items()}


def _canonical(series: Series) -> Series:
    """Return the points in one order, each once, as every store can hold them."""
    values = np.where(np.isfinite(series.values), series.values, np.nan) + 0.0  # no -0
    rows = np.stack([series.steps, series.times, values.view(np.int64)], axis=1)
    steps, times, bits = np.unique(rows, axis=0).T
    return Series(steps, np.ascontiguousarray(bits).view(np.float64), times)


def with_times_of(series: Mapping[str, Series], present: Mapping[str, Series]) -> dict[str, Series]:
    """Return metrics with the times that a store has for the same steps and values."""
    result = {}
    for key, points in series.items():
        other = present.get(key)
        bits = lambda columns: zip(
            columns.steps.tolist(), columns.values.view(np.int64).tolist(), strict=True
        )
        times = dict(zip(bits(other), other.times.tolist(), strict=True)) if other else {}
        pairs = zip(bits(points), points.times.tolist(), strict=True)
        result[key] = points._replace(
            times=np.array([times.get(point, time) for point, time in pairs], np.int64)
        )
    return result


def metric_digests(series: Mapping[str, Series], latest: Mapping[str, float] | None = None) -> Tree:
    """Return the digest of each metric, with its last value, which lists show.

    Args:
        series: the points.
        latest: the last values in the store; by default those of the points.
    """
    digests = {}
    for key, points in series.items():
        order = np.lexsort((points.values, points.times, points.steps))
        last = points.values[order[-1]] if latest is None else latest[key]
        text = "nan" if not np.isfinite(last) else repr(float(last) + 0.0)
        digests[key] = {**manifest.points_digest(points), "last": text}
    return digests


def models(client: Any, run_id: str, sealed: Mapping[str, Any] | None = None) -> Tree:
    """Return what MLflow shows of the models of a run, by their ids.

    Args:
        client: MLflow's client.
        run_id: the run.
        sealed: the same as the manifest has it. Only files that it has are copied; all by default.
    """
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    tree = {}
    for model in logged:
        repository = _repository(model.artifact_location)
        files = _list(repository)
        needed = files if sealed is None else sealed.get(model.model_id, {}).get("files", {})
        metrics = [
            [metric.key, metric.step, metric.timestamp, repr(metric.value + 0.0)]
            for metric in model.metrics or []
        ]
        tree[model.model_id] = {
            "name": model.name,
            "status": str(model.status),
            "type": model.model_type,
            "params": dict(model.params or {}),
            "metrics": sorted(metrics),
            "files": _digests(files, needed, repository),
        }
    return tree


def _repository(location: str) -> Any:
    """Return MLflow's store of the files at an address: only those, nothing merged into them."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(location)


def _list(repository: Any) -> dict[str, int]:
    """Return path and size of every file of a store of artifacts; names that lead out are left out.

    Raises:
        InputError: if there are absurdly many.
    """
    files: dict[str, int] = {}
    folders: list[str | None] = [None]
    while folders:
        folder = folders.pop()
        for entry in repository.list_artifacts(folder):
            path = str(entry.path)
            if path.startswith("/") or posixpath.normpath(path) != path or ".." in path.split("/"):
                continue
            if not entry.is_dir:
                files[path] = int(entry.file_size or 0)
            elif path.count("/") < _MAX_DEPTH:
                folders.append(path)
            if len(files) + len(folders) > _MAX_FILES:
                raise InputError(f"the store lists more than {_MAX_FILES:,} files of this run")
    return files


def _digests(files: Mapping[str, int], needed: Mapping[str, Any], repository: Any) -> Tree:
    """Return size and SHA-256 of files; a file of another size than needed is not copied."""
    return dict(_each_digest(files, needed, repository))


def _each_digest(
    files: Mapping[str, int], needed: Mapping[str, Any], repository: Any
) -> Iterator[tuple[str, Tree]]:
    for name, size in files.items():
        entry = needed.get(name)
        sealed_size = entry.get("bytes", size) if isinstance(entry, dict) else size
        if entry is None or size != sealed_size:
            yield name, {"bytes": size, "sha256": ""}
            continue
        with tempfile.TemporaryDirectory() as folder:
            repository.download_artifacts(name, folder)
            copies = [path for path in Path(folder).rglob("*") if path.is_file()]
            yield name, manifest.digest_of_file(copies[0])
