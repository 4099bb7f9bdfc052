"""Whole runs, as a user starts them: the record in MLflow, and failures."""

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import fbp
from fbp.cli import main
from fbp.experiment.rundir import layout
from fbp.experiment.rundir.npz import params_digest
from fbp.experiment.rundir.series import metrics_digest, read_series
from fbp.experiment.runner.trained_model import read
from tests.projects import client, command, fbp_run, one, the_run, write_config


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
    def test_the_same_run_again_has_the_same_digests(self, finished):
        project, *_ = finished
        first = the_run(project).data.tags
        again = subprocess.run(
            command("run", "small.toml", "--set", "tracking.experiment=again"),
            cwd=project,
            capture_output=True,
            timeout=240,
        )
        assert again.returncode == 0
        second = the_run(project, "again").data.tags
        for digest in ("fbp.params_digest", "fbp.metrics_digest"):
            assert first[digest] == second[digest]


@pytest.mark.slow
def test_two_runs_at_once_on_a_new_store(project):
    """A new SQLite store that two processes open at once is destroyed, were it not for the lock."""
    write_config(project)
    runs = [
        subprocess.Popen(
            command("run", "small.toml", "--set", f"seed={seed}"), stderr=subprocess.DEVNULL
        )
        for seed in (0, 1)
    ]
    assert [run.wait(timeout=240) for run in runs] == [0, 0]
    found = client(project)
    stored = found.search_runs([found.get_experiment_by_name("small").experiment_id])
    assert [run.info.status for run in stored] == ["FINISHED", "FINISHED"]
    assert {run.data.tags["fbp.seed"] for run in stored} == {"0", "1"}


def test_divergence_fails_the_run_with_step_and_cause_and_keeps_finite_parameters(project, warm):
    path = write_config(project, data="linear", loss="mean_squared_error")
    done = fbp_run(path, "--set", "optimizer={name='sgd', learning_rate=1e6}", status=1)
    assert "FAILED: the loss became" in done.stderr
    for word in ("at step", "gradient", "learning rate 1e+06", "optimizer.clip_global_norm"):
        assert word in done.stderr
    run = the_run(project)
    assert run.info.status == "FAILED"
    assert "loss" in run.data.tags["fbp.nonfinite"]
    assert "at step" in run.data.tags["fbp.message"]
    kept = read(one(project / "mlruns" / "runs") / "artifacts" / "model").params
    assert all(np.isfinite(leaf).all() for leaf in (kept[1]["w"], kept[3]["w"]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_killed_in_good_order(project, warm, number):
    path = write_config(project, data="digits")
    with subprocess.Popen(
        command("run", path, "--set", "training.epochs=1000000"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        for line in process.stderr:
            if "step" in line:
                break
        time.sleep(1)
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(timeout=120) == 128 + number
    assert "Traceback" not in rest
    assert f"KILLED: stopped by {number.name}" in rest
    run = the_run(project)
    assert run.info.status == "KILLED"
    folder = one(project / "mlruns" / "runs")
    series = read_series(folder)
    assert run.data.tags["fbp.metrics_digest"] == metrics_digest(series)
    assert read(folder / "artifacts" / "model").params
    stored = client(project).get_metric_history(run.info.run_id, "train_loss")
    assert [p.step for p in stored] == series["train_loss"].steps.tolist()


def test_a_training_process_that_dies_leaves_no_run_open(project, warm):
    path = write_config(project, data="digits")
    with subprocess.Popen(
        command("run", path, "--set", "training.epochs=1000000"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        for line in process.stderr:
            if "step" in line:
                break
        process.kill()
    folder = one(project / "mlruns" / "runs")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state = layout.sent(folder)
        if state.exists() and json.loads(state.read_text())["done"]:
            break
        time.sleep(0.2)
    assert the_run(project).info.status == "KILLED"


def test_variants_are_children_of_one_run(project, warm):
    more = """
[[variant]]
name = "narrow"
set = { "model.hidden" = [2] }
[[variant]]
name = "wide"
set = { "model.hidden" = [16] }
"""
    done = fbp_run(write_config(project, more=more))
    assert "narrow" in done.stdout
    found = client(project)
    runs = found.search_runs([found.get_experiment_by_name("small").experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    (parent,) = parents
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.params["model_hidden"] for run in children} == {"[2]", "[16]"}
    assert all(run.info.status == "FINISHED" for run in runs)
    assert {Path(item.path).name for item in found.list_artifacts(parent.info.run_id, "plots")} == {
        "delta_norms.png",
        "learning_curves.png",
    }


@pytest.mark.slow
def test_a_journal_that_could_not_be_sent_is_sent_later(project):
    """No store can be made below a file; the run trains, and sync sends it elsewhere."""
    path = write_config(project)
    (project / "blocked").write_text("")
    environment = os.environ | {"FBP_RETRY_SECONDS": "1"}
    done = subprocess.run(
        command("run", path, "--tracking-uri", f"sqlite:///{project}/blocked/mlflow.db"),
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "nothing is lost" in done.stderr
    elsewhere = ["--tracking-uri", f"sqlite:///{project}/mlruns/mlflow.db"]
    result = subprocess.run(
        command("sync", *elsewhere), capture_output=True, text=True, timeout=240
    )
    assert "1 of 1 runs sent" in result.stdout, result.stdout + result.stderr
    assert the_run(project).info.status == "FINISHED"
    again = subprocess.run(command("sync"), capture_output=True, text=True, timeout=240)
    assert "nothing to send" in again.stdout


def test_ctrl_c_before_training_leaves_nothing_behind(project):
    path = write_config(project)
    with subprocess.Popen(
        command("run", path), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list(
            (project / "mlruns").glob("runs/*/shipper.log")
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
        status = process.wait(timeout=120)
    assert status == 130, errors
    assert "Traceback" not in errors
    if list((project / "mlruns" / "runs").iterdir()):  # the machine was quick enough to begin
        assert the_run(project).info.status == "KILLED"


@pytest.mark.slow
def test_damaged_records_do_not_stop_other_runs(project, warm):
    fbp_run(write_config(project))
    folder = one(project / "mlruns" / "runs")
    layout.sent(folder).write_text("{")
    with open(folder / "journal.jsonl", "a") as file:
        file.write("garbage\n")
    with pytest.raises(fbp.InputError):
        fbp.load("nope")
    result = subprocess.run(command("sync"), capture_output=True, text=True, timeout=240)
    assert "1 of 1 runs sent" in result.stdout, result.stderr
    assert the_run(project).info.status == "FINISHED"  # the same run, not another


class TestBadInput:
    """One clear line, exit status 2, no traceback, no run."""

    def refused(self, *arguments):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        return result.output

    def no_run(self, project):
        runs = project / "mlruns" / "runs"
        assert not runs.exists() or not list(runs.iterdir())
        database = project / "mlruns" / "mlflow.db"
        if database.exists():
            assert sqlite3.connect(database).execute("select count(*) from runs").fetchone() == (0,)

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["run", "nothing.toml"], "no such file"),
            (
                ["run", "small.toml", "--set", "optimizer.learning_rat=1"],
                "did you mean 'learning_rate'",
            ),
            (
                ["run", "small.toml", "--set", "training.batch_size=1000"],
                "at most the 120 training examples, got 1000",
            ),
            (
                ["run", "small.toml", "--set", "data.validation=0.001"],
                "the validation part is empty",
            ),
            (
                ["run", "small.toml", "--set", "data.name=mnist", "--set", "data.folder=nowhere"],
                "got no such folder",
            ),
            (
                ["run", "small.toml", "--set", "data={name='file', path='no.csv'}"],
                "'no.csv', which does not exist",
            ),
            (["run", "small.toml", "--tracking-uri", "./runs"], "expected sqlite:///PATH"),
            (["check", "nothing.toml"], "no such file"),
            (
                ["run", "small.toml", "--set", "augmentation.shift=2"],
                "expected pictures (H, W, C), got examples of shape (4,)",
            ),
            (
                ["run", "small.toml", "--set", "model={name='lstm'}"],
                "layer 0 (lstm(128)): lstm expects examples of shape (T, F)",
            ),
            (
                ["run", "small.toml", "--set", "model.hidden=[1000000000000]"],
                "model: its parameters take 32,000 GB",
            ),
            (
                ["run", "small.toml", "--set", "model={name='gpt', features=10}"],
                "features must be a multiple of heads",
            ),
            (
                ["run", "small.toml", "--set", "data={name='text', context=100000}"],
                "a text of at least 20 pieces",
            ),
            (["generate", "nothing"], "there is no such folder, and no run of that name"),
            (["list", "optimiser"], "did you mean 'optimizer'"),
            (["rnu"], "did you mean 'run'"),
            (["ui"], "there are no runs"),
        ],
    )
    def test_is_refused(self, project, arguments, problem):
        write_config(project)
        output = self.refused(*arguments)
        assert problem in output
        assert len(output.splitlines()) == 1
        self.no_run(project)

    def test_a_test_part_of_another_shape(self, project):
        np.savez(
            project / "d.npz",
            x=np.zeros((20, 3)),
            y=np.arange(20) % 2,
            x_test=np.zeros((4, 5)),
            y_test=np.zeros(4, int),
        )
        write_config(project)
        output = self.refused("run", "small.toml", "--set", "data={name='file', path='d.npz'}")
        assert (
            "test part: expected examples of the training part's shape (N, 3), got (4, 5)" in output
        )
        self.no_run(project)

    @pytest.mark.parametrize("value", ["nan", "inf"])
    def test_features_that_are_not_finite(self, project, value):
        (project / "d.csv").write_text("a,b\n" + "1,0\n2,1\n" * 20 + f"{value},1\n")
        write_config(project)
        output = self.refused("run", "small.toml", "--set", "data={name='file', path='d.csv'}")
        assert f"got text '{value}' in column 'a', line 42; fill or remove it" in output
        self.no_run(project)


class TestOtherCommands:
    def test_help_has_each_command_once(self):
        shown = CliRunner().invoke(main, ["--help"]).output
        for name, described in main.commands.items():
            assert shown.count(f"\n  {name} ") == 1
            assert f"  {described.short_help}\n" in shown

    def test_check_prints_a_table_and_exits_0(self, project):
        write_config(project)
        result = CliRunner().invoke(main, ["check", "small.toml"])
        assert result.exit_code == 0, result.output
        assert "all right" in result.output
        assert "1 dense(8)" in result.output

    def test_check_exits_1_where_a_backward_is_wrong(self, project, monkeypatch):
        (project / "wrong.py").write_text(
            "import fbp\n"
            "def model(outputs: int):\n"
            "    good = fbp.layers.tanh()\n"
            "    back = lambda p, c, d: (2 * good.backward(p, c, d)[0], ())\n"
            "    bad = good._replace(backward=back)\n"
            "    return fbp.chain(fbp.layers.dense(5), bad, fbp.layers.dense(outputs))\n"
        )
        monkeypatch.syspath_prepend(project)
        write_config(project)
        result = CliRunner().invoke(
            main, ["check", "small.toml", "--set", "model={name='wrong:model'}"]
        )
        assert result.exit_code == 1
        assert "WRONG" in result.output

    def test_describe_shows_the_layers_and_draws_the_graph(self, project):
        write_config(project, data="digits")
        options = ["--set", "model={name='inception', channels=4}", "--picture", "model.svg"]
        result = CliRunner().invoke(main, ["describe", "small.toml", *options])
        assert result.exit_code == 0, result.output
        for word in (
            "1_5x5/1/0",
            "conv2d(4, 5x5)",
            "8 x 8 x 16",
            "cache",
            "bwd FLOPs",
            "picture: model.svg",
        ):
            assert word in result.output
        picture = (project / "model.svg").read_text()
        assert "<svg" in picture
        refused = CliRunner().invoke(main, ["describe", "small.toml", "--picture", "model.gif"])
        assert (refused.exit_code, "ending in .svg, .png or .pdf" in refused.output) == (2, True)

    def test_list_has_a_line_for_each_name(self):
        result = CliRunner().invoke(main, ["list"])
        assert result.exit_code == 0
        for name in ("digits", "mlp", "gelu", "he_normal", "huber", "lamb", "one_cycle"):
            assert f"  {name} " in result.output

    def test_an_unknown_run_is_not_loaded(self, project):
        with pytest.raises(fbp.InputError, match="no such folder, and no run of that name"):
            fbp.load("nothing")


def test_compiled_programs_are_kept_by_processor_and_threads(tmp_path):
    """JAX's own key does not know the number of threads, by which the compiler cuts loops."""
    words = (
        "import jax; "
        "from fbp.experiment.runner.jax_setup import _enable_compilation_cache as on; on(); "
    )
    words += "print(jax.config.jax_compilation_cache_dir)"

    def folder(**variables):
        environment = (
            os.environ
            | {"XDG_CACHE_HOME": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": "true"}
            | variables
        )
        return subprocess.run(
            [sys.executable, "-c", words],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    one, two = folder(PJRT_NPROC="1"), folder(PJRT_NPROC="2")
    assert Path(one).parent == Path(two).parent == tmp_path / "fbp"
    assert one != two
    assert folder(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own")) == str(tmp_path / "own")
    assert folder(JAX_ENABLE_COMPILATION_CACHE="false") == "None"


@pytest.mark.slow
def test_a_second_run_takes_its_programs_from_the_cache_and_ends_in_the_same_bits(
    project, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    write_config(project)
    programs = []
    for _ in range(2):
        fbp_run("small.toml")
        programs.append(sorted((tmp_path / "cache" / "fbp").glob("*/*-cache")))
    assert programs[0]
    assert programs[0] == programs[1]
    found = client(project)
    runs = found.search_runs([found.get_experiment_by_name("small").experiment_id])
    assert len({run.data.tags["fbp.params_digest"] for run in runs}) == 1
    for program in programs[0]:  # a cache that was cut off by a full disk or a kill is only slow
        program.write_bytes(program.read_bytes()[:100])
    fbp_run("small.toml")
