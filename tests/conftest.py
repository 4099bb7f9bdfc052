"""Fixtures that all tests share: original data, project folders, a finished run."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import hypothesis
import jax
import pytest

from fbp._jaxlib import JAXLIB
from fbp.experiment.rundir.locks import locked
from tests.projects import SEEDS, command, empty_store, write_config

REPOSITORY = Path(__file__).parent.parent
DATA = Path(os.environ.get("FBP_DATA", REPOSITORY.parent / "shared" / "data"))

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# No programs from earlier runs, and none left for later ones.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
jax.config.update("jax_enable_compilation_cache", False)


def _compile_quickly() -> None:
    """Switch off XLA's fusion emitters in this process and in those that tests start.

    The tests compile far more than they compute, and without the emitters in two thirds of the
    time. Versions after 0.10 cannot do without them, so they are tested on the newer Python.
    """
    flag, flags = "--xla_cpu_use_fusion_emitters=false", os.environ.get("XLA_FLAGS", "")
    if JAXLIB.startswith("0.10.") and flag not in flags.split():
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


_compile_quickly()

_COMMON = {
    "deadline": None,
    "suppress_health_check": list(hypothesis.HealthCheck),
    "database": None,
    "derandomize": True,
}
hypothesis.settings.register_profile("usual", max_examples=200, **_COMMON)
hypothesis.settings.register_profile(
    "thorough", max_examples=10_000, **(_COMMON | {"derandomize": False})
)
hypothesis.settings.load_profile("usual")


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def mnist_folder():
    folder = DATA / "mnist"
    if not folder.is_dir():
        pytest.skip(
            f"the original MNIST files are not in {folder}; "
            "set FBP_DATA to a folder that contains mnist/"
        )
    return str(folder)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return an empty project folder, which is also the working directory of the test."""
    (tmp_path / "mlruns").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """Return a project with one finished run of the command, and its output.

    The test process that needs it first makes it, for all of them.
    """
    base = tmp_path_factory.getbasetemp()
    project = (base if worker_id == "master" else base.parent) / "finished"
    with locked(project.with_suffix(".lock")):
        if not project.exists():
            (project / "mlruns").mkdir(parents=True)
            write_config(project, data="digits")
            completed = subprocess.run(
                command("run", "small.toml"),
                cwd=project,
                capture_output=True,
                text=True,
                timeout=240,
            )
            assert completed.returncode == 0, completed.stderr
            (project / "output.json").write_text(json.dumps([completed.stdout, completed.stderr]))
            empty_store(project / "mlruns" / "mlflow.db", project / "empty.db")
    return project, *json.loads((project / "output.json").read_text())


@pytest.fixture
def warm(project, finished):
    """Return a project whose store has its tables already."""
    shutil.copy(finished[0] / "empty.db", project / "mlruns" / "mlflow.db")
    return project


@pytest.fixture(scope="session")
def three(finished, tmp_path_factory, worker_id):
    """Return a project with one group of three runs that differ in their seeds.

    The test process that needs it first makes it, for all of them.
    """
    base = tmp_path_factory.getbasetemp()
    project = (base if worker_id == "master" else base.parent) / "three"
    with locked(project.with_suffix(".lock")):
        if not project.exists():
            (project / "mlruns").mkdir(parents=True)
            shutil.copy(finished[0] / "empty.db", project / "mlruns" / "mlflow.db")
            write_config(project, data="digits", more=SEEDS)
            completed = subprocess.run(
                command("run", "small.toml"),
                cwd=project,
                capture_output=True,
                text=True,
                timeout=240,
            )
            assert completed.returncode == 0, completed.stderr
    return project


@pytest.fixture
def inside(three, monkeypatch):
    monkeypatch.chdir(three)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return three
