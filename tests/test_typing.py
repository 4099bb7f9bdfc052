"""The types that reach a user, whose type checker sees fbp as an installed package."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PYRIGHT = shutil.which("pyright") or shutil.which("basedpyright")
SCRIPTS = Path(__file__).parent / "typing"
MARKED = [
    number
    for number, line in enumerate((SCRIPTS / "mistakes.py").read_text().splitlines(), 1)
    if "# mistake: " in line
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the package alone, as an installation has it."""
    folder = tmp_path_factory.mktemp("installed")
    build = "import sys; from hatchling import build; print(build.build_wheel(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", build, str(folder)],
        cwd=SCRIPTS.parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    with zipfile.ZipFile(folder / built.stdout.strip()) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def complaints(command: list[str], installed: Path, folder: Path) -> list[tuple[str, int]]:
    """The scripts and lines that a type checker complains about."""
    for name in ("mistakes.py", "right.py"):
        shutil.copy(SCRIPTS / name, folder / name)
    done = subprocess.run(
        [*command, "mistakes.py", "right.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": str(installed)},
    )
    lines = re.findall(r"(\w+\.py):(\d+)(?::\d+)?(?: -)?:? error", done.stdout)
    return sorted({(name, int(number)) for name, number in lines})


EXPECTED = [("mistakes.py", number) for number in MARKED]


def test_there_are_seven_mistakes():
    assert len(MARKED) == 7


@pytest.mark.slow
def test_mypy_finds_every_mistake_of_a_user_and_nothing_else(installed, tmp_path):
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={cache}"]
    assert complaints(command, installed, tmp_path) == EXPECTED


@pytest.mark.slow
@pytest.mark.skipif(not PYRIGHT, reason="pyright is not installed")
def test_pyright_finds_every_mistake_of_a_user_and_nothing_else(installed, tmp_path):
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    command = [str(PYRIGHT), "--pythonpath", sys.executable]
    assert complaints(command, installed, tmp_path) == EXPECTED
