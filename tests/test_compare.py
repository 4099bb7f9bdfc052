"""Runs seen again: listed, shown, compared, reproduced, and looked at in the real dashboard."""

import contextlib
import html
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from rich.console import Console

import fbp
from fbp.cli import main
from fbp.experiment.commands import compare, reproduce, tables
from fbp.experiment.commands.reproduce import compare as compare_runs
from fbp.experiment.rundir import environment, journal
from fbp.experiment.rundir.journal import Journal, Series
from fbp.experiment.rundir.locks import locked
from fbp.experiment.rundir.npz import read_arrays, write_arrays
from fbp.experiment.tracking import mlflow_format, mlflow_runs, shipper, store
from fbp.experiment.tracking.mlflow_runs import Recorded, Runs
from tests.projects import client, command, fbp_run, one, the_run, write_config
from tests.servers import free_port

SEEDS = "".join(
    f'[[variant]]\nname = "seed-{seed}"\nset = {{ seed = {seed} }}\n' for seed in range(3)
)


@pytest.fixture(scope="session")
def three(finished, tmp_path_factory, worker_id):
    """A project with one group of three runs that differ in their seeds: made once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    project = (base if worker_id == "master" else base.parent) / "three"
    with locked(project.with_suffix(".lock")):
        if not project.exists():
            (project / "mlruns").mkdir(parents=True)
            shutil.copy(finished[0] / "empty.db", project / "mlruns" / "mlflow.db")
            write_config(project, data="digits", more=SEEDS)
            done = subprocess.run(
                command("run", "small.toml"),
                cwd=project,
                capture_output=True,
                text=True,
                timeout=240,
            )
            assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def inside(three, monkeypatch):
    monkeypatch.chdir(three)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return three


def said(*words, status=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result.output


def runs_of(project):
    found = client(project)
    every = found.search_runs(
        [found.get_experiment_by_name("small").experiment_id], order_by=["start_time ASC"]
    )
    parent = next(run for run in every if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in every if run is not parent and run.info.run_name.startswith("seed-")]
    return parent, children


class TestRuns:
    def test_a_filter_and_an_order_in_mlflows_language(self, inside):
        _, children = runs_of(inside)
        best = sorted(children, key=lambda run: -run.data.metrics["validation_accuracy"])
        output = said(
            "runs",
            "metrics.validation_accuracy > 0.1 and params.optimizer_name = 'adam'",
            "--sort",
            "-metrics.validation_accuracy",
        )
        places = [output.index(run.info.run_id[:8]) for run in best]
        assert places == sorted(places)
        assert "3 runs" in output
        for column in ("validation_accuracy", "optimizer_name", "seed", "FINISHED"):
            assert column in output
        assert "0 runs" in said("runs", "params.optimizer_name = 'sgd'")

    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            (["runs", "metrics.x >>"], "Invalid clause"),
            (
                ["runs", "--tracking-uri", "sqlite:////nowhere/x.db"],
                "sqlite:////nowhere/x.db: there is no such store",
            ),
            (
                ["runs", "--tracking-uri", "postgresql://u:pass@127.0.0.1:1/x"],
                "postgresql://127.0.0.1:1/x: the store does not",
            ),
            (
                ["runs", "--tracking-uri", "http://u:pass@"],
                "tracking URI: expected http(s)://HOST[:PORT], got 'http://'",
            ),
            (
                ["register", "nothing", "name", "--alias", "v1"],
                "expected an alias that MLflow does not keep for itself",
            ),
            (
                ["register", "nothing", "."],
                "expected letters, digits and . - _ in the name, got '.'",
            ),
            (["close-dead", "--minutes", "nan"], "--minutes: expected a number, got nan"),
            (["runs", "--sort", "foo.bar"], "--sort foo.bar ASC: Invalid"),
            (["runs", "--sort", "nothing"], "--sort nothing ASC: Invalid order_by clause"),
            (["runs", "metrics.acc > 0.9"], "no run has metrics.acc; expected one of best_step"),
            (["runs", "--sort", "-metrics.val_accuracy"], "did you mean 'validation_accuracy'"),
            (["show", "nothing"], "no run of that name or id"),
            (["show", "seed-0' or '1'='1"], "no run of that name or id"),
            (["compare", "nothing", "other"], "no run of that name or id"),
            (["register", "nothing", "name"], "no run of that name or id"),
            (["reproduce", "0" * 32], "no run of that name or id"),
            (["resume", "nothing"], "no run of that name or id"),
        ],
    )
    def test_what_is_not_understood_is_one_line(self, inside, words, problem):
        output = said(*words, status=2)
        assert problem in output
        assert len(output.splitlines()) == 1

    def test_a_narrow_terminal_breaks_no_line(self, inside):
        _, children = runs_of(inside)
        for width in (60, 80, 120, 200):
            rows = tables.runs_table(children, {}, [("metrics", "test_loss")], width)
            assert {"run", "id", "test_loss"} <= set(rows.columns)
            console = Console(width=width, record=True, file=io.StringIO())
            console.print(rows.rich())
            assert len(console.export_text().splitlines()) == 4 + len(children)

    def test_long_names_leave_room_for_results(self, inside):
        _, children = runs_of(inside)
        info = children[0].info
        long = SimpleNamespace(
            **{
                key: getattr(info, key)
                for key in ("run_id", "experiment_id", "status", "start_time", "end_time")
            }
        )
        long.run_name = f"{'small,hidden=_8_,learning_rate=0.001,' * 2}seed=0-ab12"
        rows = tables.runs_table([SimpleNamespace(info=long, data=children[0].data)], {}, [], 80)
        assert {"status", "test_accuracy"} <= set(rows.columns)
        assert rows.cells[0][0].endswith("…-ab12")
        whole = tables.runs_table(
            [SimpleNamespace(info=long, data=children[0].data)], {}, [], None
        )
        assert whole.cells[0][0] == long.run_name

    def test_the_beginning_of_an_id_and_the_end_of_a_name_are_enough(self, inside):
        _, (first, *_) = runs_of(inside)
        for short in (first.info.run_id[:8], first.info.run_name[-4:]):
            assert first.info.run_id in said("show", short)
            assert fbp.load(short).config.name == "small"

    def test_show(self, inside):
        parent, children = runs_of(inside)
        output = said("show", children[0].info.run_id)
        for word in (
            children[0].info.run_name,
            "params_digest",
            "optimizer_learning_rate",
            "digits/train",
            "test_loss",
        ):
            assert word in output
        assert "child runs" in said("show", parent.info.run_name)


class TestCompare:
    def test_a_group_is_compared_with_statistics_and_pictures(self, inside, tmp_path):
        parent, children = runs_of(inside)
        output = said("compare", parent.info.run_name, "--output", tmp_path / "report")
        report = (tmp_path / "report" / "report.md").read_text()
        assert {path.name for path in (tmp_path / "report").iterdir()} == {
            "report.md",
            "learning_curves.png",
            "delta_norms.png",
        }
        values = [run.data.metrics["test_loss"] for run in children]
        mean, spread = np.mean(values), np.std(values, ddof=1)
        low, high = compare.bootstrap(values)
        assert min(values) <= low <= mean <= high <= max(values)
        for text in (output, report):
            assert f"{mean:.5g}" in text
            assert f"{spread:.5g}" in text
            assert f"{low:.5g} to {high:.5g}" in text
            assert f"({values[1] - values[0]:+.3g})" in text
            assert "over the seeds 0, 1, 2" in text
        assert "| seed | 0 | 1 | 2 |" in report
        assert "![learning curves](learning_curves.png)" in report

    def test_one_run_is_not_enough(self, inside):
        assert "expected two different runs or more" in said(
            "compare", runs_of(inside)[1][0].info.run_id, status=2
        )

    def test_the_interval_covers_as_often_as_it_says(self):
        drawn = np.random.default_rng(1).normal(size=(200, 30))
        covered = np.mean([low < 0 < high for low, high in map(compare.bootstrap, drawn)])
        assert 0.88 < covered < 0.99


def test_a_registered_model_is_loaded_by_its_alias(inside):
    _, (first, second, _) = runs_of(inside)
    x = fbp.datasets.digits().train.x[:4]
    for run in (first, second):  # the alias moves
        assert "fbp.load('models:/small@champion')" in said(
            "register", run.info.run_id, "small", "--alias", "champion"
        )
        loaded = fbp.load("models:/small@champion").predict(x)
        np.testing.assert_array_equal(loaded, fbp.load(run.info.run_id).predict(x))
    assert "no such registered model" in said("generate", "models:/nothing@x", status=2)


def series(**values):
    return {
        key: Series(
            np.arange(1, len(numbers) + 1), np.array(numbers, float), np.zeros(len(numbers), int)
        )
        for key, numbers in values.items()
    }


class TestVerdict:
    BEFORE = {
        0: {"params": "a", "tensors": {"0/w": "1"}},
        5: {"params": "b", "tensors": {"0/w": "2", "0/b": "3"}},
    }
    NOW = {
        0: {"params_digest": "a", "tensors": {"0/w": "1"}},
        5: {"params_digest": "c", "tensors": {"0/w": "2", "0/b": "9"}},
    }

    def test_identical(self):
        same = {
            step: {"params_digest": entry["params"], "tensors": {}}
            for step, entry in self.BEFORE.items()
        }
        first = series(loss=[1, float("nan"), float("inf")], examples_per_second=[1, 2])
        second = series(loss=[1, float("nan"), float("inf")], examples_per_second=[3, 4])
        assert compare_runs(first, second, self.BEFORE, same) == (True, (3, 2), [])

    def test_the_first_step_and_by_how_much(self):
        other = float(np.nextafter(0.5, 1))
        verdict = compare_runs(
            series(b=[1, 0.5, 3], a=[1, 2, 3]), series(b=[1, other, 3], a=[1, 2, 4]), {}, {}
        )
        assert not verdict.identical
        assert (
            f"at step 2: b was 0.5, is {other!r} (difference 1.11e-16); 2 of 6 values differ"
            in verdict.lines[0]
        )

    def test_minus_zero_is_not_zero(self):
        assert not compare_runs(series(a=[0.0]), series(a=[-0.0]), {}, {}).identical

    def test_a_number_is_not_nan_and_nothing_proves_nothing(self):
        assert not compare_runs(series(a=[float("nan")]), series(a=[0.5]), {}, {}).identical
        assert "there is nothing to compare" in compare_runs({}, {}, {}, {}).lines[0]

    def test_what_is_missing_differs(self):
        assert (
            "a was 2.0, and is missing" in compare_runs(series(a=[1, 2]), series(a=[1]), {}, {}).lines[0]
        )

    def test_the_first_tensor(self):
        verdict = compare_runs({}, {}, self.BEFORE, self.NOW)
        assert (
            "the checkpoint of step 5: tensor 0/b first, 1 of 2 in all; at step 0 they were the same"
            in verdict.lines[0]
        )


def test_only_plain_switches_are_taken_from_a_record():
    record = {
        "threads": 3,
        "jax": {
            "enable_x64": True,
            "threefry_partitionable": "0; rm",
            "default_matmul_precision": None,
        },
        "variables": {
            "XLA_FLAGS": "--xla_gpu_deterministic_ops=true --xla_dump_to=/tmp/x --xla_cpu_max_isa=AVX2 --xla_x=3",
            "LD_PRELOAD": "x.so",
        },
    }
    found, left = environment.variables(record)
    assert found == {
        "PJRT_NPROC": "3",
        "JAX_ENABLE_X64": "True",
        "XLA_FLAGS": "--xla_gpu_deterministic_ops=true --xla_x=3",
    }
    assert left == ["--xla_dump_to=/tmp/x", "--xla_cpu_max_isa=AVX2"]
    assert environment.variables({"threads": True}) == ({}, [])


def a_record(folder, status="KILLED"):
    return Recorded("id", "name", "experiment", status, 0, 0, {}, {}, {}, folder)


def test_names_with_commas_and_quotes_come_back_from_the_history(tmp_path):
    (tmp_path / "artifacts").mkdir()
    values = {'delta_norm/a,b "c"': 1.5, "loss": float("nan")}
    Journal(tmp_path).write("metrics", step=3, values=values)
    mlflow_format.write_history(tmp_path)
    found = mlflow_runs.from_artifacts(a_record(tmp_path / "artifacts"))
    assert {key: points.steps.tolist() for key, points in found.items()} == {
        key: [3] for key in values
    }
    assert found['delta_norm/a,b "c"'].values.tolist() == [1.5]


def test_what_a_store_cannot_hold_and_an_old_history_are_no_contradictions(tmp_path, monkeypatch):
    shown = SimpleNamespace(points=lambda first: series(a=[0.0, float("nan"), 3.0], b=[1.0, 2.0]))
    kept = series(a=[-0.0, float("inf"), 3.0], b=[1.0])
    assert reproduce._contradictions(shown, a_record(tmp_path), kept) == []
    lines = reproduce._contradictions(shown, a_record(tmp_path, "FINISHED"), kept)
    assert "b at step 2 is 2.0 in MLflow, and missing" in lines[0]
    (line,) = reproduce._contradictions(shown, a_record(tmp_path), series(a=[0.5]))
    assert "a at step 1 is 0.0 in MLflow, and 0.5 in" in line


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("reproduce", "list_artifacts"),
        ("reproduce", "download_artifacts"),
        ("reproduce", "get_metric_history"),
        ("show", "search_runs"),
        ("register", "search_logged_models"),
    ],
)
def test_a_store_that_fails_later_is_called_that(inside, monkeypatch, words, call):
    """Not another result, a damaged record, a wrong filter; and no traceback."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def fail(*_, **__):
        raise MlflowException("API request failed with error code 500")

    _, (first, *_) = runs_of(inside)
    monkeypatch.setattr(MlflowClient, call, fail)
    output = said(words, first.info.run_name, *(["m"] if words == "register" else []), status=2)
    assert (
        "the store does not answer (MlflowException: API request failed with error code 500)"
        in output
    )
    assert len(output.strip().splitlines()) <= 3


def test_a_run_that_recorded_nothing_is_not_run_again(inside, monkeypatch):
    read = Runs.read
    monkeypatch.setattr(
        Runs, "read", lambda *given, **more: read(*given, **more)._replace(status="KILLED")
    )
    monkeypatch.setattr(Runs, "series", lambda *_: {})
    monkeypatch.setattr(mlflow_runs, "checkpoints", lambda _: {})
    _, (first, *_) = runs_of(inside)
    assert "neither metrics nor checkpoints" in said("reproduce", first.info.run_name, status=2)


MODEL = """
import fbp
def model(outputs: int):
    return fbp.chain(fbp.layers.flatten(), fbp.layers.dense(8), fbp.layers.{}(), fbp.layers.dense(outputs))
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
    assert "not installed; if you trust it" in reproduced(project, name, 2)
    assert "identical to the bit" in reproduced(project, name, 0, "--code", "mine.py")
    (project / "mine.py").write_text(MODEL.format("sigmoid"))
    output = reproduced(project, name, 1, "--code", "mine.py")
    assert "DIFFERENT" in output
    assert "first different metric, at step 0: delta_norm" in output
    assert "parameters first differ at the checkpoint of step 10: tensor" in output
    assert "at step 0 they were the same" in output
    assert "at the end, 1/w differs by at most" in output


@pytest.mark.slow
def test_reproduce_a_killed_run_as_far_as_it_came(project, warm):
    path = write_config(project, data="digits", more="[checkpoint]\nevery_steps = 100000\n")
    process = subprocess.Popen(
        command("run", path, "--set", "training.epochs=3000"), stderr=subprocess.DEVNULL
    )
    deadline, folder = time.monotonic() + 120, None
    while time.monotonic() < deadline and not (folder and journal.history(folder, ["steps"])):
        time.sleep(0.1)
        folder = next(iter(store.run_folders(project / "mlruns")), None)
    process.kill()
    process.wait()
    while time.monotonic() < deadline and not shipper.is_sent(folder):
        time.sleep(0.1)
    output = reproduced(project, folder.name, 0)
    steps = len(journal.history(folder)["loss"].steps)
    assert steps > 0
    assert "identical to the bit" in output
    assert "as far as the first one's history goes (KILLED)" in output


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
def test_a_changed_record_is_told_from_another_result(project, warm):
    """Every bit is the same again, but the record says something else than it said."""
    fbp_run(write_config(project, data="digits"))
    found, first = client(project), the_run(project)
    saved = (
        project
        / "mlruns"
        / "artifacts"
        / "small"
        / first.info.run_id
        / "artifacts"
        / "model"
        / "params.npz"
    )
    assert saved.exists()
    arrays = read_arrays(saved)
    write_arrays(saved, {name: array + 1 for name, array in arrays.items()})
    found.set_tag(first.info.run_id, "fbp.metrics_digest", "0" * 64)
    with (
        contextlib.closing(sqlite3.connect(project / "mlruns" / "mlflow.db")) as database,
        database,
    ):
        database.execute(
            "update metrics set value = 0.5 where key = 'validation_loss' and step = 88"
        )
    output = reproduced(project, first.info.run_name, 1)
    assert "validation_loss at step 88 is 0.5 in MLflow, and" in output
    assert "not what fbp.metrics_digest was taken of" in output
    assert "not what fbp.params_digest was taken of" in output
    assert "fbp.metrics_digest was 000000000000, is" in output
    assert "first different metric" not in output
    assert not (project / "mlflow.db").exists()


@pytest.mark.slow
def test_strict_runs_have_the_same_bits_with_any_number_of_threads(project, warm):
    path = write_config(project, data="digits")
    digests = set()
    for threads in ("1", "2"):
        done = subprocess.run(
            command("run", path, "--set", "training.strict=true", "--set", f"tracking.experiment=t{threads}"),
            env=os.environ | {"PJRT_NPROC": threads}, capture_output=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = client(project)
        (run,) = found.search_runs([found.get_experiment_by_name(f"t{threads}").experiment_id])
        digests.add(run.data.tags["fbp.params_digest"])
    assert len(digests) == 1


def browser():
    return (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )


@pytest.mark.slow
@pytest.mark.skipif(
    browser() is None or shutil.which("chromedriver") is None,
    reason="no Chromium with its driver here",
)
def test_the_dashboards_compare_view_has_the_metrics_and_parameters(inside):
    """The real dashboard, started as a user does, in a headless browser."""
    parent, children = runs_of(inside)
    port = free_port()
    words = command("ui", "--port", port)
    with (
        subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as server,
        Browser() as chromium,
    ):
        try:
            ids = ",".join(f'"{run.info.run_id}"' for run in children)
            compare_view = (
                f'/#/compare-runs?runs=[{ids}]&experiments=["{parent.info.experiment_id}"]'
            )
            shown = chromium.page(
                f"http://127.0.0.1:{port}{compare_view}", ["best_validation_loss", "data_name"]
            )
            for run in children:
                assert run.info.run_name in shown
                assert f" {round(run.data.metrics['best_validation_loss'], 3):g} " in shown
            for key in (
                "best_step",
                "delta_norm/0",
                "checkpoint_every_seconds",
                "digits",
                "seed",
            ):  # of each table the top
                assert f" {key} " in shown
            runs_view = f"http://127.0.0.1:{port}/#/experiments/{parent.info.experiment_id}/runs"
            chromium.page(runs_view, [parent.info.run_name])
        finally:
            server.terminate()
            server.wait(timeout=30)


class Browser:
    """A headless Chromium, driven through chromedriver by the W3C WebDriver protocol."""

    def __enter__(self):
        self.port, self.session = free_port(), None
        words = [shutil.which("chromedriver"), f"--port={self.port}"]
        self.driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1600,2400",
        ]
        arguments += [
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
        ]
        options = {"goog:chromeOptions": {"binary": browser(), "args": arguments}}
        try:
            deadline = time.monotonic() + 60
            while self.session is None:
                try:
                    self.session = self.ask("session", {"capabilities": {"alwaysMatch": options}})[
                        "sessionId"
                    ]
                except urllib.error.HTTPError:
                    raise  # the driver is there and says why the browser is not
                except OSError:  # it does not listen yet
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.session is not None:
            self.ask(f"session/{self.session}", method="DELETE")
        self.driver.terminate()
        self.driver.wait(timeout=30)

    def ask(self, what, content=None, method=None):
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{what}", body, method=method
        )
        request.add_header("Content-Type", "application/json")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def page(self, address, words, seconds=180):
        """What the browser shows at an address, once all the words are there."""
        deadline, text = time.monotonic() + seconds, ""
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.HTTPError):  # the server does not listen yet
                self.ask(f"session/{self.session}/url", {"url": "about:blank"})
                self.ask(f"session/{self.session}/url", {"url": address})
                for _ in range(60):
                    shown = self.ask(f"session/{self.session}/source")
                    text = html.unescape(
                        re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", shown, flags=re.DOTALL)
                    )
                    if all(word in text for word in words):
                        return text
                    if "ERR_CONNECTION_REFUSED" in text or time.monotonic() > deadline:
                        break
                    time.sleep(0.5)
            time.sleep(0.5)
        raise AssertionError(f"{words} are not on the page: {text[:3000]}")


def test_a_record_that_is_not_fbps_cannot_be_run_again(project, warm):
    run = client(project).create_run("0", run_name="foreign")
    assert "has no config.toml" in said("reproduce", run.info.run_id, status=2)
    with mlflow_runs.opened(None) as runs:
        assert mlflow_runs.checkpoints(runs.read(run)) == {}
