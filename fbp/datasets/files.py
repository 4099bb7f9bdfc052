"""The user's own data: ``.npz``, ``.csv`` and ``.parquet`` files."""

from pathlib import Path
from typing import Literal

import numpy as np

from fbp._optional import require
from fbp.datasets.base import Dataset, Examples, classification, regression
from fbp.errors import ArgumentError

Task = Literal["auto", "classification", "regression"]


def file(
    path: str, target: str | None = None, *, task: Task = "auto", vocabulary: int | None = None
) -> Dataset:
    """Read examples from a file of your own.

    Args:
        path: ``.npz`` with arrays ``x (N, ...)`` and ``y (N,)`` or ``(N, K)`` (and ``x_test``,
            ``y_test`` if there is a test part), or ``.csv`` or ``.parquet`` with one row per
            example and one column per feature.
        target: the column to predict, the last one by default; for ``.npz``, the name of the array
            in place of ``y``.
        task: ``auto`` takes integers and texts as classes, floats as numbers to predict.
        vocabulary: number of tokens, if ``x (N, T)`` of an ``.npz`` file holds tokens. ``y`` may
            then have a token for each position, negative if the position has none.

    Returns:
        The data set, named after the file.

    Raises:
        InputError: the file is missing or damaged, or a column cannot be used.
    """
    try:
        location = Path(path).expanduser()
    except RuntimeError as error:  # ~user, of a user that does not exist
        raise _bad_file(f"{path!r}: {error}") from None
    if not location.is_file():
        problem = "which is a folder" if location.is_dir() else "which does not exist"
        raise _bad_file(f"expected a file, got {path!r}, {problem}")
    if vocabulary is not None:
        return _read_tokens(location, target or "y", vocabulary)
    readers = {".npz": _read_npz, ".csv": _read_table, ".parquet": _read_table}
    if location.suffix not in readers:
        raise _bad_file(f"expected a file ending in .npz, .csv or .parquet, got {location.name!r}")
    return readers[location.suffix](location, target, task)


def _bad_file(problem: str, argument: str = "path") -> ArgumentError:
    return ArgumentError("file", argument, problem)


def _arrays(path: Path, target: str) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file, among them ``x`` and the target."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # damaged archives raise a dozen types
        raise _bad_file(f"{path} cannot be read as .npz ({error})") from None
    if not {"x", target} <= set(arrays):
        raise _bad_file(
            f"expected arrays 'x' and {target!r} in {path}, got "
            f"{', '.join(sorted(arrays)) or 'none'}"
        )
    return arrays


def _read_tokens(path: Path, target: str, vocabulary: int) -> Dataset:
    """Return sequences of tokens; :func:`check` sees that they are below ``vocabulary``."""
    if path.suffix != ".npz":
        raise _bad_file(f"expected tokens in an .npz file, got {path.name!r}", "vocabulary")
    arrays = _arrays(path, target)
    names = tuple(map(str, range(vocabulary)))
    x, y = arrays["x"], arrays[target]
    if x.dtype.kind not in "iu" or x.ndim != 2:
        raise _bad_file(
            f"expected tokens x (N, T), whole numbers, in {path}, got {x.dtype} {x.shape}",
            "vocabulary",
        )
    if y.ndim == 1:
        return _with_test(
            path, _labelled(path, x, y)._replace(tokens=names), arrays, target, tokens=True
        )
    dataset = Dataset(path.stem, _positions(path, x, y), None, names, names)
    if "x_test" not in arrays:
        return dataset
    return dataset._replace(
        test=_positions(path, arrays["x_test"], _test_targets(path, arrays, target))
    )


def _positions(path: Path, x: np.ndarray, y: np.ndarray) -> Examples:
    """Return tokens with a target for each position."""
    if x.dtype.kind not in "iu" or y.dtype.kind not in "iu" or y.shape != x.shape:
        raise _bad_file(
            f"expected tokens, and a target for each position, in {path}, got x {x.dtype} "
            f"{x.shape} and "
            f"y {y.dtype} {y.shape}"
        )
    return Examples(x, y)


def _test_targets(path: Path, arrays: dict[str, np.ndarray], target: str) -> np.ndarray:
    if f"{target}_test" not in arrays:
        raise _bad_file(
            f"{path} has an array 'x_test', and so needs {target + '_test'!r}, which is missing"
        )
    return arrays[f"{target}_test"]


def _read_npz(path: Path, target: str | None, task: Task) -> Dataset:
    target = target or "y"
    arrays = _arrays(path, target)
    dataset = _dataset(path, arrays["x"], arrays[target], task)
    return _with_test(path, dataset, arrays, target)


def _with_test(
    path: Path,
    dataset: Dataset,
    arrays: dict[str, np.ndarray],
    target: str,
    *,
    tokens: bool = False,
) -> Dataset:
    """Return the data set with the file's test part, if it has one."""
    if tokens:
        dataset = dataset._replace(train=Examples(arrays["x"], dataset.train.y))
    if "x_test" not in arrays:
        return dataset
    test_y = _test_targets(path, arrays, target)
    test_x = arrays["x_test"] if tokens else _features(path, arrays["x_test"])
    if dataset.classes:
        test_y = _as_integers(path, test_y)
        class_index = {name: i for i, name in enumerate(dataset.classes)}
        unknown = sorted({str(label) for label in test_y.tolist()} - set(class_index))
        if unknown:
            raise _bad_file(
                f"{path} has test labels that the training part lacks: {', '.join(unknown)}"
            )
        labels = np.array([class_index[str(label)] for label in test_y.tolist()], np.int32)
        return dataset._replace(test=Examples(test_x, labels))
    return dataset._replace(test=regression("test", test_x, _numbers(path, test_y)).train)


def _read_table(path: Path, target: str | None, task: Task) -> Dataset:
    require("fbp.datasets.file", "pandas", *(["pyarrow"] if path.suffix == ".parquet" else []))
    import pandas as pd

    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except Exception as error:  # the readers raise a dozen types, of three libraries
        summary = next(iter(str(error).splitlines()), type(error).__name__)
        raise _bad_file(f"{path} cannot be read as {path.suffix} ({summary})") from None
    if not len(table):
        raise _bad_file(f"expected rows of examples in {path}, got none")
    if path.suffix == ".csv" and all(_is_number(column) for column in table.columns):
        raise _bad_file(
            f"expected names of columns in the first row of {path}, got numbers; add a header"
        )
    if table.shape[1] < 2:
        raise _bad_file(f"expected at least two columns in {path}, got {list(table.columns)}")
    target = target or str(table.columns[-1])
    if target not in table.columns:
        raise _bad_file(
            f"expected a column of {path} ({', '.join(map(str, table.columns))}), got {target!r}",
            "target",
        )
    features = table.drop(columns=target)
    texts = [
        str(column) for column in features if not pd.api.types.is_numeric_dtype(features[column])
    ]
    if texts:
        raise _bad_file(
            f"expected numbers in every feature column of {path}, got text in {', '.join(texts)}"
        )
    if table[target].isna().any():
        raise _bad_file(
            f"expected a target in every row of {path}, got empty cells in column {target!r}"
        )
    return _dataset(path, features.to_numpy(np.float32), table[target].to_numpy(), task)


def _dataset(path: Path, x: np.ndarray, y: np.ndarray, task: Task) -> Dataset:
    x = _features(path, x)
    if x.ndim < 2 or y.ndim < 1 or len(x) != len(y) or not x.size:
        raise _bad_file(
            f"expected features (N, ...) and N targets in {path}, got shapes {x.shape} and "
            f"{y.shape}"
        )
    if task == "auto":
        task = "regression" if np.issubdtype(y.dtype, np.floating) else "classification"
    if task == "regression":
        return regression(path.stem, x, _numbers(path, y))
    return _labelled(path, x, y)


def _labelled(path: Path, x: np.ndarray, y: np.ndarray) -> Dataset:
    if y.ndim != 1:
        raise _bad_file(f"expected one label per example in {path}, got targets of shape {y.shape}")
    y = _as_integers(path, y)
    try:
        values = sorted(set(y.tolist()))
    except TypeError:
        raise _bad_file(
            f"expected numbers or texts as labels in {path}, got a mixture or lists"
        ) from None
    index = {value: i for i, value in enumerate(values)}
    return classification(path.stem, x, [index[value] for value in y.tolist()], values)


def _features(path: Path, x: np.ndarray) -> np.ndarray:
    if x.dtype.kind not in "biuf":
        raise _bad_file(f"expected real numbers as features in {path}, got {x.dtype}")
    return x.astype(np.float32)


def _numbers(path: Path, y: np.ndarray) -> np.ndarray:
    if y.dtype.kind not in "biuf" or y.ndim < 1:
        raise _bad_file(
            f"expected real numbers as targets in {path} for a regression, got {y.dtype}",
            "task",
        )
    return y


def _as_integers(path: Path, y: np.ndarray) -> np.ndarray:
    """Return labels that are whole numbers as integers, others unchanged."""
    if not np.issubdtype(y.dtype, np.floating):
        return y
    if not np.isfinite(y).all() or (y != np.round(y)).any():
        raise _bad_file(
            f"expected whole numbers as labels in {path}, got fractions, NaN or infinity",
            "task",
        )
    return y.astype(np.int64)


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True
