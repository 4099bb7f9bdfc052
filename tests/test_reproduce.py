"""Reproducing recorded runs: the verdict, the check of a record, and whole reproductions."""

import os
import shutil
import signal
import subprocess
import time

import numpy as np
import psutil
import pytest

import fbp
from fbp.experiment.commands import run_record
from fbp.experiment.commands.verdict import compare_runs
from fbp.experiment.config import reading
from fbp.experiment.config.references import reading_record
from fbp.experiment.config.trust import NOTHING, trust_of
from fbp.experiment.rundir import environment, history, journal_lines, layout
from fbp.experiment.rundir.checkpoints import CheckpointDigests
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.journal_lines import CheckpointLine
from fbp.experiment.rundir.series import Series, read_series
from fbp.experiment.tracking import mlflow_runs
from fbp.experiment.tracking.mlflow_runs import MlflowRuns
from fbp.experiment.tracking.run_reader import RecordedRun
from fbp.experiment.tracking.shipment import is_sent
from tests.projects import client, command, one, runs_of, said, write_config


def series(**values):
    return {
        key: Series(
            np.arange(1, len(numbers) + 1), np.array(numbers, float), np.zeros(len(numbers), int)
        )
        for key, numbers in values.items()
    }


def a_checkpoint(step, digest, tensors, state="s"):
    return CheckpointLine(
        time=0, step=step, params_digest=digest, tensors=tensors, state_digest=state
    )


class TestVerdict:
    RECORDED = {
        0: CheckpointDigests(0, "a", {"0/w": "1"}, "s"),
        5: CheckpointDigests(5, "b", {"0/w": "2", "0/b": "3"}, "s"),
    }
    REPRODUCED = {
        0: a_checkpoint(0, "a", {"0/w": "1"}),
        5: a_checkpoint(5, "c", {"0/w": "2", "0/b": "9"}),
    }

    def test_identical(self):
        same = {
            step: a_checkpoint(step, entry.params_digest, {})
            for step, entry in self.RECORDED.items()
        }
        first = series(loss=[1, float("nan"), float("inf")], examples_per_second=[1, 2])
        second = series(loss=[1, float("nan"), float("inf")], examples_per_second=[3, 4])
        verdict = compare_runs(first, second, self.RECORDED, same)
        assert verdict == (3, 2, ())
        assert verdict.identical

    def test_the_first_step_and_by_how_much(self):
        other = float(np.nextafter(0.5, 1))
        verdict = compare_runs(
            series(b=[1, 0.5, 3], a=[1, 2, 3]), series(b=[1, other, 3], a=[1, 2, 4]), {}, {}
        )
        assert not verdict.identical
        assert (
            f"at step 2: b was 0.5, is {other!r} (difference 1.11e-16); 2 of 6 values differ"
            in verdict.differences[0]
        )

    def test_minus_zero_is_not_zero(self):
        assert not compare_runs(series(a=[0.0]), series(a=[-0.0]), {}, {}).identical

    def test_a_number_is_not_nan_and_nothing_proves_nothing(self):
        assert not compare_runs(series(a=[float("nan")]), series(a=[0.5]), {}, {}).identical
        assert "there is nothing to compare" in compare_runs({}, {}, {}, {}).differences[0]

    def test_what_is_missing_differs(self):
        assert (
            "a was 2.0, and is missing"
            in compare_runs(series(a=[1, 2]), series(a=[1]), {}, {}).differences[0]
        )

    def test_the_first_tensor(self):
        verdict = compare_runs({}, {}, self.RECORDED, self.REPRODUCED)
        assert (
            "the checkpoint of step 5: tensor 0/b first, 1 of 2 in all; "
            "at step 0 they were the same" in verdict.differences[0]
        )

    def test_a_state_beside_the_parameters(self):
        other = {0: a_checkpoint(0, "a", {}, "t"), 5: a_checkpoint(5, "b", {}, "t")}
        verdict = compare_runs({}, {}, self.RECORDED, other)
        assert "optimizer state" in verdict.differences[0]
        assert "the checkpoint of step 0" in verdict.differences[0]


def test_only_plain_switches_are_taken_from_a_record():
    record = {
        "threads": 3,
        "jax": {
            "enable_x64": True,
            "threefry_partitionable": "0; rm",
            "default_matmul_precision": None,
        },
        "variables": {
            "XLA_FLAGS": "--xla_gpu_deterministic_ops=true --xla_dump_to=/tmp/x "
            "--xla_cpu_max_isa=AVX2 --xla_x=3",
            "LD_PRELOAD": "x.so",
        },
    }
    found, left = environment.restorable_variables(record)
    assert found == {
        "PJRT_NPROC": "3",
        "JAX_ENABLE_X64": "True",
        "XLA_FLAGS": "--xla_gpu_deterministic_ops=true --xla_x=3",
    }
    assert left == ["--xla_dump_to=/tmp/x", "--xla_cpu_max_isa=AVX2"]
    assert environment.restorable_variables({"threads": True}) == ({}, [])


def a_run(status="KILLED"):
    return RecordedRun("id", "name", "experiment", status, 0, 0, {}, {}, {})


def test_names_with_commas_and_quotes_come_back_from_the_history(tmp_path):
    (tmp_path / "artifacts").mkdir()
    values = {'delta_norm/a,b "c"': 1.5, "loss": float("nan")}
    Journal(tmp_path).metrics(3, values)
    history.write(tmp_path)
    found = history.read(tmp_path / "artifacts")
    assert {key: points.steps.tolist() for key, points in found.items()} == {
        key: [3] for key in values
    }
    assert found['delta_norm/a,b "c"'].values.tolist() == [1.5]


RECORDED_CODE = [
    ("data", 'name = "unheard_of:thing"'),
    ("model", 'name = "unheard_of:thing"'),
    ("model", 'name = "mlp"\nactivation = {name = "unheard_of:thing"}'),
    ("model", 'name = "mlp"\nweights = {name = "unheard_of:thing"}'),
    ("loss", 'name = "unheard_of:thing"'),
    ("optimizer", 'name = "unheard_of:thing"\nlearning_rate = 0.1'),
    ("schedule", 'name = "unheard_of:thing"'),
    ("augmentation", 'names = ["unheard_of:thing"]'),
    ("metrics", 'names = [{name = "unheard_of:thing", label = "mine"}]'),
]
SHORT_FORMS = [
    ("model", 'name = "mlp"\nactivation = "unheard_of:thing"'),
    ("model", 'name = "mlp"\nweights = "unheard_of:thing"'),
    ("tracking", 'sink = "unheard_of:thing"'),
    ("variant", 'name = "a"\nset = {"model.name" = "unheard_of:thing"}'),
]


def a_record_of(project, section, text):
    """The record of a run whose configuration has this section; its code leaves a file behind."""
    (project / "unheard_of.py").write_text(
        "from pathlib import Path\nPath('executed').touch()\ndef thing(outputs: int): ...\n"
    )
    path = write_config(project, name="config")
    header = "[[variant]]" if section == "variant" else f"[{section}]"
    sections = [f"[{part}" for part in path.read_text().split("\n[")]
    others = [part for part in sections[1:] if not part.startswith(f"[{section}]")]
    path.write_text("\n".join([*others, f"{header}\n{text}\n"]))
    return run_record.Record(a_run(), project, path, {}, {}, [], {}, {})


@pytest.mark.parametrize(("section", "text"), RECORDED_CODE)
def test_a_record_that_names_code_is_refused_before_anything_is_imported(project, section, text):
    record = a_record_of(project, section, text)
    with pytest.raises(fbp.InputError, match="the record names code outside of fbp") as error:
        run_record.check_record(None, record, NOTHING)
    assert "unheard_of:thing" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(fbp.InputError, match="neither metrics nor checkpoints"):
        run_record.check_record(None, record, trust_of(code=project / "unheard_of.py"))
    assert not (project / "executed").exists()


@pytest.mark.parametrize(("section", "text"), RECORDED_CODE + SHORT_FORMS)
def test_code_of_a_record_is_not_imported_while_it_is_read(project, section, text):
    record = a_record_of(project, section, text)
    with (
        pytest.raises(fbp.InputError, match="the record names code outside of fbp"),
        reading_record(),
    ):
        reading.variants(reading.read(record.config), "record")
    assert not (project / "executed").exists()


def test_a_record_that_is_not_fbps_cannot_be_run_again(project, warm):
    run = client(project).create_run("0", run_name="foreign")
    assert "has no config.toml" in said("reproduce", run.info.run_id, status=2)
    with mlflow_runs.opened(None) as runs:
        assert runs.checkpoints(runs.find(run.info.run_id)) == {}


def test_a_run_that_recorded_nothing_is_not_run_again(inside, monkeypatch):
    recorded = MlflowRuns._recorded
    monkeypatch.setattr(
        MlflowRuns, "_recorded", lambda *args: recorded(*args)._replace(status="KILLED")
    )
    monkeypatch.setattr(MlflowRuns, "series", lambda *_: {})
    monkeypatch.setattr(MlflowRuns, "checkpoints", lambda *_: {})
    _, (first, *_) = runs_of(inside)
    assert "neither metrics nor checkpoints" in said("reproduce", first.info.run_name, status=2)


MODEL = """
import fbp
def model(outputs: int):
    hidden = fbp.layers.dense(8), fbp.layers.{}()
    return fbp.chain(fbp.layers.flatten(), *hidden, fbp.layers.dense(outputs))
"""


def reproduced(project, run, status, *options, **settings):
    done = subprocess.run(
        command("reproduce", run, *options),
        cwd=project,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | settings,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_reproduce_a_run_from_its_record_alone(project, three, monkeypatch):
    """Its folder is away, and the number of threads, which changes bits, is another here."""
    shutil.copytree(three, project / "copy")
    shutil.rmtree(project / "copy" / "mlruns" / "runs")
    copy = project / "copy"
    subprocess.run(command("repair-store"), cwd=copy, check=True)
    _, (first, *_) = runs_of(copy)
    other = {"PJRT_NPROC": "1" if environment.threads() > 1 else "2"}
    output = reproduced(copy, first.info.run_name, 0, **other)
    assert "identical to the bit" in output
    again = client(copy).search_runs(
        [first.info.experiment_id], f"tags.`fbp.reproduces` = '{first.info.run_id}'"
    )
    assert [run.data.tags["fbp.reproduction"] for run in again] == ["identical"]
    assert again[0].data.tags["fbp.params_digest"] == first.data.tags["fbp.params_digest"]
    assert again[0].data.tags["fbp.metrics_digest"] == first.data.tags["fbp.metrics_digest"]
    monkeypatch.chdir(copy)
    assert fbp.load(first.info.run_name).config.name == "small"
    assert not (
        copy / "mlflow.db"
    ).exists()  # MLflow's own default store, which some of its calls make


@pytest.mark.slow
def test_reproduce_says_where_a_changed_model_first_differs(project, warm):
    (project / "mine.py").write_text(MODEL.format("tanh"))
    path = write_config(project, data="digits")
    options = ["--set", "model={name='mine:model'}", "--set", "checkpoint.every_steps=10"]
    assert (
        subprocess.run(command("run", path, *options), timeout=240, capture_output=True).returncode
        == 0
    )
    name = one(project / "mlruns" / "runs").name
    stranger = {"XDG_STATE_HOME": str(project / "stranger")}
    assert "--trust mine:model" in reproduced(project, name, 2, **stranger)
    output = reproduced(project, name, 0, "--code", "mine.py", **stranger)
    assert "identical to the bit" in output
    assert "your own code is the same" in output
    assert "identical to the bit" in reproduced(project, name, 0)  # it was begun here
    (project / "mine.py").write_text(MODEL.format("sigmoid"))
    output = reproduced(project, name, 1, "--code", "mine.py")
    assert "DIFFERENT" in output
    assert "your own code is another in mine.py" in output
    assert "first different metric, at step 0: delta_norm" in output
    assert "parameters first differ at the checkpoint of step 10: tensor" in output
    assert "at step 0 they were the same" in output
    assert "at the end, 1/w differs by at most" in output


@pytest.mark.slow
def test_a_run_of_a_file_of_the_users_own_is_loaded_resumed_and_reproduced(project, warm):
    own = project / "code" / "own.py"
    own.parent.mkdir()
    own.write_text(MODEL.format("tanh"))
    path = write_config(project, data="digits")
    words = "run", path, "--set", "model={name='./code/own.py:model'}"
    done = subprocess.run(command(*words), timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = one(project / "mlruns" / "runs")
    for name in (folder, folder.name):
        assert fbp.load(name).config.model.name == f"{own}:model"
    lines = layout.journal(folder).read_bytes().splitlines(keepends=True)
    layout.journal(folder).write_bytes(b"".join(lines[:-2]))  # as if it had died before its end
    done = subprocess.run(command("resume", folder), timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.move(folder, project / "away")
    assert "the record names code outside of fbp" in reproduced(project, folder.name, 2)
    with pytest.raises(fbp.InputError, match="the record names code outside of fbp"):
        fbp.load(folder.name)
    assert fbp.load(folder.name, code=own).predict(np.zeros((1, 8, 8, 1))).shape == (1, 10)
    output = reproduced(project, folder.name, 0, "--code", "code/own.py")
    assert "identical to the bit" in output


@pytest.mark.slow
def test_reproduce_a_killed_run_as_far_as_it_came(project, warm):
    path = write_config(project, data="digits", more="[checkpoint]\nevery_steps = 100000\n")
    process = subprocess.Popen(
        command("run", path, "--set", "training.epochs=3000"), stderr=subprocess.DEVNULL
    )
    deadline, folder = time.monotonic() + 120, None
    while time.monotonic() < deadline and not (
        folder and read_series(folder, [journal_lines.StepsLine])
    ):
        time.sleep(0.1)
        folder = next(iter(layout.run_folders(project / "mlruns")), None)
    process.kill()
    process.wait()
    while time.monotonic() < deadline and not is_sent(folder):
        time.sleep(0.1)
    output = reproduced(project, folder.name, 0)
    steps = len(read_series(folder)["loss"].steps)
    assert steps > 0
    assert "identical to the bit" in output
    assert "as far as the record goes (KILLED)" in output


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_a_reproduction_that_is_stopped_leaves_no_process(inside, sent):
    _, (first, *_) = runs_of(inside)
    with subprocess.Popen(
        command("reproduce", first.info.run_name), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        deadline, children = time.monotonic() + 60, []
        while time.monotonic() < deadline and not children:
            time.sleep(0.05)
            every = psutil.Process(process.pid).children()
            children = [
                child for child in every if "reproduce import child" in " ".join(child.cmdline())
            ]
        process.send_signal(sent)
        assert process.wait(timeout=60) == (128 + sent if sent == signal.SIGTERM else -sent)
        children[0].wait(timeout=60)
        output = process.stdout.read().decode()
    assert sent != signal.SIGTERM or "stopped" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_strict_runs_have_the_same_bits_with_any_number_of_threads(project, warm):
    path = write_config(project, data="digits")
    digests = set()
    for threads in ("1", "2"):
        experiment = "--set", f"tracking.experiment=t{threads}"
        done = subprocess.run(
            command("run", path, "--set", "training.strict=true", *experiment),
            env=os.environ | {"PJRT_NPROC": threads}, capture_output=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = client(project)
        (run,) = found.search_runs([found.get_experiment_by_name(f"t{threads}").experiment_id])
        digests.add(run.data.tags["fbp.params_digest"])
    assert len(digests) == 1
