"""Checkpoints: all that a run needs to go on, each in a file that is whole or not taken at all.

A checkpoint is an ``.npz`` file without pickle: the arrays by path, a manifest (JSON), and one SHA-256 over all of it.
Writing happens in a thread: arrays in JAX never change, so training goes on while they are copied, hashed and written.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fbp.errors import InputError
from fbp.experiment.rundir import journal
from fbp.experiment.rundir.journal import Journal, Mark
from fbp.experiment.rundir.npz import (
    READ_ERRORS,
    digest_of,
    flatten_by_path,
    read_arrays,
    write_arrays,
)

FOLDER = "checkpoints"
_MANIFEST, _DIGEST = "manifest", "sha256"


class Checkpoint(NamedTuple):
    """What a checkpoint file holds: the step, arrays by path, and facts of JSON's types."""

    step: int
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


class Written(NamedTuple):
    """A checkpoint that is on the disk: the digest of its ``params``, and of each tensor among them."""

    step: int
    digest: str
    tensors: dict[str, str]


def write(path: Path, checkpoint: Checkpoint, before: Callable[[], None] = lambda: None) -> None:
    """Write a checkpoint in one piece; see :func:`fbp.experiment.rundir.npz.write_arrays`."""
    names = sorted(checkpoint.arrays)  # kept apart: an archive's members cannot have every name
    manifest = json.dumps(
        {"step": checkpoint.step, "facts": checkpoint.facts, "names": names}
    ).encode()
    arrays = {str(i): checkpoint.arrays[name] for i, name in enumerate(names)}
    arrays[_MANIFEST] = np.frombuffer(manifest, np.uint8)
    digest = np.frombuffer(bytes.fromhex(digest_of(arrays)), np.uint8)
    write_arrays(path, {**arrays, _DIGEST: digest}, before)


def read(path: Path) -> Checkpoint:
    """The checkpoint in a file.

    Raises:
        InputError: where one byte of it is not as it was written.
    """
    try:
        arrays = read_arrays(path)
        digest = arrays.pop(_DIGEST).tobytes().hex()
        if digest != digest_of(arrays):
            raise ValueError("its SHA-256 is another")
        manifest = json.loads(arrays.pop(_MANIFEST).tobytes())
        named = {name: arrays[str(i)] for i, name in enumerate(manifest["names"])}
        return Checkpoint(manifest["step"], named, manifest["facts"])
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except (OSError, *READ_ERRORS) as error:
        raise InputError(f"{path}: the checkpoint is damaged ({error})") from None


def files(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return sorted((folder / FOLDER).glob("step-*.npz"), reverse=True)


def latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is undamaged, and whose journal is; None where there is none. ``warn`` is told of others."""
    for path in files(folder):
        try:
            found = read(path)
        except InputError as error:
            warn(f"{error}; using the one before it")
            continue
        if "journal" in found.facts and journal.has_prefix(folder, Mark(*found.facts["journal"])):
            return found
        warn(
            f"{folder / journal.NAME}: damaged before step {found.step}; what it lacks is taken again from before that"
        )
    return None


def quarantine_after(folder: Path, step: int) -> None:
    """Rename the checkpoints beyond a step: damaged ones that must not push out the good ones to come."""
    for path in files(folder):
        if path.name > _name(step):
            path.rename(path.with_suffix(".damaged"))


def _name(step: int) -> str:
    return f"step-{step:012d}.npz" if step >= 0 else ""


class Checkpoints:
    """Writes a run's checkpoints, one at a time, beside the training.

    Args:
        folder: the run's.
        keep: how many of the newest stay.
        writer: the run's journal; it is on the disk before a checkpoint counts.
    """

    def __init__(self, folder: Path, keep: int, writer: Journal):
        self.folder, self.keep, self.journal = folder, keep, writer
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Written] | None = None
        (folder / FOLDER).mkdir(exist_ok=True)
        for partial in (folder / FOLDER).glob(".*.partial"):  # of a process that died
            partial.unlink()

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self._pending is not None and not self._pending.done()

    def save(self, step: int, tree: Mapping[str, Any], params: Any, facts: dict[str, Any]) -> None:
        """Begin to write a checkpoint; take the result of the one before first.

        Args:
            step: after how many steps.
            tree: what is saved, a pytree.
            params: the parameters of which digests are taken, a pytree.
            facts: of JSON's types; the mark of the journal is added, so that one never goes on from where the journal is not.
        """
        assert self._pending is None, "take the result of the one before first"
        facts = {**facts, "journal": self.journal.mark}
        self._pending = self._thread.submit(self._write, step, tree, params, facts)

    def _write(
        self, step: int, tree: Mapping[str, Any], params: Any, facts: dict[str, Any]
    ) -> Written:
        tensors = flatten_by_path(params)
        digests = {name: digest_of({name: array})[:16] for name, array in tensors.items()}
        written = Written(step, digest_of(tensors), digests)
        write(
            self.folder / FOLDER / _name(step),
            Checkpoint(step, flatten_by_path(tree), facts),
            self.journal.sync,
        )
        for path in files(self.folder)[self.keep :]:
            path.unlink(missing_ok=True)
        return written

    def take(self) -> Written | None:
        """Wait for the one that is being written, if there is one.

        Raises:
            OSError: where it could not be written.
        """
        pending, self._pending = self._pending, None
        return pending.result() if pending else None

    def close(self) -> None:
        """Wait until nothing is being written."""
        self._thread.shutdown()
