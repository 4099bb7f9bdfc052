"""A whole run, as a user starts it: what is printed, and the record in MLflow."""

import itertools
from pathlib import Path

import numpy as np
import pytest

import fbp
from fbp.experiment.rundir.npz import params_digest
from fbp.experiment.rundir.series import metrics_digest, read_series
from tests.projects import client, fbp_run, one, the_run, write_config


class TestFinishedRun:
    def test_the_user_sees_progress_results_and_where_to_look(self, finished):
        _, stdout, stderr = finished
        assert "epoch 3/3" in stderr
        assert "examples/s" in stderr
        for word in ("train", "validation", "test", "accuracy", "fbp ui"):
            assert word in stdout
        assert "\r" not in stderr  # no bar where there is no terminal

    def test_status_parameters_and_tags(self, finished):
        project, *_ = finished
        run = the_run(project)
        assert run.info.status == "FINISHED"
        assert run.data.params["optimizer_name"] == "adam"
        assert run.data.params["optimizer_beta1"] == "0.9"
        assert run.data.params["training_epochs"] == "3"
        tags = run.data.tags
        for tag in (
            "seed",
            "jax",
            "jaxlib",
            "device_kind",
            "device_count",
            "data_fingerprint",
            "params_digest",
        ):
            assert tags[f"fbp.{tag}"]
        assert tags["fbp.data_fingerprint"] == fbp.datasets.digits().fingerprint
        assert tags["mlflow.note.content"] == "a small run"

    def test_every_metric_is_there(self, finished):
        project, *_ = finished
        run, mlflow = the_run(project), client(project)
        steps = 3 * (1437 // 32)
        for key in ("loss", "learning_rate", "gradient_norm"):
            points = mlflow.get_metric_history(run.info.run_id, key)
            assert [point.step for point in points] == list(range(1, steps + 1))
            assert all(a.timestamp <= b.timestamp for a, b in itertools.pairwise(points))
        for key in (
            "train_loss",
            "train_accuracy",
            "validation_loss",
            "validation_accuracy",
            "examples_per_second",
        ):
            assert [p.step for p in mlflow.get_metric_history(run.info.run_id, key)] == [
                44,
                88,
                132,
            ]
        for key in ("delta_norm/1", "gradient_norm/1/w", "update_norm/3/b", "update_ratio/3/w"):
            assert [p.step for p in mlflow.get_metric_history(run.info.run_id, key)] == [
                0,
                44,
                88,
                132,
            ]
        assert 0.5 < run.data.metrics["test_accuracy"] <= 1

    def test_metrics_in_mlflow_are_the_journals(self, finished):
        project, *_ = finished
        run, mlflow = the_run(project), client(project)
        folder = one(project / "mlruns" / "runs")
        series = read_series(folder)
        assert set(series) == {key for key in run.data.metrics if not key.startswith("system/")}
        assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(
            run.data.metrics
        )
        for key, points in series.items():
            stored = mlflow.get_metric_history(run.info.run_id, key)
            np.testing.assert_array_equal([p.value for p in stored], points.values)
            np.testing.assert_array_equal([p.timestamp for p in stored], points.times)
        assert run.data.tags["fbp.metrics_digest"] == metrics_digest(series)

    def test_data_sets_are_inputs_with_digests_of_all_their_content(self, finished):
        project, *_ = finished
        inputs = the_run(project).inputs.dataset_inputs
        names = {entry.dataset.name: entry.tags[0].value for entry in inputs}
        assert names == {
            "digits/train": "training",
            "digits/validation": "validation",
            "digits/test": "testing",
        }
        assert len({entry.dataset.digest for entry in inputs}) == 3

    def test_artifacts(self, finished):
        project, *_ = finished
        run, mlflow = the_run(project), client(project)
        assert run.info.artifact_uri.startswith(str(project / "mlruns" / "artifacts"))

        def names(path=""):
            return {Path(item.path).name for item in mlflow.list_artifacts(run.info.run_id, path)}

        assert {
            "config.toml",
            "environment.json",
            "summary.txt",
            "history",
            "plots",
            "model",
        } <= names()
        assert names("plots") == {
            "learning_curves.png",
            "learning_rate.png",
            "delta_norms.png",
            "confusion_matrix.png",
            "misclassified.png",
            "first_layer_weights.png",
            "model.png",
            "model.svg",
        }
        assert names("history") == {"steps.csv", "metrics.csv", "checkpoints.json", "layers.json"}

    def test_the_model_loads_back_three_ways_and_predicts_the_same(self, finished, monkeypatch):
        import mlflow

        project, *_ = finished
        monkeypatch.chdir(project)
        monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        run = the_run(project)
        x = fbp.datasets.digits().train.x[:7]
        by_folder = fbp.load(one(project / "mlruns" / "runs"))
        expected = by_folder.predict(x)
        np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_array_equal(fbp.load(run.info.run_id).predict(x.reshape(7, 64)), expected)
        assert params_digest(by_folder.params) == run.data.tags["fbp.params_digest"]
        (logged,) = client(project).search_logged_models([run.info.experiment_id])
        loaded = mlflow.pyfunc.load_model(logged.artifact_location)
        np.testing.assert_allclose(loaded.predict(x), expected, rtol=1e-6)
        assert loaded.metadata.signature.inputs.to_dict()[0]["tensor-spec"]["shape"] == (
            -1,
            8,
            8,
            1,
        )
        stored = list(Path(logged.artifact_location).rglob("*"))
        assert not [path for path in stored if path.suffix in (".pkl", ".pickle")]

    @pytest.mark.slow
    def test_the_same_run_again_has_the_same_digests(self, finished, warm):
        first = the_run(finished[0]).data.tags
        write_config(warm, data="digits")
        fbp_run("small.toml")
        second = the_run(warm).data.tags
        for digest in ("fbp.params_digest", "fbp.metrics_digest"):
            assert first[digest] == second[digest]
