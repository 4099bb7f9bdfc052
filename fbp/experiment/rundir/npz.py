"""Pytrees of arrays on disk, without pickle: by path in an ``.npz`` file, written whole or not at all; and their digests."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from fbp._backprop import path_of
from fbp.errors import InputError
from fbp.layer import Params


def params_digest(params: Params) -> str:
    """SHA-256 over every parameter's path, dtype, shape and bytes, in the order of their paths."""
    return digest_of(flatten_by_path(params))


def digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over every array's name, dtype, shape and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for path, array in sorted(arrays.items()):
        digest.update(f"{path}\0{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def flatten_by_path(params: Params) -> dict[str, np.ndarray]:
    """The leaves of a pytree on the host, by path; random keys as the numbers they are made of."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    found = {path_of(keys): _on_host(leaf) for keys, leaf in leaves}
    if len(found) != len(leaves):
        raise InputError("the names of a pytree's leaves are not unique when joined by '/'")
    return found


def _on_host(leaf: Any) -> np.ndarray:
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    if array.dtype.kind in "OSUMm" or array.dtype.names:
        raise InputError(
            f"expected a pytree of arrays and numbers, got {type(leaf).__name__} {str(leaf)[:40]!r} in it"
        )
    return array


def copied(tree: Params) -> Params:
    """The tree with arrays of its own on the host: what happens to the given ones (changed, donated) does not matter to it."""
    return jax.tree.map(lambda leaf: np.array(_on_host(leaf), copy=True), tree)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _generator(key: Any) -> str:
    """The name of the random generator of a key, or of its shape."""
    names = ("threefry2x32", "rbg", "unsafe_rbg")
    return next(name for name in names if jax.random.key(0, impl=name).dtype == key.dtype)


def unflatten_like(arrays: Mapping[str, np.ndarray], like: Params) -> Params:
    """The pytree of which :func:`flatten_by_path` gave the leaves: JAX's arrays, numpy's and Python's numbers, as in ``like``.

    Args:
        arrays: the leaves.
        like: a pytree of the same structure, of arrays or of their shapes and dtypes.

    Raises:
        ValueError: where names, shapes or dtypes are not those of ``like``.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [path_of(keys) for keys, _ in leaves]
    if set(names) != set(arrays):
        missing, odd = sorted(set(names) - set(arrays)), sorted(set(arrays) - set(names))
        lists = (("missing", missing), ("not expected", odd))
        raise ValueError(
            "; ".join(f"{what}: {', '.join(found[:5])}" for what, found in lists if found)
        )

    def restored(name: str, leaf: Any) -> Any:
        array = arrays[name]
        of_jax = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
        expected: Any = (
            jax.eval_shape(jax.random.key_data, leaf)
            if _is_key(leaf)
            else leaf
            if of_jax
            else np.asarray(leaf)
        )
        if (array.shape, array.dtype) != (expected.shape, expected.dtype):
            raise ValueError(
                f"{name}: expected {expected.dtype}{list(expected.shape)}, got {array.dtype}{list(array.shape)}"
            )
        if _is_key(leaf):
            return jax.random.wrap_key_data(jnp.asarray(array), impl=_generator(leaf))
        if of_jax:
            return jnp.asarray(array)
        return array if isinstance(leaf, np.ndarray) else type(leaf)(array[()])

    return jax.tree.unflatten(
        structure, [restored(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)]
    )


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], before: Callable[[], None] = lambda: None
) -> None:
    """Write an ``.npz`` file in one piece: it is there whole, or not at all, whatever dies meanwhile.

    Args:
        path: the file.
        arrays: what it holds, by name.
        before: called when all is on the disk, before the file gets its name.

    Raises:
        OSError: where the disk is full; a file of that name that was there before is left as it was.
    """
    named = {
        _member(key, value): value if _is_numpys(value) else value.view(f"V{value.dtype.itemsize}")
        for key, value in arrays.items()
    }
    _write(path, lambda file: np.savez(file, **named), before)  # type: ignore[arg-type]


def write_text(path: Path, text: str) -> None:
    """Write a file of text in one piece, as :func:`write_arrays` does."""
    _write(path, lambda file: file.write(text.encode("utf-8")))


def _write(
    path: Path, fill: Callable[[IO[bytes]], object], before: Callable[[], None] = lambda: None
) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        before()
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
    """The name inside the archive; dtypes that are not numpy's own (bfloat16) are part of it."""
    return key.replace("/", "|") + ("" if _is_numpys(array) else f"@{array.dtype.name}")


def _is_numpys(array: np.ndarray) -> bool:
    return array.dtype.type.__module__ == "numpy"


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that :func:`write_arrays` wrote.

    Raises:
        One of ``READ_ERRORS``: where it is damaged.
        OSError: where it cannot be read.
    """
    found = {}
    with (
        open(path, "rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):  # a damaged one must be closed, too
        for member in archive.files:
            name, array = member.replace("|", "/"), archive[member]
            if array.dtype.kind == "V":
                name, _, dtype = name.rpartition("@")
                array = array.view(np.dtype(dtype))
            found[name] = array
    return found


READ_ERRORS = (
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    RuntimeError,  # an archive that seems to be encrypted, or of a kind that is not implemented
    OverflowError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a damaged file of arrays raises."""
