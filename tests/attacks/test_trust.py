"""Attacks on what is read: nothing in a record runs, whatever is installed."""

import os
import shutil
import subprocess
import sys
import tomllib

import pytest
import tomli_w

import fbp
from fbp.experiment.config import catalogue, references
from fbp.experiment.config.trust import Trust, trust_of
from fbp.experiment.rundir import journal, layout
from fbp.experiment.tracking import sink, uri
from tests.attacks.own_code import PLACES, TRAP, read_record
from tests.cases import slow_but
from tests.projects import command, said

# --- what a record may name -------------------------------------------------------------------

# References that no record may name, whatever is installed.
REFERENCES = {
    "editor": "click:edit",
    "shell": "os:system",
    "process": "subprocess:run",
    "partial": "functools:partial",
    "builtin": "builtins:exec",
    "import": "importlib:import_module",
    "private import": "_frozen_importlib:__import__",
    "main": "__main__:trap",
    "site": "sitecustomize:trap",
    "installed": "numpy:zeros",
    "imported here": "tests.projects:command",
    "fbp's commands": "fbp.experiment.commands.launch:launch",
    "a module in fbp": "fbp.layers:jnp",
    "fbp, not of its kind": "fbp.layers:_activation",
    "a sink's module": "fbp.experiment.tracking.shipper:launch",
    "attribute chain": "fbp.models:mlp.__globals__",
    "two colons": "fbp.models:mlp:x",
    "fullwidth letters": "\uff46bp.models:mlp",
    "another alphabet": "fbp.m\u043edels:mlp",
    "no module": ":mlp",
    "no name": "fbp.models:",
    "relative module": ".trap:trap",
    "file here": "./trap.py:trap",
    "file without a folder": "trap.py:trap",
    "file above": "../trap.py:trap",
    "module here": "trap:trap",
    "a line break": "trap\n:trap",
    "an escape": "trap\x1b[2J:trap",
    "a file with an escape": "/x/\x1b[2Jtrap.py:trap",
    "a file with a line break": "/x/\ntrap.py:trap",
}


@pytest.fixture
def trap(project, monkeypatch):
    """A project with a module that leaves a file behind if it is executed, in many places."""
    (project / "sub").mkdir()
    for path in (project / "trap.py", project / "sub" / "trap.py", project / "sitecustomize.py"):
        path.write_text(TRAP.format(str(project / "executed")) + "def trap(outputs: int): ...\n")
    monkeypatch.syspath_prepend(project)  # it is even importable
    yield project
    sys.modules.pop("trap", None)
    assert not (project / "executed").exists()


@pytest.mark.promise("catalogue-only")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("reference", REFERENCES)
def test_no_place_of_a_record_names_code_outside_of_the_catalogue(trap, place, reference):
    with pytest.raises(fbp.InputError) as caught:
        read_record(place, REFERENCES[reference])
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.promise("catalogue-only")
def test_a_record_may_spell_out_the_catalogue(project):
    names = {"model": "fbp.models:mlp", "activation": "fbp.layers:tanh", "loss": "fbp.losses:hinge"}
    for place, name in names.items():
        read_record(place, name)
    with references.reading_record():
        for kind, known in catalogue.CATALOGUE.items():
            for name in known:
                assert references.canonical(kind, name) == name
        assert sink.load(sink.reference("jsonl")).__name__ == "JsonlSink"


@pytest.mark.promise("catalogue-only")
@pytest.mark.parametrize("place", PLACES)
def test_the_refusal_names_the_reference_and_the_option(project, place):
    with pytest.raises(fbp.InputError, match=r"'own\.parts:f'.*--trust own\.parts:f"):
        read_record(place, "own.parts:f")


@pytest.mark.promise("exact-trust")
@pytest.mark.parametrize(
    "trusted",
    ["own:other", "own.net:net", "xown:net", "own:ne", "own:nett", "pkg.own:net"],
)
def test_trust_in_another_reference_is_none(own, trusted):
    with pytest.raises(fbp.InputError, match="--trust own:net"):
        read_record("model", "own:net", trust_of([trusted]))


@pytest.mark.promise("exact-trust")
@pytest.mark.parametrize(
    "name", ["os:system", "subprocess:run", "builtins:exec", "functools:partial", "importlib:x"]
)
def test_pythons_own_functions_cannot_be_trusted(name):
    with pytest.raises(fbp.InputError, match="got one of Python's modules"):
        trust_of([name])
    with references.reading_record(Trust(frozenset({name}))), pytest.raises(fbp.InputError):
        catalogue.lookup("model", name)


@pytest.mark.promise("exact-trust")
@pytest.mark.parametrize(
    ("trust", "code"),
    [(["net"], ()), ([3], ()), (3, ()), (["a b:c"], ()), ((), "gone.py"), ((), 3), ((), ["\0"]),
     (["./gone.py:net"], ()), ((), "notes.txt")],
)  # fmt: skip
def test_what_is_no_reference_is_told(project, trust, code):
    (project / "notes.txt").touch()
    with pytest.raises(fbp.InputError) as caught:
        trust_of(trust, code)
    assert len(str(caught.value).splitlines()) == 1


# --- the commands -----------------------------------------------------------------------------


@pytest.fixture
def hostile(finished, project):
    """A project that was copied from somebody: its finished run names click's editor."""
    shutil.copytree(finished[0] / "mlruns", project / "mlruns", dirs_exist_ok=True)
    said("repair-store")  # as its new user would do
    (folder,) = layout.run_folders(project / "mlruns")
    for config in (project / "mlruns").rglob(layout.CONFIG):  # in its folder, and in the store
        config.write_text(tomli_w.dumps(tomllib.loads(config.read_text()) | {"model": EDITOR}))
    yield folder
    assert not (project / "executed").exists()


EDITOR = {"name": "click:edit", "text": "x", "editor": "touch executed ;#"}


@pytest.mark.promise("catalogue-only")
@pytest.mark.parametrize(
    "words",
    slow_but(
        ["reproduce {}", "reproduce {path}", "generate {}", "generate {model}", "resume {}",
         "verify {} --from 0 --to 1", "show {}", "archive {} --with-data -o x.zip", "sync",
         "close-dead"],
        "reproduce {}", "generate {model}", "resume {}", "sync",
    ),
)  # fmt: skip
def test_no_command_runs_an_editor_that_a_record_names(hostile, words):
    names = {"path": hostile, "model": layout.model(hostile)}
    lines = layout.journal(hostile).read_bytes().splitlines(keepends=True)
    layout.journal(hostile).write_bytes(b"".join(lines[:-3]))  # so that it can be resumed
    words = [word.format(hostile.name, **names) for word in words.split()]
    done = subprocess.run(
        command(*words), capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL
    )
    assert "Traceback" not in done.stderr
    if words[0] in ("reproduce", "generate", "resume"):
        assert done.returncode == 2
        assert "configuration differs" in done.stderr or "--trust click:edit" in done.stderr


@pytest.mark.promise("catalogue-only")
def test_load_runs_no_editor_that_a_record_names(hostile, monkeypatch):
    for run_name in (hostile, hostile.name, layout.model(hostile), os.path.relpath(hostile)):
        with pytest.raises(fbp.InputError, match="--trust click:edit, trust= in Python"):
            fbp.load(run_name)
    monkeypatch.chdir("/")
    with pytest.raises(fbp.InputError, match="--trust click:edit, trust= in Python"):
        fbp.load(hostile)


@pytest.mark.promise("catalogue-only")
@pytest.mark.parametrize(
    "run_name", ["", " ", ".", "..", "\0", "x" * 5000, None, 3, b"x", "~", "/"]
)
def test_odd_names_of_runs_are_told(project, run_name):
    (project / "config.toml").write_text('[model]\nname = "click:edit"\n')
    (project / "params.npz").touch()
    (project / "model.json").write_text("{}")
    with pytest.raises(fbp.InputError) as caught:
        fbp.load(run_name)
    assert len(str(caught.value)) < 2000


@pytest.mark.promise("catalogue-only")
@pytest.mark.parametrize("name", ["own:Tracker", "click:edit", "./own.py:Tracker"])
def test_the_tracker_of_a_record_is_not_imported(hostile, project, name):
    (project / "own.py").write_text(TRAP.format(str(project / "executed")))
    start = journal.require_start(hostile)
    layout.journal(hostile).unlink()
    writer = journal.Journal(hostile)
    facts = {"label": "x", "experiment": "x", "params": {}, "tags": dict(start.tags)}
    writer.start(**facts, sink=name)
    writer.close()
    layout.sent(hostile).unlink(missing_ok=True)
    with pytest.raises(fbp.InputError, match="outside of fbp"):
        uri.recorded_destination(hostile)
    assert "not sent: tracker" in said("sync", status=1)
