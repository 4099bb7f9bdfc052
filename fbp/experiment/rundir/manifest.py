"""The manifest: one digest of everything that a run has recorded, made when the run ends.

It has the digest of each file and of each metric, every parameter and tag, and what the tracker
made of the run. It is itself a file among the artifacts; its SHA-256, the root, is a tag of the run
and a line of the journal, which covers the journal up to that line. Whoever changes one recorded
thing must change the root, too, and has then made another record (see :mod:`.signatures`).

A manifest is a tree of JSON's types. To check a record, the tree is made again from what is there,
and the two are compared.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fbp.errors import InputError
from fbp.experiment.rundir import journal, layout
from fbp.experiment.rundir.journal_lines import ChildLine
from fbp.experiment.rundir.layout import SYSTEM_JOURNAL
from fbp.experiment.rundir.npz import write_text
from fbp.experiment.rundir.series import Series, read_series

FORMAT = 1
Tree = dict[str, Any]

LARGEST = 256 * 2**20  # bytes of a manifest
_DEEPEST = 12  # nested JSON
_BLOCK = 2**20
_PARTS = {
    "run": dict,
    "journal": dict,
    "params": dict,
    "tags": dict,
    "datasets": list,
    "metrics": dict,
    "checkpoints": dict,
    "artifacts": dict,
    "folder": dict,
    "tracker": dict,
}


# --- making -----------------------------------------------------------------------------------


def make(folder: Path, tracker: Mapping[str, Any], sealed: Tree | None = None) -> Tree:
    """Return the tree of all that is recorded in a run's folder.

    If the journal ends with a seal, that line is left out, as when the seal was made.

    Args:
        folder: the run's; its journal has an end.
        tracker: what the tracker made of the run, of JSON's types.
        sealed: the tree that this one will be compared with. The shipper's log may have grown since
            that was made.
    """
    seal = journal.read_seal(folder)
    covers = seal.covers if seal and not seal.later else journal.size(folder)
    start, end = journal.require_start(folder), journal.read_end(folder)
    children = [line.folder for line in journal.read_lines(folder, ChildLine)]
    return {
        "format": FORMAT,
        "run": {
            "folder": folder.name,
            "name": start.name,
            "label": start.label,
            "experiment": start.experiment,
            "steps": start.steps,
            "sink": start.sink,
            "parent": start.parent,
            "children": children,
            "start": start.time,
            "end": end.time if end else None,
            "status": end.status if end else None,
            "message": end.message if end else None,
        },
        "journal": digest_of_prefix(layout.journal(folder), covers),
        "params": dict(start.params),
        "tags": journal.read_tags(folder, sealed=False),
        "datasets": [dict(entry) for entry in start.inputs],
        "metrics": {key: points_digest(series) for key, series in read_series(folder).items()},
        "checkpoints": {
            str(step): {"params": line.params_digest, "state": line.state_digest}
            for step, line in journal.read_checkpoints(folder).items()
        },
        "artifacts": dict(_files(layout.artifacts(folder))),
        "folder": dict(_other_files(folder, sealed)),
        "tracker": dict(tracker),
    }


def to_bytes(tree: Mapping[str, Any]) -> bytes:
    """Return a tree as JSON; equal trees give equal bytes."""
    return json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=True).encode() + b"\n"


def root_of(content: bytes) -> str:
    """Return the root of a manifest: SHA-256 of its bytes."""
    return hashlib.sha256(content).hexdigest()


def write(folder: Path, tree: Mapping[str, Any]) -> str:
    """Write the manifest of a run among its artifacts, atomically; return its root."""
    content = to_bytes(tree)
    write_text(layout.manifest(layout.artifacts(folder)), content.decode())
    return root_of(content)


def _files(artifacts: Path) -> Iterator[tuple[str, Tree]]:
    """Yield the digests of all artifacts but the manifest and its signatures, by relative path."""
    for path in sorted(artifacts.rglob("*")):
        name = path.relative_to(artifacts).as_posix()
        if path.is_file() and not layout.is_about_manifest(name):
            yield name, digest_of_file(path)


def _other_files(folder: Path, sealed: Tree | None) -> Iterator[tuple[str, Tree]]:
    """Yield the digests of a run's files that are not sent to a tracker."""
    log = layout.shipper_log(folder)
    paths = [layout.results(folder), layout.diagram(folder), layout.destination(folder)]
    paths += [layout.journal(folder, SYSTEM_JOURNAL), log]
    paths += sorted(path for path in layout.checkpoints(folder).rglob("*") if path.is_file())
    for path in paths:
        if path.is_file():
            name, length = path.relative_to(folder).as_posix(), path.stat().st_size
            if path == log and sealed:
                length = _sealed_bytes(sealed, name)
            yield name, digest_of_prefix(path, length)


def _sealed_bytes(sealed: Tree, name: str) -> int:
    entry = sealed["folder"].get(name)
    size = entry.get("bytes") if isinstance(entry, dict) else 0
    return size if isinstance(size, int) else 0


def digest_of_file(path: Path) -> Tree:
    """Return the size and the SHA-256 of a file."""
    return digest_of_prefix(path, path.stat().st_size)


def digest_of_prefix(path: Path, length: int) -> Tree:
    """Return the size and the SHA-256 of a file's first bytes; of fewer, if it has fewer."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while part := file.read(min(_BLOCK, length - size)):
            digest.update(part)
            size += len(part)
    return {"bytes": size, "sha256": digest.hexdigest()}


def points_digest(series: Series) -> Tree:
    """Return the number of points of a metric, and SHA-256 of their steps, times and values."""
    values = np.where(np.isnan(series.values), np.nan, series.values)  # NaN has many bit patterns
    columns = (series.steps.astype("<i8"), series.times.astype("<i8"), values.astype("<f8"))
    digest = hashlib.sha256(len(values).to_bytes(8, "little"))
    for column in columns:
        digest.update(np.ascontiguousarray(column).data)
    return {"points": len(values), "sha256": digest.hexdigest()}


# --- reading ----------------------------------------------------------------------------------


def parse(content: bytes, where: str) -> Tree:
    """Return the tree of a manifest that anybody may have written.

    Args:
        content: the file's bytes.
        where: the file, for the message.

    Raises:
        InputError: if it is no manifest, or if its format is newer.
    """
    problem = InputError(f"{where}: expected a manifest of fbp, but it is damaged")
    if len(content) > LARGEST:
        raise problem
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        raise problem from None
    if not isinstance(tree, dict) or _depth(tree) > _DEEPEST:
        raise problem
    layout.check_format(Path(where), tree.get("format"), FORMAT)
    if not all(isinstance(tree.get(name), kind) for name, kind in _PARTS.items()):
        raise problem
    if not all(isinstance(entry, dict) for entry in tree["artifacts"].values()):
        raise problem
    return tree


def _depth(tree: Any) -> int:
    """Return how deep JSON is nested; at most one more than is allowed."""
    level, depth = [tree], 0
    while level and depth <= _DEEPEST:
        depth += 1
        parts = [part.values() if isinstance(part, dict) else part for part in level]
        level = [child for part in parts for child in part if isinstance(child, dict | list)]
    return depth


# --- comparing --------------------------------------------------------------------------------


def differences(sealed: Any, present: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each place in which two trees differ.

    Args:
        sealed: the tree, or a part of it, as the manifest has it.
        present: the same of what is there now.
        path: where these parts are.
    """
    if sealed == present and type(sealed) is type(present):
        return
    if _is_digest(sealed) and _is_digest(present):
        yield f"{path}: its content was changed"
    elif isinstance(sealed, dict) and isinstance(present, dict):
        for key in sorted({*sealed, *present}):
            place = f"{path}: {key}" if path else key
            if key not in present:
                yield f"{place} is missing"
            elif key not in sealed:
                yield f"{place} was added"
            else:
                yield from differences(sealed[key], present[key], place)
    elif isinstance(sealed, list) and isinstance(present, list) and len(sealed) == len(present):
        for i, (old, new) in enumerate(zip(sealed, present, strict=True)):
            yield from differences(old, new, f"{path}: {i}")
    else:
        yield f"{path} was {_short(sealed)}, is {_short(present)}"


def _is_digest(part: Any) -> bool:
    return isinstance(part, dict) and "sha256" in part


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
