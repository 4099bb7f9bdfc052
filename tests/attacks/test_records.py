"""Attacks on what is read: nothing in a record runs, whatever is installed."""

import ast
import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w

import fbp
from fbp.experiment.commands import launch
from fbp.experiment.commands.launch import RunRequest
from fbp.experiment.config import catalogue, reading, references
from fbp.experiment.config.trust import NOTHING, Trust, trust_of
from fbp.experiment.rundir import environment, journal, layout, repository, tags
from fbp.experiment.runner import build
from fbp.experiment.runner.run import run
from fbp.experiment.runner.run_start import RunIdentity
from fbp.experiment.tracking import sink, uri
from tests.projects import Silent, command, said, write_config

OWN = """
import functools
import os
from subprocess import run as imported

import fbp
import helpers
import tests.projects


def net(outputs: int, width: int = 4):
    hidden = fbp.layers.dense(helpers.half(width))
    return fbp.chain(hidden, fbp.layers.{}(), fbp.layers.dense(outputs))


partial = functools.partial(net, width=6)
borrowed = tests.projects.BORROWED
"""
NONE = contextlib.nullcontext()
HELPERS = "def half(width):\n    return width // 2\n"
TRAP = "from pathlib import Path\nPath({!r}).touch()\n"

# --- what a record may name -------------------------------------------------------------------

# Each place of a configuration that can hold a name, by the kind of what it names.
PLACES = {
    "model": {"model": {"name": "{}"}},
    "activation": {"model": {"name": "mlp", "activation": "{}"}},
    "activation with arguments": {"model": {"name": "mlp", "activation": {"name": "{}"}}},
    "initializer": {"model": {"name": "mlp", "weights": {"name": "{}"}}},
    "loss": {"loss": {"name": "{}"}},
    "loss in a list": {"loss": {"name": "weighted", "parts": [["{}", 0.5]]}},
    "optimizer": {"optimizer": {"name": "{}", "learning_rate": 0.1}},
    "schedule": {"schedule": {"name": "{}"}},
    "data": {"data": {"name": "{}"}},
    "metric": {"metrics": {"names": ["{}"]}},
    "metric with arguments": {"metrics": {"names": [{"name": "{}", "label": "mine"}]}},
    "augmentation": {"augmentation": {"names": ["{}"]}},
    "tracker": {"tracking": {"sink": "{}"}},
    "variant": {"variant": [{"name": "a", "set": {"model.name": "{}"}}]},
    "variant's table": {"variant": [{"name": "a", "set": {"loss": {"name": "{}"}}}]},
}

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


def filled(template, name):
    if isinstance(template, dict):
        return {key: filled(value, name) for key, value in template.items()}
    if isinstance(template, list):
        return [filled(value, name) for value in template]
    return name if template == "{}" else template


def table_with(place, name):
    base = {
        "name": "x",
        "data": {"name": "iris"},
        "model": {"name": "mlp", "hidden": [4]},
        "loss": {"name": "softmax_cross_entropy"},
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "training": {"epochs": 1},
    }
    part = filled(PLACES[place], name)
    return {**base, **part}


def read_record(place, name, trust=NOTHING):
    """Read a record's configuration as all commands do: checked, parsed, and built."""
    with references.reading_record(trust):
        config = reading.parse(table_with(place, name), "record")
        for each in reading.variants(config, "record").values() or [config]:
            build.build(each)
    return config


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


# --- code that the reader gives ---------------------------------------------------------------


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


@pytest.mark.promise("given-file")
@pytest.mark.parametrize(
    "name", ["own:net", "/elsewhere/own.py:net", "./own.py:net", "own:partial"]
)
@pytest.mark.parametrize("code", ["mine/own.py", "mine", "sub/../mine/own.py"])
def test_code_means_that_very_file(own, name, code):
    (own / "sub").mkdir()
    config = read_record("model", name, trust_of(code=own / code))
    path, _, attribute = config.model.name.rpartition(":")
    assert (Path(path), attribute) == (own / "mine" / "own.py", name.rpartition(":")[2])
    assert sys.modules["helpers"].__file__ == str(own / "mine" / "helpers.py")


@pytest.mark.promise("given-file")
def test_a_name_that_was_found_is_found_again(own):
    """A configuration keeps the file that a reference led to, and other processes read that."""
    nets = own / "mine" / "pkg" / "sub" / "nets.py"
    nets.parent.mkdir(parents=True)
    for folder in (nets.parent, nets.parent.parent):
        (folder / "__init__.py").touch()
    nets.write_text((own / "mine" / "own.py").read_text().replace("import helpers", ""))
    for source in (own / "mine", own / "mine" / "pkg", nets):
        trust = trust_of(code=source)
        with references.reading_record(trust):
            first = references.canonical("model", "pkg.sub.nets:net")
            assert first == f"{nets}:net"
            assert references.canonical("model", first) == first


@pytest.mark.promise("given-file")
@pytest.mark.parametrize(
    "name",
    ["own:imported", "own:borrowed", "own:os", "own:functools", "own:__loader__", "own:gone",
     "own:__getattr__", "own.net:width", "other:net", "a.own:net"],
)  # fmt: skip
def test_only_what_a_file_defines_can_be_named(own, name):
    with pytest.raises(fbp.InputError):
        read_record("model", name, trust_of(code=own / "mine" / "own.py"))


DECORATED = """
import functools
import helpers
import jax
from fbp.metrics import metric


@metric(higher_is_better=True)
def decorated(output, target):
    return output[:, 0]


class Callable:
    def __call__(self, output, target):
        return output[:, 0]


instance = Callable()
jitted = jax.jit(lambda output, target: output[:, 0])
partial = functools.partial(helpers.column, index=0)
beside = helpers.column
"""


@pytest.mark.promise("given-file")
@pytest.mark.parametrize("name", ["decorated", "instance", "jitted", "partial", "beside"])
def test_all_that_a_file_makes_can_be_named(own, name):
    (own / "mine" / "metrics_of_mine.py").write_text(DECORATED)
    helper = "def column(output, target, index=0):\n    return output[:, index]\n"
    (own / "mine" / "helpers.py").write_text(helper)
    read_record("metric", f"metrics_of_mine:{name}", trust_of(code=own / "mine"))


@pytest.mark.promise("given-file")
def test_a_module_that_makes_up_names_is_not_asked(own):
    path = own / "mine" / "lazy.py"
    path.write_text("import click\ndef __getattr__(name):\n    return click.edit\n")
    with pytest.raises(fbp.InputError, match="has no 'anything'"):
        read_record("model", "lazy:anything", trust_of(code=path))


@pytest.mark.promise("given-file")
def test_a_file_of_a_package_keeps_its_name(own):
    package = own / "mine" / "pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.move(own / "mine" / "helpers.py", package)
    source = (own / "mine" / "own.py").read_text()
    (package / "own.py").write_text(source.replace("import helpers", "from . import helpers"))
    for name, code in (("pkg.own:net", package / "own.py"), ("pkg.own:net", package)):
        config = read_record("model", name, trust_of(code=code))
        assert config.model.name == f"{package}/own.py:net"
    assert sys.modules["pkg.own"].__file__ == str(package / "own.py")


@pytest.mark.promise("given-file")
def test_a_package_that_hides_another_is_refused(own):
    package = own / "mine" / "click"
    package.mkdir()
    (package / "__init__.py").write_text("def net(outputs: int): ...\n")
    with pytest.raises(fbp.InputError, match="its package 'click' is hidden by another one"):
        read_record("model", "click:net", trust_of(code=package))


@pytest.mark.promise("current-folder-last")
@pytest.mark.parametrize("name", ["pip:net", "pip:main"])
@pytest.mark.parametrize("is_record", [True, False])
def test_the_current_folder_hides_no_installed_package(project, monkeypatch, name, is_record):
    (project / "pip.py").write_text(TRAP.format("executed") + "def net(outputs: int): ...\n")
    monkeypatch.setattr(sys, "path", ["", str(project), *sys.path])
    for loaded in [m for m in sys.modules if m.partition(".")[0] == "pip"]:
        monkeypatch.delitem(sys.modules, loaded)
    trust = Trust(frozenset({name}))
    read = (
        read_record
        if is_record
        else lambda place, name, _: reading.parse(table_with(place, name), "own")
    )
    with pytest.raises(fbp.InputError):
        read("model", name, trust)
    assert not (project / "executed").exists()
    assert sys.path[:2] == ["", str(project)]


@pytest.mark.promise("given-file")
def test_files_of_one_name_are_not_mixed_up(own):
    """The second file imports its own helper, or is refused: never the helper of the first one."""
    read_record("model", "own:net", trust_of(code=own / "mine"))
    shutil.copytree(own / "mine", own / "yours")
    (own / "yours" / "helpers.py").write_text("def half(width):\n    return 1\n")
    with pytest.raises(fbp.InputError, match="imports 'helpers' from beside it, but this process"):
        read_record("model", "own:net", trust_of(code=own / "yours"))


@pytest.mark.promise("current-folder-last")
def test_the_current_folder_is_not_searched_for_a_record(own):
    with pytest.raises(fbp.InputError, match="No module named 'own'"):
        read_record("model", "own:net", trust_of(["own:net"]))


@pytest.mark.promise("current-folder-last")
@pytest.mark.parametrize("module", ["mlflow", "json", "numpy", "click", "sitecustomize", "psutil"])
def test_processes_that_fbp_starts_import_nothing_from_here(unsent, module):
    """Its own processes are started by `python -c`, which looks into the current folder first."""
    (unsent / f"{module}.py").write_text(TRAP.format(str(unsent / "executed")))
    environ = {key: text for key, text in os.environ.items() if key != "FBP_SHIPPER"}
    task = ["jsonl", "x.jsonl", "x.jsonl", sink.reference("jsonl"), [], "none.py"]
    from fbp.experiment.tracking import shipper

    folder = layout.new_run_folder(unsent / "mlruns", "x")
    done = subprocess.run(
        [sys.executable, "-P", "-c", shipper._COMMAND, folder], check=False, timeout=120,
        env=environ | {"FBP_SHIPPER": json.dumps(task)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (unsent / "executed").exists()


@pytest.mark.promise("current-folder-last")
def test_every_python_that_is_started_leaves_out_the_current_folder():
    """`python -c` and `python -m` put it first, before the standard library."""
    for path in Path(fbp.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List) and node.elts and is_interpreter(node.elts[0]):
                is_safe = isinstance(node.elts[1], ast.Constant) and node.elts[1].value == "-P"
                assert is_safe, f"{path}:{node.lineno}"


def is_interpreter(node):
    return isinstance(node, ast.Attribute) and node.attr == "executable"


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
    [("reproduce", "{}"), ("reproduce", "{path}"), ("generate", "{}"), ("generate", "{model}"),
     ("resume", "{}"), ("verify", "{}", "--from", "0", "--to", "1"), ("show", "{}"),
     ("archive", "{}", "--with-data", "-o", "x.zip"), ("sync",), ("close-dead",)],
)  # fmt: skip
def test_no_command_runs_an_editor_that_a_record_names(hostile, words):
    names = {"path": hostile, "model": layout.model(hostile)}
    lines = layout.journal(hostile).read_bytes().splitlines(keepends=True)
    layout.journal(hostile).write_bytes(b"".join(lines[:-3]))  # so that it can be resumed
    words = [word.format(hostile.name, **names) for word in words]
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


# --- runs that were begun here ----------------------------------------------------------------


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


def resumed(folder, **more):
    notes = []
    reporter = Silent()
    reporter.note = notes.append
    launch.continue_run(folder, RunRequest(lambda _: reporter, **more))
    return notes


def entry_of(folder):
    return Path(os.environ["XDG_STATE_HOME"]) / "fbp" / "trust" / f"{folder.name}.json"


@pytest.mark.promise("own-runs")
def test_a_run_that_was_begun_here_goes_on_from_anywhere(begun, monkeypatch):
    facts = entry_of(begun).stat()
    assert stat.S_IMODE(facts.st_mode) == 0o600
    assert stat.S_IMODE(entry_of(begun).parent.stat().st_mode) == 0o700
    monkeypatch.chdir("/")
    assert not any("own code" in note for note in resumed(begun))
    assert journal.read_end(begun).status == "FINISHED"
    assert fbp.load(begun).predict(np.ones((2, 4))).shape == (2, 3)
    assert fbp.load(layout.model(begun)).predict(np.ones((2, 4))).shape == (2, 3)


@pytest.mark.promise("own-runs")
def test_a_module_that_was_found_here_is_found_there(own, unsent, monkeypatch):
    shutil.copy(own / "mine" / "helpers.py", own)
    shutil.copy(own / "mine" / "own.py", own)
    path = write_config(own, name="mine")
    request = RunRequest(lambda _: Silent(), stop_at=4)
    folder = launch.launch(path, ["model={name='own:net', width=6}"], request).folder
    (own / "other").mkdir()
    (own / "other" / "own.py").write_text(TRAP.format(str(own / "executed")))
    monkeypatch.chdir(own / "other")
    del sys.modules["own"], sys.modules["helpers"]
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(own)])
    resumed(folder)
    assert sys.modules["own"].__file__ == str(own / "own.py")


def _entry(**changes):
    def edit(folder):
        path = entry_of(folder)
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def _moved(folder):
    target = folder.parents[2] / "elsewhere" / "mlruns" / "runs" / folder.name
    shutil.copytree(folder, target)
    return target


def _replaced(folder):
    """Put a record of the same name over the old one; it passes other arguments."""
    for path in (layout.config(folder), layout.model(folder) / layout.CONFIG):
        path.write_text(path.read_text().replace("width = 6", "width = 8"))


INHERITANCES = {
    "copied elsewhere": _moved,
    "another configuration": _replaced,
    "entry of another folder": _entry(folder="/elsewhere"),
    "entry of another configuration": _entry(config="0" * 64),
    "entry of another format": _entry(format=2),
    "entry without references": _entry(references=[]),
    "entry with odd references": _entry(references=[3]),
    "entry that all can write": lambda folder: entry_of(folder).chmod(0o666),
    "entry that is a link": lambda folder: (
        shutil.move(entry_of(folder), folder / "entry"),
        entry_of(folder).symlink_to(folder / "entry"),
        None,
    )[-1],
    "entry that is cut off": lambda folder: entry_of(folder).write_text("{") and None,
    "no entry": lambda folder: entry_of(folder).unlink(),
}


@pytest.mark.promise("own-runs")
@pytest.mark.parametrize("attack", INHERITANCES)
def test_trust_is_not_inherited(begun, attack):
    folder = INHERITANCES[attack](begun) or begun
    for read in (resumed, fbp.load):
        with pytest.raises(
            fbp.InputError, match=r"--code own\.py|configuration differs in model_width"
        ):
            read(folder)


@pytest.mark.promise("own-runs")
def test_a_home_that_cannot_be_written_costs_the_trust_only(own, unsent, monkeypatch):
    (own / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(own / "file"))
    path, notes = write_config(own, name="mine"), []
    reporter = Silent()
    reporter.note = notes.append
    overrides = ["model={name='./mine/own.py:net', width=6}", "training.steps=2"]
    launched = launch.launch(path, overrides, RunRequest(lambda _: reporter))
    assert launched.outcomes["mine"].status == "FINISHED"
    assert any("will need --trust" in note for note in notes)


# --- what a run is resumed with ---------------------------------------------------------------


def _relu_to_tanh(folder):
    (folder.parents[2] / "mine" / "own.py").write_text(OWN.replace("{}", "tanh"))


def _helper(folder):
    (folder.parents[2] / "mine" / "helpers.py").write_text("def half(width):\n    return 3\n")


def _no_digests(folder):
    path = layout.artifacts(folder) / layout.ENVIRONMENT
    path.write_text(json.dumps({**json.loads(path.read_text()), "own_code": {}}))


def _config(old, new):
    def edit(folder):
        path = layout.config(folder)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return edit


CODE_CHANGES = {"relu to tanh": _relu_to_tanh, "a helper": _helper, "unknown": _no_digests}
CONFIG_CHANGES = {
    "learning rate": (_config("learning_rate = 0.01", "learning_rate = 0.02"), "learning_rate"),
    "seed": (_config("seed = 0", "seed = 1"), "seed"),
    "epochs": (_config("epochs = 3", "epochs = 4"), "training_epochs"),
    "argument of own code": (_config("width = 6", "width = 7"), "model_width"),
    "a comment": (_config("[model]", "# x\n[model]"), "its configuration differs from"),
    "broken": (_config("[model]", "[model"), "its configuration differs from"),
    "another name": (_config("own.py:net", "own.py:partial"), "its configuration differs"),
    "code of others": (_config("own.py:net", "x.py:net"), "its configuration differs"),
}


def forget_modules():
    for name in [name for name in sys.modules if "helpers" in name or "_fbp_file_" in name]:
        del sys.modules[name]


@pytest.mark.promise("same-on-resume")
@pytest.mark.parametrize("change", CODE_CHANGES)
def test_changed_code_is_not_resumed_without_a_word(begun, change):
    CODE_CHANGES[change](begun)
    forget_modules()
    before = layout.journal(begun).read_bytes()
    with pytest.raises(fbp.InputError, match=r"own code .*\.py.* is not what .*--accept-changes"):
        resumed(begun)
    assert layout.journal(begun).read_bytes() == before
    notes = resumed(begun, accepts_changes=True)
    assert any("not as when the run began: own code" in note for note in notes)
    assert ".py" in journal.read_tags(begun)[tags.RESUMED_WITH]


@pytest.mark.promise("same-on-resume")
@pytest.mark.parametrize("accepts_changes", [False, True])
@pytest.mark.parametrize("change", CONFIG_CHANGES)
def test_a_changed_configuration_is_not_resumed(begun, change, accepts_changes):
    edit, key = CONFIG_CHANGES[change]
    edit(begun)
    before = layout.journal(begun).read_bytes()
    trust = trust_of(code=begun.parents[2] / "mine" / "own.py")
    with pytest.raises(fbp.InputError, match=key):
        resumed(begun, trust=trust, accepts_changes=accepts_changes)
    assert layout.journal(begun).read_bytes() == before


@pytest.mark.promise("same-on-resume")
def test_another_environment_is_noted(begun):
    path = layout.artifacts(begun) / layout.ENVIRONMENT
    facts = json.loads(path.read_text())
    facts |= {"python": "3.10.1", "packages": {**facts["packages"], "numpy": "1.0"}}
    path.write_text(json.dumps(facts))
    notes = resumed(begun)
    assert "not as when the run began: python was 3.10.1" in "\n".join(notes)
    assert "packages.numpy was 1.0" in journal.read_tags(begun)[tags.RESUMED_WITH]


@pytest.mark.promise("same-on-resume")
def test_what_is_the_same_is_resumed_without_a_word(begun):
    assert [note for note in resumed(begun) if "began" in note] == []
    assert tags.RESUMED_WITH not in journal.read_tags(begun)


# --- git --------------------------------------------------------------------------------------


def git(folder, *words):
    subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@x", *words],
        cwd=folder, check=True, capture_output=True, timeout=30,
    )  # fmt: skip


@pytest.fixture
def trapped(project):
    """A git repository whose configuration names programs wherever git would run one."""
    folder = project / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "file.txt").write_text("1\n")
    (folder / "other.txt").write_text("1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "x")
    program = project / "program"
    program.write_text(f"#!/bin/sh\ntouch {project}/executed\ncat\n")
    program.chmod(0o755)
    (folder / ".gitattributes").write_text("*.txt filter=f diff=d\nother.txt filter=a=b\n")
    hooks = project / "hooks"
    hooks.mkdir()
    for hook in ("post-index-change", "fsmonitor-watchman", "reference-transaction"):
        shutil.copy(program, hooks / hook)
    for name, value in {
        "core.fsmonitor": program, "core.hooksPath": hooks, "core.pager": program,
        "diff.external": program, "diff.d.command": program, "diff.d.textconv": program,
        "filter.f.clean": program, "filter.f.smudge": program, "filter.f.process": program,
        "filter.f.required": "true", "filter.a=b.clean": program, "core.sshCommand": program,
        "core.editor": program, "gpg.program": program, "credential.helper": program,
        "alias.status": f"!{program}", "pager.diff": program, "pager.status": program,
        "status.submoduleSummary": "true", "diff.submodule": "log", "color.ui": "always",
    }.items():  # fmt: skip
        git(folder, "config", name, str(value))
    (folder / "included").write_text(f'[filter "f"]\n\tclean = {program}\n')
    git(folder, "config", "include.path", "../included")
    (folder / "file.txt").write_text("2\n")
    (folder / "other.txt").write_text("2\n")
    (project / "executed").unlink(missing_ok=True)
    yield folder
    assert not (project / "executed").exists()


@pytest.mark.promise("no-hooks")
def test_git_runs_no_program_of_a_repository(trapped):
    facts = repository.git(trapped)
    assert facts["dirty"] == "true"
    assert len(facts["commit"]) == 40
    assert "\n-1\n+2\n" in facts["diff"]


@pytest.mark.promise("no-hooks")
@pytest.mark.parametrize(
    "variable", ["GIT_EXTERNAL_DIFF", "GIT_PAGER", "GIT_SSH_COMMAND", "GIT_EXEC_PATH", "GIT_DIR",
                 "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_CONFIG_PARAMETERS", "GIT_TRACE"],
)  # fmt: skip
def test_gits_variables_are_not_obeyed(trapped, monkeypatch, variable):
    values = {"GIT_CONFIG_PARAMETERS": f"'core.fsmonitor'='{trapped.parent}/program'"}
    monkeypatch.setenv(variable, values.get(variable, str(trapped.parent / "program")))
    assert repository.git(trapped)["dirty"] == "true"


@pytest.mark.promise("no-hooks")
def test_a_bare_repository_among_the_files_is_none(project):
    git(project, "init", "-q", "--bare", "inner")
    assert repository.git(project / "inner") == {}


@pytest.mark.promise("no-hooks")
def test_a_work_tree_elsewhere_is_not_read(trapped):
    (trapped.parent / "secret").mkdir()
    git(trapped, "config", "core.worktree", str(trapped.parent / "secret"))
    facts = repository.git(trapped)
    assert facts["dirty"] == "unknown"
    assert "elsewhere" in facts["problem"]


@pytest.mark.promise("no-hooks")
def test_no_tag_decides_where_git_runs(trapped, begun, monkeypatch):
    folders = []
    monkeypatch.setattr(repository, "git", lambda folder, **_: folders.append(folder) or {})
    config = reading.read(write_config(begun.parents[2], name="x"))
    for source in (trapped / "x.toml", Path("/"), Path(f"{trapped}/../x.toml")):
        folder = layout.new_run_folder(begun.parents[1], "x")
        run(config, RunIdentity(source, "x"), folder, Silent(), stop_at=1)
    assert set(folders) == {Path.cwd()}


SLOW_GIT = {
    "slow": ("#!/bin/sh\nsleep 30\n", "took longer"),
    "slow status": ("#!/bin/sh\ncase \"$*\" in *status*) sleep 30;; esac\nexec {git} \"$@\"\n",
                    "took longer"),
    "failing": ("#!/bin/sh\necho bad >&2\nexit 3\n", "git failed: bad"),
    "missing": ("", "git cannot be run"),
}  # fmt: skip


@pytest.mark.promise("unknown-is-told")
@pytest.mark.parametrize("kind", SLOW_GIT)
def test_a_git_that_does_not_answer_is_unknown_and_not_clean(trapped, monkeypatch, kind):
    text, problem = SLOW_GIT[kind]
    program = trapped.parent / "bin" / "git"
    program.parent.mkdir()
    program.write_text(text.replace("{git}", shutil.which("git")))
    program.chmod(0o755 if text else 0o644)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin" if text else str(program.parent))
    monkeypatch.setattr(repository, "SECONDS", 1.0)
    facts = repository.git(trapped)
    assert facts["dirty"] == "unknown"
    assert problem in facts["problem"]
    environment.write(trapped, facts)
    assert problem in json.loads((trapped / layout.ENVIRONMENT).read_text())["unknown"]["git"]
    assert environment.run_tags(facts)[tags.GIT_DIRTY] == "unknown"


# --- what is only recorded --------------------------------------------------------------------


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
