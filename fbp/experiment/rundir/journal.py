"""The journal: a file of JSON lines to which training appends, and which everything else reads.

Each line is an object with `kind`, `time` (milliseconds since 1970), the fields of one of the
classes below, and a checksum. A damaged line is skipped, and so is a line of an unknown kind.
Per-step numbers are stored as the bytes of a float32 array: exact, and faster to write than digits.

A line that was written is never changed: a resumed run does not repeat the metrics that the journal
has (see recorder.py).
"""

import base64
import contextlib
import dataclasses
import functools
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, get_type_hints

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from fbp.errors import InputError, NewerFormat
from fbp.experiment.rundir import layout, locks, tags
from fbp.experiment.rundir.layout import JOURNAL
from fbp.experiment.rundir.redact import redact, redact_texts

_CHECKSUM = b', "crc32": '
LONGEST_MESSAGE = 5000
"""Characters of the tag that says why a run did not finish."""


# --- the lines --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the journal.

    Attributes:
        time: when it was written, in milliseconds since 1970.
    """

    kind: ClassVar[str]
    time: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON's types."""
        return {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> "Line | None":
        """Return the line; None if a field is missing or of another type, or absurd.

        Unknown entries are ignored.
        """
        validator = _validator(cls.kind)
        known = {key: entries[key] for key in validator.model_fields if key in entries}
        try:
            validator.model_validate(known)
            return cls(**known)
        except (TypeError, ValueError):
            return None


@dataclass(frozen=True, kw_only=True)
class StartLine(Line):
    """The line that makes a folder a run: what a tracker needs to create it.

    Attributes:
        format: the journal's format number.
        label: the run's name without the four characters that tell equals apart.
        name: the run's name.
        experiment: the experiment that the run belongs to.
        params, tags: texts by name.
        inputs: descriptions of data sets: name, digest, context, shape and dtype of x and y.
        parent: the name of the folder of the run under which this one is shown, if any.
        steps: the number of steps that were planned; 0 if unknown.
        layers: names of the model's layers by path.
        sink: the tracker that the run is sent to, see :mod:`fbp.experiment.tracking.sink`.
        config: SHA-256 of the configuration's file; empty if there is none.
    """

    kind = "start"
    format: int
    label: str
    name: str
    experiment: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    inputs: Sequence[Mapping[str, Any]] = ()
    parent: str | None = None
    steps: int = 0
    layers: Mapping[str, str] = field(default_factory=dict)
    sink: str = "mlflow"
    config: str = ""


@dataclass(frozen=True, kw_only=True)
class StepsLine(Line):
    """A chunk of per-step metrics, without gaps.

    Attributes:
        first_step: the step of the first row.
        began: when the chunk began (the time of the line before), in milliseconds since 1970.
        columns: float32 numbers, one for each step, by the metric's name.
    """

    kind = "steps"
    first_step: int
    began: int
    columns: Mapping[str, np.ndarray]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON's types; columns as base64 of little-endian float32."""
        columns = {
            key: base64.b64encode(np.ascontiguousarray(column, "<f4").data).decode()
            for key, column in self.columns.items()
        }
        return {**super().to_json(), "columns": columns}

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> "Line | None":
        """Return the line, its columns decoded; None as :meth:`Line.from_json`."""
        line = super().from_json(entries)
        if line is None:
            return None
        try:
            columns = {
                key: np.frombuffer(base64.b64decode(column), "<f4")
                for key, column in entries["columns"].items()
            }
        except (TypeError, ValueError):
            return None
        return dataclasses.replace(line, columns=columns)  # type: ignore[call-arg]

    def __len__(self) -> int:
        return max((len(column) for column in self.columns.values()), default=0)

    @property
    def times(self) -> np.ndarray:
        """The times of the steps, in milliseconds: evenly spaced over the chunk."""
        return np.linspace(self.began, self.time, len(self) + 1)[1:].astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class MetricsLine(Line):
    """Metrics of one step that are not measured at every step.

    Attributes:
        step: the step.
        values: numbers by name.
    """

    kind = "metrics"
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TagsLine(Line):
    """Tags that are known only after the start.

    Attributes:
        values: texts by name.
    """

    kind = "tags"
    values: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class CheckpointLine(Line):
    """A checkpoint that is on the disk.

    Attributes:
        step: the step.
        params_digest: SHA-256 of all parameters.
        tensors: the beginning of the SHA-256 of each parameter, by path.
        state_digest: SHA-256 of the whole state: optimizer state and random key, too.
    """

    kind = "checkpoint"
    step: int
    params_digest: str
    tensors: Mapping[str, str]
    state_digest: str


@dataclass(frozen=True, kw_only=True)
class ChildLine(Line):
    """A run that is shown under this one.

    Attributes:
        folder: the name of its folder.
        variant: the variant's name.
    """

    kind = "child"
    folder: str
    variant: str


@dataclass(frozen=True, kw_only=True)
class EndLine(Line):
    """The run's end.

    Attributes:
        status: FINISHED, FAILED or KILLED.
        message: why it did not finish; empty if it did.
    """

    kind = "end"
    status: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ResumeLine(Line):
    """The run goes on, after an end or after its process died.

    Attributes:
        step: the step of the checkpoint from which it goes on.
    """

    kind = "resume"
    step: int


@dataclass(frozen=True, kw_only=True)
class SealLine(Line):
    """The run's record is complete, and its manifest covers it; see manifest.py.

    Attributes:
        root: SHA-256 of the manifest, which has the digest of the journal up to this line.
    """

    kind = "seal"
    root: str


_KINDS: dict[str, type[Line]] = {
    line.kind: line
    for line in (
        StartLine,
        StepsLine,
        MetricsLine,
        TagsLine,
        CheckpointLine,
        ChildLine,
        EndLine,
        ResumeLine,
        SealLine,
    )
}
_L = TypeVar("_L", bound=Line)


_Count = Annotated[int, Field(ge=0, le=2**62)]
_Time = Annotated[int, Field(ge=0, lt=253_402_300_800_000)]  # before the year 10000


def _is_array(entry: list[Any]) -> list[Any]:
    """Check that an entry is the shape and the dtype of an array."""
    match entry:
        case [list() as shape, str()] if shape and all(type(size) is int for size in shape):
            return entry
    raise ValueError("expected a shape and a dtype")


_Array = Annotated[list[Any], AfterValidator(_is_array)]


class _Input(BaseModel):
    """The description of a data set."""

    model_config = ConfigDict(strict=True)

    name: str
    digest: str
    context: str = ""
    x: _Array | None = None
    y: _Array | None = None


_ENCODED = {
    "columns": Mapping[str, str],
    "inputs": Sequence[_Input],
    "time": _Time,
    "began": _Time,
}


@functools.cache
def _validator(name: str) -> type[BaseModel]:
    """Return a model that takes those entries of a line that are there, if they fit."""
    hints = get_type_hints(_KINDS[name])
    types = {part.name: hints[part.name] for part in dataclasses.fields(_KINDS[name])}
    types |= {entry: encoded for entry, encoded in _ENCODED.items() if entry in types}
    fields: dict[str, Any] = {
        entry: (_Count if each is int else each, None) for entry, each in types.items()
    }
    return create_model(name, __config__=ConfigDict(strict=True), **fields)


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
            tags: texts by name; empty ones are left out, the folder's name is added.
            more: `inputs`, `parent`, `steps`, `layers`, `sink`, `config`, see :class:`StartLine`.
        """
        self._append(
            StartLine(
                time=self._tick(),
                format=layout.JOURNAL_FORMAT,
                label=label,
                name=f"{label}-{self.folder.name[-4:]}",
                experiment=experiment,
                params=redact_texts(params),
                tags=_with_folder(redact_texts(tags), self.folder.name),
                **more,
            )
        )

    def steps(self, first_step: int, columns: Mapping[str, np.ndarray]) -> None:
        """Append a chunk of per-step metrics that began when the line before was written."""
        began = self._last_time
        line = StepsLine(time=self._tick(), first_step=first_step, began=began, columns=columns)
        self._append(line)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append metrics of one step."""
        self._append(MetricsLine(time=self._tick(), step=step, values=values))

    def tags(self, values: Mapping[str, str]) -> None:
        """Append tags."""
        self._append(TagsLine(time=self._tick(), values=redact_texts(values)))

    def checkpoint(
        self, step: int, params_digest: str, tensors: Mapping[str, str], state_digest: str
    ) -> None:
        """Append the digests of a checkpoint that is on the disk."""
        self._append(
            CheckpointLine(
                time=self._tick(),
                step=step,
                params_digest=params_digest,
                tensors=tensors,
                state_digest=state_digest,
            )
        )

    def child(self, folder: str, variant: str) -> None:
        """Append the name of the folder of a run that is shown under this one."""
        self._append(ChildLine(time=self._tick(), folder=folder, variant=variant))

    def end(self, status: str, message: str = "") -> None:
        """Append the run's end: FINISHED, FAILED or KILLED, and why."""
        self._append(EndLine(time=self._tick(), status=status, message=redact(message)))

    def resume(self, step: int) -> None:
        """Append that the run goes on from a step."""
        self._append(ResumeLine(time=self._tick(), step=step))

    def seal(self, root: str) -> None:
        """Append the SHA-256 of the manifest that covers the record."""
        self._append(SealLine(time=self._tick(), root=root))

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        locks.unlock(self._file)
        os.close(self._file)

    def _tick(self) -> int:
        self._last_time = now()
        return self._last_time

    def _append(self, line: Line) -> None:
        text = _with_checksum(json.dumps({"kind": line.kind, **line.to_json()}).encode())
        length = self.checksum.length
        try:
            if os.fstat(self._file).st_size > length:  # part of a line that could not be removed
                os.ftruncate(self._file, length)
            written = 0
            while written < len(text):
                written += os.write(self._file, text[written:])
            self.checksum = PrefixChecksum(
                length + len(text), zlib.crc32(text, self.checksum.crc32)
            )
        except BaseException as error:  # a full disk, or a second Ctrl-C
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, length)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(self._path)) from None
            raise


def _with_folder(values: Mapping[str, str], folder: str) -> dict[str, str]:
    return {key: value for key, value in values.items() if value} | {tags.FOLDER: folder}


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
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        return _end_of_lines(file.fileno())


def size(folder: Path, name: str = JOURNAL) -> int:
    """Return the number of bytes of the file, an unfinished line included; 0 if there is none."""
    path = layout.journal(folder, name)
    return path.stat().st_size if path.exists() else 0


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
    if not path.exists():
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
                kind = _KINDS.get(entries["kind"])
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
    if path.exists():
        with open(path, "rb") as file:
            file.seek(position)
            while part := file.read(min(length - position, 2**20)):
                position, crc32 = position + len(part), zlib.crc32(part, crc32)
    return PrefixChecksum(position, crc32)


def has_prefix(folder: Path, checksum: PrefixChecksum, name: str = JOURNAL) -> bool:
    """Return whether a journal still begins with the bytes that ``checksum`` was taken of."""
    return checksum_prefix(folder, checksum.length, name) == checksum
