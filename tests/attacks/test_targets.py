"""Attacks on targets: the task they set, no target at all, labels beyond the classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import fbp
from fbp import datasets, metrics, training
from fbp.datasets import Dataset, Examples, check, prepare
from fbp.errors import InputError
from tests.attacks.datafiles import built, csv_file, refusal

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
