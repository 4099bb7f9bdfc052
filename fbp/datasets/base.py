"""The type of a data set, its checks, and its split into the three parts that a run works with."""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from fbp.errors import ArgumentError, InputError, first_line


class Examples(NamedTuple):
    """Inputs and targets of N examples.

    Attributes:
        x: inputs ``(N, ...)``, float32 numbers or int32 tokens.
        y: targets: int32 labels ``(N,)``; int32 labels ``(N, T)``, one for each position of a
            sequence (negative if a position has none); or float32 numbers ``(N, K)``.
    """

    x: np.ndarray
    y: np.ndarray


class Dataset(NamedTuple):
    """Arrays and their meaning.

    Attributes:
        name: what the run's record calls it.
        train: the examples to train and validate with; also to test with if ``test`` is None.
        test: the examples that the data set's authors set apart, if they did.
        classes: names of the classes; empty for a regression.
        tokens: meanings of the inputs' whole numbers; empty if the inputs are numbers.
        ordered: True if the examples follow each other; validation and test are then cut from
            their end instead of being shuffled.
    """

    name: str
    train: Examples
    test: Examples | None = None
    classes: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    ordered: bool = False

    @property
    def outputs(self) -> int:
        """Number of outputs a model needs: the classes, or the targets of an example."""
        return len(self.classes) or int(self.train.y.shape[1])

    @property
    def sequence(self) -> bool:
        """True if each position of a sequence has a target."""
        return bool(self.classes) and self.train.y.ndim == 2

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every array's dtype, shape and content, in hexadecimal."""
        digest = hashlib.sha256()
        for array in (*self.train, *(self.test or ())):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class Standardization(NamedTuple):
    """``(value - mean) / scale``, fitted on the training part.

    Attributes:
        mean: the mean of each feature, float32.
        scale: the standard deviation of each feature, float32; 1 for a constant feature.
    """

    mean: np.ndarray
    scale: np.ndarray

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return standardized values, float32."""
        return ((values - self.mean) / self.scale).astype(np.float32)

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Return standardized values in their own units."""
        return np.asarray(values * self.scale + self.mean)


class Splits(NamedTuple):
    """A data set in three parts.

    Attributes:
        train: the examples that gradients are computed on.
        validation: the examples that choose among models.
        test: the examples that the chosen model is judged by.
        input_scaling: the standardization of the inputs, already applied; None if there is none.
        target_scaling: the standardization of the targets, already applied; None if there is none.
    """

    train: Examples
    validation: Examples
    test: Examples
    input_scaling: Standardization | None
    target_scaling: Standardization | None


def classification(
    name: str, x: Any, labels: Any, classes: Any, test: Examples | None = None
) -> Dataset:
    """Return a data set of labelled examples with the dtypes of :class:`Examples`.

    Args:
        name: its name.
        x: inputs ``(N, ...)``.
        labels: whole numbers ``(N,)`` from 0.
        classes: the name of each class.
        test: the test part, if the authors set one apart.
    """
    examples = Examples(np.asarray(x, np.float32), np.asarray(labels, np.int32))
    return Dataset(name, examples, test, tuple(str(c) for c in classes))


def regression(name: str, x: Any, y: Any) -> Dataset:
    """Return a data set with numbers as targets and the dtypes of :class:`Examples`.

    Args:
        name: its name.
        x: inputs ``(N, ...)``.
        y: targets ``(N,)`` or ``(N, K)``.
    """
    targets = np.asarray(y, np.float32)
    return Dataset(name, Examples(np.asarray(x, np.float32), targets.reshape(len(targets), -1)))


def check(dataset: Dataset) -> Dataset:
    """Check that a data set can be learned from, and convert it to the types of its attributes.

    Args:
        dataset: the data set. Pairs stand for ``Examples``, and lists for arrays. A name of a class
            or token may be any value that ``str`` makes a text of.

    Returns:
        The data set, its whole numbers as int32, its other numbers as float32. Labels are whole
        numbers. Targets ``(N,)`` of a regression have become ``(N, 1)``.

    Raises:
        InputError: an array holds no numbers, NaN or infinity, a label or token out of range, no
            features, or shapes that do not fit each other; or a part has another type.
    """
    dataset = _converted(dataset)
    parts = {"train": dataset.train} | ({"test": dataset.test} if dataset.test else {})
    for part, examples in parts.items():
        where = f"data {dataset.name!r}, {part} part"
        _check_shapes(where, examples, dataset.train)
        _check_finite(where, examples)
        _check_numbering(where, examples, dataset)
    test = _as_int32(dataset.test) if dataset.test else None
    return dataset._replace(train=_as_int32(dataset.train), test=test)


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
    if y.ndim == 1:
        y = y.astype(np.float32, copy=False)[:, np.newaxis]
    return Examples(x, y)


def _numbers(where: str, values: Any) -> np.ndarray:
    """Return an array of float32 or of whole numbers.

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
    if array.dtype.kind in "iu":
        return array
    with np.errstate(over="ignore"):  # a number too large becomes infinite, which is refused
        return array.astype(np.float32, copy=False)


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
    for kind, values in (("features", examples.x), ("targets", examples.y)):
        bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if bad.any():
            raise InputError(
                f"{where}: expected finite {kind}, got NaN or infinity in {bad.sum()} of "
                f"{len(bad)} rows, the first in row {bad.argmax()} (counted from 0); remove or "
                "replace them"
            )


def _check_numbering(where: str, examples: Examples, dataset: Dataset) -> None:
    """Raise InputError unless labels and tokens stand for the data set's classes and tokens."""
    x, y = examples
    lowest = -1 if dataset.sequence else 0  # -1: a position without a target
    classes, tokens = len(dataset.classes), len(dataset.tokens)
    if classes and len(y) and not (y.min() >= lowest and y.max() < classes):
        raise InputError(
            f"{where}: expected labels from 0 to {classes - 1}, got labels from {y.min()} to "
            f"{y.max()}"
        )
    if tokens and not (x.dtype.kind in "iu" and x.min() >= 0 and x.max() < tokens):
        raise InputError(
            f"{where}: expected tokens, whole numbers from 0 to {tokens - 1}, got {x.dtype} "
            f"numbers from {x.min()} to {x.max()}"
        )


def _as_int32(examples: Examples) -> Examples:
    """Convert whole numbers, whose range was checked, to int32, which is what devices take."""
    return Examples(*(a.astype(np.int32) if a.dtype.kind in "iu" else a for a in examples))


def as_autoencoding(dataset: Dataset) -> Dataset:
    """Replace the targets by the inputs, flattened: what an autoencoder learns.

    Args:
        dataset: a data set whose inputs ``(N, ...)`` are numbers.

    Returns:
        A regression with targets ``(N, K)``, K the numbers of an example.

    Raises:
        InputError: the inputs are tokens.
    """
    if dataset.tokens:
        raise ArgumentError("as_autoencoding", "dataset", "expected numbers as inputs, got tokens")

    def inputs_as_targets(examples: Examples) -> Examples:
        return Examples(examples.x, examples.x.reshape(len(examples.x), -1))

    test = inputs_as_targets(dataset.test) if dataset.test else None
    return dataset._replace(train=inputs_as_targets(dataset.train), test=test, classes=())


def prepare(
    dataset: Dataset,
    *,
    seed: int,
    validation: float = 0.1,
    test: float = 0.1,
    limit: int | None = None,
    standardize: bool = False,
    standardize_targets: bool = False,
) -> Splits:
    """Split, then standardize with the mean and deviation of the training part alone.

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
    parts = {
        name: Examples(*(array[part] for array in dataset.train)) for name, part in rows.items()
    }
    if dataset.test:
        parts["test"] = dataset.test
    for name, part in parts.items():
        if not len(part.x):
            raise InputError(
                f"data {dataset.name!r}: the {name} part is empty (validation {validation}, "
                f"test {test} of {len(dataset.train.x)} examples); change the shares"
            )
    inputs = _fit(parts["train"].x) if standardize else None
    targets = _fit(parts["train"].y) if standardize_targets else None
    for name, (x, y) in parts.items():
        parts[name] = Examples(inputs.apply(x) if inputs else x, targets.apply(y) if targets else y)
    return Splits(parts["train"], parts["validation"], parts["test"], inputs, targets)


def _split_rows(
    dataset: Dataset, seed: int, validation: float, test: float, limit: int | None
) -> dict[str, np.ndarray]:
    """Return the rows of each part; those of ordered data stay in order, the test part last."""
    count = len(dataset.train.x)
    order = (
        np.arange(count)[::-1]
        if dataset.ordered
        else np.random.default_rng(seed).permutation(count)
    )
    test_count = 0 if dataset.test else round(test * count)
    held_out = test_count + round(validation * count)
    rows = {
        "test": order[:test_count],
        "validation": order[test_count:held_out],
        "train": order[held_out:][:limit],
    }
    if dataset.ordered:
        rows = {name: part[::-1] for name, part in rows.items()}
    return rows


def _fit(values: np.ndarray) -> Standardization:
    mean = values.mean(axis=0, dtype=np.float64)
    deviation = values.std(axis=0, dtype=np.float64)
    return Standardization(
        mean.astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)
    )
