"""The user's own data: ``.npz``, ``.csv`` and ``.parquet`` files."""

from pathlib import Path
from typing import Literal

import numpy as np

from fbp.datasets.base import Dataset, Examples, classification, regression
from fbp.errors import InputError

Task = Literal["auto", "classification", "regression"]


def file(
    path: str, target: str | None = None, task: Task = "auto", vocabulary: int | None = None
) -> Dataset:
    """Examples from a file of your own, read by its ending.

    Args:
        path: ``.npz`` with arrays ``x`` and ``y`` (and ``x_test``, ``y_test`` if there is a test part), or ``.csv`` or
            ``.parquet`` with one row per example and one column per feature.
        target: the column to predict, the last one by default; for ``.npz``, the name of the array in place of ``y``.
        task: ``auto`` takes integers and texts as classes, floats as numbers to predict.
        vocabulary: for ``.npz`` whose ``x`` is tokens: how many there are. ``y`` may then have a token for each position,
            negative where there is none.

    Raises:
        InputError: where the file is missing or damaged, or a column cannot be used.
    """
    try:
        where = Path(path).expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise InputError(f"data.path: {path!r}: {error}") from None
    if not where.is_file():
        problem = "which is a folder" if where.is_dir() else "which does not exist"
        raise InputError(f"data.path: expected a file, got {path!r}, {problem}")
    if vocabulary is not None:
        return _read_tokens(where, target or "y", vocabulary)
    readers = {".npz": _read_npz, ".csv": _read_table, ".parquet": _read_table}
    if where.suffix not in readers:
        raise InputError(
            f"data.path: expected a file ending in .npz, .csv or .parquet, got {where.name!r}"
        )
    return readers[where.suffix](where, target, task)


def _arrays(path: Path, target: str) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file, among them ``x`` and the target."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # damaged archives raise a dozen types
        raise InputError(f"data.path: {path} cannot be read as .npz ({error})") from None
    if not {"x", target} <= set(arrays):
        raise InputError(
            f"data.path: expected arrays 'x' and {target!r} in {path}, got {', '.join(sorted(arrays)) or 'none'}"
        )
    return arrays


def _read_tokens(path: Path, target: str, vocabulary: int) -> Dataset:
    """Sequences of tokens; that they are below ``vocabulary`` is checked with the data set as a whole."""
    if path.suffix != ".npz":
        raise InputError(f"data.vocabulary: expected tokens in an .npz file, got {path.name!r}")
    arrays = _arrays(path, target)
    names = tuple(map(str, range(vocabulary)))
    x, y = arrays["x"], arrays[target]
    if x.dtype.kind not in "iu" or x.ndim != 2:
        raise InputError(
            f"data.vocabulary: expected tokens x (N, T), whole numbers, in {path}, got {x.dtype} {x.shape}"
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
    """Tokens with a target for each position."""
    if x.dtype.kind not in "iu" or y.dtype.kind not in "iu" or y.shape != x.shape:
        raise InputError(
            f"data.path: expected tokens, and a target for each position, in {path}, got x {x.dtype} {x.shape} and "
            f"y {y.dtype} {y.shape}"
        )
    return Examples(x, y)


def _test_targets(path: Path, arrays: dict[str, np.ndarray], target: str) -> np.ndarray:
    if f"{target}_test" not in arrays:
        raise InputError(
            f"data.path: {path} has an array 'x_test', and so needs {target + '_test'!r}, which is missing"
        )
    return arrays[f"{target}_test"]


def _read_npz(path: Path, target: str | None, task: Task) -> Dataset:
    target = target or "y"
    arrays = _arrays(path, target)
    dataset = _dataset(path, arrays["x"], arrays[target], task)
    return _with_test(path, dataset, arrays, target)


def _with_test(
    path: Path, dataset: Dataset, arrays: dict[str, np.ndarray], target: str, tokens: bool = False
) -> Dataset:
    """The data set with the file's test part, if it has one."""
    if tokens:
        dataset = dataset._replace(train=Examples(arrays["x"], dataset.train.y))
    if "x_test" not in arrays:
        return dataset
    test_y = _test_targets(path, arrays, target)
    test_x = arrays["x_test"] if tokens else _features(path, arrays["x_test"])
    if dataset.classes:
        test_y = _whole(path, test_y)
        known = {name: i for i, name in enumerate(dataset.classes)}
        unknown = sorted({str(label) for label in test_y.tolist()} - set(known))
        if unknown:
            raise InputError(
                f"data.path: {path} has test labels that the training part lacks: {', '.join(unknown)}"
            )
        labels = np.array([known[str(label)] for label in test_y.tolist()], np.int32)
        return dataset._replace(test=Examples(test_x, labels))
    return dataset._replace(test=regression("test", test_x, _numbers(path, test_y)).train)


def _read_table(path: Path, target: str | None, task: Task) -> Dataset:
    import pandas as pd

    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except Exception as error:  # the readers raise a dozen types, of three libraries
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"data.path: {path} cannot be read as {path.suffix} ({first_line})"
        ) from None
    if not len(table):
        raise InputError(f"data.path: expected rows of examples in {path}, got none")
    if path.suffix == ".csv" and all(_is_number(column) for column in table.columns):
        raise InputError(
            f"data.path: expected names of columns in the first row of {path}, got numbers; add a header"
        )
    if table.shape[1] < 2:
        raise InputError(
            f"data.path: expected at least two columns in {path}, got {list(table.columns)}"
        )
    target = target or str(table.columns[-1])
    if target not in table.columns:
        raise InputError(
            f"data.target: expected a column of {path} ({', '.join(map(str, table.columns))}), got {target!r}"
        )
    features = table.drop(columns=target)
    texts = [
        str(column) for column in features if not pd.api.types.is_numeric_dtype(features[column])
    ]
    if texts:
        raise InputError(
            f"data.path: expected numbers in every feature column of {path}, got text in {', '.join(texts)}"
        )
    if table[target].isna().any():
        raise InputError(
            f"data.path: expected a target in every row of {path}, got empty cells in column {target!r}"
        )
    return _dataset(path, features.to_numpy(np.float32), table[target].to_numpy(), task)


def _dataset(path: Path, x: np.ndarray, y: np.ndarray, task: Task) -> Dataset:
    x = _features(path, x)
    if x.ndim < 2 or y.ndim < 1 or len(x) != len(y) or not x.size:
        raise InputError(
            f"data.path: expected features (N, ...) and N targets in {path}, got shapes {x.shape} and {y.shape}"
        )
    if task == "auto":
        task = "regression" if np.issubdtype(y.dtype, np.floating) else "classification"
    if task == "regression":
        return regression(path.stem, x, _numbers(path, y))
    return _labelled(path, x, y)


def _labelled(path: Path, x: np.ndarray, y: np.ndarray) -> Dataset:
    if y.ndim != 1:
        raise InputError(
            f"data.path: expected one label per example in {path}, got targets of shape {y.shape}"
        )
    y = _whole(path, y)
    try:
        values = sorted(set(y.tolist()))
    except TypeError:
        raise InputError(
            f"data.path: expected numbers or texts as labels in {path}, got a mixture or lists"
        ) from None
    index = {value: i for i, value in enumerate(values)}
    return classification(path.stem, x, [index[value] for value in y.tolist()], values)


def _features(path: Path, x: np.ndarray) -> np.ndarray:
    if x.dtype.kind not in "biuf":
        raise InputError(f"data.path: expected real numbers as features in {path}, got {x.dtype}")
    return x.astype(np.float32)


def _numbers(path: Path, y: np.ndarray) -> np.ndarray:
    if y.dtype.kind not in "biuf" or y.ndim < 1:
        raise InputError(
            f"data.task: expected real numbers as targets in {path} for a regression, got {y.dtype}"
        )
    return y


def _whole(path: Path, y: np.ndarray) -> np.ndarray:
    """Labels that are whole numbers as integers, others as they are."""
    if not np.issubdtype(y.dtype, np.floating):
        return y
    if not np.isfinite(y).all() or (y != np.round(y)).any():
        raise InputError(
            f"data.task: expected whole numbers as labels in {path}, got fractions, NaN or infinity"
        )
    return y.astype(np.int64)


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True
