"""Projects with one recorded run each, and what is found of a record."""

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

from fbp.errors import InputError
from fbp.experiment.tracking.readers import open_runs
from tests.attacks.forgeries import Record
from tests.projects import command, write_config


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
        command("run", "small.toml", "--set", "training.epochs=200",
                "--set", "checkpoint.every_steps=44"),
        cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not list(project.glob("mlruns/runs/*/checkpoints/step-*.npz")):
        time.sleep(0.05)
        assert run.poll() is None
    time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 128 + signal.SIGTERM
    if kind == "resumed":
        (folder,) = (project / "mlruns" / "runs").iterdir()
        again = command("resume", folder.name)
        assert subprocess.run(again, cwd=project, capture_output=True).returncode == 0


@contextlib.contextmanager
def restored(project: Path):
    """Undo everything that is done to a project's files inside the block."""
    copy = project.with_name(f"{project.name}-copy")
    shutil.copytree(project, copy)
    try:
        yield
    finally:
        _remove_what_is_new(project, copy)
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


def _remove_what_is_new(project: Path, copy: Path) -> None:
    for path in sorted(project.rglob("*"), reverse=True):
        if (copy / path.relative_to(project)).exists() or path.name.startswith("mlflow.db"):
            continue
        path.rmdir() if path.is_dir() else path.unlink()


def differences(record: Record) -> tuple[str, ...]:
    """What is found of a record without training; an error that is told counts as found."""
    with open_runs(f"sqlite:///{record.project}/mlruns/mlflow.db") as runs:
        try:
            return runs.verify(runs.find(record.run_id)).differences
        except InputError as error:
            return (str(error),)
