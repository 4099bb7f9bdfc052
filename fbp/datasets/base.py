"""The type of a data set, its fingerprint, and functions that make one."""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from fbp.errors import ArgumentError

NO_TARGET = -1
"""The label of an example or a position without a target; any negative label is read as this."""


class Examples(NamedTuple):
    """Inputs and targets of N examples.

    Attributes:
        x: inputs ``(N, ...)``: float32 numbers, float64 numbers if float32 would round them, or
            int32 tokens.
        y: targets: int32 labels ``(N,)``; int32 labels ``(N, T)``, one for each position of a
            sequence; or numbers ``(N, K)`` of the same types as inputs. A negative label says that
            the example, or the position, has no target.
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
        notes: what was guessed or left out when the data were read, a clause each. A run prints
            them in one line.
    """

    name: str
    train: Examples
    test: Examples | None = None
    classes: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    ordered: bool = False
    notes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Number of outputs a model needs: the classes, or the targets of an example."""
        return len(self.classes) or int(self.train.y.shape[1])

    @property
    def sequence(self) -> bool:
        """True if each position of a sequence has a target."""
        return bool(self.classes) and self.train.y.ndim == 2

    @property
    def task(self) -> str:
        """The task and the number of its classes or targets, such as ``3 classes``."""
        if self.sequence:
            return f"a classification of each position, {len(self.classes):,} classes"
        if self.classes:
            return f"a classification, {len(self.classes):,} classes"
        outputs = self.outputs
        return f"a regression, {outputs:,} target{'s' if outputs > 1 else ''} per example"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content, in hexadecimal.

        It covers dtype, shape and content of every array, the names of classes and tokens, and
        ``ordered``. Each field is preceded by its length, so two data sets that differ never feed
        the hash with the same bytes.
        """
        digest = hashlib.sha256()
        _absorb(digest, f"fbp data set, ordered {self.ordered}".encode())
        for names in (self.classes, self.tokens):
            _absorb(digest, str(len(names)).encode())
            for name in names:
                _absorb(digest, name.encode("utf-8", "surrogatepass"))
        for array in (*self.train, *(self.test or ())):
            # dtype.str alone is '<V1' for int4, uint4 and every float8; the name tells them apart
            _absorb(digest, f"{array.dtype.name} {array.dtype.str} {array.shape}".encode())
            _absorb(digest, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def _absorb(digest: Any, content: bytes | memoryview) -> None:
    """Update a hash with the length of `content` in 8 bytes, and then with `content`."""
    digest.update(len(content).to_bytes(8, "big"))
    digest.update(content)


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
