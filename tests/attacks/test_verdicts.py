"""Attacks on verdicts: forged records, flipped bits, and the absence of false alarms."""

import contextlib
import random
import shutil
import signal
import sqlite3
import subprocess
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from fbp.errors import InputError
from fbp.experiment.commands import archive
from fbp.experiment.commands.segment import verify_segment
from fbp.experiment.rundir import checkpoints, layout
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.manifest import points_digest
from fbp.experiment.rundir.npz import digest_of
from fbp.experiment.rundir.series import Series, metrics_digest
from fbp.experiment.tracking import mlflow_format
from fbp.experiment.tracking.folder_runs import verify_local
from fbp.experiment.tracking.readers import open_runs
from tests.attacks.forgeries import FORGERIES, FORGERIES_OF_FOLDER, NotHere, Record
from tests.projects import command, said, write_config

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
def records(tmp_path_factory):
    """Return a function that makes the record of a kind, once for each test process."""
    projects: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in projects:
            project = tmp_path_factory.mktemp(f"record-{kind}")
            (project / "mlruns").mkdir()
            make_record(project, kind)
            projects[kind] = project
        return projects[kind]

    return make


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


QUICK = (
    "tag fbp.seed changed",
    "param optimizer_learning_rate changed",
    "param_added",
    "status KILLED",
    "value_of_a_point",
    "point_deleted",
    "last_value_in_lists",
    "dataset digest",
    "config.toml changed",
    "weights_zeroed",
    "class_names",
    "picture_added",
    "served artifacts/model/params.npz changed",
)


@pytest.mark.promise("forgery-found")
def test_a_forgery_is_found_without_training(records, monkeypatch):
    record = record_of(records("finished"))
    monkeypatch.chdir(record.project)
    found, _ = forged(record, {name: FORGERIES[name] for name in QUICK})
    assert [name for name, lines in found.items() if not lines] == []
    assert found["param optimizer_learning_rate changed"] == (
        'params: optimizer_learning_rate was "0.01", is "7"',
    )


@pytest.mark.promise("forgery-found")
def test_reproduce_says_what_was_forged(records, monkeypatch):
    record = record_of(records("finished"))
    monkeypatch.chdir(record.project)
    with restored(record.project):
        FORGERIES["class_names"](record)
        output = said("reproduce", record.run_id, status=1)
    assert "its record was changed" in output
    assert "DIFFERENT" in output
    assert "changed in the record: artifacts: model/model.json: its content was changed" in output


@pytest.mark.promise("no-false-alarm")
def test_a_fresh_run_is_as_it_was_recorded(records, monkeypatch):
    record = record_of(records("finished"))
    monkeypatch.chdir(record.project)
    assert differences(record) == ()
    assert verify_local(record.folder).differences == ()


@pytest.mark.promise("no-false-alarm")
def test_names_that_mlflow_refuses_are_told_apart(tmp_path, monkeypatch):
    """Two metrics whose names differ in a refused character only are two curves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = layout.new_run_folder(tmp_path / "mlruns", "odd")
    writer = Journal(folder)
    writer.start(label="odd", experiment="odd", params={"a:b": "1", "a_b": "2"}, tags={})
    for step in range(3):
        writer.metrics(step, {"norm/a:b": 1.0 * step, "norm/a_b": -1.0 * step, "inf": float("inf")})
    writer.end("FINISHED")
    writer.close()
    layout.destination(folder).write_text("embedded")
    assert "1 of 1 runs sent" in said("sync")
    record = record_of(tmp_path)
    assert differences(record) == ()
    with open_runs(None) as runs:
        metrics = runs.find(record.run_id).metrics
        assert metrics["norm/a_b"] == -2
        assert metrics[mlflow_format.key_of("norm/a:b")] == 2


NAMES = ["a:b", "a_b", "a;b", "", ".", "..", "a//b", "a/./b", "a" * 300, "a" * 301, "é:", "é_"]
NAMES += [mlflow_format.key_of(name) for name in ("a:b", "a" * 300)]


@pytest.mark.promise("no-false-alarm")
def test_different_names_have_different_keys():
    keys = [mlflow_format.key_of(name) for name in NAMES]
    assert len(set(keys)) == len(NAMES)
    assert mlflow_format.key_of("gradient_norm/1/body/0/w") == "gradient_norm/1/body/0/w"
    for key in keys:
        assert 0 < len(key) <= 250
        assert all(part.strip(".") for part in key.split("/"))


@pytest.mark.promise("digests-cannot-collide")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": np.zeros(2, "f4")}, {"a": np.zeros(2, "i4")}),
        ({"a": np.zeros(2, "f4")}, {"a": np.zeros((1, 2), "f4")}),
        ({"a": np.zeros(2, ml_dtypes.int4)}, {"a": np.zeros(2, ml_dtypes.uint4)}),
        ({"a": np.zeros(2, ml_dtypes.float8_e4m3fn)}, {"a": np.zeros(2, ml_dtypes.float8_e5m2)}),
        ({"a": np.zeros(2, "f4"), "b": np.zeros(0)}, {"a": np.zeros(2, "f4")}),
    ],
)
def test_different_arrays_have_different_digests(first, second):
    assert digest_of(first) != digest_of(second)


@pytest.mark.promise("digests-cannot-collide")
def test_different_metrics_have_different_digests():
    """A series cannot be cut elsewhere, with the rest in a longer name of the next one."""
    one = Series(np.array([0, 1]), np.array([0.0, 1.0]), np.array([0, 0]))
    two = one.where(np.array([True, False]))
    rest = np.array([1.0]).tobytes().decode("latin-1")
    different = [{"a": one}, {"a": two}, {"a": two, "b": two}, {"a": two, f"{rest}b": two}]
    assert len({metrics_digest(each) for each in different}) == len(different)
    assert len({points_digest(each)["sha256"] for each in (one, two)}) == 2


@pytest.fixture
def key(tmp_path):
    """Return a new SSH key without a passphrase."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    path = tmp_path / "id"
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(words, check=True)
    return path


@pytest.mark.promise("signed-by")
def test_a_signature_says_by_whom(records, key, monkeypatch):
    record = record_of(records("finished"))
    monkeypatch.chdir(record.project)
    signers = key.with_name("signers")
    public = key.with_suffix(".pub").read_text().strip()
    signers.write_text(f"ada@example {public}\n")
    with restored(record.project):
        assert "none of the signers" in said(
            "verify", record.run_id, "--signers", signers, status=1
        )
        said("sign", record.run_id, "--key", key)
        assert "signed by key ED25519 SHA256:" in said("verify", record.run_id)
        assert "signed by ada@example" in said("verify", record.run_id, "--signers", signers)
        signers.write_text(f"eve@example {public[:-8]}AAAAAAAA\n")
        assert "none of the signers" in said(
            "verify", record.run_id, "--signers", signers, status=1
        )
        (signature,) = (record.artifacts / "signatures").iterdir()
        content = bytearray(signature.read_bytes())
        content[len(content) // 2] ^= 1
        signature.write_bytes(content)
        assert "not of this manifest, or damaged" in said("verify", record.run_id, status=1)


@pytest.mark.promise("signed-by")
def test_a_changed_record_is_not_signed(records, key, monkeypatch):
    record = record_of(records("finished"))
    monkeypatch.chdir(record.project)
    with restored(record.project):
        FORGERIES["class_names"](record)
        assert "its record was changed" in said("sign", record.run_id, "--key", key, status=2)
        assert not (record.artifacts / "signatures").exists()


@pytest.mark.promise("archive")
def test_an_archive_proves_itself_elsewhere(records, key, tmp_path, monkeypatch):
    record = record_of(records("finished"))
    monkeypatch.chdir(record.project)
    path = tmp_path / "elsewhere" / "run.fbp.zip"
    path.parent.mkdir()
    said("archive", record.folder.name, "-o", path, "--with-data")
    assert "exists already" in said("archive", record.folder.name, "-o", path, status=2)
    monkeypatch.chdir(path.parent)
    assert "as it was recorded" in said("verify", path)
    said("sign", path, "--key", key)
    assert "signed by key" in said("verify", path)
    assert sorted(path.parent.iterdir()) == [path]
    chance, content = random.Random(1), path.read_bytes()
    for _ in range(50):
        changed = bytearray(content)
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        assert "it is damaged" in said("verify", path, status=2)


@pytest.mark.promise("archive")
@pytest.mark.parametrize("name", ["../x", "/x", "runs/../../x", "runs/a/../b", "runs", "x/y/z"])
def test_an_archive_cannot_write_elsewhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with archive._new_archive(tmp_path / "a.zip") as file:
        file.writestr(name, "content")
    assert "it is damaged" in said("verify", "a.zip", status=2)
    assert not (tmp_path.parent / "x").exists()


@pytest.mark.promise("archive")
def test_an_archive_cannot_unpack_to_more_than_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with archive._new_archive(tmp_path / "a.zip") as file:
        content = bytes(10**7)
        file.writestr("runs/r/journal.jsonl", content, compress_type=zipfile.ZIP_DEFLATED)
    assert "it is damaged" in said("verify", "a.zip", status=2)


@pytest.mark.promise("archive")
@pytest.mark.slow
def test_an_archive_is_reproduced_elsewhere(records, tmp_path, monkeypatch):
    record = record_of(records("finished"))
    monkeypatch.chdir(record.project)
    path = tmp_path / "run.fbp.zip"
    said("archive", record.folder.name, "-o", path, "--with-data")
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        command("reproduce", path, "--tracking-uri", "folders"), capture_output=True, text=True
    )
    assert "identical to the bit" in done.stdout, done.stdout + done.stderr


@pytest.mark.promise("segment")
@pytest.mark.slow
def test_a_segment_is_verified_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    kept = "[checkpoint]\nevery_steps = 40\nkeep = 3\n"
    write_config(tmp_path, data="digits", more=kept)
    assert subprocess.run(command("run", "small.toml"), capture_output=True).returncode == 0
    (folder,) = (tmp_path / "mlruns" / "runs").iterdir()
    steps = [int(path.stem[5:]) for path in sorted((folder / "checkpoints").iterdir())]
    between = ("--from", steps[0], "--to", steps[1])
    done = subprocess.run(command("verify", folder.name, *between), capture_output=True, text=True)
    assert "identical to the bit" in done.stdout, done.stdout + done.stderr
    # a state that does not lead there: another optimizer state, consistently rewritten
    path = folder / "checkpoints" / f"step-{steps[0]:012d}.npz"
    checkpoint = checkpoints.read(path)
    name = next(name for name in checkpoint.arrays if "optimizer" in name or "mean" in name)
    arrays = checkpoint.arrays | {name: checkpoint.arrays[name] + 1}
    checkpoints.write(path, checkpoint._replace(arrays=arrays))
    said("verify", folder.name, *between, status=1)
    lines: list[str] = []
    assert not verify_segment(folder, steps[0], steps[1], lines.append, {})
    assert "is not the one in the journal" in lines[0]
