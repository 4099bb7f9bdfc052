"""Pytrees of arrays in ``.npz`` files: by path, no pickle, written atomically; their digests."""

import hashlib
import math
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fbp._backprop import path_of
from fbp.errors import InputError
from fbp.layer import Params

_SHOWN = 60  # characters of what a file says


def params_digest(params: Params) -> str:
    """Return SHA-256 of every parameter's path, dtype, shape and bytes, sorted by path.

    Safe between threads and between processes: it only reads.
    """
    return digest_of(flatten_by_path(params))


def digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    """Return SHA-256 of every array's name, dtype, shape and bytes, sorted by name."""
    return combined_digest({name: leaf_digest(array) for name, array in arrays.items()})


def leaf_digest(array: np.ndarray) -> str:
    """Return an array's dtype and shape, and SHA-256 of its bytes, as one text.

    The dtype's name is part of it, because int4 and uint4 have the same code.
    """
    content = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return f"{array.dtype.name} {array.dtype.str} {list(array.shape)} {content.hexdigest()}"


def combined_digest(leaves: Mapping[str, str]) -> str:
    """Return SHA-256 of names and their :func:`leaf_digest`, sorted by name.

    The length of each text is part of it, so that no two sets of arrays give the same bytes.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        for text in (name.encode("utf-8", "surrogatepass"), leaf.encode()):
            digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def flatten_by_path(params: Params) -> dict[str, np.ndarray]:
    """Return the leaves of a pytree as numpy arrays by path; random keys as their key data.

    Raises:
        InputError: if two leaves have the same path, or a leaf is neither an array nor a number.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = {path_of(keys): _on_host(leaf) for keys, leaf in leaves}
    if len(arrays) != len(leaves):
        raise InputError("the names of a pytree's leaves are not unique when joined by '/'")
    return arrays


def shapes_by_path(template: Params) -> dict[str, Any]:
    """Return shape and dtype of the leaves that :func:`flatten_by_path` would return.

    Args:
        template: a pytree of shapes, as ``jax.eval_shape`` returns it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(template)
    return {
        path_of(keys): jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        for keys, leaf in leaves
    }


def _on_host(leaf: Any) -> np.ndarray:
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    if array.dtype.kind in "OSUMm" or array.dtype.names:
        raise InputError(
            f"expected a pytree of arrays and numbers, got {type(leaf).__name__} "
            f"{str(leaf)[:40]!r} in it"
        )
    return array


def to_host(tree: Params) -> Params:
    """Copy the tree to host memory; changes to, or donation of, the originals do not affect it."""
    return jax.tree.map(lambda leaf: np.array(_on_host(leaf), copy=True), tree)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _generator(key: Any) -> str:
    """Return the name of the random generator of a key, or of its shape."""
    names = ("threefry2x32", "rbg", "unsafe_rbg")
    return next(name for name in names if jax.random.key(0, impl=name).dtype == key.dtype)


def unflatten_like(arrays: Mapping[str, np.ndarray], like: Params) -> Params:
    """Return the pytree of which :func:`flatten_by_path` returned the leaves.

    Args:
        arrays: the leaves by path.
        like: a pytree of the same structure, of arrays or of their shapes and dtypes. Each leaf of
            the result is of the kind of its leaf: JAX's array, numpy's, or a Python number.

    Raises:
        ValueError: if names, shapes or dtypes are not those of ``like``.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [path_of(keys) for keys, _ in leaves]
    if set(names) != set(arrays):
        lists = {
            "missing": sorted(set(names) - set(arrays)),
            "not expected": sorted(set(arrays) - set(names)),
        }
        raise ValueError(
            "; ".join(f"{title}: {', '.join(paths[:5])}" for title, paths in lists.items() if paths)
        )
    restored = [
        _like(name, arrays[name], leaf) for name, (_, leaf) in zip(names, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, restored)


def _like(name: str, array: np.ndarray, leaf: Any) -> Any:
    """Return ``array`` as the kind of value that ``leaf`` is."""
    is_jax = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    expected: Any = leaf if is_jax else np.asarray(leaf)
    if _is_key(leaf):
        expected = jax.eval_shape(jax.random.key_data, leaf)
    if (array.shape, array.dtype) != (expected.shape, expected.dtype):
        raise ValueError(
            f"{name}: expected {expected.dtype}{list(expected.shape)}, "
            f"got {array.dtype}{list(array.shape)}"
        )
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=_generator(leaf))
    if is_jax:
        return jnp.asarray(array)
    return array if isinstance(leaf, np.ndarray) else type(leaf)(array[()])


def write_arrays(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    before_rename: Callable[[], None] = lambda: None,
) -> None:
    """Write an ``.npz`` file atomically (temporary file, fsync, rename).

    Args:
        path: the file.
        arrays: its content by name.
        before_rename: called when everything is on the disk, before the file gets its name.

    Raises:
        OSError: if the disk is full; an earlier file of that name then stays as it was.
    """
    members = {
        _member(key, value): value if _is_numpys(value) else value.view(f"V{value.dtype.itemsize}")
        for key, value in arrays.items()
    }
    _write(path, lambda file: np.savez(file, **members), before_rename)  # type: ignore[arg-type]


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as :func:`write_arrays` does."""
    _write(path, lambda file: file.write(text.encode("utf-8")))


def _write(
    path: Path,
    fill: Callable[[IO[bytes]], object],
    before_rename: Callable[[], None] = lambda: None,
) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        before_rename()
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too
    finally:
        os.close(folder)


def _member(key: str, array: np.ndarray) -> str:
    """Return the name inside the archive; it includes dtypes that are not numpy's (bfloat16)."""
    return key.replace("/", "|") + ("" if _is_numpys(array) else f"@{array.dtype.name}")


def _is_numpys(array: np.ndarray) -> bool:
    return array.dtype.type.__module__ == "numpy"


class Header(NamedTuple):
    """What the header of an array in a file says.

    Attributes:
        shape, dtype: the array's.
    """

    shape: tuple[int, ...]
    dtype: np.dtype


def read_arrays(
    path: Path, check: Callable[[Mapping[str, Header]], None] = lambda headers: None
) -> dict[str, np.ndarray]:
    """Return the arrays that :func:`write_arrays` wrote.

    All headers are read and checked before the first array is allocated: names, kinds and sizes
    must be those that :func:`write_arrays` gives, and the arrays fit into the file and the memory.

    Args:
        path: the file.
        check: is called with the headers by name before any array is read; it may raise.

    Raises:
        One of ``READ_ERRORS``: if the file is damaged.
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        members = _members(archive, os.fstat(file.fileno()).st_size)
        read = [_read_header(archive, member) for member in members]
        headers = dict(read)
        if len(headers) != len(members):
            raise ValueError("it has two arrays of one name")
        check(headers)
        return {
            name: _read_array(archive, member).view(header.dtype)
            for (name, header), member in zip(read, members, strict=True)
        }


def _members(archive: zipfile.ZipFile, size: int) -> list[zipfile.ZipInfo]:
    """Return the members of an archive of `size` bytes; raise ValueError unless all can be read."""
    entries = archive.infolist()
    for entry in entries:
        is_stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        if not is_stored or entry.file_size != entry.compress_size:
            raise ValueError("it has arrays that are compressed or encrypted")
        if not entry.filename.endswith(".npy"):
            raise ValueError("it has members that are no arrays")
    total = sum(entry.file_size for entry in entries)
    if total > size:
        raise ValueError("its arrays are larger than the file")
    if total > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise ValueError("its arrays are larger than the memory of this machine")
    return entries


def _read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[str, Header]:
    """Return name and header of an array; raise ValueError unless it can be what it says."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError("it has arrays with fields, or with headers of absurd length")
        shape, _, stored = np.lib.format.read_array_header_1_0(file)
        begin = file.tell()
    if stored.kind not in "biufcV" or stored.names or stored.subdtype:
        raise ValueError(f"it has an array of {stored}, not of numbers")
    sizes_are_whole = all(type(size) is int and size >= 0 for size in shape)
    if not sizes_are_whole or math.prod(shape) * stored.itemsize != member.file_size - begin:
        raise ValueError(f"it has an array that says it is of shape {str(shape)[:_SHOWN]}")
    name = member.filename.removesuffix(".npy").replace("|", "/")
    if stored.kind != "V":
        return name, Header(shape, stored)
    name, _, dtype = name.rpartition("@")
    return name, Header(shape, _named_dtype(dtype, stored.itemsize))


def _named_dtype(name: str, size: int) -> np.dtype:
    """Return a dtype that is not numpy's by its name, such as bfloat16."""
    dtype = np.dtype(name) if re.fullmatch("[a-z][a-z0-9_]*", name) else np.dtype(object)
    if dtype.hasobject or dtype.type.__module__ == "numpy" or dtype.itemsize != size:
        raise ValueError(f"it has an array of an unknown dtype {name[:_SHOWN]!r}")
    return dtype


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


READ_ERRORS = (
    ValueError,
    AttributeError,
    IndexError,
    NotImplementedError,
    SyntaxError,
    tokenize.TokenError,
    EOFError,
    KeyError,
    TypeError,
    RuntimeError,  # an archive that seems to be encrypted, or of a kind that is not implemented
    OverflowError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)
"""The exceptions that reading a damaged file of arrays raises."""
