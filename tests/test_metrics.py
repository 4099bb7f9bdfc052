"""Metrics, the library's and a user's own: values, defaults, names, and how they are shown."""

import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp.experiment.commands import progress
from fbp.experiment.config import reading
from fbp.experiment.rundir import metric_table
from fbp.experiment.runner import build
from tests.own_functions import refusal


class TestMetrics:
    def test_values(self):
        output, y = jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 0.0]])
        np.testing.assert_allclose(fbp.metrics.accuracy(output, jnp.array([1, 1])), [1, 0])
        np.testing.assert_allclose(fbp.metrics.absolute_error(output, y), [1, 1.5])

    def test_the_default_is_by_the_kind_of_targets(self, own_minimal):
        assert list(build.build(reading.read(own_minimal)).metrics) == ["accuracy"]
        overrides = ["data={name='linear'}", "loss={name='huber'}"]
        assert list(build.build(reading.read(own_minimal, overrides)).metrics) == ["absolute_error"]
        assert build.build(reading.read(own_minimal, ["metrics.names=[]"])).metrics == {}

    @pytest.mark.parametrize(
        "names", ["['accuracy', 'accuracy']", "[{name='accuracy', label='loss'}]"]
    )
    def test_names_are_unique(self, own_minimal, names):
        assert "metrics.names: expected different names" in refusal(
            own_minimal, f"metrics.names={names}"
        )

    def test_they_can_be_selected_by(self, own_minimal):
        overrides = ["metrics.names=['mine:top']", "selection.metric=validation_top"]
        assert build.build(reading.read(own_minimal, overrides))
        line = refusal(own_minimal, "selection.metric=validation_top")
        assert "no metric 'validation_top' is logged" in line


def test_the_users_metrics_are_shown_like_the_librarys(own_minimal):
    overrides = ["metrics.names=['accuracy', 'mine:margin', {name='mine:top', label='best'}]"]
    build.build(reading.read(own_minimal, overrides))
    names = ("loss", "accuracy", "margin", "best")
    values = {f"{part}_{name}": 0.5 for part in ("train", "validation", "test") for name in names}
    table = progress.results_table({"run": values})
    assert [str(column.header) for column in table.columns] == ["part", *names]
    line = progress.metrics_line({"loss": 0.5, "learning_rate": 0.1, "delta_norm/1": 1.0, **values})
    assert line.startswith("loss 0.5  train loss 0.5  val loss 0.5  train accuracy 50.00%")
    assert "train margin 0.5" in line
    assert metric_table.better("validation_margin") == "max"
    chunk = {"loss": 0.5, "margin": 0.25, "examples_per_second": 10.0}
    assert progress.metrics_line(chunk) == "loss 0.5  margin 0.25  10 examples/s"
