"""Checkpoints: all that a run needs to be resumed, each in a file that is whole or not used.

A checkpoint is an ``.npz`` file without pickle: the arrays by path, a manifest (JSON), and one
SHA-256 over all of it. A thread writes it: JAX's arrays never change, so training goes on while
they are copied, hashed and written.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fbp.errors import InputError
from fbp.experiment.rundir import journal, layout
from fbp.experiment.rundir.journal import Journal, PrefixChecksum
from fbp.experiment.rundir.npz import (
    READ_ERRORS,
    combined_digest,
    digest_of,
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


def read(path: Path) -> Checkpoint:
    """Return the checkpoint in a file.

    Raises:
        InputError: if a byte of it has changed, or its format is newer.
    """
    try:
        arrays = read_arrays(path)
        digest = arrays.pop(_DIGEST).tobytes().hex()
        if digest != digest_of(arrays):
            raise ValueError("its SHA-256 is another")
        manifest = json.loads(arrays.pop(_MANIFEST).tobytes())
        layout.check_format(path, manifest["format"], layout.CHECKPOINT_FORMAT)
        by_path = {name: arrays[str(i)] for i, name in enumerate(manifest["names"])}
        return Checkpoint(manifest["step"], by_path, manifest["metadata"])
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except (OSError, *READ_ERRORS) as error:
        raise InputError(f"{path}: the checkpoint is damaged ({error})") from None


def files(folder: Path) -> list[Path]:
    """Return a run's checkpoints, the newest first."""
    return sorted(layout.checkpoints(folder).glob("step-*.npz"), reverse=True)


def latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest usable checkpoint of a run; None if there is none.

    It is usable if it is undamaged, and so is the journal up to it.

    Args:
        folder: the run's.
        warn: is called with a message for each one that is not usable.
    """
    for path in files(folder):
        try:
            checkpoint = read(path)
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
