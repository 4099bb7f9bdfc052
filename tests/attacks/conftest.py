"""Fixtures of the attacks: records, keys, own code and runs of it, a trained model."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import fbp
from fbp.experiment.commands import launch
from fbp.experiment.commands.launch import RunRequest
from fbp.experiment.config import reading
from fbp.experiment.rundir import layout, npz
from fbp.experiment.runner import trained_model
from fbp.experiment.runner.build import build_model
from tests.attacks.damage import PARAMS
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


@pytest.fixture
def saved(tmp_path):
    """Return the folder of a trained model of iris, made without training."""
    config = reading.read(write_config(tmp_path, data="iris"))
    dataset, folder = fbp.datasets.iris(), tmp_path / "model"
    model = build_model(config, 3, 0, sequence=False)
    params, _ = model.init(jax.random.key(0), (4,))
    facts = {"shape": (4,), "dataset": dataset, "inputs": None, "targets": None}
    trained_model.write(folder, config, params, **facts)
    PARAMS.clear()
    PARAMS.update(npz.read_arrays(folder / layout.PARAMS))
    return folder
