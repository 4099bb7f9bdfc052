"""What the targets of a user's file are: classes or numbers, and which."""

import re
import unicodedata
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from fbp.datasets.base import NO_TARGET
from fbp.errors import ArgumentError, listed
from fbp.layer import TargetKind

Task = Literal["auto", "classification", "regression"]

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_NEARLY_NUMBER = re.compile(r"\s*[^\w\s]{0,2}\s*\d")  # such as 1,5 or $7 or 2020-01-01
_WHOLE = re.compile(r"0|-?[1-9]\d{0,40}", re.ASCII)  # what int() takes at any length
_CODE = re.compile(r"[+-]?0\d+", re.ASCII)


class Targets(NamedTuple):
    """The targets of a file as they stand in it.

    Attributes:
        where: the column or array and the file, for messages.
        numbers: ``(N, ...)``, if they are numbers; None if they are texts.
        texts: the different texts, if they are texts.
        codes: ``(N,)``, for each example the index of its text.
        locate: from a text to the place where it first occurs, for messages.
    """

    where: str
    numbers: np.ndarray | None = None
    texts: tuple[str, ...] = ()
    codes: np.ndarray | None = None
    locate: Callable[[str], str] = lambda text: ""


class Classes(NamedTuple):
    """Targets as labels.

    Attributes:
        labels: ``(N,)``, negative for an example without a target.
        names: the names of the classes.
    """

    labels: np.ndarray
    names: tuple[str, ...]


def from_texts(where: str, values: np.ndarray) -> Targets:
    """Return the targets that an array of texts ``(N,)`` holds."""
    texts, codes = np.unique(values, return_inverse=True)
    return Targets(where, None, tuple(map(str, texts)), codes.reshape(-1))


def bad(problem: str, argument: str = "path") -> ArgumentError:
    """Return the error of an argument of :func:`fbp.datasets.file`."""
    return ArgumentError("file", argument, problem)


_Form = Literal["texts", "codes", "mixture", "whole", "decimal", "fractions"]


def _form(targets: Targets) -> _Form:
    """Return how targets are written.

    Texts, codes such as 0123, numbers among texts, whole numbers such as 7 or 7.0, or fractions.
    """
    numbers = targets.numbers
    if numbers is not None:
        if numbers.dtype.kind != "f":
            return "whole"
        return "decimal" if (numbers == np.round(numbers)).all() else "fractions"
    are_numbers = [NUMBER.fullmatch(text) is not None for text in targets.texts]
    if not any(are_numbers):
        return "texts"
    if not all(are_numbers):
        return "mixture"
    if any(_CODE.fullmatch(text) for text in targets.texts):
        return "codes"
    if all(_WHOLE.fullmatch(text) for text in targets.texts):
        return "whole"
    values = np.array(targets.texts, np.float64)
    return "decimal" if (values == np.round(values)).all() else "fractions"


def decide(
    targets: Targets, task: Task, loss_targets: TargetKind | None
) -> tuple[Literal["classification", "regression"], str]:
    """Return the task of targets, and a clause that says so if it was guessed.

    Args:
        targets: the targets.
        task: the task if it was set, or ``auto``.
        loss_targets: the targets that the loss takes; None if no loss is known.

    Raises:
        InputError: if loss and targets leave the task open, or contradict each other.
    """
    if task != "auto":
        return task, ""
    form = _form(targets)
    takes_classes = loss_targets in ("labels", "one_hot", "signs")
    if targets.numbers is not None and targets.numbers.ndim != 1:
        if takes_classes:
            raise bad(
                f"expected one label per example, of shape (N,), in {targets.where} for this loss, "
                f"got shape {targets.numbers.shape}; of rows over the classes take argmax(axis=1)",
                "target",
            )
        return "regression", ""
    if loss_targets is None:
        return _guess(targets, form)
    if takes_classes:
        if form == "fractions" or (form == "mixture" and _has_fractions(targets)):
            raise _open(targets, "fractions", loss_targets, "which are no classes")
        return "classification", ""
    if form == "texts" and not any(map(_NEARLY_NUMBER.match, targets.texts)):
        return "classification", ""
    if form in ("mixture", "texts"):
        text = next(text for text in targets.texts if not NUMBER.fullmatch(text))
        raise bad(
            f"expected numbers as targets in {targets.where} for this loss, got {text!r}"
            f"{targets.locate(text)}; fill or remove it, or set task = 'classification'",
            "target",
        )
    if form == "codes":
        raise _open(targets, "numbers with leading zeros", loss_targets, "which may be codes")
    if loss_targets == "shares" and form in ("whole", "decimal"):
        values = _distinct(targets)
        if values <= {0.0, 1.0}:
            raise _open(targets, "only 0 and 1", loss_targets, "which may be shares or two classes")
        return "classification", ""
    return "regression", ""


def _guess(targets: Targets, form: _Form) -> tuple[Literal["classification", "regression"], str]:
    if form == "mixture" and _has_fractions(targets):
        text = next(text for text in targets.texts if not NUMBER.fullmatch(text))
        raise bad(
            f"expected either numbers or names of classes in {targets.where}, got numbers and "
            f"{text!r}{targets.locate(text)}; set task = 'classification' or 'regression'",
            "task",
        )
    if form in ("decimal", "fractions"):
        return "regression", ""
    if form == "whole":
        return "classification", "whole numbers taken as classes (set task = 'regression' if not)"
    return "classification", ""


def _has_fractions(targets: Targets) -> bool:
    texts = (text for text in targets.texts if NUMBER.fullmatch(text))
    return any(not float(text).is_integer() for text in texts)


def _distinct(targets: Targets) -> set[float]:
    if targets.numbers is not None:
        return set(np.unique(targets.numbers)[:3].tolist())
    return {float(text) for text in targets.texts}


def _open(targets: Targets, content: str, loss_targets: str, reason: str) -> ArgumentError:
    return bad(
        f"the loss takes {_TAKES[loss_targets]}, and {targets.where} holds {content}, {reason}; "
        "set data.task = 'classification' or 'regression', or another loss.name",
        "task",
    )


_TAKES = {
    "labels": "classes",
    "one_hot": "classes",
    "signs": "classes",
    "shares": "shares from 0 to 1 or classes",
    "counts": "counts",
    "numbers": "numbers",
}


def as_numbers(targets: Targets) -> np.ndarray:
    """Return targets as numbers ``(N, ...)``.

    Raises:
        InputError: if they are texts that are no numbers.
    """
    if targets.numbers is not None:
        return targets.numbers
    for text in targets.texts:
        if not NUMBER.fullmatch(text) or not np.isfinite(float(text)):
            raise bad(
                f"expected finite numbers as targets in {targets.where} for a regression, got "
                f"{text!r}{targets.locate(text)}",
                "task",
            )
    assert targets.codes is not None
    return np.array(targets.texts, np.float64)[targets.codes]


def as_classes(targets: Targets, loss_targets: TargetKind | None = None) -> Classes:
    """Return targets as labels, numbered in the order of numbers or else of texts.

    A negative whole number says that there is no target, unless the loss takes -1 and 1.

    Raises:
        InputError: if they are fractions or rows, or if fewer than two classes remain.
    """
    names, codes = _named(targets)
    whole = all(map(_WHOLE.fullmatch, names))
    order = np.argsort([int(n) for n in names]) if whole else np.argsort(np.array(names, object))
    names, codes = [names[i] for i in order], np.argsort(order)[codes]
    signs = loss_targets == "signs" and set(names) == {"-1", "1"}
    negative = 0 if signs or not whole else sum(name.startswith("-") for name in names)
    if len(names) - negative < 2:
        raise bad(
            f"expected at least two classes in {targets.where}, got {listed(names)}"
            + ("; a negative label says that there is no target" if negative else ""),
            "target",
        )
    labels = codes - negative
    return Classes(np.where(labels < 0, NO_TARGET, labels), tuple(names[negative:]))


def _named(targets: Targets) -> tuple[list[str], np.ndarray]:
    """Return the different labels as texts, and for each example the index of its label."""
    if targets.numbers is None:
        assert targets.codes is not None
        _check_same_number(targets)
        return list(targets.texts), targets.codes
    y = targets.numbers
    if y.ndim != 1:
        raise bad(f"expected one label per example in {targets.where}, got shape {y.shape}")
    if y.dtype.kind == "f":
        if not np.isfinite(y).all() or (y != np.round(y)).any():
            raise bad(
                f"expected whole numbers as labels in {targets.where}, got fractions, NaN or "
                "infinity",
                "task",
            )
        if np.abs(y).max(initial=0) >= 2**53:
            raise bad(f"expected labels below 2^53 in {targets.where}, got {np.abs(y).max():.4g}")
        y = y.astype(np.int64)
    values, codes = np.unique(y, return_inverse=True)
    return [str(value) for value in values.tolist()], codes.reshape(-1)


def _check_same_number(targets: Targets) -> None:
    """Raise InputError if a label is written in two ways that look or are the same.

    Such are 1 and 1.0, labels with blanks around them, and two encodings of one letter.
    """
    written: dict[float | str, str] = {}
    for text in targets.texts:
        is_number = NUMBER.fullmatch(text) and not _CODE.fullmatch(text)
        same = float(text) if is_number else unicodedata.normalize("NFC", text.strip())
        other = written.setdefault(same, text)
        if other != text:
            raise bad(
                f"expected one spelling of each label in {targets.where}, got {other!r}"
                f"{targets.locate(other)} and {text!r}{targets.locate(text)}",
                "target",
            )


def like(classes: Classes, targets: Targets, loss_targets: TargetKind | None) -> np.ndarray:
    """Return the labels of a test part, numbered like the training part's.

    Raises:
        InputError: if the training part lacks one.
    """
    names, codes = _named(targets)
    index = {name: i for i, name in enumerate(classes.names)}
    whole = all(map(_WHOLE.fullmatch, classes.names)) and loss_targets != "signs"

    def label(name: str) -> int | None:
        is_negative = whole and _WHOLE.fullmatch(name) and name.startswith("-")
        return NO_TARGET if is_negative else index.get(name)

    labels = [label(name) for name in names]
    unknown = [name for name, number in zip(names, labels, strict=True) if number is None]
    if unknown:
        raise bad(
            f"{targets.where}: the test part has labels that the training part lacks: "
            f"{listed(unknown)}"
        )
    return np.array(labels, np.int64)[codes]
