"""Attacks on what leads from a run to its tracker: nothing is lost, and nobody waits for ever."""

import contextlib
import http.server
import inspect
import json
import multiprocessing
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
import types
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest

import fbp
import fbp.experiment
from fbp.experiment import track
from fbp.experiment.commands import launch
from fbp.experiment.commands.track import Tracked
from fbp.experiment.config.schema import Config
from fbp.experiment.rundir import journal, layout, locks, tags, trust_store
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.recorder import Recorder
from fbp.experiment.rundir.results import Results
from fbp.experiment.rundir.series import read_series
from fbp.experiment.runner.trained_model import PYFUNC_CODE, Trained
from fbp.experiment.tracking import mlflow_runs, orphans, preflight, shipper, sink, store, uri
from fbp.experiment.tracking.folder_runs import FolderRuns
from fbp.experiment.tracking.jsonl_sink import JsonlSink
from fbp.experiment.tracking.mlflow_runs import MlflowRuns
from fbp.experiment.tracking.mlflow_sink import MlflowSink
from fbp.experiment.tracking.run_reader import RecordedRun
from fbp.experiment.tracking.shipment import Problem, is_sent, read_problem, write_problem
from fbp.experiment.tracking.sink import Destination, NotUnderstood, Refused, RunInfo
from fbp.experiment.tracking.supervised import Supervised, unsent_message
from tests.cases import slow_but
from tests.conftest import Sent
from tests.projects import Silent, client, command, said, the_run, write_config

INFO = RunInfo("a-folder", "a-name", "an-experiment", 1, {})


def a_run(project, label="a", sink="mlflow", end="FINISHED", **tags_of_run):
    folder = layout.new_run_folder(project / "mlruns", label)
    writer = Journal(folder)
    writer.start(label=label, experiment="small", params={}, tags=tags_of_run, sink=sink)
    writer.metrics(1, {"loss": 1.0})
    if end:
        writer.end(end)
    writer.close()
    layout.write_destination(folder, "embedded")
    return folder


# --- threads and processes --------------------------------------------------------------------

THREADS, POINTS = 16, 10_000


def log_from_threads(run, points=POINTS):
    def work(n):
        for i in range(points):
            run.log((i * 7919) % points + 1, {f"thread_{n}": i, "shared": n})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.slow
@pytest.mark.promise("threads-lose-nothing")
def test_sixteen_threads_lose_no_point(unsent):
    with track({}) as run:
        log_from_threads(run)
    series = read_series(run.folder)
    for n in range(THREADS):
        points = series[f"thread_{n}"]
        assert points.steps.tolist() == list(range(1, POINTS + 1))
        assert sorted(points.values) == list(range(POINTS))
    assert np.bincount(series["shared"].values.astype(int)).tolist() == [POINTS] * THREADS
    assert journal.size(run.folder) == journal.length(run.folder)


@pytest.mark.slow
@pytest.mark.promise("threads-lose-nothing")
def test_sixteen_threads_lose_no_point_on_the_way_to_mlflow(project, warm):
    with track({}, wait=500) as run:
        log_from_threads(run)
    assert is_sent(run.folder), layout.shipper_log(run.folder).read_text()
    with contextlib.closing(sqlite3.connect(project / "mlruns" / "mlflow.db")) as database:
        rows = database.execute(
            "select key, count(*), count(distinct step) from metrics where key like 'thread_%' "
            "group by key"
        ).fetchall()
        last = database.execute("select max(step) from latest_metrics where key = 'shared'")
        assert last.fetchone() == (POINTS,)
    assert sorted(rows) == sorted((f"thread_{n}", POINTS, POINTS) for n in range(THREADS))


@pytest.mark.promise("threads-lose-nothing")
@pytest.mark.parametrize(
    ("use", "kind"),
    [
        (lambda run, n, i: run.tag(**{f"tag_{n}_{i}": i}), "tags"),
        (lambda run, n, i: run.artifact(__file__, f"{n}/{i}.py"), "artifacts"),
        (lambda run, n, i: run.checkpoint(n * 20 + i, {"w": np.full(3, n)}), "checkpoints"),
        (lambda run, n, i: run._journal.steps(n * 40 + 2 * i, {"x": np.zeros(2)}), "steps"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_whatever_threads_write_is_there(unsent, use, kind):
    with track({}) as run:
        threads = [
            threading.Thread(target=lambda n=n: [use(run, n, i) for i in range(20)])
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    counts = {
        "tags": sum(name.startswith("tag_") for name in journal.read_tags(run.folder)),
        "artifacts": len(list(layout.artifacts(run.folder).glob("*/*.py"))),
        "checkpoints": len(journal.read_checkpoints(run.folder)),
        "steps": len(read_series(run.folder).get("x", [[]])[0]) // 2,
    }
    assert counts[kind] == 160


def forked(function):
    """What a function gives in a process that is forked from this one: a line, or its error."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def work():
        try:
            answers.put(str(function()))
        except fbp.InputError as error:
            answers.put(str(error))

    process = context.Process(target=work)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of every fork
        process.start()
    answer = answers.get(timeout=60)
    process.join()
    return answer


@pytest.mark.promise("processes-are-told")
@pytest.mark.parametrize(
    "use",
    [
        lambda run: run.log(2, {"x": 2}),
        lambda run: run.tag(a=1),
        lambda run: run.artifact(__file__),
        lambda run: run.checkpoint(2, {"w": np.zeros(2)}),
        lambda run: run._journal.metrics(2, {"x": 2}),
    ],
    ids=["log", "tag", "artifact", "checkpoint", "journal"],
)
def test_a_forked_process_is_told_and_harms_nothing(unsent, use):
    with track({}) as run:
        run.log(1, {"x": 1})
        with run._lock:  # as another thread may hold it at the moment of the fork
            assert "was forked from the one that" in forked(lambda: use(run))
        run.log(3, {"x": 3})
    assert read_series(run.folder)["x"].steps.tolist() == [1, 3]


CLASSES = [
    Tracked, Journal, Recorder, Config, Trained, Results, sink.Sink, JsonlSink, MlflowSink,
    MlflowRuns, FolderRuns,
]  # fmt: skip
PUBLIC = [getattr(fbp.experiment, name) for name in fbp.experiment.__all__]


@pytest.mark.promise("threads-and-processes-said")
@pytest.mark.parametrize(
    "thing", list(dict.fromkeys([*PUBLIC, *CLASSES])), ids=lambda thing: thing.__name__
)
def test_every_public_object_says_whether_threads_and_processes_may_share_it(thing):
    text = " ".join(inspect.getdoc(thing).lower().split())
    assert "between threads" in text
    assert "between processes" in text


@pytest.mark.promise("threads-and-processes-said")
def test_no_public_object_is_left_out():
    public = {
        name for name, value in vars(fbp.experiment).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }  # fmt: skip
    assert public == set(fbp.experiment.__all__)


@pytest.mark.promise("threads-lose-nothing")
def test_two_threads_have_mlflows_address_one_after_the_other(project):
    import mlflow

    seen = []

    def work(address):
        for _ in range(20):
            with store.global_tracking_uri(address):
                time.sleep(0.001)
                seen.append(mlflow.get_tracking_uri() == address)

    threads = [threading.Thread(target=work, args=(f"http://127.0.0.1:{n}",)) for n in (9, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 40


# --- where a run is sent ----------------------------------------------------------------------


@pytest.mark.promise("foreign-address-not-obeyed")
@pytest.mark.parametrize(
    ("tracker", "asked"),
    [
        ("mlflow", "http://stranger.example"),
        ("mlflow", "https://stranger.example/mlflow?x=1"),
        ("mlflow", "postgresql://stranger.example/db"),
        ("mlflow", "sqlite:////tmp/stranger.db"),
        ("mlflow", "http://127.0.0.1:1/\x1b[31m"),
        ("mlflow", "databricks"),
        ("jsonl", "/home/somebody/.bashrc"),
        ("jsonl", "../../outside.jsonl"),
    ],
)
def test_the_address_in_a_foreign_folder_is_not_obeyed(project, tracker, asked):
    folder, lines = a_run(project, sink=tracker), []
    layout.write_destination(folder, asked)
    target = uri.recorded_destination(folder, tell=lines.append)
    assert target.place == "embedded"
    assert str(project) in target.uri
    (line,) = lines
    assert "did not begin on this machine" in line
    assert asked in line


@pytest.mark.promise("foreign-address-not-obeyed")
@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_foreign_run_goes_where_its_reader_says(project, monkeypatch, how):
    folder = a_run(project)
    layout.write_destination(folder, "http://stranger.example")
    if how == "variable":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://own.example")
    target = uri.recorded_destination(folder, "http://own.example" if how == "option" else None)
    assert target.uri == "http://own.example"


def begin_here(project, place):
    folder = layout.new_run_folder(project / "mlruns", "begun")
    layout.write_destination(folder, place)
    assert trust_store.remember(folder, []) == ""
    writer = Journal(folder)
    writer.start(label="begun", experiment="small", params={}, tags={})
    writer.close()
    return folder


@pytest.mark.promise("foreign-address-not-obeyed")
@pytest.mark.parametrize("attack", ["none", "another file", "copied", "another's entry", "no file"])
def test_a_run_that_began_here_goes_where_it_was_meant_to(project, attack):
    folder = begin_here(project, "http://own.example")
    expected = "http://own.example"
    if attack == "another file":
        layout.write_destination(folder, "http://stranger.example")
    elif attack == "no file":
        layout.destination(folder).unlink()
    elif attack == "copied":
        other = project / "elsewhere" / "mlruns" / "runs" / folder.name
        shutil.copytree(folder, other)
        folder, expected = other, uri.default_uri(layout.root_of(other))
    elif attack == "another's entry":
        trust_store._entry(folder).chmod(0o644)
        expected = uri.default_uri(project / "mlruns")
    assert uri.recorded_destination(folder, tell=lambda _: None).uri == expected


@pytest.mark.promise("foreign-address-not-obeyed")
def test_a_stranger_is_not_sent_the_login(project, warm, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-secret-token")
    with answering(lambda path: (200, "{}")) as (address, requests):
        folder = a_run(project)
        layout.write_destination(folder, address)
        assert address in said("sync")
    assert requests == []
    assert is_sent(folder)
    assert the_run(project).info.status == "FINISHED"


@pytest.mark.promise("foreign-address-not-obeyed")
@pytest.mark.parametrize("use", slow_but(["send", "read"], "read"))
@pytest.mark.parametrize("place", ["{}/x", "mlflow-artifacts://{}/x"])
def test_a_store_that_somebody_made_names_no_server(project, small, monkeypatch, use, place):
    mlflow, experiment = small
    run_id = mlflow.create_run(experiment, run_name="a").info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-secret-token")
    with answering(lambda path: (200, "{}")) as (address, requests):
        where = place.format(address if place.startswith("{") else address.removeprefix("http://"))
        with contextlib.closing(sqlite3.connect(project / "mlruns" / "mlflow.db")) as database:
            database.execute("update experiments set artifact_location = ?", (where,))
            database.execute("update runs set artifact_uri = ?", (f"{where}/{run_id}",))
            database.commit()
        if use == "send":
            a_run(project)
            said("sync", status=shipper.NOT_YET)
        else:
            for words in (("verify", run_id), ("reproduce", run_id)):
                assert "expected a store with its artifacts in files" in said(*words, status=2)
            said("show", run_id, status=None)
            said("register", run_id, "x", status=None)
    assert requests == []


@pytest.mark.promise("foreign-address-not-obeyed")
def test_a_foreign_folder_does_not_write_into_another_run(project, small):
    mlflow, experiment = small
    own = mlflow.create_run(experiment, tags={tags.FOLDER: "own"}).info.run_id
    target = MlflowSink(uri.default_uri(project / "mlruns"), project / "mlruns")
    assert target.open(INFO._replace(experiment="small", run_id=own)) != own


@pytest.mark.promise("waits-are-bounded")
@pytest.mark.parametrize("path", [layout.destination, layout.sent, layout.problem, layout.journal])
def test_a_pipe_in_a_run_folder_is_not_waited_for(project, path):
    folder = a_run(project)
    path(folder).unlink(missing_ok=True)
    os.mkfifo(path(folder))
    began = time.monotonic()
    assert journal.started_runs(project / "mlruns")
    assert layout.read_destination(folder) in ("", "embedded")
    assert not is_sent(folder)
    assert read_problem(folder) is None
    assert list(journal.lines(folder)) == [] or path != layout.journal
    assert time.monotonic() - began < 5


@pytest.mark.promise("waits-are-bounded")
@pytest.mark.parametrize("text", ["abc", "nan", "-1"])
def test_a_bound_that_is_no_number_is_told(project, text):
    done = subprocess.run(
        command("sync"), env=os.environ | {"FBP_LOCK_SECONDS": text}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"FBP_LOCK_SECONDS: expected a number of seconds, got {text!r}" in done.stderr


ADDRESSES = [
    ("http://127.0.0.1:9/a@b", "http://127.0.0.1:9/a@b", "http://127.0.0.1:9/a@b"),
    ("http://me:word@127.0.0.1:9/a@b", "http://127.0.0.1:9/a@b", "http://127.0.0.1:9/a@b"),
    ("http://me@127.0.0.1:9/x@y@z/", "http://127.0.0.1:9/x@y@z/", "http://127.0.0.1:9/x@y@z/"),
    ("https://me:wo@rd@[::1]:9/a", "https://[::1]:9/a", "https://[::1]:9/a"),
    ("http://me:wo/rd@127.0.0.1:9", "http://127.0.0.1:9", "http://127.0.0.1:9"),
    ("sqlite:////data/me@work/x.db", None, "sqlite:////data/me@work/x.db"),
    ("sqlite:////data/me:word@work/x.db", None, "sqlite:////data/me:word@work/x.db"),
    ("sqlite:////data/token=1/key=2/x.db", None, "sqlite:////data/token=1/key=2/x.db"),
    ("postgresql://me:word@host/a@b", None, "postgresql://host/a@b"),
    ("postgresql://host/db?password=x&a=b", None, "postgresql://host/db?password=***&a=b"),
]


@pytest.mark.promise("address-stays-whole")
@pytest.mark.parametrize(("given", "used", "stored"), ADDRESSES)
def test_an_address_is_used_whole_and_stored_without_login(
    project, monkeypatch, given, used, stored
):
    for name in ("USERNAME", "PASSWORD"):  # which the test sets
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    target = uri.destination(project / "mlruns", "mlflow", given)
    assert target.uri == (used or given)
    assert target.place == stored
    if "***" not in stored and not given.startswith("postgresql"):
        again = begin_here(project, target.place)
        assert uri.recorded_destination(again).uri == target.uri


@pytest.mark.promise("address-stays-whole")
@pytest.mark.parametrize(
    "name", ["me@work", "a:bcd@e", "token=1", "a b", "50%", "a#b", "a?b", "new\nline", "-x", "ä"]
)
def test_the_file_of_a_tracker_may_have_any_name(project, name):
    path = project / name / "tracked.jsonl"
    folder = a_run(project, sink="jsonl")
    target = uri.destination(project / "mlruns", "jsonl", str(path))
    layout.write_destination(folder, target.place)
    trust_store.remember(folder, [])
    assert uri.recorded_destination(folder).uri == str(path)


@pytest.mark.promise("address-stays-whole")
def test_an_address_of_a_file_is_the_same_from_another_folder(project, monkeypatch):
    here = uri.destination(project / "mlruns", "mlflow", "sqlite:///own.db")
    assert here.uri == here.place == f"sqlite:///{project}/own.db"


NAMES = [
    "a b", "50%", "a%20b", "a#b", "a?b", "a?b#c%41", "grün", "-dash", "new\nline", "a&b=c", "a;b",
    "a'b", 'a"b', "[x]", "$HOME", "a@b", "a:b", "~", "%", "a%2Fb", " ", "\x1b[0m",
]  # fmt: skip


@pytest.mark.promise("any-folder-ships")
@pytest.mark.parametrize("name", NAMES)
def test_a_run_in_a_folder_of_any_name_is_sent_and_read(warm, monkeypatch, name):
    root = warm / name / "mlruns"
    root.mkdir(parents=True)
    shutil.copy(warm / "mlruns" / "mlflow.db", root)
    monkeypatch.chdir(root.parent)
    target = MlflowSink(uri.default_uri(root), root)
    run_id = target.open(INFO._replace(tags={tags.FOLDER: INFO.folder}))
    (warm / "files" / "history").mkdir(parents=True)
    (warm / "files" / layout.CONFIG).write_text("x")
    target.log_artifacts(warm / "files")
    target.finish("FINISHED", 2)
    assert len(list(root.rglob(layout.CONFIG))) == 1
    with mlflow_runs.opened(None) as runs:
        assert runs.artifact_names(runs.find(run_id)) == {layout.CONFIG}
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
    assert {path.name for path in warm.iterdir()} == {name, "files", "mlruns"}
    assert {path.name for path in root.parent.iterdir()} == {"mlruns"}


@pytest.mark.promise("any-folder-ships")
@pytest.mark.parametrize("name", ["a b", "50%", "a%20b", "a?b#c%41", "a#b", "new\nline", "a:b"])
def test_the_model_of_a_run_in_a_folder_of_any_name_is_sent(warm, finished, monkeypatch, name):
    root = warm / name / "mlruns"
    root.mkdir(parents=True)
    shutil.copy(warm / "mlruns" / "mlflow.db", root)
    (folder,) = layout.run_folders(finished[0] / "mlruns")
    shutil.copytree(folder, root / "runs" / folder.name)
    monkeypatch.chdir(root.parent)
    target = MlflowSink(uri.default_uri(root), root)
    run_id = target.open(INFO._replace(tags={tags.FOLDER: folder.name}))
    target.log_artifacts(layout.artifacts(root / "runs" / folder.name))
    target.log_model(layout.model(root / "runs" / folder.name), PYFUNC_CODE)
    target.finish("FINISHED", 2)
    assert len(list((root / "artifacts").rglob(layout.PARAMS))) == 2
    assert fbp.load(run_id).shape == fbp.load(finished[0] / "mlruns/runs" / folder.name).shape


@pytest.mark.promise("any-folder-ships")
@pytest.mark.parametrize(
    "name",
    ["a b", "50%", "a#b", "a?b", "-dash", "new\nline", "gr\xfcn", "raw\udcff", "a:b", "\x1b[0m"],
)
def test_an_experiment_file_in_a_folder_of_any_name_is_sent(warm, monkeypatch, name):
    (warm / name).mkdir()
    path = write_config(warm / name)
    identity = launch.RunIdentity(path, "small", code_folder=path.parent)
    config = launch.reading.read(path, ["training.epochs=1"])
    monkeypatch.setattr(shipper, "launch", Sent)
    request = launch.RunRequest(lambda _: Silent(), stop_at=1)
    launched = launch.launch_config(config, identity, request)
    start = journal.require_start(launched.folder)
    target = MlflowSink(uri.default_uri(warm / "mlruns"), warm / "mlruns")
    run_id = target.open(INFO._replace(tags=start.tags))
    target.log_params(start.params)
    target.log_artifacts(layout.artifacts(launched.folder))
    shown = client(warm).get_run(run_id).data.tags[tags.SOURCE_NAME]
    assert shown == str(path).encode("utf-8", "replace").decode()


@pytest.mark.promise("any-folder-ships")
@pytest.mark.parametrize(
    "name", ["a:b", "a/b", "../x", "x" * 240, "a%20b", "ä", "a?b#c", ".hidden"]
)
def test_an_experiment_of_any_name_is_sent(warm, name):
    root = warm / "mlruns"
    target = MlflowSink(uri.default_uri(root), root)
    run_id = target.open(INFO._replace(experiment=name))
    (warm / "files").mkdir()
    (warm / "files" / layout.CONFIG).write_text("x")
    target.log_artifacts(warm / "files")
    (copy,) = (root / "artifacts").rglob(layout.CONFIG)
    assert run_id in copy.parts


# --- what is refused for good -----------------------------------------------------------------


@contextlib.contextmanager
def answering(answer):
    """A server on this machine, with a function from a path to status and body (or a callable)."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append((self.path, dict(self.headers)))
            status, body, *headers = answer(self.path)
            if callable(body):
                body(self)
                return
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


def error(code, message="no"):
    return json.dumps({"error_code": code, "message": message})


FOR_GOOD = {
    "401": (401, "go away"),
    "403": (403, "go away"),
    "404": (404, "<html>"),
    "405": (405, "no such method"),
    "410": (410, "gone"),
    "413": (413, "too large"),
    "permission": (403, error("PERMISSION_DENIED", "not yours")),
    "unauthenticated": (401, error("UNAUTHENTICATED")),
    "unauthorized": (401, error("CUSTOMER_UNAUTHORIZED")),
    "parameter": (400, error("INVALID_PARAMETER_VALUE", "bad name")),
    "request": (400, error("BAD_REQUEST")),
}
ANOTHER_TIME = {
    "408": (408, "slow"),
    "429": (429, "later"),
    "500": (500, "broken"),
    "502": (502, "<html>"),
    "503": (503, error("TEMPORARILY_UNAVAILABLE")),
    "internal": (500, error("INTERNAL_ERROR")),
    "conflict": (409, error("RESOURCE_CONFLICT")),
}


@pytest.mark.promise("refusals-are-told")
@pytest.mark.parametrize("case", FOR_GOOD)
def test_a_refusal_is_told_with_its_remedy(project, impatient, case):
    with answering(lambda path: FOR_GOOD[case]) as (address, _):
        with pytest.raises(Refused, match=r"refuses for good: .*; .+") as caught:
            MlflowSink(address, project / "mlruns").open(INFO)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.promise("refusals-are-told")
@pytest.mark.parametrize("case", ANOTHER_TIME)
def test_what_may_pass_is_no_refusal(project, impatient, case):
    from mlflow.exceptions import MlflowException

    with answering(lambda path: ANOTHER_TIME[case]) as (address, _), pytest.raises(MlflowException):
        MlflowSink(address, project / "mlruns").open(INFO)


@pytest.fixture
def small(warm):
    """The store of a project, with an experiment: its client and the experiment's id."""
    mlflow = client(warm)
    return mlflow, mlflow.create_experiment("small")


@pytest.mark.promise("refusals-are-told")
def test_an_experiment_in_the_trash_is_told_before_training(project, small):
    mlflow, experiment = small
    mlflow.delete_experiment(experiment)
    write_config(project)
    done = subprocess.run(command("run", "small.toml"), capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert f"mlflow experiments restore --experiment-id {experiment}" in done.stderr
    problem = "is in MLflow's trash; restore it with"
    with pytest.raises(fbp.InputError, match=problem), track({}, experiment="small"):
        pass
    assert layout.run_folders(project / "mlruns") == []


@pytest.mark.promise("refusals-are-told")
def test_sync_says_what_is_refused_for_good_and_its_status_does(project, small):
    mlflow, experiment = small
    mlflow.delete_experiment(experiment)
    folder = a_run(project)
    output = said("sync", status=shipper.REFUSED)
    assert f"{folder.name}: refused for good: " in output
    assert f"mlflow experiments restore --experiment-id {experiment}" in output
    assert "0 of 1 runs sent, 1 refused for good" in output
    assert "is in MLflow's trash" in layout.shipper_log(folder).read_text()
    assert read_problem(folder).refused
    assert "was refused for good: " in unsent_message(folder, "x")
    mlflow.restore_experiment(experiment)
    assert "1 of 1 runs sent" in said("sync", status=shipper.SENT)
    assert read_problem(folder) is None
    assert "nothing to send" in said("sync", status=shipper.SENT)


@pytest.mark.promise("refusals-are-told")
@pytest.mark.parametrize("what", ["run", "experiment", "run while open"])
def test_what_was_put_into_the_trash_meanwhile_is_told(project, small, what):
    mlflow, experiment = small
    root = project / "mlruns"
    target = MlflowSink(uri.default_uri(root), root)
    run_id = target.open(INFO._replace(experiment="small"))
    (mlflow.delete_experiment if what == "experiment" else mlflow.delete_run)(
        experiment if what == "experiment" else run_id
    )
    use = {
        "run": lambda: target.open(INFO._replace(experiment="small", run_id=run_id)),
        "run while open": lambda: target.log_params({"a": "1"}),
        "experiment": lambda: target.open(INFO._replace(experiment="small")),
    }[what]
    with pytest.raises(Refused, match=r"trash; restore it with: mlflow (runs|experiments) restore"):
        use()


@pytest.mark.promise("refusals-are-told")
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: track({}, experiment="x" * 300), "at most 250 characters, got 300"),
        (lambda: track({}, name="x" * 300), "at most 250 characters"),
        (lambda: track({}, experiment="\udcff"), "valid Unicode"),
        (lambda: track({}, experiment=" "), "expected a name of an experiment"),
    ],
    ids=["experiment", "run", "surrogate", "blank"],
)
def test_a_name_that_mlflow_does_not_take_is_told_before_training(unsent, make, problem):
    with pytest.raises(fbp.InputError, match=problem), make():
        pass
    assert layout.run_folders(unsent / "mlruns") == []


@pytest.mark.promise("refusals-are-told")
@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((401, "go away"), "refuses for good"),
        ((403, error("PERMISSION_DENIED")), "refuses for good"),
        ((404, "<html>"), "is no MLflow server"),
        ((200, "{}"), "expected the answer of an MLflow server"),
        ((200, "<html>"), "expected the answer of an MLflow server"),
        ((200, '{"experiment": {"experiment_id": "7", "lifecycle_stage": "deleted"}}'), "trash"),
    ],
)
def test_a_server_that_refuses_is_told_before_training(unsent, monkeypatch, answer, problem):
    monkeypatch.setenv("HOME", str(unsent))
    with (
        answering(lambda path: answer) as (address, _),
        pytest.raises(fbp.InputError, match=problem) as caught,
        track({}, tracking_uri=address),
    ):
        pass
    assert len(str(caught.value).splitlines()) == 1
    assert layout.run_folders(unsent / "mlruns") == []


@pytest.mark.promise("refusals-are-told")
@pytest.mark.parametrize(
    "answer",
    [
        (404, error("RESOURCE_DOES_NOT_EXIST")),
        (200, '{"experiment": {"experiment_id": "7", "name": "tracked"}}'),
        (500, "broken"),
        (429, "later"),
        (302, "", ("Location", "http://127.0.0.1:9/")),
    ],
    ids=["new", "there", "500", "429", "elsewhere"],
)
def test_what_may_be_taken_later_stops_no_run(unsent, answer):
    with answering(lambda path: answer) as (address, _), track({}, tracking_uri=address) as run:
        run.log(1, {"x": 1})
    assert journal.read_end(run.folder).status == "FINISHED"


@pytest.mark.promise("refusals-are-told")
def test_a_refusal_is_told_while_training_goes_on(unsent):
    folder, lines = a_run(unsent, end=""), []
    process = Supervised(folder, Destination("mlflow", "", ""), PYFUNC_CODE, lines.append)
    write_problem(folder, Problem("the experiment is in the trash", refused=True))
    deadline = time.monotonic() + 20
    while not lines and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.5)
    assert process.wait(5)
    assert lines == [f"{folder.name}: the experiment is in the trash (training goes on)"]


OWN = """
from fbp.experiment.tracking.sink import Refused
class Own:
    def __init__(self, uri, root):
        pass
    def open(self, run):
        return "id"
    def log_metrics(self, points):
        raise Refused("own: no points today; ask again tomorrow")
    def nothing(self, *_):
        pass
    log_params = log_inputs = set_tags = log_artifacts = log_model = finish = nothing
"""


@pytest.mark.promise("refusals-are-told")
def test_a_run_ends_with_the_status_of_a_refusal_and_every_command_names_it(project):
    (project / "own_refusing.py").write_text(OWN)
    write_config(project, more='[tracking]\nsink = "own_refusing:Own"\n')
    environ = os.environ | {"PYTHONPATH": f"{project}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        command("run", "small.toml"), env=environ, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == shipper.REFUSED, done.stderr
    (folder,) = layout.run_folders(project / "mlruns")
    (line,) = [line for line in done.stderr.splitlines() if "was refused for good" in line]
    assert "own: no points today; ask again tomorrow" in line
    assert journal.read_end(folder).status == "FINISHED"
    assert "own: no points today" in layout.shipper_log(folder).read_text()
    assert "own: no points today" in said("show", folder.name)
    assert f"refused for good: {folder.name}" in said("runs")


# --- what is believed -------------------------------------------------------------------------

NONSENSE = ["{}", "[]", "5", '"text"', "nonsense", "<html>", "", '{"run": 5}', '{"experiment": []}',
            '{"run": {"info": {}}}', '{"experiment": {"name": "other", "experiment_id": "1"}}',
            '{"experiment": {"name": "an-experiment", "experiment_id": ""}}',
            '{"experiments": [{}], "runs": [{}]}', "[" * 100_000]  # fmt: skip


@pytest.mark.promise("answers-are-checked")
@pytest.mark.parametrize("body", NONSENSE, ids=lambda body: body[:40])
def test_nonsense_is_not_believed(project, impatient, body):
    from mlflow.exceptions import MlflowException

    with (
        answering(lambda path: (200, body)) as (address, _),
        pytest.raises((NotUnderstood, MlflowException)) as caught,
    ):
        MlflowSink(address, project / "mlruns").open(INFO)
    if isinstance(caught.value, NotUnderstood):
        assert "check that MLflow is at this address" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.promise("answers-are-checked")
@pytest.mark.parametrize("words", [("runs",), ("show", "x"), ("show", "0" * 32), ("close-dead",)])
def test_no_command_believes_nonsense(project, impatient, words):
    with answering(lambda path: (200, '{"runs": [{}], "experiments": [{}], "run": 1}')) as (
        address,
        _,
    ):
        assert "expected the answer of an MLflow server" in said(
            *words, "--tracking-uri", address, status=2
        )


@pytest.mark.promise("answers-are-checked")
def test_sync_counts_no_run_that_a_server_only_pretends_to_take(project, impatient, monkeypatch):
    monkeypatch.setenv("FBP_RETRY_SECONDS", "0")
    folder = a_run(project)
    with answering(lambda path: (200, "{}")) as (address, _):
        output = said("sync", "--tracking-uri", address, status=shipper.NOT_YET)
    assert "0 of 1 runs sent" in output
    (line,) = [line for line in output.splitlines() if "not sent" in line]
    assert "expected the answer of an MLflow server" in line
    assert not is_sent(folder)


@pytest.mark.promise("answers-are-checked")
def test_a_status_that_was_not_taken_is_told(project, small, monkeypatch):
    root = project / "mlruns"
    target = MlflowSink(uri.default_uri(root), root)
    target.open(INFO._replace(experiment="small"))
    monkeypatch.setattr("mlflow.tracking.MlflowClient.set_terminated", lambda *_: None)
    with pytest.raises(NotUnderstood, match="to be FINISHED after it was closed so, got RUNNING"):
        target.finish("FINISHED", 5)


# --- nobody waits for ever --------------------------------------------------------------------


@pytest.mark.promise("waits-are-bounded")
def test_a_held_lock_is_waited_for_with_a_bound(tmp_path):
    path = tmp_path / "lock"
    with locks.locked(path):
        began = time.monotonic()
        problem = "has held this lock for 1 s; wait"
        with pytest.raises(locks.LockTimeout, match=problem), locks.locked(path, 1):
            pass
        assert 1 <= time.monotonic() - began < 10
    with locks.locked(path, 1):
        pass


def drip(handler):
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.5)


SLOW = {
    "drips": (lambda path: (200, drip), {"FBP_REQUEST_SECONDS": "3", "FBP_UPLOAD_SECONDS": "3"},
              (), "the tracker did not answer in 3 s"),
    "drips, in total": (lambda path: (200, drip), {}, ("--seconds", "8"),
                        "sending took more than 8 s, at last for connect for"),
    "429": (lambda path: (429, "later", ("Retry-After", "3600")), {}, (), "429"),
    "503": (lambda path: (503, "later", ("Retry-After", "3600")), {}, (), "503"),
}  # fmt: skip


@pytest.mark.promise("waits-are-bounded")
@pytest.mark.parametrize("case", slow_but(SLOW, "drips", "429"))
def test_sync_gives_up_in_time_and_says_what_it_waited_for(project, monkeypatch, case):
    answer, settings, words, reason = SLOW[case]
    folder = a_run(project)
    environ = os.environ | {"FBP_RETRY_SECONDS": "0"} | settings
    began = time.monotonic()
    with answering(answer) as (address, _):
        done = subprocess.run(
            command("sync", "--tracking-uri", address, *words),
            env=environ, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
    assert done.returncode == shipper.NOT_YET, done.stderr
    assert time.monotonic() - began < 120
    (line,) = [line for line in done.stderr.splitlines() if "not sent" in line]
    assert reason in line
    assert reason in layout.shipper_log(folder).read_text()


@pytest.mark.promise("waits-are-bounded")
def test_sync_does_not_wait_for_another_process_for_ever(project):
    folder = a_run(project, sink="jsonl")
    with locks.locked(layout.shipper_lock(folder)):
        output = said("sync", "--seconds", "2", status=shipper.NOT_YET)
    assert "another process has held this lock for 2 s" in output
    assert "1 of 1 runs sent" in said("sync")


@pytest.mark.promise("waits-are-bounded")
@pytest.mark.parametrize(
    ("call", "waited", "ran", "reason"),
    [
        ("", 10_000, 0, ""),
        ("log_metrics", 100, 0, ""),
        ("log_metrics", 130, 0, "log_metrics: the tracker did not answer in 120 s"),
        ("log_model", 800, 0, ""),
        ("log_model", 1000, 0, "log_model: the tracker did not answer in 900 s"),
        ("", 0, 70, "sending took more than 60 s; what was sent stays sent"),
        ("log_metrics", 5, 70, "sending took more than 60 s, at last for log_metrics for 5 s"),
    ],
)
def test_each_call_and_all_of_them_have_a_bound(monkeypatch, call, waited, ran, reason):
    watch = shipper.Watch(60 if ran else float("inf"))
    watch._call, watch._since = call, time.monotonic() - waited
    watch._began -= ran
    assert watch.overdue().startswith(reason)
    assert bool(watch.overdue()) == bool(reason)


@pytest.mark.promise("waits-are-bounded")
def test_a_question_before_a_run_takes_three_seconds_at_most():
    began = time.monotonic()
    with answering(lambda path: (200, drip)) as (address, _):
        preflight.check(Destination("mlflow", address, address), Path(), "x")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        preflight.check(Destination("mlflow", address, address), Path(), "x")
    assert time.monotonic() - began < 10


@pytest.mark.promise("waits-are-bounded")
def test_a_question_before_a_run_takes_no_login_elsewhere(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    with answering(lambda path: (200, "{}")) as (stranger, requests):
        location = ("Location", f"{stranger}/x")
        with answering(lambda path: (307, "", location)) as (address, asked):
            preflight.check(Destination("mlflow", address, address), Path(), "x")
    assert asked[0][1]["Authorization"] == "Bearer secret"
    assert requests == []


# --- many runs --------------------------------------------------------------------------------


@pytest.fixture
def many(small, project):
    """A store with 2,500 runs, the first of which is the oldest."""
    mlflow, experiment = small
    run = mlflow.create_run(experiment, run_name="one-0000").info.run_id
    with contextlib.closing(sqlite3.connect(project / "mlruns" / "mlflow.db")) as database:
        names = [row[1] for row in database.execute("pragma table_info(runs)")]
        columns = ", ".join(
            {"run_uuid": "printf('%08x', i) || substr(run_uuid, 9)",
             "name": "'run-' || printf('%04x', i + 4096)",
             "start_time": "start_time + i"}.get(name, name)
            for name in names
        )  # fmt: skip
        database.execute(
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < 2499) "
            f"insert into runs ({', '.join(names)}) select {columns} from n, runs where name = ?",
            ("one-0000",),
        )
        database.execute(
            "insert or ignore into tags (key, value, run_uuid) "
            "select 'mlflow.runName', name, run_uuid from runs"
        )
        database.commit()
    return run


@pytest.mark.promise("many-runs-found")
@pytest.mark.parametrize("how", ["name", "end of the name", "id", "beginning of the id"])
def test_the_oldest_of_thousands_of_runs_is_found(many, how):
    with mlflow_runs.opened(None) as runs:
        name = {"name": "run-1001", "end of the name": "1001", "id": many,
                "beginning of the id": many[:12]}[how]  # fmt: skip
        assert runs.find(name).name == ("one-0000" if "id" in how else "run-1001")


@pytest.mark.promise("many-runs-found")
@pytest.mark.parametrize("limit", [None, 0, 1, 999, 1000, 1001, 2000, 2500, 9000])
def test_a_search_gives_as_many_runs_as_it_should(many, limit):
    with mlflow_runs.opened(None) as runs:
        found = runs.search("", (), limit)
    assert (
        len({run.run_id for run in found})
        == len(found)
        == min(limit, 2500, key=lambda n: (n is None, n if n is not None else 0))
        if limit is not None
        else len(found) == 2500
    )


@pytest.mark.promise("many-runs-found")
def test_runs_of_more_than_a_thousand_experiments_are_found(small, project):
    mlflow, experiment = small
    with contextlib.closing(sqlite3.connect(project / "mlruns" / "mlflow.db")) as database:
        names = [row[1] for row in database.execute("pragma table_info(experiments)")]
        columns = ", ".join(
            {"experiment_id": "experiment_id + 5 + i", "name": "name || i"}.get(name, name)
            for name in names
        )
        database.execute(
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < 1500) "
            f"insert into experiments ({', '.join(names)}) select {columns} from n, experiments "
            "where name = 'small'"
        )
        database.commit()
    mlflow.create_run(str(int(experiment) + 6), run_name="here")
    with mlflow_runs.opened(None) as runs:
        assert len(runs._experiments) == 1502
        assert runs.find("here").experiment == "small1"


# --- life and death ---------------------------------------------------------------------------


def shippers():
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if any("tracking.shipper" in word for word in process.cmdline()):
                found.append(process)
    return found


@pytest.mark.promise("shipper-is-replaced")
@pytest.mark.parametrize("moment", ["while training", "at the end"])
def test_a_shipper_that_is_killed_is_replaced(project, capfd, moment):
    with track({}, sink="jsonl", wait=100) as run:
        run.log(1, {"x": 1})
        (first,) = shippers()
        if moment == "while training":
            first.kill()
            deadline = time.monotonic() + 60
            while not any(other.pid != first.pid for other in shippers()):
                assert time.monotonic() < deadline
                time.sleep(0.1)
        run.log(2, {"x": 2})
        if moment == "at the end":
            first.kill()
    assert is_sent(run.folder)
    assert ("another one goes on in its place" in capfd.readouterr().err) or moment == "at the end"
    lines = layout.tracked_lines(project / "mlruns").read_text()
    events = [json.loads(line) for line in lines.splitlines()]
    steps = {event["step"] for event in events if event.get("key") == "x"}
    assert steps == {1, 2}
    assert events[-1]["status"] == "FINISHED"


class Runs:
    """A store with some runs that are RUNNING."""

    uri = "http://127.0.0.1:9"

    def __init__(self, *runs):
        self.runs, self.client, self.closed = runs, self, []

    def search(self, condition):
        return self.runs

    def set_tag(self, *_):
        pass

    def set_terminated(self, run_id, *_):
        self.closed.append(run_id)


def recorded(folder, **changes):
    values = dict(journal.require_start(folder).tags)
    values |= {tags.VERSION: "1", tags.HEARTBEAT: "2020-01-01T00:00:00+00:00"}
    values |= {getattr(tags, name): value for name, value in changes.items()}
    return RecordedRun("id", "name", "e", "RUNNING", 1, None, {}, values, {})


PLACES = {
    "here": ({}, True, 0, ""),
    "from another folder": ({}, True, 0, ""),
    "here, dead": ({}, False, 1, "nobody trains it"),
    "from another folder, dead": ({}, False, 1, "nobody trains it"),
    "folder gone": ({"RUN_FOLDER": "/nowhere/x"}, True, 0, "nobody can tell whether it is alive"),
    "another machine, silent": ({"HOST": "other", "RUN_FOLDER": "/nowhere/x"}, True, 1, "no sign"),
    "shared disk, alive": ({"HOST": "other"}, True, 0, ""),
    "another machine, alive": (
        {"HOST": "other", "RUN_FOLDER": "/nowhere/x", "HEARTBEAT": "2999-01-01T00:00:00+00:00"},
        True, 0, "",
    ),
}  # fmt: skip


@pytest.mark.promise("only-the-dead-are-closed")
@pytest.mark.parametrize("case", PLACES)
def test_a_run_is_closed_only_if_it_is_dead(unsent, tmp_path_factory, monkeypatch, case):
    changes, is_alive, count, reason = PLACES[case]
    folder, lines = a_run(unsent, end=""), []
    if "here" not in case:
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    runs = Runs(recorded(folder, **changes))
    with locks.try_hold_training_lock(folder) if is_alive else contextlib.nullcontext():
        closed = orphans.close_dead(runs, 10, lines.append, model_code=PYFUNC_CODE)
    assert closed == count
    assert len(lines) == bool(reason)
    assert reason in " ".join(lines)
    end = journal.read_end(folder)
    assert (end.status if end else "") == ("KILLED" if "dead" in case else "")


@pytest.mark.promise("only-the-dead-are-closed")
def test_a_run_whose_folder_is_gone_is_closed_if_the_user_says_so(unsent):
    folder = a_run(unsent, end="")
    runs = Runs(recorded(folder, RUN_FOLDER="/nowhere/x", FOLDER="x"))
    options = {"model_code": PYFUNC_CODE, "without_folder": True}
    assert orphans.close_dead(runs, 10, lambda _: None, **options) == 1
    assert runs.closed == ["id"]


@pytest.mark.promise("only-the-dead-are-closed")
@pytest.mark.parametrize("when", ["a heartbeat", "the end"])
def test_a_run_that_was_closed_in_error_corrects_itself(project, small, when):
    mlflow, _ = small
    root = project / "mlruns"
    target = MlflowSink(uri.default_uri(root), root)
    run_id = target.open(INFO._replace(experiment="small"))
    mlflow.set_tag(run_id, tags.MESSAGE, "no sign of life")
    mlflow.set_terminated(run_id, "KILLED")
    if when == "a heartbeat":
        target.set_tags({tags.HEARTBEAT: "now"})
    else:
        target.finish("FINISHED", 7)
    run = mlflow.get_run(run_id)
    assert run.info.status == ("RUNNING" if when == "a heartbeat" else "FINISHED")
    assert tags.MESSAGE not in run.data.tags


@pytest.mark.promise("a-finished-run-is-not-reopened")
def test_a_run_that_finishes_while_a_resume_begins_is_not_reopened(unsent, monkeypatch):
    write_config(unsent)
    request = launch.RunRequest(lambda _: Silent(), stop_at=1)
    launched = launch.launch(unsent / "small.toml", [], request)
    size = journal.size(launched.folder)
    configure = launch.configure_jax

    def finish_first(*arguments):
        if journal.read_end(launched.folder).status != "FINISHED":
            writer = Journal(launched.folder)
            writer.end("FINISHED")
            writer.close()
        return configure(*arguments)

    monkeypatch.setattr(launch, "configure_jax", finish_first)
    with pytest.raises(fbp.InputError, match="the run is finished; there is nothing to resume"):
        launch.resume(launched.folder.name, request)
    assert journal.read_end(launched.folder).status == "FINISHED"
    lines = layout.journal(launched.folder).read_bytes()[size:].splitlines()
    assert len(lines) == 1
