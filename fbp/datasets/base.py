"""What a data set is, and how it becomes the three parts that a run works with."""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from fbp.errors import InputError


class Examples(NamedTuple):
    """Inputs ``x (N, ...)``, float32 or int32 tokens, and targets ``y``: int32 labels ``(N,)``, or ``(N, T)`` for each
    position of a sequence (negative where there is none), or float32 numbers ``(N, K)``."""

    x: np.ndarray
    y: np.ndarray


class Dataset(NamedTuple):
    """Arrays and what they mean.

    Attributes:
        name: what the run's record calls it.
        train: the examples to train and validate with (and to test with, where ``test`` is None).
        test: the examples that the data set's authors set apart, if they did.
        classes: the names of the classes; empty for regression.
        tokens: what the inputs' whole numbers stand for; empty where the inputs are numbers.
        ordered: the examples follow each other; validation and test are cut from their end, not drawn.
    """

    name: str
    train: Examples
    test: Examples | None = None
    classes: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    ordered: bool = False

    @property
    def outputs(self) -> int:
        """How many numbers a model answers with: the classes, or the targets of an example."""
        return len(self.classes) or int(self.train.y.shape[1])

    @property
    def sequence(self) -> bool:
        """Whether there is a target for each position."""
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
    """``(value - mean) / scale``, fitted on the training part."""

    mean: np.ndarray
    scale: np.ndarray

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Standardized values, float32."""
        return ((values - self.mean) / self.scale).astype(np.float32)

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Values in their own units again."""
        return np.asarray(values * self.scale + self.mean)


class Splits(NamedTuple):
    """A data set in three parts; ``inputs`` and ``targets`` are the scalings already applied, None where there are none."""

    train: Examples
    validation: Examples
    test: Examples
    inputs: Standardization | None
    targets: Standardization | None


def classification(
    name: str, x: Any, labels: Any, classes: Any, test: Examples | None = None
) -> Dataset:
    """A data set of labelled examples with its dtypes set."""
    examples = Examples(np.asarray(x, np.float32), np.asarray(labels, np.int32))
    return Dataset(name, examples, test, tuple(str(c) for c in classes))


def regression(name: str, x: Any, y: Any) -> Dataset:
    """A data set with numbers as targets, ``(N,)`` or ``(N, K)``, with its dtypes set."""
    targets = np.asarray(y, np.float32)
    return Dataset(name, Examples(np.asarray(x, np.float32), targets.reshape(len(targets), -1)))


def check(dataset: Dataset) -> Dataset:
    """The data set, or InputError where it cannot be learned from: NaN, infinity, labels out of range, unequal lengths."""
    parts = {"train": dataset.train} | ({"test": dataset.test} if dataset.test else {})
    for part, (x, y) in parts.items():
        where = f"data {dataset.name!r}, {part} part"
        if x.ndim < 2 or y.ndim < 1 or not x.size:
            raise InputError(
                f"{where}: expected examples with features, got arrays of shapes {x.shape} and {y.shape}"
            )
        for what, array, like in (
            ("examples", x, dataset.train.x),
            ("targets", y, dataset.train.y),
        ):
            if array.shape[1:] != like.shape[1:]:
                raise InputError(
                    f"{where}: expected {what} of the training part's shape (N, {', '.join(map(str, like.shape[1:]))}), "
                    f"got {array.shape}"
                )
        if len(x) != len(y):
            raise InputError(
                f"{where}: expected as many targets as examples, got {len(x)} examples, {len(y)} targets"
            )
        for what, values in (("features", x), ("targets", y)):
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if bad.any():
                raise InputError(
                    f"{where}: expected finite {what}, got NaN or infinity in {bad.sum()} of {len(bad)} rows, "
                    f"the first in row {bad.argmax()} (counted from 0); remove or replace them"
                )
        lowest = -1 if dataset.sequence else 0  # -1: a position without a target
        if (
            dataset.classes
            and len(y)
            and not (y.min() >= lowest and y.max() < len(dataset.classes))
        ):
            raise InputError(
                f"{where}: expected labels from 0 to {len(dataset.classes) - 1}, got labels from {y.min()} to {y.max()}"
            )
        if dataset.tokens and not (
            x.dtype.kind in "iu" and x.min() >= 0 and x.max() < len(dataset.tokens)
        ):
            raise InputError(
                f"{where}: expected tokens, whole numbers from 0 to {len(dataset.tokens) - 1}, got {x.dtype} numbers from "
                f"{x.min()} to {x.max()}"
            )
    return _narrow(dataset)


def _narrow(dataset: Dataset) -> Dataset:
    """Whole numbers in int32, which is what devices take; checked before, so that none is cut off."""

    def narrow(examples: Examples | None) -> Examples | None:
        if examples is None:
            return None
        return Examples(*(a.astype(np.int32) if a.dtype.kind in "iu" else a for a in examples))

    train = narrow(dataset.train)
    assert train is not None
    return dataset._replace(train=train, test=narrow(dataset.test))


def as_autoencoding(dataset: Dataset) -> Dataset:
    """The same examples with themselves as targets, flat: what an autoencoder learns."""
    if dataset.tokens:
        raise InputError("data.reconstruct: expected numbers as inputs, got tokens")

    def itself(examples: Examples) -> Examples:
        return Examples(examples.x, examples.x.reshape(len(examples.x), -1))

    test = itself(dataset.test) if dataset.test else None
    return dataset._replace(train=itself(dataset.train), test=test, classes=())


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
        dataset: what to split; by a permutation, or, where it is ordered, into training, validation and test as they follow.
        seed: of the permutation that splits.
        validation, test: shares of the examples; ``test`` is not used where the data set has a test part of its own.
        limit: keep only so many training examples.
        standardize: give every feature mean 0 and deviation 1 on the training part (constant features stay 0).
        standardize_targets: the same for the targets of a regression.

    Raises:
        InputError: where a part would be empty.
    """
    if limit is not None and limit < 1:
        raise InputError(f"data.limit: expected at least 1, got {limit}")
    if standardize_targets and dataset.classes:
        raise InputError("data.standardize_targets: expected a regression, got classes; remove it")
    if standardize and dataset.tokens:
        raise InputError("data.standardize: expected numbers as inputs, got tokens; remove it")
    count = len(dataset.train.x)
    order = (
        np.arange(count)[::-1]
        if dataset.ordered
        else np.random.default_rng(seed).permutation(count)
    )
    test_count = 0 if dataset.test else round(test * len(order))
    validation_count = round(validation * len(order))
    held_out = test_count + validation_count
    rows = {
        "test": order[:test_count],
        "validation": order[test_count:held_out],
        "train": order[held_out:][:limit],
    }
    if dataset.ordered:
        rows = {name: chosen[::-1] for name, chosen in rows.items()}
    parts = {
        name: Examples(dataset.train.x[chosen], dataset.train.y[chosen])
        for name, chosen in rows.items()
    }
    if dataset.test:
        parts["test"] = dataset.test
    for name, part in parts.items():
        if not len(part.x):
            raise InputError(
                f"data {dataset.name!r}: the {name} part is empty (validation {validation}, test {test} of "
                f"{len(order)} examples); change the shares"
            )
    inputs = _fit(parts["train"].x) if standardize else None
    targets = _fit(parts["train"].y) if standardize_targets else None
    for name, (x, y) in parts.items():
        parts[name] = Examples(inputs.apply(x) if inputs else x, targets.apply(y) if targets else y)
    return Splits(parts["train"], parts["validation"], parts["test"], inputs, targets)


def _fit(values: np.ndarray) -> Standardization:
    mean = values.mean(axis=0, dtype=np.float64)
    deviation = values.std(axis=0, dtype=np.float64)
    return Standardization(
        mean.astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)
    )
