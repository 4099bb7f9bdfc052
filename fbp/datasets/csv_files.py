"""Tables of comma-separated values (RFC 4180), read by pyarrow.

Features are read as float64 at once, batch by batch into one array. The target stays text. If
pyarrow refuses the file, or a number is missing, the file is read again, slowly, with Python's
reader: to say at which line, or which columns hold true and false.
"""

import csv
import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fbp.datasets.file_targets import NUMBER, Targets, bad
from fbp.errors import did_you_mean, first_line, listed

_BLOCK_BYTES = 2**22  # read at a time; a row must fit into it
_CELL_BYTES = 256  # more than a number needs
_BOOLEANS = {"true": 1.0, "false": 0.0}
_VALUE = re.compile(NUMBER.pattern + r"|\s*([+-]?(nan|inf|infinity)|true|false)\s*", re.I | re.A)
_COMMA = re.compile(r"\s*[+-]?\d+(,\d+)+\s*", re.ASCII)
_WHOLE = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)


class Table(NamedTuple):
    """A table with one row per example.

    Attributes:
        features: ``(N, F)``, float32 or float64.
        targets: the column to predict.
        notes: what was guessed or left out, a clause each.
    """

    features: np.ndarray
    targets: Targets
    notes: tuple[str, ...]


class _Layout(NamedTuple):
    """What is known of a file before its values are read.

    Attributes:
        path: the file.
        names: the names of the columns.
        has_header: whether the first row holds them.
        blank_lines: the number of blank lines before the first row.
        target: the index of the column to predict.
        features: the indices of the feature columns.
        empty: the indices of columns without a name, which must be empty.
        notes: what was guessed or left out.
    """

    path: Path
    names: tuple[str, ...]
    has_header: bool
    blank_lines: int
    target: int
    features: tuple[int, ...]
    empty: tuple[int, ...]
    notes: tuple[str, ...]


def read_csv(path: Path, target: str | None, *, header: bool | None) -> Table:
    """Read a file of comma-separated values.

    Args:
        path: the file.
        target: the name of the column to predict; the last one by default.
        header: whether the first row holds the names of the columns; None refuses a first row that
            may be an example.

    Raises:
        InputError: one line that says what cannot be used, and at which line of the file.
    """
    layout = _read_layout(path, target, header=header)
    try:
        features, texts, codes = _read_values(layout, booleans=())
    except (ValueError, OSError) as error:  # pyarrow's errors are both
        booleans = _find_booleans(layout, first_line(error))
        features, texts, codes = _read_values(layout, booleans)
        columns = listed(layout.names[column] for column in booleans)
        layout = layout._replace(
            notes=(*layout.notes, f"true and false read as 1 and 0 in {columns}")
        )
    if not len(features):
        raise _no_rows(path)
    if not np.isfinite(features).all():
        _find_booleans(layout, "a number is missing or too large")
    _check_whole_numbers(layout, features)
    _check_texts(layout, texts)
    where = f"column {layout.names[layout.target]!r} of {path}"
    targets = Targets(where, None, texts, codes, functools.partial(_line_of, layout, layout.target))
    return Table(features, targets, layout.notes)


def _no_rows(path: Path) -> Exception:
    return bad(f"expected rows of examples in {path}, got none")


def _read_layout(path: Path, target: str | None, *, header: bool | None) -> _Layout:
    """Return names and meaning of the columns, from the first row."""
    cells, blank_lines = _first_row(path)
    if len(cells) < 2:
        other = next((mark for mark in (";", "\t", "|") if cells and mark in cells[0]), None)
        hint = f"; save it with commas, not {other!r}, and with decimal points" if other else ""
        raise bad(f"expected at least two columns in {path}, got {listed(cells) or 'none'!r}{hint}")
    values = [cell for cell in cells if _VALUE.fullmatch(cell)]
    if header is None and values:
        raise bad(
            f"expected names of columns in the first row of {path}, got {listed(cells, 6)}; set "
            "header = false if this row is an example, or header = true if these are names",
            "header",
        )
    has_header = header is not False
    names = tuple(cells) if has_header else tuple(map(str, range(len(cells))))
    notes = [] if has_header else [f"no names of columns, so they are called 0 to {len(names) - 1}"]
    unnamed = [i for i, name in enumerate(names) if not name or re.fullmatch(r"Unnamed: \d+", name)]
    duplicates = [name for name, count in Counter(names).items() if name and count > 1]
    if duplicates:
        raise bad(f"expected different names of columns in {path}, got {listed(duplicates)} twice")
    if unnamed[:1] == [0]:
        notes.append("left out the first column, an index without a name")
    used = [i for i in range(len(names)) if i not in unnamed]
    index = _target_index(path, names, used, target)
    if target is None:
        notes.append(f"the target is {names[index]!r}, the last column")
    features = tuple(i for i in used if i != index)
    if not features:
        raise bad(f"expected a feature column beside the target {names[index]!r} in {path}")
    empty = tuple(i for i in unnamed if i > 0)
    return _Layout(path, names, has_header, blank_lines, index, features, empty, tuple(notes))


def _first_row(path: Path) -> tuple[list[str], int]:
    """Return the first row that is not blank, and the number of blank lines before it."""
    for blank_lines, (_, cells) in enumerate(_rows(path)):
        if cells:
            return [cell.strip() for cell in cells], blank_lines
    raise bad(f"{path} cannot be read as .csv (it is empty)")


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line on which each row ends, and its cells; no cells for a blank line."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise bad(f"{path} cannot be read as .csv (expected UTF-8, got {error.reason})") from None
    except csv.Error as error:
        raise bad(f"{path} cannot be read as .csv (line {reader.line_num}: {error})") from None
    except OSError as error:
        raise bad(f"{path} cannot be read ({error.strerror})") from None


def _target_index(path: Path, names: tuple[str, ...], used: list[int], target: str | None) -> int:
    if not used:
        raise bad(f"expected names of columns in the first row of {path}, got none")
    if target is None:
        return used[-1]
    if target not in names:
        raise unknown_column(path, names, target)
    return names.index(target)


def unknown_column(path: Path, names: tuple[str, ...], target: str) -> Any:
    """Return the error of a target that is no column; it has the nearest names and a count."""
    return bad(
        f"expected one of the {len(names):,} columns of {path}, got {target!r}; "
        f"{did_you_mean(target, names)}",
        "target",
    )


def _read_values(
    layout: _Layout, booleans: tuple[int, ...]
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Return features ``(N, F)``, and the targets as different texts and their indices ``(N,)``.

    Raises:
        ValueError, OSError: pyarrow's errors.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    labels = pa.dictionary(pa.int32(), pa.string())
    types = {str(i): pa.float64() for i in layout.features}
    types |= {str(i): pa.string() for i in (*booleans, *layout.empty)}
    types[str(layout.target)] = labels
    reader = arrow_csv.open_csv(
        layout.path,
        read_options=arrow_csv.ReadOptions(
            use_threads=False,
            block_size=max(_BLOCK_BYTES, _CELL_BYTES * len(layout.names)),
            column_names=[str(i) for i in range(len(layout.names))],
            skip_rows=layout.blank_lines,
            skip_rows_after_names=int(layout.has_header),
        ),
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(
            column_types=types, include_columns=list(types), strings_can_be_null=False
        ),
    )
    features = np.empty((_most_rows(layout.path), len(layout.features)))
    count, targets = 0, []
    for batch in reader:
        end = count + len(batch)
        for place, column in enumerate(layout.features):
            values = batch.column(str(column))
            features[count:end, place] = (
                _as_ones(values) if column in booleans else values.to_numpy(zero_copy_only=False)
            )
        for column in layout.empty:
            _check_empty(layout, column, batch.column(str(column)))
        targets.append(batch.column(str(layout.target)))
        count = end
    merged = pa.chunked_array(targets, labels).unify_dictionaries().combine_chunks()
    if isinstance(merged, pa.ChunkedArray):  # of no chunk
        return features[:0], (), np.zeros(0, np.int32)
    texts = tuple(merged.dictionary.to_pylist())
    return features[:count], texts, merged.indices.to_numpy(zero_copy_only=False)


def _most_rows(path: Path) -> int:
    """Return an upper bound of the number of rows: that of the ends of lines."""
    count = 1
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            count += block.count(b"\n") + block.count(b"\r")
    return count


def _as_ones(values: Any) -> np.ndarray:
    return np.array([_BOOLEANS[text.strip().lower()] for text in values.to_pylist()])


def _check_empty(layout: _Layout, column: int, values: Any) -> None:
    if any(values.to_pylist()):
        raise bad(
            f"expected a name for each column in the first row of {layout.path}, got none for "
            f"column {column + 1}"
        )


def _find_booleans(layout: _Layout, problem: str) -> tuple[int, ...]:
    """Return the feature columns that hold true and false.

    Args:
        layout: of the file.
        problem: why the file was refused.

    Raises:
        InputError: what else is wrong: in which line and column, if it is found.
    """
    booleans: set[int] = set()
    numeric: set[int] = set()
    rows = _rows(layout.path)
    for _ in range(layout.blank_lines + layout.has_header):
        next(rows)
    for line, cells in rows:
        if not cells:
            continue
        if len(cells) != len(layout.names):
            raise bad(
                f"expected {len(layout.names)} cells in each row of {layout.path}, as in the first "
                f"one, got {len(cells)} in line {line}"
            )
        for column in layout.features:
            kinds = booleans if cells[column].strip().lower() in _BOOLEANS else numeric
            is_bad = kinds is numeric and not _is_finite_number(cells[column])
            kinds.add(column)
            if is_bad or (column in booleans and column in numeric):
                raise _bad_cell(layout, line, column, cells[column])
    if not booleans and not numeric:
        raise _no_rows(layout.path)
    if not booleans:
        raise bad(f"{layout.path} cannot be read as .csv ({problem})")
    return tuple(sorted(booleans))


def _is_finite_number(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None and bool(np.isfinite(float(text)))


def _bad_cell(layout: _Layout, line: int, column: int, text: str) -> Exception:
    hint = "fill or remove it, or leave the column out"
    if _COMMA.fullmatch(text):
        hint = "write numbers with a decimal point and without commas"
    elif NUMBER.fullmatch(text):
        hint = "it is too large, or the column also holds true and false"
    got = f"text {text[:40]!r}" if text.strip() else "an empty cell"
    return bad(
        f"expected finite numbers in every feature column of {layout.path}, got {got} in column "
        f"{layout.names[column]!r}, line {line}; {hint}"
    )


def _check_whole_numbers(layout: _Layout, features: np.ndarray) -> None:
    """Raise InputError if a whole number is too large for float64 to hold it."""
    large = np.zeros(features.shape[1], bool)
    for rows in range(0, len(features), 65536):
        large |= (np.abs(features[rows : rows + 65536]) >= 2**53).any(axis=0)
    columns = [layout.features[i] for i in np.flatnonzero(large)]
    if not columns:
        return
    for line, cells in _rows(layout.path):
        for column in columns if len(cells) == len(layout.names) else ():
            text = cells[column]
            if _WHOLE.fullmatch(text) and len(text) < 400 and int(text) != int(float(text)):
                raise bad(
                    f"expected whole numbers up to 2^53 in {layout.path}, which float64 can tell "
                    f"apart, got {text.strip()[:40]} in column {layout.names[column]!r}, line "
                    f"{line}; leave identifiers out"
                )


def _check_texts(layout: _Layout, texts: tuple[str, ...]) -> None:
    """Raise InputError if a target is empty, or if a quotation mark was never closed."""
    empty = next((text for text in texts if not text.strip()), None)
    if empty is not None:
        raise bad(
            f"expected a target in every row of {layout.path}, got empty cells in column "
            f"{layout.names[layout.target]!r}{_line_of(layout, layout.target, empty)}"
        )
    if any("\n" in text or "\r" in text for text in texts):
        for _ in _rows(layout.path):  # a strict reader, which raises at an open quotation mark
            pass


def _line_of(layout: _Layout, column: int, text: str) -> str:
    """Return the line on which a text first stands in a column, as a part of a message."""
    for line, cells in _rows(layout.path):
        if column < len(cells) and cells[column] == text:
            return f" (line {line})"
    return ""
