"""The split of a data set into the three parts that a run works with, and their scaling."""

import itertools
from typing import NamedTuple

import numpy as np

from fbp.datasets.base import Dataset, Examples
from fbp.datasets.checks import row_blocks
from fbp.errors import ArgumentError, InputError


class Standardization(NamedTuple):
    """``(value - mean) / scale``, fitted on the training part and computed in float64.

    Attributes:
        mean: the mean of each feature, float64.
        scale: the standard deviation of each feature, float64; 1 for a constant feature.
    """

    mean: np.ndarray
    scale: np.ndarray

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return standardized values, float32; they are narrowed after they are scaled."""
        values = np.asarray(values)
        scaled = np.empty(values.shape, np.float32)
        for rows in row_blocks(values):
            scaled[rows] = self.scaled(values[rows])
        return scaled

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Return standardized values in their own units, float64."""
        return np.asarray(np.asarray(values, np.float64) * self.scale + self.mean)

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Return standardized values, float64."""
        return (values.astype(np.float64) - self.mean) / self.scale


class Splits(NamedTuple):
    """A data set in three parts.

    Attributes:
        train: the examples that gradients are computed on.
        validation: the examples that choose among models.
        test: the examples that the chosen model is judged by.
        input_scaling: the standardization of the inputs, already applied; None if there is none.
        target_scaling: the standardization of the targets, already applied; None if there is none.
        notes: what a person should know of the parts, a line each.
    """

    train: Examples
    validation: Examples
    test: Examples
    input_scaling: Standardization | None
    target_scaling: Standardization | None
    notes: tuple[str, ...] = ()


def prepare(
    dataset: Dataset,
    *,
    seed: int,
    validation: float = 0.1,
    test: float = 0.1,
    limit: int | None = None,
    standardize: bool = False,
    standardize_targets: bool = False,
    overwrite: bool = False,
) -> Splits:
    """Split, then standardize with the mean and deviation of the training part alone.

    Numbers are scaled in float64 and become float32 after that. Examples without a target are left
    out: they would count in no mean.

    Args:
        dataset: the data set. It is shuffled unless it is ``ordered``: then training, validation
            and test are consecutive.
        seed: of the permutation that splits.
        validation: share of the examples for validation.
        test: share of the examples for the test; unused if the data set has a test part.
        limit: number of training examples to keep; all of them by default.
        standardize: give every feature mean 0 and deviation 1 on the training part (constant
            features stay 0).
        standardize_targets: the same for the targets of a regression.
        overwrite: let the parts take the memory of the data set's float32 arrays, whose content is
            then lost; otherwise it is copied.

    Raises:
        InputError: a part would be empty, or what cannot be standardized was to be.
    """
    if limit is not None and limit < 1:
        raise ArgumentError("prepare", "limit", f"expected at least 1, got {limit}")
    if standardize_targets and dataset.classes:
        raise ArgumentError(
            "prepare", "standardize_targets", "expected a regression, got classes; remove it"
        )
    if standardize and dataset.tokens:
        raise ArgumentError(
            "prepare", "standardize", "expected numbers as inputs, got tokens; remove it"
        )
    rows = _split_rows(dataset, seed, validation, test, limit)
    for name, part in rows.items():
        if not len(part):
            raise InputError(
                f"data {dataset.name!r}: the {name} part is empty (validation {validation}, "
                f"test {test} of {len(dataset.train.x)} examples); change the shares"
            )
    overwrite = overwrite and not _share_memory(dataset)
    inputs = _fit(dataset.train.x, rows["train"]) if standardize else None
    targets = _fit(dataset.train.y, rows["train"]) if standardize_targets else None
    notes = _notes(dataset, rows, scaled=(standardize, standardize_targets))
    x = _parts(dataset, "x", rows, inputs, overwrite=overwrite)
    y = _parts(dataset, "y", rows, targets, overwrite=overwrite)
    train, validated, tested = (
        Examples(x[part], y[part]) for part in ("train", "validation", "test")
    )
    return Splits(train, validated, tested, inputs, targets, notes)


def _split_rows(
    dataset: Dataset, seed: int, validation: float, test: float, limit: int | None
) -> dict[str, np.ndarray]:
    """Return the rows of each part; those of ordered data stay in order, the test part last.

    Rows of the part "test" count in the data set's own test part if it has one.
    """
    count = len(dataset.train.x)
    order = (
        np.arange(count)[::-1]
        if dataset.ordered
        else np.random.default_rng(seed).permutation(count)
    )
    order = order[_has_target(dataset, dataset.train)[order]]
    count = len(order)
    test_count = 0 if dataset.test else round(test * count)
    held_out = test_count + round(validation * count)
    rows = {
        "test": order[:test_count],
        "validation": order[test_count:held_out],
        "train": order[held_out:][:limit],
    }
    if dataset.ordered:
        rows = {name: part[::-1] for name, part in rows.items()}
    if dataset.test:
        rows["test"] = np.flatnonzero(_has_target(dataset, dataset.test))
    return rows


def _has_target(dataset: Dataset, examples: Examples) -> np.ndarray:
    """Return which examples have a target: a label, or a label at some position."""
    y = examples.y
    if not dataset.classes:
        return np.ones(len(y), bool)
    return np.asarray((y >= 0).reshape(len(y), -1).any(axis=1))


def _share_memory(dataset: Dataset) -> bool:
    """Return whether two arrays of a data set may overlap, as those of an autoencoding do."""
    arrays = [*dataset.train, *(dataset.test or ())]
    pairs = itertools.combinations(arrays, 2)
    return any(np.may_share_memory(array, other) for array, other in pairs)


def _notes(
    dataset: Dataset, rows: dict[str, np.ndarray], *, scaled: tuple[bool, bool]
) -> tuple[str, ...]:
    """Return which examples are left out, and which numbers float32 cannot tell apart."""
    notes = []
    missing = {
        name: int((~_has_target(dataset, part)).sum())
        for name, part in (("", dataset.train), ("test ", dataset.test))
        if part is not None
    }
    for name, count in missing.items():
        if count:
            notes.append(f"{count:,} {name}examples have no target (a negative label): left out")
    for kind, is_scaled in zip(("x", "y"), scaled, strict=True):
        values = getattr(dataset.train, kind)
        if not is_scaled and values.dtype == np.float64:
            coarse = _coarse_columns(values, rows["train"])
            if len(coarse):
                noun, key = (
                    ("features", "standardize")
                    if kind == "x"
                    else ("targets", "standardize_targets")
                )
                notes.append(
                    f"{len(coarse)} of {values[0].size} {noun} (the first is number {coarse[0]}, "
                    f"counted from 0) change so little that float32 cannot tell their values "
                    f"apart; set data.{key} = true"
                )
    return tuple(notes)


def _coarse_columns(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the columns whose deviation is below 32 steps of float32 at their largest value."""
    scaling, largest = _fit(values, rows), np.zeros(values.shape[1:])
    varies = np.zeros(values.shape[1:], bool)
    for block in row_blocks(values[: len(rows)]):
        chunk = values[rows[block]]
        largest = np.maximum(largest, np.abs(chunk).max(axis=0))
        varies |= (chunk != values[rows[0]]).any(axis=0)
    step = np.spacing(largest.astype(np.float32)).astype(np.float64)
    return np.flatnonzero(varies & (scaling.scale < 32 * step))


def _fit(values: np.ndarray, rows: np.ndarray) -> Standardization:
    """Return mean and deviation of some rows, in float64, by blocks of rows."""
    blocks = [rows[block] for block in row_blocks(values[: len(rows)])]
    shape, origin = values.shape[1:], values[rows[0]]
    total, varies = np.zeros(shape), np.zeros(shape, bool)
    for block in blocks:
        chunk = values[block]
        total += (chunk.astype(np.float64) - origin).sum(axis=0)
        varies |= (chunk != origin).any(axis=0)
    mean = origin + total / len(rows)
    squares = np.zeros(shape)
    for block in blocks:
        squares += ((values[block].astype(np.float64) - mean) ** 2).sum(axis=0)
    deviation = np.sqrt(squares / len(rows))
    return Standardization(mean, np.where(varies & (deviation > 0), deviation, 1.0))


def _parts(
    dataset: Dataset,
    kind: str,
    rows: dict[str, np.ndarray],
    scaling: Standardization | None,
    *,
    overwrite: bool,
) -> dict[str, np.ndarray]:
    """Return the inputs (`kind` "x") or targets ("y") of each part, scaled."""
    names = [name for name in rows if name != "test" or not dataset.test]
    order = np.concatenate([rows[name] for name in names])
    arranged = _arranged(getattr(dataset.train, kind), order, scaling, overwrite=overwrite)
    ends = np.cumsum([len(rows[name]) for name in names])
    parts = dict(zip(names, np.split(arranged, ends[:-1]), strict=True))
    if dataset.test:
        values = getattr(dataset.test, kind)
        parts["test"] = _arranged(values, rows["test"], scaling, overwrite=overwrite)
    return parts


def _arranged(
    values: np.ndarray, order: np.ndarray, scaling: Standardization | None, *, overwrite: bool
) -> np.ndarray:
    """Return the rows `order` of an array, scaled; floats as float32."""
    dtype = np.float32 if values.dtype.kind == "f" or scaling else values.dtype
    flags = values.flags
    if overwrite and values.dtype == dtype and flags.c_contiguous and flags.writeable:
        result = _reordered_in_place(values, order)
        if scaling:
            for rows in row_blocks(result):
                result[rows] = _narrowed(scaling.scaled(result[rows]))
        return result
    result = np.empty((len(order), *values.shape[1:]), dtype)
    for rows in row_blocks(result):
        chunk = values[order[rows]]
        result[rows] = _narrowed(scaling.scaled(chunk)) if scaling else chunk
    return result


def _narrowed(scaled: np.ndarray) -> np.ndarray:
    """Return scaled numbers as float32; raise InputError if one is too large for it."""
    with np.errstate(over="ignore"):
        narrow = scaled.astype(np.float32)
    if not np.isfinite(narrow).all():
        columns = np.flatnonzero(~np.isfinite(narrow).reshape(len(narrow), -1).all(axis=0))
        raise InputError(
            f"standardized, number {columns[0]} of an example (counted from 0) is too large for "
            "float32, because it hardly varies in the training part; leave it out"
        )
    return narrow


_TEMPORARY = 2**22  # numbers of the largest temporary array


def _reordered_in_place(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the rows `order` of a contiguous array in its own memory, by blocks of columns."""
    if np.array_equal(order, np.arange(len(values))):
        return values
    flat = values.reshape(len(values), -1)
    step = max(1, _TEMPORARY // max(len(order), 1))
    for start in range(0, flat.shape[1], step):
        columns = slice(start, start + step)
        flat[: len(order), columns] = flat[order, columns]
    return values[: len(order)]
