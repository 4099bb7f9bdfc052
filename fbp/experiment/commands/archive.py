"""One file with everything that a run has recorded: ``fbp archive``.

It is a zip file without compression, so that it cannot unpack to more than its own size. It has the
run's folder, the versions of all packages, and if wanted the data. What is not in the manifest is
checked otherwise: the versions against `environment.json`, the data by their fingerprint. The
archive ends with its own SHA-256, which shows that it was copied whole, and no more than that.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fbp.datasets import Dataset, Examples
from fbp.errors import InputError
from fbp.experiment.commands.load import local_runs
from fbp.experiment.config import bounded, reading
from fbp.experiment.config.references import reading_record
from fbp.experiment.config.trust import NOTHING, Trust
from fbp.experiment.rundir import environment, journal, layout, manifest, tags, trust_store
from fbp.experiment.rundir.journal_lines import ChildLine
from fbp.experiment.rundir.npz import READ_ERRORS, read_arrays, write_arrays
from fbp.experiment.runner.build import load_data
from fbp.experiment.tracking.folder_runs import FolderRuns, find_folder, verify_local

SUFFIX = ".fbp.zip"

_RUNS, _DATA = "runs", "data"
_REQUIREMENTS = "requirements.txt"
_NAME = re.compile(r"[\w.][\w. -]*(/[\w.][\w. -]*)*")
_MAX_FILES = 100_000
_COMMENT = b"fbp archive, SHA-256 of all before it: "


# --- writing ----------------------------------------------------------------------------------


def archive(
    name: str, output: Path | None, *, with_data: bool = False, trust: Trust = NOTHING
) -> Path:
    """Write the record of a run, and of the runs under it, into one file.

    Args:
        name: the run's folder, its name, or its id; its folder is on this machine.
        output: the file. Default: the folder's name and ``.fbp.zip``, in the current folder.
        with_data: whether the data set is included, as arrays.
        trust: which code of the user's own may load the data.

    Returns:
        The file.

    Raises:
        InputError: if there is no such run, if its record is not sealed or was changed, or if
            `output` exists.
        OSError: if the file cannot be written.
    """
    root = layout.root().resolve()
    folder = find_folder(root, name)
    if folder is None:
        raise InputError(f"run {name!r}: no run of that name or id in {root}; {local_runs(root)}")
    folders = [folder, *_children(folder)]
    for each in folders:
        verification = verify_local(each)
        if not verification.holds:
            raise InputError(
                f"run {each.name}: its record was changed ({verification.differences[0]}); see: "
                f"fbp verify {each.name}"
            )
    path = output or Path(f"{folder.name}{SUFFIX}")
    if path.exists():
        raise InputError(f"{path}: this file exists already; choose another name with --output")
    with _new_archive(path) as file:
        for each in folders:
            _add_run(file, each, trust if with_data else None)
    return path


def pack(root: Path, path: Path) -> None:
    """Write an unpacked archive into a file again, atomically.

    Args:
        root: the folder, see :func:`opened`.
        path: the file.
    """
    with _new_archive(path) as file:
        for part in (_RUNS, _DATA):
            for source in sorted((root / part).rglob("*")):
                if source.is_file() and not source.name.endswith(".lock"):
                    file.write(source, source.relative_to(root).as_posix())


@contextlib.contextmanager
def _new_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as file:
            yield file
            file.comment = _COMMENT + b"0" * 64
        _write_checksum(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_checksum(path: Path) -> None:
    """Replace the zeros at the end of an archive by the SHA-256 of all before them."""
    with open(path, "r+b") as file:
        file.seek(-64, os.SEEK_END)
        length = file.tell()
        file.write(manifest.digest_of_prefix(path, length)["sha256"].encode())


def _has_checksum(path: Path) -> bool:
    """Return whether no bit of an archive has changed since it was written."""
    length = path.stat().st_size - 64
    with open(path, "rb") as file:
        file.seek(max(0, length - len(_COMMENT)))
        end = file.read()
    checksum = manifest.digest_of_prefix(path, length)["sha256"].encode()
    return end == _COMMENT + checksum


def _children(folder: Path) -> list[Path]:
    lines = journal.read_lines(folder, ChildLine)
    children = [layout.safe_child(folder.parent, line.folder) for line in lines]
    return [child for child in children if child is not None]


def _add_run(file: zipfile.ZipFile, folder: Path, trust: Trust | None) -> None:
    """Add a run's folder, the versions of its packages, and its data unless `trust` is None."""
    locks = (layout.training_lock(folder), layout.shipper_lock(folder))
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in locks:
            file.write(path, f"{_RUNS}/{folder.name}/{path.relative_to(folder).as_posix()}")
    file.writestr(f"{_DATA}/{folder.name}/{_REQUIREMENTS}", _requirements(folder))
    config, fingerprint = layout.config(folder), _fingerprint(folder)
    if trust is not None and config.exists() and fingerprint:
        with reading_record(trust.joined(trust_store.lookup(folder))):
            dataset = load_data(reading.read(config))
        if dataset.fingerprint != fingerprint:
            raise InputError(f"run {folder.name}: its data are no longer those it was trained with")
        with tempfile.TemporaryDirectory() as scratch:
            arrays = Path(scratch) / "data.npz"
            write_dataset(arrays, dataset)
            file.write(arrays, f"{_DATA}/{folder.name}/{arrays.name}")


def _fingerprint(folder: Path) -> str:
    return journal.read_tags(folder).get(tags.DATA_FINGERPRINT, "")


def _requirements(folder: Path) -> str:
    """Return the versions of all packages that a run's environment had, a line each."""
    packages = environment.read(layout.artifacts(folder)).get("packages", {})
    return "".join(f"{name}=={version}\n" for name, version in packages.items())


def write_dataset(path: Path, dataset: Dataset) -> None:
    """Write a data set as arrays, without pickle."""
    parts = {"train": dataset.train, "test": dataset.test}
    arrays = {
        f"{part}/{name}": array
        for part, examples in parts.items()
        for name, array in (examples._asdict() if examples else {}).items()
    }
    facts = {key: getattr(dataset, key) for key in ("name", "classes", "tokens", "ordered")}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    write_arrays(path, arrays)


# --- reading ----------------------------------------------------------------------------------


def is_archive(name: str) -> bool:
    """Return whether a name is that of an archive's file, not of a run."""
    return Path(name).is_file()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[FolderRuns, Path]]:
    """Unpack an archive into a temporary folder.

    Yields:
        The runs in it, and the folder.

    Raises:
        InputError: if the file is no archive of fbp.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "mlruns"
        if not _has_checksum(path):
            raise _damaged(path)
        try:
            with zipfile.ZipFile(path) as file:
                _unpack(file, _checked_members(file, path), root)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError):
            raise _damaged(path) from None
        runs = FolderRuns(root)
        if not runs.search():
            raise _damaged(path)
        yield runs, root


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: expected a file that 'fbp archive' wrote, but it is damaged")


def _checked_members(file: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """Return the members of an archive, if their names, kinds and sizes can be those of one."""
    members = file.infolist()
    names = [member.filename for member in members]
    safe = all(
        _NAME.fullmatch(name)
        and ".." not in name.split("/")
        and name.split("/")[0] in (_RUNS, _DATA)
        and name.count("/") >= 2
        for name in names
    )
    stored = all(
        member.compress_type == zipfile.ZIP_STORED
        and member.file_size == member.compress_size
        and not member.is_dir()
        and member.external_attr >> 28 in (0, 8)  # a plain file, no link
        for member in members
    )
    fits = sum(member.file_size for member in members) <= path.stat().st_size
    if not (safe and stored and fits and len(members) <= _MAX_FILES):
        raise _damaged(path)
    if len({name.casefold() for name in names}) != len(names):
        raise _damaged(path)
    return members


def _unpack(file: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo], root: Path) -> None:
    for member in members:
        target = root / member.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open(member) as source, open(target, "xb") as copy:
            shutil.copyfileobj(source, copy, 2**20)


def changes_of_additions(root: Path, folder: Path) -> list[str]:
    """Return a line for each thing of an archive beside the run's folder that is not right.

    Args:
        root: the folder into which the archive was unpacked.
        folder: the run's.
    """
    lines = []
    path = root / _DATA / folder.name / _REQUIREMENTS
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if text != _requirements(folder):
        lines.append(f"{_REQUIREMENTS}: its content was changed")
    try:
        dataset = read_dataset(root, folder.name)
    except InputError as error:
        return [*lines, str(error)]
    if dataset and dataset.fingerprint != _fingerprint(folder):
        lines.append("the data are not those of the run's fingerprint")
    return lines


def read_dataset(root: Path, folder_name: str) -> Dataset | None:
    """Return the data set of a run in an unpacked archive; None if it is not included.

    Raises:
        InputError: if it is damaged.
    """
    path = root / _DATA / folder_name / "data.npz"
    if not path.exists():
        return None
    try:
        arrays = read_arrays(path)
        facts: dict[str, Any] = bounded.parse_json(arrays["facts"].tobytes())
        test = Examples(arrays["test/x"], arrays["test/y"]) if "test/x" in arrays else None
        return Dataset(
            str(facts["name"]),
            Examples(arrays["train/x"], arrays["train/y"]),
            test,
            tuple(map(str, facts["classes"])),
            tuple(map(str, facts["tokens"])),
            facts["ordered"] is True,
        )
    except (OSError, *READ_ERRORS) as error:
        raise InputError(f"the archive's data are damaged ({error})") from None
