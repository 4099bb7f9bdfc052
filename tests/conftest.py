"""What all tests share: where original data may lie, and a project folder of their own."""

import os
from pathlib import Path

import jax
import pytest

REPOSITORY = Path(__file__).parent.parent
DATA = Path(os.environ.get("FBP_DATA", REPOSITORY.parent / "shared" / "data"))

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


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
        pytest.skip(f"the original MNIST files are not in {folder}; set FBP_DATA to a folder that holds mnist/")
    return str(folder)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder, in which the test runs."""
    (tmp_path / "mlruns").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path
