"""Parquet tables, read by pyarrow: a block of columns at a time, into one array."""

from pathlib import Path
from typing import Any

import numpy as np

from fbp.datasets.checks import as_floats
from fbp.datasets.csv_files import Table, unknown_column
from fbp.datasets.file_targets import Targets, bad
from fbp.datasets.npz_files import check_memory
from fbp.errors import InputError, first_line, listed

_BLOCK = 2**19  # numbers read at a time; allocators keep more than larger blocks


def read_parquet(path: Path, target: str | None) -> Table:
    """Read a Parquet file.

    Args:
        path: the file.
        target: the name of the column to predict; the last one by default.

    Raises:
        InputError: the file is damaged, or a column cannot be used.
    """
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            return _read(path, file, target)
    except InputError:
        raise
    except Exception as error:  # pyarrow raises a dozen types
        raise bad(f"{path} cannot be read as .parquet ({first_line(error)})") from None


def _read(path: Path, file: Any, target: str | None) -> Table:
    schema, count = file.schema_arrow, file.metadata.num_rows
    names = tuple(schema.names)
    notes = []
    index = [name for name in _index_columns(schema) if name in names and name != target]
    if index:
        notes.append(f"left out the index, {listed(index)}")
    used = [name for name in names if name not in index]
    if len(set(names)) < len(names):
        raise bad(f"expected different names of columns in {path}, got {listed(names)}")
    if len(used) < 2:
        raise bad(f"expected at least two columns in {path}, got {listed(used) or 'none'}")
    if not count:
        raise bad(f"expected rows of examples in {path}, got none")
    if target is None:
        target = used[-1]
        notes.append(f"the target is {target!r}, the last column")
    elif target not in used:
        raise unknown_column(path, names, target)
    features = [name for name in used if name != target]
    dtype = _common_dtype(path, schema, features)
    check_memory(path, count * len(features) * dtype.itemsize)
    x = np.empty((count, len(features)), dtype)
    step = max(1, _BLOCK // count)
    for start in range(0, len(features), step):
        block = file.read(columns=features[start : start + step], use_threads=False)
        for place, name in enumerate(features[start : start + step], start):
            x[:, place] = _column(path, name, block.column(name))
    targets = _targets(path, target, file.read(columns=[target], use_threads=False).column(target))
    return Table(x, targets, tuple(notes))


def _index_columns(schema: Any) -> list[str]:
    """Return the columns that pandas wrote as an index."""
    columns = (schema.pandas_metadata or {}).get("index_columns", [])
    return [column for column in columns if isinstance(column, str)]


def _common_dtype(path: Path, schema: Any, features: list[str]) -> np.dtype:
    """Return the dtype that holds the values of all feature columns."""
    from pyarrow import types

    kinds = {name: schema.field(name).type for name in features}
    texts = [
        name
        for name, kind in kinds.items()
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))
    ]
    if texts:
        raise bad(
            f"expected numbers in every feature column of {path}, got text or {kinds[texts[0]]} in "
            f"{listed(texts)}"
        )
    narrow = all(
        types.is_boolean(kind) or kind.bit_width <= (16 if types.is_integer(kind) else 32)
        for kind in kinds.values()
    )
    return np.dtype(np.float32 if narrow else np.float64)


def _column(path: Path, name: str, column: Any) -> np.ndarray:
    """Return a feature column as numbers.

    Raises:
        InputError: if a cell is empty, or a whole number too large for float64.
    """
    if column.null_count:
        raise bad(
            f"expected finite numbers in every feature column of {path}, got {column.null_count:,} "
            f"empty cells in column {name!r}, the first in row {_first_null(column)} (counted "
            "from 0)"
        )
    values = column.to_numpy()
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        return as_floats(f"column {name!r} of {path}", values)
    return values


def _first_null(column: Any) -> int:
    return int(np.asarray(column.is_null()).argmax())


def _targets(path: Path, name: str, column: Any) -> Targets:
    """Return the column to predict: numbers as they are, texts by their different values."""
    import pyarrow as pa
    from pyarrow import types

    where, kind = f"column {name!r} of {path}", column.type
    if column.null_count:
        raise bad(
            f"expected a target in every row of {path}, got {column.null_count:,} empty cells in "
            f"column {name!r}, the first in row {_first_null(column)} (counted from 0)"
        )
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return Targets(where, np.asarray(column.to_numpy()))
    if types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if not (types.is_string(column.type) or types.is_large_string(column.type)):
        raise bad(f"expected numbers or texts as targets in {where}, got {kind}", "target")
    merged = column.dictionary_encode().unify_dictionaries().combine_chunks()
    if isinstance(merged, pa.ChunkedArray):
        merged = merged.chunk(0)
    texts = tuple(merged.dictionary.to_pylist())
    return Targets(where, None, texts, merged.indices.to_numpy(zero_copy_only=False))
