"""NumPy archives: the headers of all arrays are checked before any array is read."""

import math
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fbp.datasets.file_targets import bad
from fbp.errors import InputError, first_line, listed

_MAX_DEFLATE = 1032  # no deflated byte stands for more
_MAX_RATIO, _SMALL = 200, 2**30  # more than a GiB from less than 1/200 of it is not believed


class _Header(NamedTuple):
    """What the header of an array says.

    Attributes:
        shape, dtype: of the array.
        size: in bytes, without the header.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    size: int


def read_npz(path: Path, target: str) -> dict[str, np.ndarray]:
    """Return ``x``, the target, and their test parts if the file has them.

    Args:
        path: the file.
        target: the name of the array of targets.

    Raises:
        InputError: an array is missing or damaged, holds Python objects, or is larger than the file
            or the memory can hold.
    """
    names = ("x", target, "x_test", f"{target}_test")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive)
            if not {"x", target} <= set(members):
                argument = "target" if "x" in members else "path"
                raise bad(
                    f"expected arrays 'x' and {target!r} in {path}, got "
                    f"{listed(sorted(members)) or 'none'}",
                    argument,
                )
            members_to_read = {name: members[name] for name in names if name in members}
            headers = {
                name: _checked_header(path, archive, name, info)
                for name, info in members_to_read.items()
            }
            check_memory(path, sum(header.size for header in headers.values()))
            return {name: _read(archive, info) for name, info in members_to_read.items()}
    except InputError:
        raise
    except Exception as error:  # damaged archives raise a dozen types
        raise bad(f"{path} cannot be read as .npz ({first_line(error)})") from None


def check_memory(path: Path, size: int) -> None:
    """Raise InputError if arrays of `size` bytes do not fit into this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise bad(
            f"{path} says that its arrays take {size / 1e9:,.0f} GB, but this machine has "
            f"{memory / 1e9:,.0f} GB of memory; take a part of them"
        )


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the entries of an archive by the names of their arrays."""
    infos = archive.infolist()
    members = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(members) < len(infos):
        raise bad(f"{path} is damaged: it has two arrays of the same name")
    if sum(info.compress_size for info in infos) > path.stat().st_size:
        raise bad(f"{path} is damaged: its arrays are larger than the file")
    return members


def _checked_header(
    path: Path, archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo
) -> _Header:
    """Return the header of an array; raise InputError unless it can be what it says."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:  # 3.0: names of fields beyond Latin-1, so it is a structured array
            raise bad(f"expected plain numbers or texts in array {name!r} of {path}, got fields")
        shape, _, dtype = read(file)
        start = file.tell()
    if dtype.hasobject:
        raise bad(
            f"{path} cannot be read: array {name!r} holds Python objects, which are never loaded; "
            "store numbers, or texts by .astype(str)"
        )
    size = math.prod(shape) * dtype.itemsize
    stored = info.file_size - start
    if min(shape, default=0) < 0 or size != stored:
        raise bad(
            f"{path} is damaged: array {name!r} says that it is {dtype} of shape {shape}, {size:,} "
            f"bytes, but {stored:,} bytes are stored"
        )
    ratio = info.file_size / max(info.compress_size, 1)
    if ratio > _MAX_DEFLATE + 1 or (ratio > _MAX_RATIO and info.file_size > _SMALL):
        raise bad(
            f"{path} unpacks to {ratio:,.0f} times its size in array {name!r} "
            f"({info.file_size / 1e9:,.1f} GB); store it with numpy.savez if it is meant"
        )
    return _Header(shape, dtype, size)


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
