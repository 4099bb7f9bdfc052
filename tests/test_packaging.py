"""What an installation brings: jax and numpy alone by default, and one line for what is missing."""

import email
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent

# a Python in which only jax, numpy and what they need can be imported
BLOCKED = """
import sys

class Blocker:
    blocked = set({blocked!r})

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""

MODULE_OF = {"scikit-learn": "sklearn", "tomli-w": "tomli_w"}


def extra_packages() -> list[str]:
    """The top-level modules of the extra ``run``."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = [entry.partition(">=")[0] for entry in project["optional-dependencies"]["run"]]
    return [MODULE_OF.get(name, name) for name in names]


def without_extras(code: str, *arguments: str, blocked: list[str] | None = None):
    """Run code in a Python that hides the packages of the extra ``run``."""
    hidden = BLOCKED.format(blocked=extra_packages() if blocked is None else blocked)
    return subprocess.run(
        [sys.executable, "-c", hidden + code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )


LIBRARY = """
import json
import jax, numpy as np, fbp

problems = {}
for name in NAMES:
    try:
        eval(name)
    except fbp.MissingDependency as error:
        problems[name] = str(error)

model = fbp.models.mlp(2, (4,))
data = fbp.datasets.moons(40)
params, _ = model.init(jax.random.key(0), (2,))
gradient = fbp.value_and_grad(model, fbp.losses.softmax_cross_entropy)
gradient(params, *data.train)
assert fbp.datasets.check(fbp.datasets.copy_memory(20)).tokens
assert fbp.datasets.prepare(fbp.datasets.sine(), seed=0, standardize=True).input_scaling
np.savez("d.npz", x=np.ones((4, 2)), y=np.arange(4))
assert len(fbp.datasets.file("d.npz").classes) == 4
print(json.dumps(problems))
"""


def test_the_library_works_without_the_extra_and_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d.csv").write_text("a,b\n1,2\n")
    names = [
        "fbp.datasets.iris()",
        "fbp.datasets.digits()",
        "fbp.datasets.sequential_digits()",
        "fbp.datasets.file('d.csv')",
        "fbp.experiment",
        "fbp.load",
        "__import__('fbp.experiment.runner.loop')",
    ]
    done = without_extras(LIBRARY.replace("NAMES", repr(names)))
    assert done.returncode == 0, done.stderr
    problems = json.loads(done.stdout)
    assert list(problems) == names
    assert problems["fbp.datasets.iris()"] == (
        "fbp.datasets.iris needs scikit-learn, which is not installed; "
        "install it with: pip install 'fbp[run]'"
    )
    assert problems["fbp.datasets.file('d.csv')"].startswith("fbp.datasets.file needs pyarrow, ")
    assert problems["fbp.load"].startswith("fbp.experiment needs pydantic, tomli-w, ")
    assert problems["fbp.load"].endswith("install them with: pip install 'fbp[run]'")
    assert not any("\n" in problem for problem in problems.values())


COMMAND = "from fbp.__main__ import main; main()"


@pytest.mark.parametrize("arguments", [("--help",), ("run", "digits_mlp"), ("--version",)])
def test_the_command_says_in_one_line_what_to_install(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    done = without_extras(COMMAND, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "fbp: the fbp command needs click and rich, which are not installed; "
        "install them with: pip install 'fbp[run]'\n"
    )


def commands() -> list[list[str]]:
    """Every command, with arguments that lead it to its first real step."""
    import click

    from fbp.cli import main

    required = {
        name: sum(isinstance(p, click.Argument) and p.required for p in command.params)
        for name, command in main.commands.items()
    }
    return [[name, *["digits_mlp"] * count] for name, count in required.items()]


@pytest.mark.parametrize("command", commands(), ids=lambda command: command[0])
def test_every_command_says_in_one_line_what_to_install(tmp_path, monkeypatch, command):
    """With click and rich alone: the help works, every command names the rest."""
    monkeypatch.chdir(tmp_path)
    rest = [name for name in extra_packages() if name not in ("click", "rich")]
    done = without_extras(COMMAND, *command, blocked=rest)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("pip install 'fbp[run]'\n")
    if command[0] == "run":
        assert without_extras(COMMAND, "--help", blocked=rest).returncode == 0


def test_commands_that_need_mlflow_say_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (("ui",), ("close-dead",)):
        done = without_extras(COMMAND, *arguments, blocked=["mlflow"])
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "needs mlflow, which is not installed" in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built without network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling import build; print(build.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return folder / done.stdout.strip()


def test_the_wheel_holds_experiments_types_and_license(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith("dist-info/METADATA"))
        headers = email.message_from_bytes(archive.read(metadata))
    experiments = sorted(path.name for path in (REPOSITORY / "experiments").glob("*.toml"))
    assert sorted(name for name in names if name.startswith("fbp/experiments/")) == [
        f"fbp/experiments/{name}" for name in experiments
    ]
    assert {"fbp/py.typed", "fbp/__main__.py"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(name.startswith("fbp") for name in names)
    required = headers.get_all("Requires-Dist")
    always = {entry.partition(">")[0].partition("!")[0] for entry in required if ";" not in entry}
    assert always == {"jax", "jaxlib", "numpy"}
    assert all("!=0.10.2" in entry for entry in required if entry.startswith("jax"))


def test_an_installed_experiment_runs_by_its_name_elsewhere(wheel, tmp_path, monkeypatch):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "project").mkdir()
    code = "from fbp.cli.base import experiment_path as p; print(*map(p, ('xor', 'own', 'none')))"
    (tmp_path / "project" / "experiments").mkdir()
    (tmp_path / "project" / "experiments" / "own.toml").touch()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "project",
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.stdout.split() == [
        str(tmp_path / "site" / "fbp" / "experiments" / "xor.toml"),
        "experiments/own.toml",
        "none",
    ], done.stderr


def test_a_checkout_finds_its_experiments_from_everywhere(tmp_path, monkeypatch):
    from fbp.cli.base import experiment_path

    monkeypatch.chdir(tmp_path)
    assert experiment_path("xor") == REPOSITORY / "experiments" / "xor.toml"
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "run", "xro"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert (done.returncode, done.stderr) == (2, "fbp: xro: no such file; did you mean 'xor'?\n")


@pytest.mark.slow
def test_a_fresh_environment_needs_six_packages(wheel, tmp_path):
    """``pip install fbp`` brings jax, jaxlib, numpy, and the three packages that jax needs."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--retries=1", str(wheel)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if "Failed to establish a new connection" in installed.stderr:
        pytest.skip("the package index cannot be reached")
    assert installed.returncode == 0, installed.stderr
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    names = {entry["name"] for entry in json.loads(listed.stdout)} - {"pip", "setuptools"}
    assert names == {"fbp", "jax", "jaxlib", "ml_dtypes", "numpy", "opt_einsum", "scipy"}
    done = subprocess.run(
        [environment / "bin" / "fbp", "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    code = "import fbp; fbp.load"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "pip install 'fbp[run]'" in done.stderr
