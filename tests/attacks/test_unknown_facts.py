"""Attacks on what is only recorded: what cannot be found out is unknown, and stops no run."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from fbp.experiment.config import reading
from fbp.experiment.rundir import environment, journal, layout
from fbp.experiment.runner.run import run
from fbp.experiment.runner.run_start import RunIdentity
from tests.projects import Silent, write_config


def raising(error):
    def function(*_, **__):
        raise error

    return function


FACTS = {
    "user": ("getpass.getuser", KeyError("getpwuid(): uid not found: 1000")),
    "user without a module": ("getpass.getuser", ImportError("no module named 'pwd'")),
    "platform": ("platform.platform", OSError("no uname")),
    "python": ("platform.python_version", ValueError("odd")),
    "processor": ("platform.processor", RuntimeError("odd")),
    "version": ("importlib.metadata.version", LookupError("jaxlib")),
    "packages": ("importlib.metadata.distributions", PermissionError("site-packages")),
    "affinity": ("os.sched_getaffinity", OSError("not permitted")),
    "home": ("pathlib.Path.home", RuntimeError("Could not determine home directory.")),
    "code": ("fbp.experiment.rundir.environment.code_digest", PermissionError("fbp")),
    "git": ("subprocess.run", OSError("too many processes")),
    "arguments": ("sys.argv", []),
    "bytes as argument": ("sys.argv", ["fbp", "\udcff.toml"]),
}


@pytest.mark.promise("unknown-is-told")
@pytest.mark.parametrize("fact", FACTS)
def test_no_fact_stops_a_run(unsent, monkeypatch, fact):
    place, error = FACTS[fact]
    config = reading.read(write_config(unsent), ["training.steps=2"])
    folder = layout.new_run_folder(unsent / "mlruns", "x")
    monkeypatch.setattr(place, raising(error) if isinstance(error, Exception) else error)
    outcome = run(config, RunIdentity(unsent / "small.toml", "x"), folder, Silent())
    monkeypatch.undo()
    assert outcome.status == "FINISHED"
    text = json.dumps(journal.read_tags(folder), ensure_ascii=False)
    text.encode()  # every tracker can hold it
    environment.read(layout.artifacts(folder))


BROKEN_METADATA = {
    "empty folder": ("foo-1.0.dist-info", None),
    "empty file": ("foo-1.0.dist-info/METADATA", b""),
    "no name": ("foo-1.0.dist-info/METADATA", b"Version: 1.0\n"),
    "no version": ("foo-1.0.dist-info/METADATA", b"Name: foo\n"),
    "bytes": ("foo-1.0.dist-info/METADATA", b"Name: \xff\xfe\nVersion: \xff\n"),
    "folder for a file": ("foo-1.0.dist-info/METADATA/x", b""),
    "egg": ("foo.egg-info/PKG-INFO", b"\0\0"),
}


@pytest.mark.promise("unknown-is-told")
@pytest.mark.parametrize("damage", BROKEN_METADATA)
def test_broken_metadata_of_a_package_are_unknown(tmp_path, monkeypatch, damage):
    name, content = BROKEN_METADATA[damage]
    path = tmp_path / name
    (path if content is None else path.parent).mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    facts = environment.describe()
    assert any("foo" in name for name in [*facts["unknown"], *facts["packages"]])
    assert facts["packages"]["numpy"] == np.__version__
    json.dumps(facts).encode()


@pytest.mark.promise("unknown-is-told")
def test_unknown_is_not_the_same_as_unknown():
    facts = {"platform": None, "unknown": {"platform": "OSError: no uname"}}
    (difference,) = [
        each for each in environment.differences(facts, facts) if each.name == "platform"
    ]
    assert difference == ("platform", "unknown", "unknown")


@pytest.mark.promise("unknown-is-told")
def test_the_command_line_starts_without_a_home(project):
    variables = {key: text for key, text in os.environ.items() if key not in ("HOME", "USER")}
    code = (
        "import os, pwd, pathlib\n"
        "def unknown(*_):\n    raise KeyError('uid not found')\n"
        "pwd.getpwuid = unknown\n"
        "del os.environ['XDG_STATE_HOME'], os.environ['XDG_CACHE_HOME']\n"
        "from fbp.cli import main\n"
        f"main(['run', {str(write_config(project))!r}, '--set', 'tracking.sink=jsonl'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=240,
        cwd=project,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
