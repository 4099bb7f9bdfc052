"""The journal: a file of JSON lines to which training appends, and which everything else reads.

Each line is an object with `kind`, `time` (milliseconds since 1970), the fields of one of the
classes of journal_lines.py, and a checksum. A damaged line is skipped, and so is a line of an
unknown kind.

A line that was written is never changed: a resumed run does not repeat the metrics that the journal
has (see recorder.py).
"""

import contextlib
import json
import os
import platform
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fbp.errors import InputError, NewerFormat
from fbp.experiment.rundir import layout, locks, tags
from fbp.experiment.rundir.journal_lines import (
    KINDS,
    CheckpointLine,
    ChildLine,
    EndLine,
    Line,
    MetricsLine,
    ResumeLine,
    SealLine,
    StartLine,
    StepsLine,
    TagsLine,
)
from fbp.experiment.rundir.layout import JOURNAL
from fbp.experiment.rundir.redact import redact, redact_texts

_CHECKSUM = b', "crc32": '
LONGEST_MESSAGE = 5000
"""Characters of the tag that says why a run did not finish."""


_L = TypeVar("_L", bound=Line)


def now() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class PrefixChecksum(NamedTuple):
    """Length and CRC-32 of a prefix of a journal, to detect later changes to it."""

    length: int = 0
    crc32: int = 0


_EMPTY = PrefixChecksum()


# --- writing ----------------------------------------------------------------------------------


class Journal:
    """Appends to a journal; each line is passed to the operating system before the call returns.

    Safe between threads: each line is whole, and the times of the lines never go back. Between
    processes: any number may read, but one writes. A process that was forked from the one that
    made this object is refused.

    What is secret in texts is left out before it is written (see :mod:`.redact`).

    A line that was cut off by a death or a full disk is removed: by the next `Journal` of that
    file, or at once. Every method raises OSError if the disk is full; the line is then not written.

    Args:
        folder: the run's folder.
        name: the file's name.
        alone: whether no other `Journal` may have the file open, as for a seal. Then InputError is
            raised if a process still has it open after two seconds.

    Attributes:
        folder: the run's folder.
        checksum: length and CRC-32 of the whole journal.
    """

    def __init__(self, folder: Path, name: str = JOURNAL, *, alone: bool = False):
        self.folder = folder
        self._path = layout.journal(folder, name)
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not alone:
            locks.share(self._file)
        elif not locks.try_lock(self._file):
            os.close(self._file)
            raise InputError(f"{self._path}: another process is writing to it")
        self._lock, self._process = threading.RLock(), os.getpid()
        self._is_torn = False  # whether the file ends with part of a line
        self._last_time = now()
        end = _end_of_lines(self._file)
        os.ftruncate(self._file, end)
        self.checksum = checksum_prefix(folder, end, name)

    def start(
        self,
        *,
        label: str,
        experiment: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        **more: Any,
    ) -> None:
        """Append the line that makes the folder a run.

        Args:
            label: the run's name; the end of the folder's name is added to tell equals apart.
            experiment: the experiment that the run belongs to.
            params: texts by name.
            tags: texts by name; empty ones are left out, and where the folder is is added.
            more: `inputs`, `parent`, `steps`, `layers`, `sink`, `config`, see :class:`StartLine`.
        """
        self._write(
            StartLine,
            format=layout.JOURNAL_FORMAT,
            label=label,
            name=f"{label}-{self.folder.name[-4:]}",
            experiment=experiment,
            params=redact_texts(params),
            tags=_with_place(redact_texts(tags), self.folder),
            **more,
        )

    def steps(self, first_step: int, columns: Mapping[str, np.ndarray]) -> None:
        """Append a chunk of per-step metrics that began when the line before was written."""
        with self._lock:
            self._write(StepsLine, first_step=first_step, began=self._last_time, columns=columns)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append metrics of one step."""
        self._write(MetricsLine, step=step, values=values)

    def tags(self, values: Mapping[str, str]) -> None:
        """Append tags."""
        self._write(TagsLine, values=redact_texts(values))

    def checkpoint(
        self, step: int, params_digest: str, tensors: Mapping[str, str], state_digest: str
    ) -> None:
        """Append the digests of a checkpoint that is on the disk."""
        self._write(
            CheckpointLine,
            step=step,
            params_digest=params_digest,
            tensors=tensors,
            state_digest=state_digest,
        )

    def child(self, folder: str, variant: str) -> None:
        """Append the name of the folder of a run that is shown under this one."""
        self._write(ChildLine, folder=folder, variant=variant)

    def end(self, status: str, message: str = "") -> None:
        """Append the run's end: FINISHED, FAILED or KILLED, and why."""
        self._write(EndLine, status=status, message=redact(message))

    def resume(self, step: int) -> None:
        """Append that the run goes on from a step."""
        self._write(ResumeLine, step=step)

    def seal(self, root: str) -> None:
        """Append the SHA-256 of the manifest that covers the record."""
        self._write(SealLine, root=root)

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        locks.unlock(self._file)
        os.close(self._file)

    def _write(self, kind: type[Line], **fields: Any) -> None:
        """Append a line of now."""
        if os.getpid() != self._process:
            raise InputError(
                f"{self.folder.name}: this process was forked from the one that writes the run's "
                "journal; write to it from there"
            )
        with self._lock:
            self._last_time = max(now(), self._last_time)
            self._append(kind(time=self._last_time, **fields))

    def _append(self, line: Line) -> None:
        text = _with_checksum(json.dumps({"kind": line.kind, **line.to_json()}).encode())
        length = self.checksum.length
        try:
            if self._is_torn:
                os.ftruncate(self._file, length)
                self._is_torn = False
            written = 0
            while written < len(text):
                written += os.write(self._file, text[written:])
            self.checksum = PrefixChecksum(
                length + len(text), zlib.crc32(text, self.checksum.crc32)
            )
        except BaseException as error:  # a full disk, or a second Ctrl-C
            self._is_torn = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, length)
                self._is_torn = False
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(self._path)) from None
            raise


def _with_place(values: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return tags without empty ones, and those that say where the run's folder is."""
    path = str(folder.resolve()).encode("utf-8", "replace").decode()
    place = {tags.FOLDER: folder.name, tags.HOST: platform.node(), tags.RUN_FOLDER: path}
    return {key: value for key, value in (dict(values) | place).items() if value}


def _with_checksum(line: bytes) -> bytes:
    """Return a line of JSON with its own checksum as the last entry."""
    return b"%s%s%d}\n" % (line[:-1], _CHECKSUM, zlib.crc32(line))


# --- reading ----------------------------------------------------------------------------------


def _end_of_lines(file: int, limit: int | None = None) -> int:
    """Return where the last whole line of an open file ends, searched from the back.

    Args:
        file: its descriptor.
        limit: the number of bytes that are searched; all by default.
    """
    end = os.fstat(file).st_size if limit is None else limit
    while end:
        begin = max(0, end - 65536)
        newline = os.pread(file, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0


def length(folder: Path, name: str = JOURNAL) -> int:
    """Return the number of bytes of whole lines, damaged ones included."""
    path = layout.journal(folder, name)
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        return _end_of_lines(file.fileno())


def size(folder: Path, name: str = JOURNAL) -> int:
    """Return the number of bytes of the file, an unfinished line included; 0 if there is none."""
    path = layout.journal(folder, name)
    return path.stat().st_size if path.is_file() else 0


def lines(
    folder: Path, offset: int = 0, name: str = JOURNAL, kinds: Sequence[type[Line]] = ()
) -> Iterator[tuple[int, Line]]:
    """Iterate over the undamaged lines of a journal.

    Args:
        folder: the run's folder.
        offset: where to begin, in bytes.
        name: the journal's file name.
        kinds: the classes of the lines to read; all if empty.

    Yields:
        The offset after the line, and the line.

    Raises:
        InputError: if the journal has a newer format.
    """
    path = layout.journal(folder, name)
    prefixes = tuple(b'{"kind": "%s"' % kind.kind.encode() for kind in kinds)
    if not path.is_file():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):
                return  # still being written
            offset += len(raw)
            if prefixes and not raw.startswith(prefixes):
                continue
            body = raw.rpartition(_CHECKSUM)[0] + b"}"
            if _with_checksum(body) != raw:  # damaged, as by a loss of power
                continue
            try:
                entries = json.loads(body)
                kind = KINDS.get(entries["kind"])
            except (ValueError, TypeError, KeyError, RecursionError):  # with a right checksum
                continue
            if kind is StartLine:
                layout.check_format(path, entries.get("format"), layout.JOURNAL_FORMAT)
            line = kind.from_json(entries) if kind else None
            if line is not None:
                yield offset, line


def read_lines(folder: Path, kind: type[_L]) -> list[_L]:
    """Return all undamaged lines of one kind."""
    return [line for _, line in lines(folder, kinds=[kind]) if isinstance(line, kind)]


def read_start(folder: Path) -> StartLine | None:
    """Return the journal's first line; None if no run began in this folder."""
    for _, line in lines(folder, kinds=[StartLine]):
        if isinstance(line, StartLine):
            return line
    return None


def require_start(folder: Path) -> StartLine:
    """Return the journal's first line.

    Raises:
        InputError: if no run began in this folder.
    """
    start = read_start(folder)
    if start is None:
        raise InputError(
            f"{folder.name}: its journal has no first line (it is damaged, or the process died "
            "before the first step); start the run again with: fbp run"
        )
    return start


def read_end(folder: Path) -> EndLine | None:
    """Return the last line ``end``; None while the run goes on, or after its process died."""
    last = None
    for _, line in lines(folder, kinds=[EndLine, ResumeLine]):
        last = line
    return last if isinstance(last, EndLine) else None


def read_tags(folder: Path, *, sealed: bool = True) -> dict[str, str]:
    """Return all tags of a run, the newest value of each.

    Args:
        folder: the run's.
        sealed: whether the root of its manifest is among them.
    """
    values: dict[str, str] = {}
    for _, line in lines(folder, kinds=[StartLine, TagsLine, EndLine, ResumeLine, SealLine]):
        if isinstance(line, StartLine):
            values |= line.tags
        elif isinstance(line, TagsLine):
            values |= line.values
        elif isinstance(line, EndLine) and line.message:
            values[tags.MESSAGE] = line.message[:LONGEST_MESSAGE]
        elif isinstance(line, SealLine) and sealed:
            values[tags.MANIFEST] = line.root
        elif isinstance(line, ResumeLine):
            for name in tags.OF_AN_END:
                values.pop(name, None)
    return values


class Sealed(NamedTuple):
    """The last seal of a journal.

    Attributes:
        root: see :class:`SealLine`.
        covers: the number of bytes before the line.
        end: the number of bytes up to its end.
        later: the lines that were written since.
    """

    root: str
    covers: int
    end: int
    later: tuple[Line, ...]


def read_seal(folder: Path) -> Sealed | None:
    """Return the last seal of a journal; None if there is none."""
    end, seal = 0, None
    for offset, line in lines(folder, kinds=[SealLine]):
        end, seal = offset, line
    if not isinstance(seal, SealLine):
        return None
    with open(layout.journal(folder), "rb") as file:
        covers = _end_of_lines(file.fileno(), end - 1)
    later = tuple(line for _, line in lines(folder, end))
    return Sealed(seal.root, covers, end, later)


def read_checkpoints(folder: Path) -> dict[int, CheckpointLine]:
    """Return the lines ``checkpoint`` by step."""
    return {line.step: line for line in read_lines(folder, CheckpointLine)}


def started_runs(root: Path) -> Iterator[tuple[Path, StartLine]]:
    """Iterate over the runs of ``mlruns`` that began, the oldest first.

    Folders without a first line are skipped, and so are those that a newer fbp wrote.
    """
    for folder in layout.run_folders(root):
        with contextlib.suppress(InputError):
            start = read_start(folder)
            if start is not None:
                yield folder, start


def newer_runs(root: Path) -> list[Path]:
    """Return the folders of the runs of ``mlruns`` that a newer fbp wrote, the oldest first."""
    folders = []
    for folder in layout.run_folders(root):
        try:
            read_start(folder)
        except NewerFormat:
            folders.append(folder)
        except InputError:
            pass
    return folders


def checksum_prefix(
    folder: Path, length: int, name: str = JOURNAL, prefix: PrefixChecksum = _EMPTY
) -> PrefixChecksum:
    """Return length and CRC-32 of a journal's first bytes.

    Args:
        folder: the run's folder.
        length: how many bytes; fewer are used if there are fewer.
        name: the journal's file name.
        prefix: the checksum of a shorter prefix, from which to go on.
    """
    path, (position, crc32) = layout.journal(folder, name), prefix
    if path.is_file():
        with open(path, "rb") as file:
            file.seek(position)
            while part := file.read(min(length - position, 2**20)):
                position, crc32 = position + len(part), zlib.crc32(part, crc32)
    return PrefixChecksum(position, crc32)


def has_prefix(folder: Path, checksum: PrefixChecksum, name: str = JOURNAL) -> bool:
    """Return whether a journal still begins with the bytes that ``checksum`` was taken of."""
    return checksum_prefix(folder, checksum.length, name) == checksum
