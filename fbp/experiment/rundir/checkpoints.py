"""Checkpoints: all that a run needs to be resumed, each in a file that is whole or not used.

A checkpoint is an ``.npz`` file without pickle: the arrays by path, a manifest (JSON), and one
SHA-256 over all of it. A thread writes it: JAX's arrays never change, so training goes on while
they are copied, hashed and written.
"""

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fbp.errors import InputError, NewerFormat, first_line
from fbp.experiment.config import bounded
from fbp.experiment.rundir import journal, layout
from fbp.experiment.rundir.journal import Journal, PrefixChecksum
from fbp.experiment.rundir.npz import (
    READ_ERRORS,
    Header,
    combined_digest,
    flatten_by_path,
    leaf_digest,
    read_arrays,
    write_arrays,
)

_MANIFEST, _DIGEST = "manifest", "sha256"


class Checkpoint(NamedTuple):
    """The content of a checkpoint file.

    Attributes:
        step: the step after which it was taken.
        arrays: arrays by path.
        metadata: further values, of JSON's types.
    """

    step: int
    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]


class CheckpointDigests(NamedTuple):
    """Digests of a checkpoint that is on the disk.

    Attributes:
        step: its step.
        params_digest: SHA-256 of its parameters.
        tensors: the beginning of the SHA-256 of each parameter, by path.
        state_digest: SHA-256 of all that the checkpoint has: optimizer state and random key, too.
    """

    step: int
    params_digest: str
    tensors: dict[str, str]
    state_digest: str


def digests_of(
    step: int, params: Mapping[str, np.ndarray], state: Mapping[str, str]
) -> CheckpointDigests:
    """Return the digests of a checkpoint.

    Args:
        step: its step.
        params: its parameters by path.
        state: :func:`.npz.leaf_digest` of all its arrays by path.
    """
    leaves = {name: leaf_digest(array) for name, array in params.items()}
    tensors = {name: combined_digest({name: leaf})[:16] for name, leaf in leaves.items()}
    return CheckpointDigests(step, combined_digest(leaves), tensors, combined_digest(state))


def write(
    path: Path,
    checkpoint: Checkpoint,
    before_rename: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Write a checkpoint atomically, see :func:`fbp.experiment.rundir.npz.write_arrays`.

    Returns:
        :func:`.npz.leaf_digest` of each array by path.
    """
    # in the manifest: a member of an archive cannot have any name
    names = sorted(checkpoint.arrays)
    leaves = {name: leaf_digest(checkpoint.arrays[name]) for name in names}
    manifest = {
        "format": layout.CHECKPOINT_FORMAT,
        "step": checkpoint.step,
        "metadata": checkpoint.metadata,
        "names": names,
    }
    arrays = {str(i): checkpoint.arrays[name] for i, name in enumerate(names)}
    arrays[_MANIFEST] = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
    members = {str(i): leaves[name] for i, name in enumerate(names)}
    members[_MANIFEST] = leaf_digest(arrays[_MANIFEST])
    digest = np.frombuffer(bytes.fromhex(combined_digest(members)), np.uint8)
    write_arrays(path, {**arrays, _DIGEST: digest}, before_rename)
    return leaves


_Count = Annotated[int, Field(ge=0, le=2**62)]


class _Facts(BaseModel):
    """A part of a manifest; of what it does not know, it takes anything."""

    model_config = ConfigDict(strict=True, extra="allow")


class _BestFacts(_Facts):
    value: float
    step: _Count
    metrics: dict[str, float]
    evaluations_since: _Count


class _Metadata(_Facts):
    """What is stored beside the arrays: by every run, and by those of ``fbp run``."""

    journal: tuple[_Count, _Count] | None = None
    seconds: float = 0.0
    latest: dict[str, float] = Field({})
    best: _BestFacts | None = None


class _Manifest(_Facts):
    """The facts of a checkpoint, beside its format."""

    step: _Count
    names: list[str]
    metadata: _Metadata


def read(path: Path) -> Checkpoint:
    """Return the checkpoint in a file.

    Raises:
        NewerFormat: if a newer fbp wrote it.
        InputError: if a byte of it has changed, or if it is no checkpoint.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[Checkpoint, str]:
    """Return the checkpoint in a file, and its state digest, see :class:`CheckpointDigests`."""
    try:
        arrays = read_arrays(path, _check_headers)
        manifest = _checked_manifest(path, arrays[_MANIFEST].tobytes(), len(arrays) - 2)
        digest = arrays.pop(_DIGEST).tobytes().hex()
        leaves = {name: leaf_digest(array) for name, array in arrays.items()}
        if digest != combined_digest(leaves):
            raise ValueError("its SHA-256 is another")
        members = {name: str(i) for i, name in enumerate(manifest["names"])}
        by_path = {name: arrays[member] for name, member in members.items()}
        state = combined_digest({name: leaves[member] for name, member in members.items()})
        return Checkpoint(manifest["step"], by_path, manifest["metadata"]), state
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except (OSError, *READ_ERRORS) as error:
        raise InputError(f"{path}: the checkpoint is damaged ({first_line(error)})") from None


def _check_headers(headers: Mapping[str, Header]) -> None:
    """Raise ValueError unless these are the arrays of a checkpoint."""
    if set(headers) != {_MANIFEST, _DIGEST, *map(str, range(len(headers) - 2))}:
        raise ValueError("it has other arrays than a checkpoint")
    bytes_ = np.dtype(np.uint8)
    manifest, digest = headers[_MANIFEST], headers[_DIGEST]
    if (manifest.dtype, digest.dtype) != (bytes_, bytes_) or digest.shape != (32,):
        raise ValueError("its manifest or its SHA-256 are no bytes")
    if len(manifest.shape) != 1 or manifest.shape[0] > bounded.LARGEST_JSON:
        raise ValueError("its manifest is too large")


def _checked_manifest(path: Path, content: bytes, count: int) -> dict[str, Any]:
    """Return the manifest of a checkpoint with `count` arrays.

    Raises:
        NewerFormat: if a newer fbp wrote it.
        ValueError: if it is no manifest.
    """
    manifest = bounded.parse_json(content)
    if not isinstance(manifest, dict):
        raise ValueError("its manifest is no table")
    layout.check_format(path, manifest.get("format"), layout.CHECKPOINT_FORMAT)
    try:
        _Manifest.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ValueError(f"its manifest: {where}: {problem['msg']}") from None
    names, metadata = manifest["names"], manifest["metadata"]
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"its manifest names {len(set(names))} arrays, but it has {count}")
    if {"seconds", "best"} & set(metadata) and "latest" not in metadata:
        raise ValueError("its manifest lacks a part of the metadata")
    if _NAME.fullmatch(path.name) and step_of(path) != manifest["step"]:
        raise ValueError(f"it is of step {manifest['step']}")
    return manifest


def files(folder: Path) -> list[Path]:
    """Return a run's checkpoints, the newest first."""
    paths = (path for path in layout.checkpoints(folder).glob("step-*.npz") if path.is_file())
    return sorted((path for path in paths if _NAME.fullmatch(path.name)), reverse=True)


def latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest usable checkpoint of a run; None if there is none.

    It is usable if it is undamaged, and so is the journal up to it, and if it is the one of which
    the journal has the digest.

    Args:
        folder: the run's.
        warn: is called with a message for each one that is not usable.

    Raises:
        NewerFormat: if a newer fbp wrote one of them.
    """
    lines = journal.read_checkpoints(folder)
    for path in files(folder):
        try:
            checkpoint, digest = _read(path)
            line = lines.get(checkpoint.step)
            if line and line.state_digest != digest:
                raise InputError(f"{path}: another checkpoint than the run has written")
        except NewerFormat:
            raise
        except InputError as error:
            warn(f"{error}; using the one before it")
            continue
        checksum = checkpoint.metadata.get("journal")
        if checksum and journal.has_prefix(folder, PrefixChecksum(*checksum)):
            return checkpoint
        warn(
            f"{layout.journal(folder)}: damaged before step {checkpoint.step}; the steps that it "
            "lacks are taken again from an earlier checkpoint"
        )
    return None


def quarantine_after(folder: Path, step: int) -> None:
    """Rename the checkpoints after a step, so that rotation does not keep damaged files."""
    for path in files(folder):
        if path.name > _name(step):
            path.rename(path.with_suffix(".damaged"))


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's file."""
    return int(path.stem.removeprefix("step-"))


_NAME = re.compile(r"step-\d{1,18}\.npz")


def _name(step: int) -> str:
    return f"step-{step:012d}.npz" if step >= 0 else ""


class Checkpoints:
    """Writes a run's checkpoints in a thread, one at a time.

    Args:
        folder: the run's.
        keep: how many of the newest are kept.
        journal: the run's; it is synced to the disk before a checkpoint gets its name.
    """

    def __init__(self, folder: Path, keep: int, journal: Journal):
        self.folder, self.keep, self.journal = folder, keep, journal
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[CheckpointDigests] | None = None
        layout.checkpoints(folder).mkdir(exist_ok=True)
        for partial in layout.checkpoints(folder).glob(".*.partial"):  # of a process that died
            partial.unlink()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._pending is not None and not self._pending.done()

    def save(
        self, step: int, tree: Mapping[str, Any], params: Any, metadata: dict[str, Any]
    ) -> None:
        """Start to write a checkpoint; :meth:`wait` for the previous one before.

        Args:
            step: the number of steps taken.
            tree: a pytree: everything that is saved.
            params: a pytree: the parameters of which digests are taken.
            metadata: of JSON's types. The checksum of the journal is added, because a run can only
                be resumed from here if the journal up to here is undamaged.
        """
        assert self._pending is None, "wait for the previous checkpoint first"
        metadata = {**metadata, "journal": self.journal.checksum}
        self._pending = self._thread.submit(self._write, step, tree, params, metadata)

    def _write(
        self, step: int, tree: Mapping[str, Any], params: Any, metadata: dict[str, Any]
    ) -> CheckpointDigests:
        path = layout.checkpoints(self.folder) / _name(step)
        leaves = write(path, Checkpoint(step, flatten_by_path(tree), metadata), self.journal.sync)
        digests = digests_of(step, flatten_by_path(params), leaves)
        for outdated in files(self.folder)[self.keep :]:
            outdated.unlink(missing_ok=True)
        return digests

    def wait(self) -> CheckpointDigests | None:
        """Wait for the checkpoint that is being written, and write its digests to the journal.

        Returns:
            The digests; None if none was being written.

        Raises:
            OSError: if it could not be written.
        """
        pending, self._pending = self._pending, None
        digests = pending.result() if pending else None
        if digests:
            self.journal.checkpoint(*digests)
        return digests

    def close(self) -> None:
        """Wait until nothing is being written."""
        self._thread.shutdown()
