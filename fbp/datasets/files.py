"""The user's own data: ``.npz``, ``.csv`` and ``.parquet`` files."""

from pathlib import Path

import numpy as np

from fbp._optional import require
from fbp.datasets import file_targets
from fbp.datasets.base import Dataset, Examples
from fbp.datasets.checks import as_floats
from fbp.datasets.csv_files import read_csv
from fbp.datasets.file_targets import Classes, Targets, Task, bad
from fbp.datasets.npz_files import read_npz
from fbp.datasets.parquet_files import read_parquet
from fbp.layer import TargetKind


def file(
    path: str,
    target: str | None = None,
    *,
    task: Task = "auto",
    header: bool | None = None,
    vocabulary: int | None = None,
    loss_targets: TargetKind | None = None,
) -> Dataset:
    """Read examples from a file of your own.

    Args:
        path: ``.npz`` with arrays ``x (N, ...)`` and ``y (N,)`` or ``(N, K)`` (and ``x_test``,
            ``y_test`` if there is a test part), or ``.csv`` or ``.parquet`` with one row per
            example and one column per feature.
        target: the column to predict, the last one by default; for ``.npz``, the name of the array
            in place of ``y``.
        task: ``classification``, ``regression`` or ``auto``, by which the task follows from
            ``loss_targets``. Without them, texts and whole numbers are classes, and floats are
            numbers to predict.
        header: whether the first row of a ``.csv`` file holds the names of its columns. By default
            it does, and a first row with a number in it is refused.
        vocabulary: number of tokens, if ``x (N, T)`` of an ``.npz`` file holds tokens. ``y`` may
            then have a token for each position, negative if the position has none.
        loss_targets: the targets that the loss takes, ``loss.targets``. A run supplies them.

    Returns:
        The data set, named after the file. Its ``notes`` say what was guessed. Labels are numbered
        in the order of numbers, or of texts; a negative one says that the example has no target.

    Raises:
        InputError: the file is missing or damaged, a column cannot be used, or the task is open.
    """
    try:
        location = Path(path).expanduser()
    except RuntimeError as error:  # ~user, of a user that does not exist
        raise bad(f"{path!r}: {error}") from None
    if not location.is_file():
        problem = "which is a folder" if location.is_dir() else "which does not exist"
        raise bad(f"expected a file, got {path!r}, {problem}")
    ending = location.suffix.lower()
    if ending not in (".npz", ".csv", ".parquet"):
        raise bad(f"expected a file ending in .npz, .csv or .parquet, got {location.name!r}")
    if vocabulary is not None and ending != ".npz":
        raise bad(f"expected tokens in an .npz file, got {location.name!r}", "vocabulary")
    if header is not None and ending != ".csv":
        raise bad(f"expected a .csv file, got {location.name!r}; remove it", "header")
    if ending == ".npz":
        return _from_npz(location, target or "y", task, vocabulary, loss_targets)
    require("fbp.datasets.file", "pyarrow")
    table = (
        read_csv(location, target, header=header)
        if ending == ".csv"
        else read_parquet(location, target)
    )
    x = as_floats(f"features of {location}", table.features)
    dataset, _ = _dataset(location, x, table.targets, task, loss_targets)
    return dataset._replace(notes=(*table.notes, *dataset.notes))


def _from_npz(
    path: Path,
    target: str,
    task: Task,
    vocabulary: int | None,
    loss_targets: TargetKind | None,
) -> Dataset:
    arrays = read_npz(path, target)
    tokens = () if vocabulary is None else tuple(map(str, range(vocabulary)))
    if "x_test" in arrays and f"{target}_test" not in arrays:
        raise bad(
            f"{path} has an array 'x_test', and so needs {target + '_test'!r}, which is missing"
        )
    x, y = _inputs(path, "x", arrays.pop("x"), tokens), arrays.pop(target)
    x_test = _inputs(path, "x_test", arrays.pop("x_test"), tokens) if "x_test" in arrays else None
    y_test = arrays.pop(f"{target}_test", None)
    if tokens and y.ndim == 2:
        test = None if x_test is None else _positions(path, x_test, y_test)
        return Dataset(path.stem, _positions(path, x, y), test, tokens, tokens)
    dataset, classes = _dataset(path, x, _array(path, target, y), task, loss_targets)
    dataset = dataset._replace(tokens=tokens)
    if x_test is None:
        return dataset
    targets = _array(path, f"{target}_test", y_test)
    labels = (
        file_targets.as_numbers(targets)
        if classes is None
        else file_targets.like(classes, targets, loss_targets)
    )
    return dataset._replace(test=Examples(x_test, _columns(labels, classes)))


def _inputs(path: Path, name: str, x: np.ndarray, tokens: tuple[str, ...]) -> np.ndarray:
    """Return tokens as they are, and numbers as floats."""
    if tokens:
        if x.dtype.kind not in "iu" or x.ndim != 2:
            raise bad(
                f"expected tokens {name} (N, T), whole numbers, in {path}, got {x.dtype} {x.shape}",
                "vocabulary",
            )
        return x
    if x.dtype.kind not in "biuf":
        raise bad(f"expected real numbers as features in {path}, got {x.dtype}")
    if x.ndim < 2 or not x.size:
        raise bad(f"expected features {name} (N, ...) in {path}, got shape {x.shape}")
    return as_floats(f"{name} of {path}", x)


def _positions(path: Path, x: np.ndarray, y: np.ndarray | None) -> Examples:
    """Return tokens with a target for each position."""
    if y is None or y.dtype.kind not in "iu" or y.shape != x.shape:
        got = "none" if y is None else f"y {y.dtype} {y.shape}"
        raise bad(
            f"expected tokens, and a target for each position, in {path}, got x {x.dtype} "
            f"{x.shape} and {got}"
        )
    return Examples(x, y)


def _array(path: Path, name: str, y: np.ndarray | None) -> Targets:
    """Return the targets in an array of numbers or texts."""
    where = f"array {name!r} of {path}"
    if y is None or y.dtype.kind not in "biufU":
        raise bad(f"expected numbers or texts in {where}, got {'none' if y is None else y.dtype}")
    if y.dtype.kind == "U":
        if y.ndim != 1:
            raise bad(f"expected one label per example in {where}, got shape {y.shape}")
        return file_targets.from_texts(where, y)
    return Targets(where, y)


def _dataset(
    path: Path, x: np.ndarray, targets: Targets, task: Task, loss_targets: TargetKind | None
) -> tuple[Dataset, Classes | None]:
    """Return the training examples as a data set, and its classes if it has some."""
    y = targets.numbers if targets.numbers is not None else targets.codes
    assert y is not None
    if x.ndim < 2 or y.ndim < 1 or len(x) != len(y) or not x.size or not y.size:
        raise bad(
            f"expected features (N, ...) and N targets in {path}, got shapes {x.shape} and "
            f"{y.shape}"
        )
    decided, guess = file_targets.decide(targets, task, loss_targets)
    notes = (guess,) if guess else ()
    if decided == "regression":
        numbers = _columns(file_targets.as_numbers(targets), None)
        return Dataset(path.stem, Examples(x, numbers), notes=notes), None
    classes = file_targets.as_classes(targets, loss_targets)
    labels = _columns(classes.labels, classes)
    return Dataset(path.stem, Examples(x, labels), classes=classes.names, notes=notes), classes


def _columns(y: np.ndarray, classes: Classes | None) -> np.ndarray:
    """Return labels as int32, and numbers as floats ``(N, K)``."""
    if classes is not None:
        return y.astype(np.int32)
    return as_floats("targets", y.reshape(len(y), -1))
