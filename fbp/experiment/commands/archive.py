"""One file with everything that a run has recorded: ``fbp archive``.

It is a zip file without compression, so that it cannot unpack to more than its own size. It has the
run's folder and what is needed to train it again, see :mod:`.archive_needs`. It ends with its own
SHA-256, which shows that it was copied whole, and no more than that.
"""

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fbp.errors import InputError, UntrustedCode
from fbp.experiment.commands import archive_needs
from fbp.experiment.commands.load import local_runs
from fbp.experiment.config.trust import NOTHING, Trust
from fbp.experiment.rundir import journal, layout, manifest, trust_store
from fbp.experiment.rundir.journal_lines import ChildLine
from fbp.experiment.tracking.folder_runs import FolderRuns, find_folder, verify_local

SUFFIX = ".fbp.zip"

_RUNS = "runs"
_MAX_FILES = 100_000
_COMMENT = b"fbp archive, SHA-256 of all before it: "


class Archive(NamedTuple):
    """An archive that was written.

    Attributes:
        path: the file.
        missing_code: files of the user's own code that are no longer as the run was begun with.
    """

    path: Path
    missing_code: tuple[str, ...]


# --- writing ----------------------------------------------------------------------------------


def archive(
    name: str, output: Path | None, *, with_data: bool = False, trust: Trust = NOTHING
) -> Archive:
    """Write the record of a run, and of the runs under it, into one file.

    Args:
        name: the run's folder, its name, or its id; its folder is on this machine.
        output: the file. Default: the folder's name and ``.fbp.zip``, in the current folder.
        with_data: whether the data set is included, as arrays.
        trust: where the user's own code is, which may load the data, if the run was not begun here.

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
    missing = []
    with _new_archive(path) as file:
        for each in folders:
            _add_run(file, each)
            begun_with = trust.joined(trust_store.lookup(each))
            missing += archive_needs.add(file, each, begun_with, with_data=with_data)
    return Archive(path, tuple(dict.fromkeys(missing)))


def pack(root: Path, path: Path) -> None:
    """Write an unpacked archive into a file again, atomically.

    Args:
        root: the folder, see :func:`opened`.
        path: the file.
    """
    with _new_archive(path) as file:
        for part in (_RUNS, archive_needs.FOLDER):
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


def _add_run(file: zipfile.ZipFile, folder: Path) -> None:
    locks = (layout.training_lock(folder), layout.shipper_lock(folder))
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in locks:
            file.write(path, f"{_RUNS}/{folder.name}/{path.relative_to(folder).as_posix()}")


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
        try:
            yield runs, root
        except UntrustedCode as error:
            raise InputError(f"{error}{_hint(root)}") from None


def _hint(root: Path) -> str:
    """Return where the code is that a record in an archive names; empty if it is not included."""
    folders = sorted(root.glob(str(archive_needs.code_folder(Path(), "*"))))
    if not folders:
        return ""
    folder = folders[0].relative_to(root)
    return f"\nthe archive has that code: unzip it, read it, and if you trust it: --code {folder}"


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: expected a file that 'fbp archive' wrote, but it is damaged")


def _checked_members(file: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """Return the members of an archive, if their names, kinds and sizes can be those of one."""
    members = file.infolist()
    names = [member.filename for member in members]
    safe = all(
        _is_safe(name) and name.split("/")[0] in (_RUNS, archive_needs.FOLDER) for name in names
    )
    stored = all(
        member.compress_type == zipfile.ZIP_STORED
        and member.file_size == member.compress_size
        and not member.is_dir()
        and member.external_attr >> 28 in (0, 8)  # a plain file, no link
        for member in members
    )
    fits = sum(member.file_size for member in members) <= path.stat().st_size
    distinct = len(set(names)) == len(names)
    if not (safe and stored and fits and distinct and len(members) <= _MAX_FILES):
        raise _damaged(path)
    return members


def _is_safe(name: str) -> bool:
    """Return whether a member's name leads nowhere but below the folder of a run."""
    parts = name.split("/")
    is_below = len(parts) >= 3 and parts[0] in (_RUNS, archive_needs.FOLDER)
    has_odd_letters = "\\" in name or any(ord(letter) < 32 for letter in name)
    return is_below and not has_odd_letters and not {"", ".", ".."} & set(parts)


def _unpack(file: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo], root: Path) -> None:
    for member in members:
        target = root / member.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open(member) as source, open(target, "xb") as copy:
            shutil.copyfileobj(source, copy, 2**20)
