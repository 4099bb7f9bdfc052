"""Fixtures of the attacks: records, keys, own code and runs of it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fbp.experiment.commands import launch
from fbp.experiment.commands.launch import RunRequest
from tests.attacks.own_code import HELPERS, OWN, TRAP
from tests.attacks.recorded import make_record
from tests.projects import Silent, write_config


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


@pytest.fixture
def key(tmp_path):
    """Return a new SSH key without a passphrase."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    path = tmp_path / "id"
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(words, check=True)
    return path


@pytest.fixture
def own(project, monkeypatch):
    """A project whose own code lies in `mine/`, and traps of the same names here."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (project / "mine").mkdir()
    (project / "mine" / "own.py").write_text(OWN.replace("{}", "relu"))
    (project / "mine" / "helpers.py").write_text(HELPERS)
    for name in ("own.py", "helpers.py"):
        (project / name).write_text(TRAP.format(str(project / "executed")))
    yield project
    for name in [name for name in sys.modules if name in ("own", "helpers", "pkg", "pkg.own")]:
        del sys.modules[name]
    assert not (project / "executed").exists()


@pytest.fixture
def begun(own, unsent, monkeypatch, tmp_path_factory):
    """A run of own code that was stopped: its folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    write_config(own, name="mine", more="[checkpoint]\nevery_steps = 2\n")
    request = RunRequest(lambda _: Silent(), stop_at=4)
    launched = launch.launch(
        own / "mine.toml", ["model={name='./mine/own.py:net', width=6}"], request
    )
    return launched.folder
