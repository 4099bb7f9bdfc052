"""Attacks on verdicts: forged records, flipped bits, and the absence of false alarms."""

import random
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from fbp.experiment.rundir import layout
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.manifest import points_digest
from fbp.experiment.rundir.npz import digest_of
from fbp.experiment.rundir.series import Series, metrics_digest
from fbp.experiment.tracking import mlflow_format
from fbp.experiment.tracking.folder_runs import verify_local
from fbp.experiment.tracking.readers import open_runs
from tests.attacks.forgeries import FORGERIES, FORGERIES_OF_FOLDER, NotHere, Record
from tests.attacks.recorded import differences, make_record, record_of, restored
from tests.projects import command, said
from tests.servers import Server

KINDS = ("finished", "failed", "killed", "resumed")


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


@pytest.mark.promise("forgery-found")
@pytest.mark.slow
def test_a_record_without_a_seal_is_not_called_checked(records, monkeypatch):
    """Taken for a run that goes on: without its manifest, and RUNNING."""
    record = record_of(records("finished"))
    monkeypatch.chdir(record.project)
    with restored(record.project):
        shutil.rmtree(record.folder)
        record.sql("delete from tags where key = 'fbp.manifest'")
        record.sql("update runs set status = 'RUNNING', end_time = null")
        words = command("reproduce", record.run_id)
        done = subprocess.run(words, capture_output=True, text=True)
        unchecked = "its record is not sealed: nothing else that is shown of it was checked"
        assert unchecked in " ".join(done.stdout.split()), done.stdout + done.stderr
        with open_runs(f"sqlite:///{record.project}/mlruns/mlflow.db") as runs:
            (again,) = [run for run in runs.search() if run.run_id != record.run_id]
        assert unchecked in again.tags["fbp.reproduction"]


@pytest.mark.promise("no-false-alarm")
def test_a_fresh_run_is_as_it_was_recorded(records, monkeypatch):
    record = record_of(records("finished"))
    monkeypatch.chdir(record.project)
    assert differences(record) == ()
    assert verify_local(record.folder).differences == ()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    server = Server(folder, f"sqlite:///{folder}/mlflow.db")
    server.start()
    yield server
    server.kill()


@pytest.mark.promise("no-false-alarm")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["finished", "failed", "resumed"])
def test_a_run_on_a_server_is_as_it_was_recorded(server, tmp_path, monkeypatch, kind):
    """Also of another project, which has no folder of it, and in another process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        (folder / "mlruns").mkdir(parents=True)
    make_record(here, kind)
    (folder,) = (here / "mlruns" / "runs").iterdir()
    with open_runs(server.uri) as runs:
        run = runs.find(folder.name)
    for project in (here, there):
        done = subprocess.run(
            command("verify", run.run_id), cwd=project, capture_output=True, text=True
        )
        assert "as it was recorded" in done.stdout, done.stdout + done.stderr


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
