"""Fixtures that all tests share: original data, projects, own code, a finished run."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import jax
import pytest

from fbp._jaxlib import JAXLIB
from fbp.experiment.config import references
from fbp.experiment.rundir.locks import locked
from fbp.experiment.tracking import shipper
from tests.own_functions import OWN
from tests.projects import MINIMAL, SEEDS, command, empty_store, write_config

REPOSITORY = Path(__file__).parent.parent
DATA = Path(os.environ.get("FBP_DATA", REPOSITORY.parent / "shared" / "data"))

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def _share_compiled_programs() -> None:
    """Let all processes of this test run, and no others, share their compiled programs."""
    if _CACHE not in os.environ:  # the first process; the others inherit its environment
        os.environ[_CACHE] = tempfile.mkdtemp(prefix="fbp-tests-")
        atexit.register(shutil.rmtree, os.environ[_CACHE], ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = os.environ[_CACHE]
    os.environ["XDG_STATE_HOME"] = f"{os.environ[_CACHE]}/state"  # not the user's own
    jax.config.update("jax_compilation_cache_dir", f"{os.environ[_CACHE]}/programs")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_logging_level", "CRITICAL")  # see _FALSE_ALARMS in jax_setup.py


_CACHE = "FBP_TEST_CACHE"
_share_compiled_programs()


def _compile_quickly() -> None:
    """Let XLA compile quickly, in this process and in those that tests start.

    The tests compile far more than they compute. LLVM's first level of optimization is the fastest
    in all: without any, the programs are so slow that more is lost than won. Without the fusion
    emitters it takes two thirds of the time; versions after 0.10 cannot do without them, so they
    are tested on the newer Python. Most programs are too small to be worth cutting into parts.
    """
    quick = [
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_backend_optimization_level=1",
    ]
    if JAXLIB.startswith("0.10."):
        quick.append("--xla_cpu_use_fusion_emitters=false")
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([*flags, *(flag for flag in quick if flag not in flags)])


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


class Sent:
    """Stands for a shipper's process where nothing is to be sent."""

    def __init__(self, *_):
        self.returncode = 0

    def wait(self, timeout=None):
        return 0

    def poll(self):
        return 0


@pytest.fixture
def unsent(project, monkeypatch):
    """Return a project whose runs are written but sent nowhere."""
    monkeypatch.setattr(shipper, "launch", Sent)
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


@pytest.fixture
def own_minimal(tmp_path, monkeypatch):
    """A project with a configuration, and a module and a file of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("mine", "broken"):
        sys.modules.pop(module, None)
    references._trusted_files.clear()
    from fbp.experiment.config.arguments import section_model

    section_model.cache_clear()
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("def f(:\n")
    path = tmp_path / "minimal.toml"
    path.write_text(MINIMAL.replace('name = "mlp"', 'name = "mlp"\nhidden = [4]'))
    yield path
    for module in ("mine", "broken"):
        sys.modules.pop(module, None)
