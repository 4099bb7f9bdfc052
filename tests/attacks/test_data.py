"""Attacks on the reading of users' data: whatever could be read in two ways is told or refused."""

import io
import json
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import fbp
from fbp import datasets, metrics, training
from fbp.datasets import Dataset, Examples, check, prepare
from fbp.errors import InputError
from fbp.experiment.config import reading
from fbp.experiment.figures import classification, draw
from fbp.experiment.rundir import results
from fbp.experiment.runner import test_evaluation
from fbp.experiment.runner.build import build
from tests.projects import silent_compiler

ROW = "{},{},a\n{},{},b\n"
FOUR = ROW.format(1, 2, 3, 4) + ROW.format(5, 6, 7, 8)


def csv_file(folder, content, name="d.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def refusal(use):
    with pytest.raises(InputError) as caught:
        use()
    (line,) = str(caught.value).splitlines()
    assert len(line) < 700
    return line


def built(data, loss="softmax_cross_entropy", smoothing=0.0, **sections):
    table = {
        "name": "attack",
        "data": data,
        "model": {"name": "mlp", "hidden": [4]},
        "loss": {"name": loss, "label_smoothing": smoothing},
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "training": {"epochs": 1, "batch_size": 2},
    }
    return build(reading.parse(table | sections, "attack.toml"))


REFUSED = {
    "no header": ("5.1,3.5,setosa\n4.9,3.0,setosa\n", "header: expected names of columns"),
    "no header, text first": ("setosa,5.1,3.5\nother,4.9,3.0\n", "set header = false"),
    "no header, one number": ("7,cat\n8,dog\n", "set header = false"),
    "no header, true and false": ("true,cat\nfalse,dog\n", "set header = false"),
    "no header, missing first": ("nan,cat\n8,dog\n", "set header = false"),
    "longer row": ("a,b,c\n1,2,x\n1,2,y,4\n", "got 4 in line 3"),
    "longer first row": ("a,b,c\n1,2,x,7\n1,2,y\n", "got 4 in line 2"),
    "all rows longer": ("a,b,c\n9,1,2,x\n9,3,4,y\n", "expected 3 cells in each row"),
    "shorter row": ("a,b,c\n1,2,x\n\n1,2\n", "got 2 in line 4"),
    "shorter after quoted lines": ('a,b,c\n1,2,"x\ny"\n1,2\n', "got 2 in line 4"),
    "trailing commas in rows only": ("a,b\n1,x,\n2,y,\n", "got 3 in line 2"),
    "two columns of a name": ("a,a,c\n1,2,x\n3,4,y\n", "different names of columns"),
    "unnamed column in the middle": ("a,,c\n1,2,x\n3,4,y\n", "a name for each column"),
    "text among numbers": ("a,b,c\n1,2,x\n1,two,y\n", "got text 'two' in column 'b', line 3"),
    "empty cell": ("a,b,c\n1,2,x\n1,,y\n", "got an empty cell in column 'b', line 3"),
    "NA in a feature": ("a,b,c\n1,NA,x\n1,2,y\n", "got text 'NA' in column 'b', line 2"),
    "infinity": ("a,b,c\n1,inf,x\n1,2,y\n", "got text 'inf' in column 'b', line 2"),
    "too large": ("a,b,c\n1,2,x\n1e400,2,y\n", "got text '1e400' in column 'a', line 3"),
    "too large for float32": ("a,b,c\n1,2,x\n1e39,2,y\n", "a number beyond 3.4e+38"),
    "beyond 2^53": ("a,c\n9007199254740993,x\n1,y\n", "9007199254740993 in column 'a', line 2"),
    "decimal commas": ('a,b,c\n"1,5",2,x\n2,3,y\n', "with a decimal point"),
    "semicolons": ("a;b;c\n1,5;2;x\n", "save it with commas, not ';'"),
    "tabs": ("a\tb\tc\n1\t2\tx\n", "save it with commas"),
    "true among numbers": ("a,c\ntrue,x\n1,y\n", "column 'a', line 3"),
    "grouped digits": ("a,c\n1_000,x\n1,y\n", "got text '1_000'"),
    "hexadecimal": ("a,c\n0x10,x\n1,y\n", "got text '0x10'"),
    "empty file": ("", "it is empty"),
    "blank lines only": ("\n\n\n", "it is empty"),
    "header only": ("a,b,c\n", "expected rows of examples"),
    "header without end of line": ("a,b,c", "expected rows of examples"),
    "one column": ("a\n1\n2\n", "at least two columns"),
    "one class": ("a,c\n1,x\n2,x\n", "at least two classes"),
    "empty target": ("a,c\n1,x\n2,\n", "empty cells in column 'c' (line 3)"),
    "blank target": ("a,c\n1,x\n2,  \n", "empty cells in column 'c' (line 3)"),
    "open quotation mark": ('a,c\n1,x\n2,"y\n3,z\n', "unexpected end of data"),
    "not UTF-8": (b"a,c\n1,x\n2,\xff\n", "expected UTF-8"),
    "UTF-16": ("a,c\n1,x\n2,y\n".encode("utf-16"), "expected UTF-8"),
    "one label in two spellings": ("a,c\n1,1\n2,1.0\n3,x\n", "one spelling of each label"),
    "a label with blanks": ("a,c\n1,x\n2, x\n3,y\n", "one spelling of each label"),
    "two encodings of a letter": ("a,c\n1,\u00e9\n2,e\u0301\n3,y\n", "one spelling of each label"),
    "dates": ("a,c\n2020-01-01,x\n2020-01-02,y\n", "got text '2020-01-01'"),
    "percent": ("a,c\n50%,x\n2%,y\n", "got text '50%'"),
    "a name with control letters": ("a\x1b[31m\n1\n", "at least two columns"),
    "numbers and NA as targets": ("a,c\n1,1.5\n2,NA\n", "got numbers and 'NA' (line 3)"),
}


@pytest.mark.promise("csv-one-reading")
@pytest.mark.parametrize("case", REFUSED)
def test_csv_that_cannot_be_used_is_refused_with_its_place(tmp_path, case):
    content, problem = REFUSED[case]
    path = csv_file(tmp_path, content)
    assert problem in refusal(lambda: check(datasets.file(path)))


READ = {
    "names over two lines": ('"a\nb",b,c\n' + FOUR, {}, [1, 3, 5, 7], ("a", "b")),
    "byte order mark and blank lines": ("\ufeff\n\na,b,c\n" + FOUR, {}, [1, 3, 5, 7], ("a", "b")),
    "blank lines without a header": ("\n\n" + FOUR, {"header": False}, [1, 3, 5, 7], ("a", "b")),
    "byte order mark": ("\ufeffa,b,c\n" + FOUR, {}, [1, 3, 5, 7], ("a", "b")),
    "blank lines": ("\n\na,b,c\n\n" + FOUR + "\n\n", {}, [1, 3, 5, 7], ("a", "b")),
    "Windows lines": ("a,b,c\r\n" + FOUR.replace("\n", "\r\n"), {}, [1, 3, 5, 7], ("a", "b")),
    "old Macintosh lines": ("a,b,c\r" + FOUR.replace("\n", "\r"), {}, [1, 3, 5, 7], ("a", "b")),
    "no header": (FOUR, {"header": False}, [1, 3, 5, 7], ("a", "b")),
    "numbers as names": ("0,1,2\n" + FOUR, {"header": True}, [1, 3, 5, 7], ("a", "b")),
    "quoted names": ('"a, b","b ""x""",c\n' + FOUR, {}, [1, 3, 5, 7], ("a", "b")),
    "quoted lines": ('a,b,c\n1,2,"x\ny"\n3,4,z\n', {}, [1, 3], ("x\ny", "z")),
    "spaces": ("a , b,c\n" + ROW.format(" 1", "2 ", "\t3", 4), {}, [1, 3], ("a", "b")),
    "unnamed index": (",a,b,c\n0,1,2,x\n1,3,4,y\n", {}, [1, 3], ("x", "y")),
    "unnamed index of texts": (",a,b,c\nr1,1,2,x\nr2,3,4,y\n", {}, [1, 3], ("x", "y")),
    "saved unnamed index": ("Unnamed: 0,a,b,c\n7,1,2,x\n3,3,4,y\n", {}, [1, 3], ("x", "y")),
    "trailing commas": ("a,b,c,\n1,2,x,\n3,4,y,\n", {}, [1, 3], ("x", "y")),
    "true and false": ("a,b,c\ntrue,1,x\nFALSE,0,y\n", {}, [1, 0], ("x", "y")),
    "names of missing values": (
        "a,b,c\n1,2,NA\n3,4,None\n5,6,null\n7,8,nan\n",
        {},
        [1, 3, 5, 7],
        ("NA", "None", "nan", "null"),
    ),
    "leading zeros": ("a,b,c\n1,2,0123\n3,4,123\n", {}, [1, 3], ("0123", "123")),
    "whole numbers in their order": ("a,b,c\n1,2,10\n3,4,9\n", {}, [1, 3], ("9", "10")),
    "target in front": ("c,a,b\nx,1,2\ny,3,4\n", {"target": "c"}, [1, 3], ("x", "y")),
    "no text is a formula": ("a,b,c\n1,2,=1+1\n3,4,@x\n", {}, [1, 3], ("=1+1", "@x")),
    "whole numbers up to 2^53": (
        "a,b,c\n9007199254740992,2,x\n0,4,y\n",
        {},
        [9007199254740992, 0],
        ("x", "y"),
    ),
}


@pytest.mark.promise("csv-as-written")
@pytest.mark.parametrize("case", READ)
def test_csv_is_read_as_it_is_written(tmp_path, case):
    content, arguments, first, classes = READ[case]
    data = check(datasets.file(csv_file(tmp_path, content), **arguments))
    assert data.train.x.shape[1] == 2
    assert data.train.x[:, 0].tolist() == first
    assert data.classes == classes


GUESSES = {
    "last column": ("a,b,c\n" + FOUR, "the target is 'c', the last column"),
    "index": (",a,c\n0,1,x\n1,3,y\n", "left out the first column, an index without a name"),
    "booleans": ("a,c\ntrue,x\nfalse,y\n", "true and false read as 1 and 0 in a"),
    "whole numbers": ("a,c\n1,5\n2,7\n", "whole numbers taken as classes"),
}


@pytest.mark.promise("guesses-told")
@pytest.mark.parametrize("case", GUESSES)
def test_what_is_guessed_is_told_in_one_line(tmp_path, case):
    content, note = GUESSES[case]
    data = check(datasets.file(csv_file(tmp_path, content)))
    assert any(each.startswith(note) for each in data.notes)


@pytest.mark.promise("guesses-told")
def test_a_run_prints_the_task_its_number_of_classes_and_every_guess(tmp_path):
    path = csv_file(tmp_path, ",a,c\n" + "".join(f"{i},{i / 7},{i % 3}\n" for i in range(40)))
    line, *_ = built({"name": "file", "path": path}).notes
    assert line == (
        "data 'd': a classification, 3 classes; left out the first column, an index without a "
        "name; the target is 'c', the last column"
    )


@pytest.mark.promise("guesses-told")
def test_the_index_that_pandas_stores_is_no_feature(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0], "c": ["x", "y"]}, index=pd.Index([7, 9], name="id"))
    frame.to_parquet(tmp_path / "d.parquet")
    data = datasets.file(str(tmp_path / "d.parquet"))
    assert data.train.x.tolist() == [[1.0], [2.0]]
    assert "left out the index, id" in data.notes


TIMES = 1.7e9 + np.arange(400.0)


def stored(folder, kind):
    """A data set of 400 unix seconds, and of a number that is 1.0 everywhere."""
    x, y = np.stack([TIMES, np.full(400, 0.1)], axis=1), np.arange(400) % 2
    frame = pd.DataFrame(x, columns=["time", "one"]).assign(y=np.where(y, "a", "b"))
    path = folder / f"d.{kind}"
    if kind == "npz":
        np.savez(path, x=x, y=y)
    elif kind == "npz of integers":
        path = folder / "d.npz"
        np.savez(path, x=x.astype(np.int64), y=y)
    elif kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path, index=False)
    elif kind == "arrays":
        return Dataset("d", Examples(x, y), classes=("a", "b"))
    elif kind == "lists":
        return Dataset("d", (x.tolist(), y.tolist()), (x.tolist(), y.tolist()), ("a", "b"))
    return datasets.file(str(path))


@pytest.mark.promise("scaled-in-float64")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["csv", "npz", "npz of integers", "parquet", "arrays", "lists"])
def test_numbers_are_scaled_before_they_are_narrowed(tmp_path, kind, overwrite):
    parts = prepare(check(stored(tmp_path, kind)), seed=0, standardize=True, overwrite=overwrite)
    seconds = [part.x[:, 0] for part in parts[:3]]
    assert all(part.x.dtype == np.float32 for part in parts[:3])
    assert len(np.unique(parts.train.x[:, 0])) == len(parts.train.x)
    whole = np.concatenate(seconds[:2] if kind == "lists" else seconds)
    assert len(np.unique(whole)) == 400
    np.testing.assert_allclose(parts.train.x[:, 0].std(), 1, rtol=1e-5)
    assert all((part.x[:, 1] == 0).all() for part in parts[:3])  # constant, whatever rounds
    raw = parts.input_scaling.undo(parts.train.x)[:, 0]
    assert np.abs(raw[:, None] - TIMES).min(axis=1).max() < 1e-4


@pytest.mark.promise("scaled-in-float64")
def test_a_loaded_model_scales_in_float64_too(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.stack([TIMES, TIMES], 1), y=(TIMES.mean() < TIMES) * 1)
    experiment = built({"name": "file", "path": str(tmp_path / "d.npz"), "standardize": True})
    from fbp.experiment.runner import trained_model

    params, _ = experiment.model.init(jax.random.key(0), experiment.shape)
    trained_model.write(
        tmp_path / "model",
        experiment.config,
        params,
        shape=experiment.shape,
        dataset=experiment.dataset,
        inputs=experiment.data.input_scaling,
        targets=None,
    )
    trained = trained_model.read(tmp_path / "model")
    x = np.stack([TIMES, TIMES], 1)
    assert len(np.unique(trained.predict(x)[:, 0])) > 300
    expected, _ = experiment.model.forward(params, experiment.data.input_scaling.apply(x))
    np.testing.assert_allclose(trained.predict(x), jax.nn.softmax(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.promise("scaled-in-float64")
@pytest.mark.parametrize("reuse", ["reconstruct", "sliced", "read only", "Fortran", "float64"])
def test_parts_in_the_memory_of_the_data_set_are_the_parts_of_a_copy(reuse):
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    y = np.arange(60, dtype=np.int32) % 2

    def data():
        values = x.copy()
        if reuse == "reconstruct":
            return datasets.as_autoencoding(Dataset("d", Examples(values, y), classes=("a", "b")))
        if reuse == "sliced":
            values = np.repeat(values, 2, axis=1)[:, ::2]
        elif reuse == "read only":
            values.flags.writeable = False
        elif reuse == "Fortran":
            values = np.asfortranarray(values)
        elif reuse == "float64":
            values = values.astype(np.float64) + 1e-9
        return Dataset("d", Examples(values, y.copy()), classes=("a", "b"))

    for scale in (False, True):
        kept, reused = (
            prepare(data(), seed=3, standardize=scale, overwrite=overwrite)
            for overwrite in (False, True)
        )
        for one, other in zip(kept[:3], reused[:3], strict=True):
            np.testing.assert_array_equal(one.x, other.x)
            np.testing.assert_array_equal(one.y, other.y)


@pytest.mark.promise("scaled-in-float64")
def test_a_users_own_arrays_are_not_overwritten(tmp_path, monkeypatch):
    (tmp_path / "held.py").write_text(
        "import numpy as np\nfrom fbp.datasets import Dataset, Examples\n"
        "X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)\n"
        "Y = np.arange(60, dtype=np.int32) % 2\n"
        "def data():\n    return Dataset('d', Examples(X, Y), classes=('a', 'b'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import held

    before = held.X.copy(), held.Y.copy()
    built({"name": "held:data", "standardize": True})
    given = datasets.iris()
    fingerprint, config = given.fingerprint, built({"name": "iris"}).config
    assert build(config, given).fingerprint == given.fingerprint == fingerprint
    np.testing.assert_array_equal(held.X, before[0])
    np.testing.assert_array_equal(held.Y, before[1])


# What the last column holds, and the loss: the task, or a part of the error.
WHOLE, TEXTS = [str(i * 7 % 40) for i in range(40)], ["x", "y"] * 20
FRACTIONS, BITS = [str(i / 4 + 0.1) for i in range(40)], ["0", "1"] * 20
TASKS = {
    "whole, squared error": (WHOLE, "mean_squared_error", "a regression, 1 target"),
    "whole, absolute error": (WHOLE, "mean_absolute_error", "a regression, 1 target"),
    "whole, huber": (WHOLE, "huber", "a regression, 1 target"),
    "whole, counts": (WHOLE, "poisson", "a regression, 1 target"),
    "whole, softmax": (WHOLE, "softmax_cross_entropy", "a classification, 40 classes"),
    "bits, squared error": (BITS, "mean_squared_error", "a regression, 1 target"),
    "bits, softmax": (BITS, "softmax_cross_entropy", "a classification, 2 classes"),
    "bits, hinge": (BITS, "hinge", "a classification, 2 classes"),
    "signs, hinge": (["-1", "1"] * 20, "hinge", "a classification, 2 classes"),
    "texts, softmax": (TEXTS, "softmax_cross_entropy", "a classification, 2 classes"),
    "texts, squared error": (TEXTS, "mean_squared_error", "a classification, 2 classes"),
    "fractions, squared error": (FRACTIONS, "mean_squared_error", "a regression, 1 target"),
    "fractions, softmax": (FRACTIONS, "softmax_cross_entropy", "data.task"),
    "bits, sigmoid": (BITS, "sigmoid_cross_entropy", "data.task"),
    "codes, squared error": (["007", "010"] * 20, "mean_squared_error", "data.task"),
    "missing, squared error": (["1.5", "NA"] * 20, "mean_squared_error", "got 'NA' (line 3)"),
    "prices, squared error": (["1,500", "$7"] * 20, "mean_squared_error", "expected numbers"),
    "dates, squared error": (["2020-01-01", "2021-01-01"] * 20, "huber", "expected numbers"),
    "signs, softmax": (["-1", "1"] * 20, "softmax_cross_entropy", "at least two classes"),
}


@pytest.mark.promise("task-from-loss")
@pytest.mark.parametrize("case", TASKS)
@pytest.mark.parametrize("kind", ["csv", "npz", "parquet"])
def test_the_task_follows_from_the_loss(tmp_path, case, kind):
    column, loss, expected = TASKS[case]
    path = tmp_path / f"d.{kind}"
    x = np.random.default_rng(0).normal(size=(40, 2))
    numbers = {"whole", "bits", "signs", "fractions"}
    if kind == "csv":
        frame = pd.DataFrame(x, columns=["a", "b"]).assign(c=column)
        frame.to_csv(path, index=False)
    else:
        y = np.array(column)
        if case.split(",")[0] in numbers:
            y = y.astype(float) if case.startswith("fractions") else y.astype(int)
        if kind == "npz":
            np.savez(path, x=x, y=y)
        else:
            pd.DataFrame(x, columns=["a", "b"]).assign(c=y).to_parquet(path, index=False)
    data = {"name": "file", "path": str(path)}
    if expected.startswith("a "):
        assert expected in built(data, loss).notes[0]
        return
    line = refusal(lambda: built(data, loss))
    assert (expected if kind == "csv" else expected.partition(" (")[0]) in line
    if expected == "data.task":
        assert "loss.name" in line


@pytest.mark.promise("task-from-loss")
def test_the_task_that_is_set_wins(tmp_path):
    path = csv_file(tmp_path, "a,c\n" + "".join(f"{i / 7},{i % 2}\n" for i in range(40)))
    data = {"name": "file", "path": path}
    by_task = {
        task: built(data | {"task": task}, "sigmoid_cross_entropy").dataset
        for task in ("classification", "regression")
    }
    assert by_task["classification"].classes == ("0", "1")
    assert by_task["regression"].classes == ()


LABELS = {
    "-1": [0, 1, -1, 2, 1, -1, 0, 2],
    "-100": [0, 1, -100, 2, 1, -100, 0, 2],
    "several": [0, 1, -100, 2, 1, -7, 0, 2],
    "int64's smallest": [0, 1, -(2**63), 2, 1, -(2**63), 0, 2],
}


@pytest.mark.promise("no-target")
@pytest.mark.parametrize("case", LABELS)
@pytest.mark.parametrize("kind", ["arrays", "npz", "csv", "parquet"])
def test_negative_labels_are_no_targets_wherever_data_are_read(tmp_path, case, kind):
    labels = np.array(LABELS[case] * 10)
    x = np.arange(160.0).reshape(80, 2)
    path, frame = tmp_path / f"d.{kind}", pd.DataFrame(x, columns=["a", "b"]).assign(y=labels)
    if kind == "npz":
        np.savez(path, x=x, y=labels)
    elif kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path, index=False)
    if kind == "arrays":
        data = check(Dataset("d", Examples(x, labels), classes=["0", "1", "2"]))
    else:
        data = check(datasets.file(str(path)))
    assert data.classes == ("0", "1", "2")
    assert data.train.y.tolist() == [max(label, -1) for label in labels.tolist()]
    parts = prepare(data, seed=0)
    assert sum(len(part.y) for part in parts[:3]) == 60
    assert all((part.y >= 0).all() for part in parts[:3])
    assert parts.notes == ("20 examples have no target (a negative label): left out",)


@pytest.mark.promise("no-target")
@pytest.mark.parametrize("jitted", [False, True])
def test_no_metric_and_no_mean_counts_what_has_no_target(jitted):
    model = fbp.layers.identity()
    output = 9.0 * jax.nn.one_hot(jnp.array([0, 1, 2, 0, 1, 2]), 3)
    solved = jnp.array([0, -1, 2, -100, 1, -1])
    evaluate = training.make_evaluate(
        model, fbp.losses.softmax_cross_entropy, batch_size=4, metrics={"a": metrics.accuracy}
    )
    evaluate = jax.jit(evaluate) if jitted else evaluate
    some, labelled = evaluate((), output, solved), solved >= 0
    only = evaluate((), output[labelled], solved[labelled])
    assert float(some["a"]) == 1
    np.testing.assert_allclose(some["loss"], only["loss"], rtol=1e-6)
    values = metrics.accuracy(output, solved)
    assert np.isnan(values).tolist() == (~labelled).tolist()
    assert float(metrics.mean_over_targets(values, output, solved)) == 1


@pytest.mark.promise("no-target")
def test_positions_without_a_target_count_in_no_metric():
    output = 9.0 * jax.nn.one_hot(jnp.array([[0, 1, 2], [0, 1, 2]]), 3)
    labels = jnp.array([[0, -1, -5], [0, 2, -1]])
    assert metrics.accuracy(output, labels).tolist() == [1.0, 0.5]
    rows = jax.nn.one_hot(labels, 3)  # zeros where there is none
    assert metrics.accuracy(output, rows).tolist() == [1.0, 0.5]
    step = training.make_step(
        fbp.layers.identity(),
        fbp.losses.softmax_cross_entropy,
        fbp.optimizers.sgd(0.1),
        {"accuracy": metrics.accuracy},
    )
    state = training.initial_state(
        fbp.layers.identity(), fbp.optimizers.sgd(0.1), jax.random.key(0), (3, 3)
    )
    nothing = jnp.full((2, 3), -1).at[0].set(labels[0])
    _, info = step(state, output, nothing)
    assert float(info.metrics["accuracy"]) == 1


@pytest.mark.promise("no-target")
@pytest.mark.parametrize(
    ("loss", "smoothing", "problem"),
    [
        ("mean_squared_error", 0.0, "some positions have no target"),
        ("quadratic", 0.0, "some positions have no target"),
        ("hinge", 0.0, "some positions have no target"),
        ("softmax_cross_entropy", 0.1, "loss.label_smoothing: expected a target at each"),
    ],
)
def test_rows_that_cannot_say_that_there_is_no_target_are_refused(loss, smoothing, problem):
    line = refusal(
        lambda: built(
            {"name": "copy_memory", "examples": 40},
            loss,
            smoothing,
            model={"name": "rnn"},
        )
    )
    assert problem in line


@pytest.mark.promise("labels-beyond-classes")
@pytest.mark.parametrize("labels", [[1, 2, 3], [0, 1, 3], [0, 1, 255]])
def test_a_label_beyond_the_classes_is_no_wrong_answer(labels):
    output, labels = jnp.eye(3), jnp.array(labels)
    with pytest.raises(InputError, match="expected labels from 0 to 2"):
        metrics.accuracy(output, labels)
    values = jax.jit(metrics.accuracy)(output, labels)
    assert np.isnan(values).tolist() == (labels > 2).tolist()
    assert np.isnan(metrics.mean_over_targets(values, output, labels))
    data = Dataset("d", Examples(np.zeros((3, 2)), np.array(labels)), classes=("a", "b", "c"))
    assert "expected labels from 0 to 2" in refusal(lambda: check(data))


@pytest.mark.promise("labels-beyond-classes")
@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.absolute_error])
@pytest.mark.parametrize("shape", [(3, 1), (2,), (3, 2), (3, 3, 1)])
def test_targets_of_another_shape_are_not_broadcast(metric, shape):
    with pytest.raises(InputError, match="expects"):
        metric(jnp.zeros((3, 3)), jnp.zeros(shape))


def spanning(folder, low, high):
    x = np.linspace(low, high, 40)[:, None] * np.ones(2)
    np.savez(folder / "d.npz", x=x, y=np.arange(40) % 2)
    return {"name": "file", "path": str(folder / "d.npz")}


SUSPICIONS = {
    "features to 6300": ((0, 6300), {}, "softmax_cross_entropy", {}, "data.standardize = true"),
    "features far below 0": ((-900, 0), {}, "softmax_cross_entropy", {}, "data.standardize"),
    "pixels to 255": ((0, 255), {}, "softmax_cross_entropy", {}, "data.standardize = true"),
    "features scaled": ((0, 6300), {"standardize": True}, "softmax_cross_entropy", {}, None),
    "small features": ((0, 1), {}, "softmax_cross_entropy", {}, None),
    "softmax twice": (
        (0, 1),
        {},
        "softmax_cross_entropy",
        {"output_activation": "softmax"},
        "applies softmax to its outputs once more",
    ),
    "sigmoid twice": (
        (0, 1),
        {"task": "classification"},
        "sigmoid_cross_entropy",
        {"output_activation": "sigmoid"},
        "applies sigmoid to its outputs once more",
    ),
    "logits that happen to be small": (
        (0, 1),
        {},
        "cross_entropy",
        {
            "output_activation": "relu",
            "bias": {"name": "constant", "value": 0.5},
            "weights": "zeros",
        },
        "expects probabilities, but the model ends with relu",
    ),
    "probabilities": ((0, 1), {}, "cross_entropy", {"output_activation": "softmax"}, None),
    "targets to 900": ((0, 1), {"target": "far"}, "mean_squared_error", {}, "standardize_targets"),
    "seconds": (
        (1.7e9, 1.7e9 + 40),
        {},
        "softmax_cross_entropy",
        {},
        "float32 cannot tell their values apart",
    ),
}


@pytest.mark.promise("suspicions-told")
@pytest.mark.parametrize("case", SUSPICIONS)
def test_what_is_probably_a_mistake_is_told_in_a_line(tmp_path, case):
    span, more, loss, model, expected = SUSPICIONS[case]
    data = spanning(tmp_path, *span) | more
    if more.get("target") == "far":
        arrays = dict(np.load(data["path"]))
        np.savez(data["path"], **arrays, far=np.linspace(0, 900.5, 40))
    notes = built(data, loss, model={"name": "mlp", "hidden": [4], **model}).notes[1:]
    if expected is None:
        assert notes == ()
    else:
        assert any(expected in note and "\n" not in note for note in notes), notes


@pytest.mark.promise("coupled-losses-say-so")
@pytest.mark.parametrize(
    ("body", "is_refused"),
    [
        ("((output - target) ** 2).sum(axis=1)", False),
        ("((output - target) ** 2).sum(axis=1) / output.shape[0]", True),
        ("((output - output.mean(axis=0)) ** 2).sum(axis=1)", True),
        ("jnp.abs(output @ output.T).sum(axis=1)", True),
        ("jnp.full(output.shape[0], (output ** 2).mean())", True),
    ],
)
def test_a_loss_of_ones_own_that_couples_examples_must_say_so(
    tmp_path, monkeypatch, body, is_refused
):
    (tmp_path / "pairs.py").write_text(
        "import jax.numpy as jnp, fbp\n"
        f"def value(output, target):\n    return {body}\n"
        "def loss():\n    return fbp.losses.from_function(value)\n"
        "def coupled():\n    return fbp.losses.from_function(value, coupled=True)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("pairs", None)
    built({"name": "linear", "examples": 40}, "pairs:coupled")
    if is_refused:
        line = refusal(lambda: built({"name": "linear", "examples": 40}, "pairs:loss"))
        assert "say so with coupled=True" in line
    else:
        built({"name": "linear", "examples": 40}, "pairs:loss")


@pytest.mark.promise("pictures-bounded")
@pytest.mark.parametrize("classes", [2, 30, 31, 6_000, 70_000])
def test_a_confusion_matrix_never_costs_the_run(classes):
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, classes, (2, 5_000))
    true[:40], predicted[:40] = classes - 1, 0
    shown = test_evaluation.most_confused(true, predicted, classes)
    matrix = test_evaluation.confusion(true, predicted, shown)
    assert len(matrix) == min(classes, 30)
    for row, label in enumerate(shown):
        for column, other in enumerate(shown):
            assert matrix[row, column] == ((true == label) & (predicted == other)).sum()
    assert {0, classes - 1} <= set(shown.tolist())
    names = [f"class {label}" for label in shown]
    assert classification.confusion_matrix(matrix, names, of=classes).axes


@pytest.mark.promise("pictures-bounded")
def test_rows_over_very_many_classes_are_refused_before_they_are_made(tmp_path):
    y = np.arange(1_000_000)
    np.savez(tmp_path / "d.npz", x=np.zeros((len(y), 1), np.float32), y=y)
    data = {"name": "file", "path": str(tmp_path / "d.npz"), "task": "classification"}
    for loss, smoothing in (("cross_entropy", 0.1), ("quadratic", 0.0)):
        line = refusal(lambda: built(data, loss, smoothing))  # noqa: B023
        assert "take a loss on labels" in line


def evaluated(folder, data, loss="softmax_cross_entropy", **sections):
    experiment = built(data, loss, **sections)
    params, _ = experiment.model.init(jax.random.key(0), experiment.shape)
    notes = []
    values = test_evaluation.evaluate_and_write(
        experiment, params, folder, silent_compiler(), notes.append
    )
    return values, results.read(folder), notes


@pytest.mark.promise("pictures-bounded")
@pytest.mark.parametrize(
    ("shape", "targets"),
    [((2,), 20_000), ((2,), None), ((300, 300, 3), None), ((28, 28, 1), None), ((50_000,), 3)],
    ids=str,
)
def test_what_is_kept_for_pictures_is_bounded(tmp_path, monkeypatch, shape, targets):
    monkeypatch.setattr(test_evaluation, "_MAX_NUMBERS", 2**17)
    monkeypatch.setattr(test_evaluation, "_MAX_TARGETS", 2**10)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, *shape)).astype(np.float32)
    y = np.arange(60) % 40 if targets is None else rng.normal(size=(60, targets))
    np.savez(tmp_path / "d.npz", x=x, y=y.astype(np.float32) if targets else y)
    loss = "softmax_cross_entropy" if targets is None else "mean_squared_error"
    data = {"name": "file", "path": str(tmp_path / "d.npz"), "test": 0.5}
    _, kept, notes = evaluated(tmp_path, data, loss)
    assert notes == []
    for name, array in kept._asdict().items():
        assert array is None or array.size <= 2**17, name


@pytest.mark.promise("pictures-bounded")
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "mean_squared_error"])
def test_the_groups_in_which_the_test_part_is_evaluated_change_nothing(tmp_path, monkeypatch, loss):
    rng = np.random.default_rng(0)
    y = np.arange(80) % 3 if loss.startswith("softmax") else rng.normal(size=(80, 3))
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(80, 4)), y=y)
    data = {"name": "file", "path": str(tmp_path / "d.npz"), "test": 0.5}
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole, arrays, _ = evaluated(tmp_path / "a", data, loss)
    monkeypatch.setattr(test_evaluation, "EVALUATION_BATCH", 7)
    monkeypatch.setattr(test_evaluation, "_MAX_OUTPUTS", 1)
    grouped, same, _ = evaluated(tmp_path / "b", data, loss)
    assert whole.keys() == grouped.keys()
    for key, value in whole.items():
        np.testing.assert_allclose(grouped[key], value, rtol=1e-6)
    for name, array in arrays._asdict().items():
        if array is not None and name not in ("true", "predicted"):
            np.testing.assert_allclose(same._asdict()[name], array, rtol=1e-5)


@pytest.mark.promise("pictures-bounded")
@pytest.mark.parametrize(
    "part", ["_classified", "_with_boundary", "_first_weights", "most_confused"]
)
def test_a_picture_that_fails_never_fails_the_run(tmp_path, monkeypatch, part):
    def fails(*_, **__):
        raise MemoryError("36 GB")

    monkeypatch.setattr(test_evaluation, part, fails)
    values, kept, notes = evaluated(tmp_path, {"name": "moons", "examples": 60})
    assert set(values) == {"test_loss", "test_accuracy"}
    assert kept == results.Results()
    assert notes == ["the test part has no pictures: MemoryError: 36 GB"]


@pytest.mark.promise("pictures-bounded")
@pytest.mark.parametrize("name", ["a" * 5_000, "$\\frac{", "x\ny\x1b[31m", "", "_", "%s {}"])
def test_names_of_classes_break_no_picture(tmp_path, name):
    shown = classification.label(name)
    assert len(shown) <= 26
    assert shown.isprintable()
    data = results.Results(confusion=np.eye(2, dtype=int), confusion_classes=np.arange(2))
    picture = draw._pictures_of_results(data, (name, "b"), ())["confusion_matrix"]
    picture().savefig(io.BytesIO(), format="png")


MEMORY = """
import json, sys
import fbp.datasets, pandas, pyarrow.csv, pyarrow.parquet  # pyarrow imports pandas when it reads
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
before = peak()
data = fbp.datasets.check(fbp.datasets.file(sys.argv[1], task="classification"))
fbp.datasets.prepare(data, seed=0, standardize=sys.argv[2] == "True", overwrite=True)
print(json.dumps(peak() - before))
"""


@pytest.mark.promise("reading-memory")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_reading_takes_at_most_twice_the_file(tmp_path, kind, dtype):
    rows = 80 * 2**20 // (200 * np.dtype(dtype).itemsize)
    x = np.random.default_rng(0).normal(size=(rows, 200)).astype(dtype)
    y = np.arange(rows) % 2
    path = tmp_path / f"d.{kind}"
    if kind == "npz":
        np.savez(path, x=x, y=y)
    else:
        columns = {f"x{i}": x[:, i] for i in range(200)}
        pd.DataFrame({**columns, "y": y}).to_parquet(path, index=False)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path), "True"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) < 2 * path.stat().st_size


def npz_member(header, content=b"", compress=zipfile.ZIP_STORED, name="x.npy"):
    """An archive with a header of its own in the place of ``x``, and good labels."""
    buffer, labels = io.BytesIO(), io.BytesIO()
    np.save(labels, np.arange(4) % 2)
    padded = header.ljust(117).encode() + b"\n"
    with zipfile.ZipFile(buffer, "w") as archive:
        start = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little")
        archive.writestr(name, start + padded + content, compress)
        archive.writestr("y.npy", labels.getvalue())
    return buffer.getvalue()


def header(shape, dtype="'<f8'"):
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"


HEADERS = {
    "absurd shape": (npz_member(header((10**9, 10**9)), b"x" * 64), "says that it is float64"),
    "shape beyond 64 bits": (npz_member(header((2**40, 2**40)), b"x" * 64), "bytes are stored"),
    "negative shape": (npz_member(header((-4, -2)), b"x" * 64), "is damaged"),
    "too little stored": (npz_member(header((4, 2)), b"x" * 63), "but 63 bytes are stored"),
    "too much stored": (npz_member(header((4, 2)), b"x" * 65), "but 65 bytes are stored"),
    "objects": (npz_member(header((4, 2), "'|O'"), b"x" * 64), "Python objects"),
    "objects in fields": (
        npz_member(header((4,), "[('a', '|O')]"), b"x" * 32),
        "Python objects",
    ),
    "fields": (npz_member(header((4,), "[('a', '<f8'), ('b', '<f8')]"), b"x" * 64), "real numbers"),
    "complex": (npz_member(header((4, 1), "'<c16'"), b"x" * 64), "expected real numbers"),
    "dates": (npz_member(header((4, 2), "'<M8[s]'"), b"x" * 64), "expected real numbers"),
    "void": (npz_member(header((4, 2), "'|V8'"), b"x" * 64), "expected real numbers"),
    "code as header": (npz_member("__import__('os').abort()", b"x" * 64), "cannot be read"),
    "no array": (npz_member("", b"", name="x"), "cannot be read"),
    "no features": (npz_member(header((4, 0))), "expected features"),
    "no axis": (npz_member(header(()), b"x" * 8), "expected features"),
}


@pytest.mark.promise("headers-first")
@pytest.mark.parametrize("case", HEADERS)
def test_an_archive_is_checked_by_its_headers(tmp_path, case):
    content, problem = HEADERS[case]
    (tmp_path / "d.npz").write_bytes(content)
    assert problem in refusal(lambda: check(datasets.file(str(tmp_path / "d.npz"))))


@pytest.mark.promise("headers-first")
def test_an_archive_that_unpacks_to_gigabytes_is_refused_unread(tmp_path, monkeypatch):
    rows = 2**21
    buffer = npz_member(header((rows, 80)), b"\0" * (rows * 640), zipfile.ZIP_DEFLATED)
    (tmp_path / "d.npz").write_bytes(buffer)
    assert len(buffer) < 4e6
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("was read"))
    assert "unpacks to" in refusal(lambda: datasets.file(str(tmp_path / "d.npz")))


@pytest.mark.promise("headers-first")
def test_arrays_beyond_the_memory_are_refused_unread(tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 2)), y=np.arange(4) % 2)
    monkeypatch.setattr("os.sysconf", lambda name: 4)
    assert "of memory" in refusal(lambda: datasets.file(str(tmp_path / "d.npz")))


@pytest.mark.promise("headers-first")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        for name in ("x.npy", "y.npy", "x"):
            archive.writestr(name, b"")
    assert "two arrays of the same name" in refusal(lambda: datasets.file(str(tmp_path / "d.npz")))


@pytest.mark.promise("long-lists-cut")
@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_a_wrong_target_prints_the_nearest_names_and_a_count(tmp_path, kind):
    names, path = [f"gene_{i}" for i in range(20_000)], tmp_path / f"d.{kind}"
    if kind == "csv":
        path.write_text(",".join(names) + "\n" + ",".join(["1"] * 20_000) + "\n")
    elif kind == "parquet":
        pd.DataFrame(np.ones((1, 20_000)), columns=names).to_parquet(path)
    else:
        np.savez(path, **{name: np.zeros(0) for name in names[:3000]})
    line = refusal(lambda: datasets.file(str(path), target="gene_1x"))
    assert ("'gene_1'" in line and "20,000" in line) or "and 2,988 more" in line
    far = refusal(lambda: datasets.file(str(path), target="?"))
    assert "more" in far


@pytest.mark.promise("long-lists-cut")
@pytest.mark.parametrize("kind", ["text columns", "duplicates", "test labels"])
def test_no_other_message_lists_thousands_of_names(tmp_path, kind):
    names, path = [f"gene_{i}" for i in range(20_000)], tmp_path / "d.parquet"
    if kind == "text columns":
        pd.DataFrame([["t"] * 20_000], columns=names).to_parquet(path)
    elif kind == "duplicates":
        path = tmp_path / "d.csv"
        path.write_text(",".join(names * 2) + "\n")
    else:
        path = tmp_path / "d.npz"
        x, y = np.zeros((20_000, 1)), np.array(names)
        np.savez(path, x=x[:4], y=np.array(list("abab")), x_test=x, y_test=y)
    assert "more" in refusal(lambda: datasets.file(str(path)))


def examples(x=((1.0, 2.0), (3.0, 4.0)), y=(0, 1), dtype=np.float32):
    return Examples(np.array(x, dtype), np.array(y, np.int32))


BASE = Dataset("d", examples(), classes=("a", "b"), tokens=("u", "v"))
CHANGES = {
    "a class": BASE._replace(classes=("a", "c")),
    "a token": BASE._replace(tokens=("u", "w")),
    "the order of classes": BASE._replace(classes=("b", "a")),
    "classes joined": BASE._replace(classes=("ab",)),
    "a class moved to the tokens": BASE._replace(classes=("a",), tokens=("b", "u", "v")),
    "an empty class": BASE._replace(classes=("a", "b", "")),
    "classes and tokens exchanged": BASE._replace(classes=("u", "v"), tokens=("a", "b")),
    "the order flag": BASE._replace(ordered=True),
    "a test part": BASE._replace(test=examples()),
    "another shape": BASE._replace(train=Examples(BASE.train.x.reshape(4, 1), BASE.train.y)),
    "another dtype": BASE._replace(train=examples(dtype=np.float64)),
    "another byte order": BASE._replace(train=examples(dtype=">f4")),
    "a bit": BASE._replace(train=examples(((1.0, 2.0), (3.0, np.nextafter(4, 5, dtype="f4"))))),
    "minus zero": BASE._replace(train=examples(((-0.0, 2.0), (3.0, 4.0)))),
    "zero": BASE._replace(train=examples(((0.0, 2.0), (3.0, 4.0)))),
}


@pytest.mark.promise("fingerprint")
def test_whatever_differs_has_another_fingerprint():
    prints = {case: data.fingerprint for case, data in {"base": BASE, **CHANGES}.items()}
    assert len(set(prints.values())) == len(prints)
    assert BASE._replace(name="other", notes=("note",)).fingerprint == BASE.fingerprint


@pytest.mark.promise("fingerprint")
def test_dtypes_that_share_a_code_are_told_apart():
    import ml_dtypes

    names = ("int4", "uint4", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "bfloat16")
    values = np.zeros((2, 2), np.float32)
    kinds = [values.astype(getattr(ml_dtypes, name)) for name in names] + [values.astype("f2")]
    prints = {Dataset("d", Examples(x, np.zeros(2, np.int32))).fingerprint for x in kinds}
    assert len(prints) == len(kinds)


@pytest.mark.promise("fingerprint")
def test_the_test_part_cannot_be_moved_into_the_training_part():
    x = np.arange(8, dtype=np.int32)
    pairs = [
        (Examples(x[:4], x[:0]), Examples(x[4:], x[:0])),
        (Examples(x[:4], x[4:]), Examples(x[:0], x[:0])),
        (Examples(x, x[:0]), Examples(x[:0], x[:0])),
    ]
    prints = {Dataset("d", train, test).fingerprint for train, test in pairs}
    assert len(prints) == len(pairs)


@pytest.mark.promise("fingerprint")
def test_a_run_records_the_fingerprint_of_the_data_as_loaded(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(40, 2)).astype("f4"), y=np.arange(40) % 2)
    data = {"name": "file", "path": str(tmp_path / "d.npz")}
    loaded = check(datasets.file(data["path"])).fingerprint
    for more in ({}, {"standardize": True}, {"test": 0.3}):
        assert built(data | more).fingerprint == loaded
    assert built(data, seed=3).fingerprint == loaded
    assert len(built(data).dataset.train.x) == 0


@pytest.mark.promise("scaled-in-float64")
def test_a_feature_that_varies_in_the_test_part_alone_is_told():
    train = np.array([[0.0], [1e-38]] * 20)
    data = Dataset(
        "d", Examples(train, np.zeros((40, 1))), Examples(train[:9] + 9, np.zeros((9, 1)))
    )
    line = refusal(lambda: prepare(check(data), seed=0, standardize=True))
    assert "number 0 of an example (counted from 0) is too large for float32" in line
