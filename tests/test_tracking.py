"""Tracking that cannot hurt: own loops, dead servers, many processes, runs without an end."""

import contextlib
import io
import os
import shutil
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

import fbp
from fbp.cli import main
from fbp.experiment import track
from fbp.experiment.rundir import journal, layout
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.recorder import Recorder
from fbp.experiment.rundir.redact import redact, redact_secrets_of
from fbp.experiment.rundir.series import read_series
from fbp.experiment.runner.trained_model import PYFUNC_CODE
from fbp.experiment.tracking import mlflow_format, shipper, store
from fbp.experiment.tracking.shipment import is_sent, read_sent
from fbp.experiment.tracking.uri import destination
from tests.cases import slow_but
from tests.projects import client, command, one, the_run, write_config
from tests.servers import Server, postgresql

SECRET = "hidden/w@rd"


def to_mlflow(project):
    return destination(project / "mlruns", "mlflow")


@pytest.mark.parametrize(
    "uri",
    [
        "http://someone:hidden/w@rd@127.0.0.1:9",
        "postgresql://someone:hidden/w@rd@127.0.0.1:9/db",
        "postgresql://127.0.0.1:9/db?user=someone&password=hidden/w@rd",
    ],
)
def test_secrets_stay_secret(unsent, monkeypatch, uri):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr("sys.argv", ["fbp", "run", "--tracking-uri", uri])
    with track({"a": 1}, tracking_uri=uri) as run:
        run.log(1, {"x": 1})
    written = b"".join(
        path.read_bytes() for path in run.folder.rglob("*") if path.is_file()
    ).decode()
    shown = [
        written,
        redact_secrets_of(f"{uri} refused hidden/w@rd and hidden%2Fw%40rd", uri),
        redact(f"see {uri}"),
    ]
    assert "127.0.0.1:9" in written
    for text in shown:
        assert "w@rd" not in text
        assert "someone" not in text or "?user=" in uri
    if uri.startswith("http"):
        assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == (
            "someone",
            SECRET,
        )


def test_a_refused_uri_does_not_show_its_password(project):
    refused = CliRunner().invoke(
        main, ["runs", "--tracking-uri", "file://someone:hidden-word@host/x"]
    )
    assert refused.exit_code == 2
    assert "hidden-word" not in refused.output


@pytest.mark.parametrize(
    ("uri", "knocks"),
    [
        ("postgresql://u:p@db.example/runs", [("db.example", 5432)]),
        ("mysql+pymysql://root@db.example:7/runs", [("db.example", 7)]),
        ("mysql+pymysql://root@localhost/runs?unix_socket=/tmp/x.sock", []),
        ("postgresql://u@localhost/runs?host=/var/run/postgresql", []),
        ("mssql+pyodbc://u:p@a_source", []),
        ("http://db.example", []),
        ("sqlite:///x.db", []),
    ],
)
def test_only_a_database_at_a_port_that_is_certain_is_tried_first(monkeypatch, uri, knocks):
    asked = []
    monkeypatch.setattr(
        "socket.create_connection", lambda at, timeout: asked.append(at) or io.BytesIO()
    )
    store._check_server_listens(uri)
    assert asked == knocks


def test_names_in_records_do_not_leave_their_folder(project):
    (project / "mlruns" / "runs" / "good").mkdir(parents=True)
    (project / "outside").mkdir()
    runs = project / "mlruns" / "runs"
    assert layout.safe_child(runs, "good") == runs / "good"
    for name in (
        "../outside",
        "..",
        ".",
        "",
        str(project / "outside"),
        "good/../../../outside",
        None,
        5,
        "missing",
    ):
        assert layout.safe_child(runs, name) is None


def test_a_moved_folder_is_recognized_and_repaired(finished, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    moved = tmp_path / "moved"
    shutil.copytree(finished[0], moved)
    monkeypatch.chdir(moved)
    for words in (["run", "small.toml"], ["runs"]):
        refused = CliRunner().invoke(main, words)
        assert refused.exit_code == 2, refused.output
        assert "this folder was moved or copied" in refused.output
        assert "fbp repair-store" in refused.output
    repaired = CliRunner().invoke(main, ["repair-store"])
    assert repaired.exit_code == 0, repaired.output
    assert f"was in {finished[0]}" in repaired.output
    run = the_run(moved)
    assert run.info.artifact_uri.startswith(str(moved))
    assert "config.toml" in {item.path for item in client(moved).list_artifacts(run.info.run_id)}
    (logged,) = client(moved).search_logged_models([run.info.experiment_id])
    assert logged.artifact_location.startswith(str(moved))
    assert CliRunner().invoke(main, ["repair-store"]).output == "nothing was moved\n"
    assert fbp.load(run.info.run_id).predict(np.zeros((1, 8, 8, 1))).shape == (1, 10)


def test_close_dead_closes_what_is_dead_and_nothing_else(project, warm):
    mlflow = client(project)
    experiment = mlflow.create_experiment("small")

    def running(name, **tags):
        return mlflow.create_run(
            experiment, run_name=name, tags={f"fbp.{k}": v for k, v in tags.items()}
        ).info.run_id

    silent = running("silent", version="1", heartbeat="2020-01-01T00:00:00+00:00")
    alive = running("alive", version="1", heartbeat="2999-01-01T00:00:00+00:00")
    foreign = running("foreign")
    folder = layout.new_run_folder(project / "mlruns", "local")
    writer = journal.Journal(folder)
    writer.start(label="local", experiment="small", params={}, tags={})
    writer.metrics(1, {"x": 1.0})
    writer.close()
    local = running("local", version="1", folder=folder.name)
    done = subprocess.run(command("close-dead"), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "2 runs closed" in done.stdout
    found = {
        name: mlflow.get_run(run)
        for name, run in {"s": silent, "a": alive, "f": foreign, "l": local}.items()
    }
    assert {name: run.info.status for name, run in found.items()} == {
        "s": "KILLED",
        "a": "RUNNING",
        "f": "RUNNING",
        "l": "KILLED",
    }
    assert found["s"].info.end_time == 1577836800000
    assert found["l"].data.metrics["x"] == 1


def test_names_that_mlflow_refuses_do_not_keep_a_run_from_it(project, warm):
    """A user's own model may call its parameters anything."""
    folder = layout.new_run_folder(project / "mlruns", "..odd")
    writer = journal.Journal(folder)
    writer.start(label="odd", experiment="small", params={"p#": "1"}, tags={"t:!": "1"})
    writer.metrics(1, {"delta_norm/w#": 1.0, "../x": 2.0, "a//b": 3.0, "good": float("inf")})
    writer.end("FINISHED")
    writer.close()
    assert shipper.launch(folder, to_mlflow(project), PYFUNC_CODE).wait(timeout=120) == 0
    run = the_run(project)
    assert run.info.status == "FINISHED"
    names = ("delta_norm/w#", "../x", "a//b", "good")
    assert {mlflow_format.key_of(name) for name in names} <= set(run.data.metrics)


def counted(database, experiment="tracked"):
    """Metric records, and different ones, of an experiment by run; but not the machine's."""
    return database.execute(
        "select count(*), count(distinct metrics.key || '/' || step) "
        "from metrics join runs using (run_uuid) "
        "where metrics.key not like 'system/%' group by run_uuid"
    ).fetchall()


@pytest.mark.parametrize("damage", slow_but(["a line is gone", "a flipped byte"], "a flipped byte"))
def test_a_journal_that_was_damaged_after_it_was_sent_is_filled_and_nothing_doubled(
    project, warm, damage
):
    values = np.arange(1, 31, dtype=np.float32)
    with track({}) as run:
        for first in (1, 11, 21):
            run._journal.steps(first, {"loss": values[first - 1 : first + 9]})
        run.log(30, {"end": 1})
    path = run.folder / layout.JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if b'"first_step": 11' in line)
    lines[place] = (
        b""
        if damage == "a line is gone"
        else lines[place].replace(b'"first_step": 11', b'"first_step": 12')
    )
    path.write_bytes(b"".join(lines))
    with track({}, resume=run.name) as again:
        Recorder(again._journal, 1).steps(1, {"loss": values})
        again.log(31, {"end": 2})
    assert read_series(run.folder)["loss"].values.tolist() == values.tolist()
    with contextlib.closing(sqlite3.connect(project / "mlruns" / "mlflow.db")) as database:
        assert counted(database) == [(32, 32)]
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
    assert is_sent(run.folder)


def test_a_run_that_never_began_keeps_no_shipper(project, warm):
    folder = layout.new_run_folder(project / "mlruns", "dead")
    (folder / layout.JOURNAL).touch()
    group = layout.new_run_folder(project / "mlruns", "group")
    writer = Journal(group)
    writer.start(label="group", experiment="e", params={}, tags={})
    writer.child(folder.name, "a")
    writer.close()
    for top in (folder, group):
        assert shipper.launch(top, to_mlflow(project), PYFUNC_CODE).wait(timeout=60) == 0
    assert journal.read_end(group).status == "KILLED"


LOOP = """
import sys, time
from fbp.experiment import track
count, pause = int(sys.argv[1]), float(sys.argv[2])
with track({"count": count}, wait=float(sys.argv[3])) as run:
    for step in range(1, count // 2 + 1):
        run.log(step, {"loss": 1 / step, "norm": {"w": step}})
        time.sleep(pause)
"""


@pytest.mark.slow
def test_four_processes_on_one_new_store_lose_nothing(project):
    loops = [
        subprocess.Popen([sys.executable, "-c", LOOP, "20000", "0", "300"], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    assert [(loop.communicate(timeout=500)[1], loop.returncode) for loop in loops] == [(b"", 0)] * 4
    with contextlib.closing(sqlite3.connect(project / "mlruns" / "mlflow.db")) as database:
        assert counted(database) == [(20_000, 20_000)] * 4
        assert database.execute("select distinct status from runs").fetchall() == [("FINISHED",)]


def postgresql_counted(uri):
    import psycopg

    with contextlib.closing(psycopg.connect(uri)) as database, database.cursor() as cursor:
        cursor.execute(
            "select count(*), count(distinct metrics.key || '/' || step), min(runs.status) "
            "from metrics "
            "join runs using (run_uuid) where metrics.key not like 'system/%' group by run_uuid"
        )
        return cursor.fetchall()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_server_that_is_killed_for_half_of_a_run_has_every_record_in_the_end(project, kind):
    with contextlib.ExitStack() as stack:
        backend = f"sqlite:///{project}/server.db"
        if kind == "postgresql":
            backend = stack.enter_context(postgresql(project))
            if backend is None:
                pytest.skip("PostgreSQL is not installed")
        server = Server(project, backend)
        stack.callback(server.kill)
        server.start()
        settings = os.environ | {"MLFLOW_TRACKING_URI": server.uri, "FBP_RETRY_SECONDS": "1"}
        loop = subprocess.Popen(
            [sys.executable, "-c", LOOP, "2000", "0.02", "60"],
            env=settings,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline, folder = time.monotonic() + 120, None
        while time.monotonic() < deadline:  # until the first records have arrived
            folder = folder or next(iter(layout.run_folders(project / "mlruns")), None)
            if folder and read_sent(folder).checksums[layout.JOURNAL].length > 20_000:
                break
            time.sleep(0.1)
        server.kill()
        errors = loop.communicate(timeout=200)[1]
        assert loop.returncode == 0, errors
        assert "fbp sync" in errors
        assert "Traceback" not in errors
        server.start()
        done = subprocess.run(
            command("sync"), env=settings, capture_output=True, text=True, timeout=240
        )
        assert "1 of 1 runs sent" in done.stdout, done.stderr
        if kind == "sqlite":
            with contextlib.closing(sqlite3.connect(project / "server.db")) as database:
                assert counted(database) == [(2000, 2000)]
                assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
        else:
            assert postgresql_counted(backend) == [(2000, 2000, "FINISHED")]
        again = subprocess.run(
            command("sync"), env=settings, capture_output=True, text=True, timeout=240
        )
        assert "nothing to send" in again.stdout
        written = b"".join(
            path.read_bytes() for path in (project / "mlruns").rglob("*") if path.is_file()
        )
        assert b"a-secret-word" not in written


@pytest.mark.slow
def test_a_run_on_a_server_is_reproduced_and_compared_elsewhere(project):
    """From nothing but what the server has: in another folder, with artifacts over HTTP."""
    server = Server(project, f"sqlite:///{project}/server.db")
    try:
        server.start()
        settings = os.environ | {"MLFLOW_TRACKING_URI": server.uri}
        write_config(project, data="digits")
        first = subprocess.run(
            command("run", "small.toml"), env=settings, capture_output=True, text=True, timeout=240
        )
        assert first.returncode == 0, first.stderr
        elsewhere = project / "elsewhere"
        (elsewhere / "mlruns").mkdir(parents=True)
        name = journal.read_start(one(project / "mlruns" / "runs")).name

        def ask(*words):
            done = subprocess.run(
                command(*words),
                cwd=elsewhere,
                env=settings,
                capture_output=True,
                text=True,
                timeout=240,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        assert "identical to the bit" in ask("reproduce", name)
        again = journal.read_start(one(elsewhere / "mlruns" / "runs")).name
        assert "│ none " in ask("compare", name, again)
        assert ask("runs", "attributes.status = 'FINISHED'").endswith("2 runs\n")
        assert "models:/served@best" in ask("register", name, "served", "--alias", "best")
        loaded = "import fbp; print(fbp.load('models:/served@best').predict([[0.0] * 64]).shape)"
        done = subprocess.run(
            [sys.executable, "-c", loaded],
            cwd=elsewhere,
            env=settings,
            capture_output=True,
            text=True,
        )
        assert done.stdout == "(1, 10)\n", done.stderr
    finally:
        server.kill()


def test_a_server_that_is_not_there_does_not_hold_the_process(project):
    write_config(project)
    began = time.monotonic()
    done = subprocess.run(
        command("run", "small.toml", "--tracking-uri", "http://127.0.0.1:9"),
        env=os.environ | {"FBP_RETRY_SECONDS": "2"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "nothing is lost: 'fbp sync'" in done.stderr
    assert time.monotonic() - began < 90
    assert journal.read_end(one(project / "mlruns" / "runs")).status == "FINISHED"
