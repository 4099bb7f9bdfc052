"""Whole runs, as a user starts them: variants, failures, signals, and what is sent later."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import fbp
from fbp.experiment.rundir import layout
from fbp.experiment.rundir.series import metrics_digest, read_series
from fbp.experiment.runner.trained_model import read
from tests.cases import slow_but
from tests.projects import client, command, fbp_run, one, the_run, write_config


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


@pytest.mark.parametrize("number", slow_but([signal.SIGINT, signal.SIGTERM], signal.SIGINT))
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
