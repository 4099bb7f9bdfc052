"""Attacks on what is kept of the test part for pictures: it is bounded, and fails no run."""

import io

import jax
import numpy as np
import pytest

from fbp.experiment.figures import classification, draw
from fbp.experiment.rundir import results
from fbp.experiment.runner import test_evaluation
from tests.attacks.datafiles import built, refusal
from tests.projects import silent_compiler


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
