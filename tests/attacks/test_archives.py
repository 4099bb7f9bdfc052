"""Attacks on archives and on segments of a run."""

import hashlib
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fbp.experiment import track
from fbp.experiment.commands import archive, archive_needs
from fbp.experiment.commands.segment import verify_segment
from fbp.experiment.rundir import checkpoints
from tests.attacks.recorded import record_of
from tests.projects import command, fbp_run, said, write_config


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


OWN_NET = """import helpers
import fbp


def net(outputs: int):
    dense = fbp.layers.dense
    return fbp.chain(dense(helpers.WIDTH), fbp.layers.tanh(), dense(outputs))
"""
PLACES = {
    "a file": ("net.py", "helpers.py", "{folder}/net.py:net"),
    "a module": ("net.py", "helpers.py", "net:net"),
    "a module of a package": ("own/__init__.py", "own/nets.py", "own.nets:net"),
}


def write_own_code(project: Path, place: str) -> str:
    """Write own code into a project; return the reference to its model."""
    first, second, reference = PLACES[place]
    project.joinpath(second).parent.mkdir(exist_ok=True)
    if place == "a module of a package":
        (project / first).write_text("WIDTH = 5\n")
        (project / second).write_text(OWN_NET.replace("import helpers", "import own as helpers"))
    else:
        (project / first).write_text(OWN_NET)
        (project / second).write_text("WIDTH = 5\n")
    return reference.format(folder=project)


@pytest.mark.promise("archive")
@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_an_archive_has_the_code_that_its_run_needs(tmp_path, monkeypatch, place):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, here / "mlruns", there):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(os.path.isabs, sys.path)))
    path, reference = write_config(here), write_own_code(here, place)
    path.write_text(path.read_text().replace('"mlp"\nhidden = [8]', '"mlp"'))
    fbp_run("small.toml", "--set", f"model.name={reference}")
    (run,) = (here / "mlruns" / "runs").iterdir()
    file = there / "run.fbp.zip"
    assert "without own code" not in said("archive", run.name, "-o", file, "--with-data")
    here.rename(tmp_path / "gone")
    monkeypatch.chdir(there)
    assert "as it was recorded" in said("verify", file)
    again = ("reproduce", file, "--tracking-uri", "folders")
    refused = subprocess.run(command(*again), capture_output=True, text=True)
    assert refused.returncode == 2
    code = f"needs/{run.name}/code"
    assert f"the archive has that code: unzip it, read it, and if you trust it: --code {code}" in (
        " ".join(refused.stderr.split())
    )
    with zipfile.ZipFile(file) as archived:
        archived.extractall(there)
    done = subprocess.run(command(*again, "--code", code), capture_output=True, text=True)
    assert "identical to the bit" in done.stdout, done.stdout + done.stderr
    assert "your own code is the same" in done.stdout


NAMES = [
    *("loss (1).png", "Loss (1).png", "größe.png", "a'b\".txt", "-x", "#1 %20 & $x.csv"),
    *("deep/er/a.txt", "..x", "a..b", "~", "*.txt", "日本.txt"),
]


@pytest.mark.promise("archive")
def test_what_can_be_written_can_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "content").write_text("1")
    with track({"rate": 0.1}, sink="jsonl") as tracked:
        tracked.log(1, {"loss": 0.5})
        for name in NAMES:
            tracked.artifact("content", name)
    said("archive", tracked.name, "-o", "run.fbp.zip")
    assert "as it was recorded" in said("verify", "run.fbp.zip")
    with zipfile.ZipFile("run.fbp.zip") as archived:
        names = {name.partition("/artifacts/")[2] for name in archived.namelist()}
    assert set(NAMES) <= names


@pytest.mark.promise("archive")
@pytest.mark.parametrize("change", ["requirements.txt", "code/net.py", "data.npz"])
def test_what_an_archive_has_beside_the_record_is_checked(records, tmp_path, monkeypatch, change):
    record = record_of(records("finished"))
    monkeypatch.chdir(record.project)
    said("archive", record.folder.name, "-o", tmp_path / "run.fbp.zip")
    with (
        zipfile.ZipFile(tmp_path / "run.fbp.zip") as source,
        archive._new_archive(tmp_path / "forged.zip") as target,
    ):
        added = f"needs/{record.folder.name}/{change}"
        for name in source.namelist():
            if name != added:
                target.writestr(name, source.read(name))
        target.writestr(added, "import os\n")
    output = said("verify", tmp_path / "forged.zip", status=1)
    assert "DIFFERENT" in output
    assert change.removesuffix(".npz").rpartition("/")[2] in output


@pytest.mark.promise("archive")
def test_code_that_has_changed_is_not_archived_without_a_word(records, tmp_path, monkeypatch):
    record = record_of(records("finished"))
    monkeypatch.chdir(record.project)
    digest = hashlib.sha256(b"WIDTH = 5\n").hexdigest()
    monkeypatch.setattr(archive_needs, "_own_code", lambda folder: {"own.py": digest})
    (tmp_path / "own.py").write_text("WIDTH = 6\n")
    code = ("--code", tmp_path / "own.py")
    output = said("archive", record.folder.name, "-o", tmp_path / "run.fbp.zip", *code)
    assert "without own code own.py, which is not found as it was when the run began" in output
    (tmp_path / "own.py").write_text("WIDTH = 5\n")
    output = said("archive", record.folder.name, "-o", tmp_path / "again.fbp.zip", *code)
    assert "without own code" not in output
