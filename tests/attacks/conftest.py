"""Records and keys for the attacks."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.attacks.recorded import make_record


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
