"""Attacks on verdicts: forged records, flipped bits, and the absence of false alarms."""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from fbp.errors import InputError
from fbp.experiment.rundir.locks import locked
from fbp.experiment.tracking.folder_runs import verify_local
from fbp.experiment.tracking.readers import open_runs
from tests.attacks.forgeries import FORGERIES, FORGERIES_OF_FOLDER, NotHere, Record
from tests.projects import command, write_config

KINDS = ("finished", "failed", "killed", "resumed")


def record_of(project: Path) -> Record:
    """The only run of a project."""
    (folder,) = (project / "mlruns" / "runs").iterdir()
    with contextlib.closing(sqlite3.connect(project / "mlruns" / "mlflow.db")) as database:
        ((run_id, uri),) = database.execute("select run_uuid, artifact_uri from runs").fetchall()
        rows = database.execute("select artifact_location from logged_models").fetchall()
    model = Path(rows[0][0]) if rows else None
    return Record(project, run_id, folder, Path(uri), model)


def make_record(project: Path, kind: str) -> None:
    """Make a project with one run that ended in one of the four ways."""
    settings = {"finished": (), "failed": ("--set", "optimizer.learning_rate=1e30")}
    write_config(project, data="digits")
    if kind in settings:
        done = subprocess.run(
            command("run", "small.toml", *settings[kind]), cwd=project, capture_output=True
        )
        assert done.returncode == (kind == "failed"), done.stderr
        return
    run = subprocess.Popen(
        command("run", "small.toml", "--set", "training.epochs=2000"),
        cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not list(project.glob("mlruns/runs/*/checkpoints/step-*.npz")):
        time.sleep(0.05)
        assert run.poll() is None
    time.sleep(1)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 128 + signal.SIGTERM
    if kind == "resumed":
        (folder,) = (project / "mlruns" / "runs").iterdir()
        again = command("resume", folder.name)
        assert subprocess.run(again, cwd=project, capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def records(tmp_path_factory, worker_id):
    """Return a function that makes the record of a kind, once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent

    def make(kind: str) -> Path:
        project = base / f"record-{kind}"
        with locked(project.with_suffix(".lock")):
            if not (project / "made").exists():
                (project / "mlruns").mkdir(parents=True)
                make_record(project, kind)
                (project / "made").touch()
        return project

    return make


@contextlib.contextmanager
def restored(project: Path):
    """Undo everything that is done to a project's files inside the block."""
    copy = project.with_name(f"{project.name}-{os.getpid()}-copy")
    with locked(project.with_suffix(".lock")):
        shutil.copytree(project, copy)
        try:
            yield
        finally:
            for path in [path for path in project.rglob("*") if path.is_file()]:
                is_new = not (copy / path.relative_to(project)).exists()
                if is_new and not path.name.startswith("mlflow.db"):
                    path.unlink()
            for path in copy.rglob("*"):
                target = project / path.relative_to(copy)
                if path.is_dir():
                    target.mkdir(exist_ok=True)
                elif path.name == "mlflow.db":  # other connections have it open
                    with (
                        contextlib.closing(sqlite3.connect(path)) as source,
                        contextlib.closing(sqlite3.connect(target, timeout=20)) as database,
                    ):
                        source.backup(database)
                elif not path.name.startswith("mlflow.db") and (
                    not target.exists() or path.read_bytes() != target.read_bytes()
                ):
                    shutil.copyfile(path, target)
            shutil.rmtree(copy)


def differences(record: Record) -> tuple[str, ...]:
    """What is found of a record without training; an error that is told counts as found."""
    with open_runs(f"sqlite:///{record.project}/mlruns/mlflow.db") as runs:
        try:
            return runs.verify(runs.find(record.run_id)).differences
        except InputError as error:
            return (str(error),)


def forged(record: Record, forgeries) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """What is found after each forgery, and the forgeries that the record has no place for."""
    found, not_here = {}, []
    for name, forge in forgeries.items():
        with restored(record.project):
            try:
                forge(record)
            except NotHere:
                not_here.append(name)
                continue
            found[name] = differences(record)
    return found, not_here


@pytest.mark.promise("forgery-found")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_forgery_of_what_mlflow_shows_is_found(records, kind, monkeypatch):
    record = record_of(records(kind))
    monkeypatch.chdir(record.project)
    assert differences(record) == ()
    found, not_here = forged(record, FORGERIES)
    assert [name for name, lines in found.items() if not lines] == []
    assert len(found) >= 40, not_here
    assert differences(record) == ()


@pytest.mark.promise("forgery-found")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_forgery_of_a_run_folder_is_found(records, kind, monkeypatch):
    record = record_of(records(kind))
    monkeypatch.chdir(record.project)
    assert verify_local(record.folder).differences == ()
    found, not_here = forged(record, FORGERIES_OF_FOLDER)
    assert [name for name, lines in found.items() if not lines] == []
    assert len(found) >= 30, not_here


def files_of(record: Record) -> list[Path]:
    """Every file of a record: in the run's folder, and MLflow's copies."""
    folders = [record.folder, record.artifacts, *([record.model] if record.model else [])]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in files if path.stat().st_size]


@pytest.mark.promise("forgery-found")
@pytest.mark.slow
def test_every_flipped_bit_is_found(records, monkeypatch):
    record = record_of(records("finished"))
    monkeypatch.chdir(record.project)
    chance, files = random.Random(0), files_of(record)
    missed = []
    for _ in range(200):
        path = chance.choice(files)
        content = path.read_bytes()
        changed = bytearray(content)
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        if not differences(record):
            missed.append((path.name, place, bit))
        path.write_bytes(content)
    assert missed == []
    assert differences(record) == ()
