"""Checks of a data set, and its conversion to the types of its attributes."""

import math
from typing import Any

import numpy as np

from fbp.datasets.base import Dataset, Examples
from fbp.errors import InputError, first_line


def check(dataset: Dataset) -> Dataset:
    """Check that a data set can be learned from, and convert it to the types of its attributes.

    Args:
        dataset: the data set. Pairs stand for ``Examples``, and lists for arrays. A name of a class
            or token may be any value that ``str`` makes a text of.

    Returns:
        The data set with labels and tokens as int32, and other numbers as float32, or as float64 if
        float32 would round them. Negative labels, which say that there is no target, are -1.
        Targets ``(N,)`` of a regression have become ``(N, 1)``.

    Raises:
        InputError: an array holds no numbers, NaN, infinity or a number too large, a label or token
            out of range, no target, no features, or shapes that do not fit each other; or a part
            has another type.
    """
    dataset = _converted(dataset)
    parts = {"train": dataset.train} | ({"test": dataset.test} if dataset.test else {})
    for part, examples in parts.items():
        where = f"data {dataset.name!r}, {part} part"
        _check_shapes(where, examples, dataset.train)
        _check_finite(where, examples)
        _check_numbering(where, examples, dataset)
    test = _narrowed(dataset.test, dataset) if dataset.test else None
    return dataset._replace(train=_narrowed(dataset.train, dataset), test=test)


def _converted(dataset: Dataset) -> Dataset:
    """Return a data set with Examples of arrays, and with texts as names of classes and tokens.

    Raises:
        InputError: if a part cannot be converted without a guess.
    """
    if not isinstance(dataset.name, str):
        raise InputError(
            "data: expected a text as the data set's name, got a value of type "
            f"{type(dataset.name).__name__}; write Dataset(name, Examples(x, y))"
        )
    where = f"data {dataset.name!r}"
    classes = _texts(f"{where}, classes", dataset.classes)
    tokens = _texts(f"{where}, tokens", dataset.tokens)
    train = _examples(f"{where}, train part", dataset.train, classes)
    test = dataset.test
    if test is not None:
        test = _examples(f"{where}, test part", test, classes)
    return dataset._replace(train=train, test=test, classes=classes, tokens=tokens)


def _texts(where: str, names: Any) -> tuple[str, ...]:
    if isinstance(names, tuple | list | range | np.ndarray):
        return tuple(map(str, names))
    raise InputError(
        f"{where}: expected a tuple of names, got a value of type {type(names).__name__}; write "
        "one name for each, in the order of their numbers"
    )


def _examples(where: str, part: Any, classes: tuple[str, ...]) -> Examples:
    """Return Examples of arrays for a pair of arrays or lists.

    Raises:
        InputError: if the part is no pair, or holds no numbers.
    """
    if not isinstance(part, tuple | list) or len(part) != 2:
        items = f" of {len(part)} items" if isinstance(part, tuple | list) else ""
        raise InputError(
            f"{where}: expected Examples(x, y), got a value of type "
            f"{type(part).__name__}{items}; write Dataset(name, Examples(x, y))"
        )
    x, y = _numbers(f"{where}, x", part[0]), _numbers(f"{where}, y", part[1])
    if classes:
        return Examples(x, _labels(where, y))
    return Examples(x, y[:, np.newaxis] if y.ndim == 1 else y)


def _numbers(where: str, values: Any) -> np.ndarray:
    """Return an array of real numbers.

    Raises:
        InputError: if the values are no numbers, or no array.
    """
    try:
        array = np.asarray(values)
    except Exception as error:  # a list of rows of different lengths, or a user's own class
        raise InputError(f"{where}: expected an array of numbers: {first_line(error)}") from None
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"{where}: expected an array of numbers, got dtype {array.dtype}; convert it to "
            "float32, or to int32 for labels and tokens"
        )
    return array


def _labels(where: str, y: np.ndarray) -> np.ndarray:
    """Return labels as whole numbers; those that are not finite stay, and are refused later.

    Raises:
        InputError: if some are fractions.
    """
    if y.dtype.kind in "iu" or not np.isfinite(y).all():
        return y
    if (y != np.round(y)).any():
        raise InputError(
            f"{where}: expected labels, whole numbers from 0, got fractions; for a regression, "
            "leave classes empty"
        )
    return y.astype(np.int64)


def _check_shapes(where: str, examples: Examples, train: Examples) -> None:
    x, y = examples
    if x.ndim < 2 or y.ndim < 1 or not x.size:
        raise InputError(
            f"{where}: expected examples with features, got arrays of shapes {x.shape} and "
            f"{y.shape}"
        )
    for kind, array, like in (("examples", x, train.x), ("targets", y, train.y)):
        if array.shape[1:] != like.shape[1:]:
            shape = ", ".join(map(str, like.shape[1:]))
            raise InputError(
                f"{where}: expected {kind} of the training part's shape (N, {shape}), "
                f"got {array.shape}"
            )
    if len(x) != len(y):
        raise InputError(
            f"{where}: expected as many targets as examples, got {len(x)} examples, "
            f"{len(y)} targets"
        )


def _check_finite(where: str, examples: Examples) -> None:
    """Raise InputError if a number is NaN, infinite, or infinite once it is float32."""
    for kind, values in (("features", examples.x), ("targets", examples.y)):
        if values.dtype.kind != "f":
            continue
        bad = np.concatenate([_rows_not_finite(values[rows]) for rows in row_blocks(values)])
        if bad.any():
            raise InputError(
                f"{where}: expected finite {kind}, got NaN, infinity or a number beyond "
                f"{_LARGEST:.1e} in {bad.sum()} of {len(bad)} rows, the first in row "
                f"{bad.argmax()} (counted from 0); remove or replace them"
            )


_LARGEST = float(np.finfo(np.float32).max)


def _rows_not_finite(values: np.ndarray) -> np.ndarray:
    largest = min(_LARGEST, float(np.finfo(values.dtype).max))
    return ~(np.abs(values) <= largest).reshape(len(values), -1).all(axis=1)


def _check_numbering(where: str, examples: Examples, dataset: Dataset) -> None:
    """Raise InputError unless labels and tokens stand for the data set's classes and tokens."""
    x, y = examples
    classes, tokens = len(dataset.classes), len(dataset.tokens)
    if classes and y.ndim > 2:
        raise InputError(
            f"{where}: expected labels of shape (N,), or (N, T) for a sequence, got {y.shape}"
        )
    if classes and y.size and not y.max() < classes:
        raise InputError(
            f"{where}: expected labels from 0 to {classes - 1} (negative without a target), got "
            f"labels from {y.min()} to {y.max()}{_one_based(y, classes)}"
        )
    if classes and not (y >= 0).any():
        raise InputError(
            f"{where}: expected labels from 0 to {classes - 1}, got only negative ones, which say "
            "that there is no target"
        )
    if tokens and not (x.dtype.kind in "iu" and x.min() >= 0 and x.max() < tokens):
        raise InputError(
            f"{where}: expected tokens, whole numbers from 0 to {tokens - 1}, got {x.dtype} "
            f"numbers from {x.min()} to {x.max()}"
        )


def _one_based(y: np.ndarray, classes: int) -> str:
    return "; count them from 0" if y.max() == classes and not (y == 0).any() else ""


def _narrowed(examples: Examples, dataset: Dataset) -> Examples:
    """Return labels and tokens, whose range was checked, as int32, and other numbers as floats."""
    x, y = examples
    where = f"data {dataset.name!r}"
    x = x.astype(np.int32, copy=False) if dataset.tokens else as_floats(f"{where}, x", x)
    if not dataset.classes:
        return Examples(x, as_floats(f"{where}, y", y))
    if (y < 0).any():
        y = np.where(y < 0, -1, y)
    return Examples(x, y.astype(np.int32, copy=False))


def as_floats(where: str, values: np.ndarray) -> np.ndarray:
    """Return real numbers as float32, or as float64 if float32 would round whole numbers or floats.

    Args:
        where: the beginning of an error message.
        values: an array of any real dtype.

    Raises:
        InputError: if a whole number is too large even for float64.
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "b" or (kind in "iu" and size <= 2) or (kind == "f" and size <= 4):
        return values.astype(np.float32, copy=False)
    if kind == "f":
        is_exact = all(_survives(values[rows]) for rows in row_blocks(values))
        return values.astype(np.float32 if is_exact else np.float64, copy=False)
    largest = max(abs(int(values.min())), abs(int(values.max()))) if values.size else 0
    if largest > 2**53 and not all(map(_is_exact, (values[rows] for rows in row_blocks(values)))):
        raise InputError(
            f"{where}: expected whole numbers up to 2^53, which float64 can tell apart, got "
            f"{largest}; leave identifiers out, or subtract a constant"
        )
    return values.astype(np.float32 if largest <= 2**24 else np.float64)


def _survives(values: np.ndarray) -> bool:
    """Return whether floats stay the same as float32."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    return bool(((narrow == values) | (values != values)).all())


def _is_exact(values: np.ndarray) -> bool:
    """Return whether whole numbers stay the same as float64."""
    floats = values.astype(np.float64)
    # 2^63 and 2^64 do not fit the integer types, and a cast back of them is undefined
    fits = floats < float(np.iinfo(values.dtype).max)
    return bool(fits.all()) and bool((floats.astype(values.dtype) == values).all())


_BLOCK = 2**17  # numbers at a time, so that no check copies a large array


def row_blocks(values: np.ndarray) -> list[slice]:
    """Return slices of rows that cover an array, each of about 100,000 numbers; at least one."""
    size = max(1, math.prod(values.shape[1:]))
    step = max(1, _BLOCK // size)
    return [slice(start, start + step) for start in range(0, max(len(values), 1), step)]
