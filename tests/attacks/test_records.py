"""Attacks by records: code that they name, files and folders that stand in for others, git."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fbp
from fbp.errors import InputError
from fbp.experiment.commands import launch
from fbp.experiment.config import reading, references
from fbp.experiment.config.references import NO_TRUST, reading_record, trust
from fbp.experiment.rundir import environment, git_state, journal, layout
from fbp.experiment.rundir import trust as own_trust
from fbp.experiment.runner.build import build
from fbp.experiment.tracking import sink as sinks
from tests.projects import command, said, write_config

TOUCH = "from pathlib import Path\nPath(__file__).with_name('executed').touch()\n"
OWN = """
import fbp
def net(outputs: int):
    return fbp.chain(fbp.layers.flatten(), fbp.layers.dense(outputs))
"""

# Code that is installed, with arguments by which it does something, or that is found somewhere.
REFERENCES = [
    "click:edit",
    "click:launch",
    "os:system",
    "subprocess:run",
    "builtins:exec",
    "functools:partial",
    "importlib:import_module",
    "runpy:run_path",
    "pickle:loads",
    "numpy:load",
    "numpy:zeros",
    "pandas:read_pickle",
    "jax:jit",
    "mlflow.pyfunc:load_model",
    "sklearn.datasets:fetch_openml",
    "fbp:load",
    "fbp.losses:mean_squared_error",
    "fbp.layers:dense",
    "fbp.experiment.commands.launch:launch",
    "fbp.experiment.tracking.store:connect",
    "fbp.cli.base:main",
    "unheard_of:thing",
    "./unheard_of.py:thing",
    "../unheard_of.py:thing",
    "/tmp/unheard_of.py:thing",
    "unheard_of.sub.module:thing",
    "__main__:main",
    "conftest:thing",
    "site:main",
    "pip:main",
    "ﬁle:thing",
    "\u043es:system",
    "a:b:c",
    ":",
    ":thing",
    "thing:",
    "a b:c",
    "os.path:join",
]

PLACES = {
    "data": '[data]\nname = "{}"\n',
    "model": '[model]\nname = "{}"\neditor = "touch executed ;#"\n',
    "activation": '[model]\nname = "mlp"\nactivation = "{}"\n',
    "activation table": '[model]\nname = "mlp"\nactivation = {{name = "{}"}}\n',
    "initializer": '[model]\nname = "mlp"\nweights = "{}"\n',
    "output activation": '[model]\nname = "mlp"\noutput_activation = "{}"\n',
    "loss": '[loss]\nname = "{}"\n',
    "optimizer": '[optimizer]\nname = "{}"\nlearning_rate = 0.1\n',
    "schedule": '[schedule]\nname = "{}"\n',
    "metric": '[metrics]\nnames = ["{}"]\n',
    "metric table": '[metrics]\nnames = [{{name = "{}", label = "mine"}}]\n',
    "augmentation": '[augmentation]\nnames = ["{}"]\n',
    "tracker": '[tracking]\nsink = "{}"\n',
    "variant": '[[variant]]\nname = "a"\nset = {{ "model.name" = "{}" }}\n',
    "nested in a variant": '[[variant]]\nname = "a"\nset = {{ "model.activation" = "{}" }}\n',
}


def config_with(folder: Path, text: str) -> Path:
    """Write a configuration that is right but for the sections of `text`."""
    path = write_config(folder, name="config")
    names = [line for line in text.splitlines() if line.startswith("[")]
    sections = [f"[{part}" for part in path.read_text().split("\n[")]
    others = [part for part in sections[1:] if part.splitlines()[0] not in names]
    path.write_text("\n".join([*others, text]))
    return path


def read_all(path: Path):
    """Do everything that a command does with a configuration before it trains."""
    config = reading.read(path)
    for variant in reading.variants(config, "record").values():
        build(variant)
    sinks.load(sinks.reference(config.tracking.sink))
    return build(config)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the current folder, which has modules that must not be executed."""
    monkeypatch.chdir(tmp_path)
    for name in ("unheard_of", "pip", "conftest", "click"):
        (tmp_path / f"{name}.py").write_text(TOUCH)
    yield tmp_path
    assert not (tmp_path / "executed").exists()


@pytest.mark.promise("nothing-in-a-record-runs")
@pytest.mark.parametrize("reference", REFERENCES)
def test_a_record_names_nothing_but_the_catalogue(folder, reference):
    for text in PLACES.values():
        path = config_with(folder, text.format(reference))
        with pytest.raises(InputError) as caught, reading_record(NO_TRUST):
            read_all(path)
        assert "\n" not in str(caught.value)


@pytest.mark.promise("nothing-in-a-record-runs")
@pytest.mark.parametrize("place", PLACES)
def test_a_refusal_names_the_reference_and_the_option(folder, place):
    path = config_with(folder, PLACES[place].format("click:edit"))
    with pytest.raises(InputError, match="--trust click:edit") as caught, reading_record(NO_TRUST):
        read_all(path)
    assert "the record names code that is not fbp's own" in str(caught.value)


@pytest.mark.promise("nothing-in-a-record-runs")
@pytest.mark.parametrize("command_name", ["reproduce", "generate", "resume", "load", "archive"])
def test_no_command_runs_what_a_record_names(folder, command_name):
    run = a_run(folder, 'name = "click:edit"\neditor = "touch executed ;#"')
    if command_name == "load":
        with pytest.raises(InputError, match="--trust click:edit"):
            fbp.load(run)
        return
    (layout.model(run) / layout.CONFIG).write_text(layout.config(run).read_text())
    output = said(command_name, run, status=2)
    assert "--trust click:edit" in output or "sealed" in output or "neither" in output


def a_run(folder: Path, model: str, sink: str = "jsonl") -> Path:
    """A run folder that somebody has made, with a configuration that names this model."""
    run = layout.new_run_folder(folder / "mlruns", "run")
    text = f'[model]\n{model}\n[tracking]\nsink = "{sink}"\n'
    path = config_with(folder, text)
    layout.model(run).mkdir()
    for target in (layout.config(run), layout.model(run) / layout.CONFIG):
        target.write_text(f'name = "x"\n{path.read_text()}')
    (layout.model(run) / layout.MODEL_FACTS).write_text(
        '{"format": 1, "shape": [4], "outputs": 3, "classes": ["a", "b", "c"], "tokens": [], '
        '"sequence": false}'
    )
    np.savez(layout.model(run) / layout.PARAMS)
    writer = journal.Journal(run)
    digest = journal_digest(layout.config(run))
    writer.start(label="x", experiment="x", params={}, tags={}, sink=sink, config=digest)
    writer.close()
    return run


def journal_digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.promise("only-what-is-trusted")
def test_exactly_the_trusted_reference_is_taken(folder):
    (folder / "trusted_one.py").write_text(OWN)
    path = config_with(folder, '[model]\nname = "trusted_one:net"\n')
    with reading_record(trust(["trusted_one:net"])):
        assert build(reading.read(path)).model.kind == "chain"
    for other in ("trusted_one:ne", "trusted_one:net2", "trusted_one.net:net", "click:edit"):
        with pytest.raises(InputError), reading_record(trust([other])):
            reading.read(path)


@pytest.mark.promise("only-what-is-trusted")
@pytest.mark.parametrize("reference", ["", "a", "a.b", "a:b:c", ":x", "a:", "a b:c", "a:b c", 3])
def test_what_is_no_reference_cannot_be_trusted(reference):
    with pytest.raises(InputError, match="expected a reference"):
        trust([reference])


@pytest.mark.promise("code-by-its-path")
@pytest.mark.parametrize("name", ["mine:net", "./mine.py:net", "/home/somebody/mine.py:net"])
def test_code_is_that_very_file(folder, name):
    """Another file of the same name in the current folder is not executed."""
    (folder / "mine.py").write_text(TOUCH)
    (folder / "elsewhere").mkdir()
    code = folder / "elsewhere" / "mine.py"
    code.write_text(OWN)
    path = config_with(folder, f'[model]\nname = "{name}"\n')
    for given in (code, code.parent):
        with reading_record(trust(code=[given])):
            config = reading.read(path)
            assert config.model.name == name  # as the record has it
            assert build(config).model.kind == "chain"
    with (
        pytest.raises(InputError, match=r"--code mine\.py"),
        reading_record(trust(code=[path.parent / "pip.py"])),
    ):
        reading.read(path)


@pytest.mark.promise("code-by-its-path")
def test_a_file_imports_its_neighbours_after_what_is_installed(folder):
    other = folder / "elsewhere"
    other.mkdir()
    (other / "json.py").write_text(TOUCH)
    (other / "click.py").write_text(TOUCH)
    (other / "neighbour.py").write_text("WIDTH = 3\n")
    (other / "own_net.py").write_text("import json, click\nfrom neighbour import WIDTH\n" + OWN)
    path = config_with(folder, '[model]\nname = "own_net:net"\n')
    with reading_record(trust(code=[other / "own_net.py"])):
        build(reading.read(path))
    assert not (other / "executed").exists()


@pytest.mark.promise("code-by-its-path")
def test_a_package_given_by_its_folder(folder):
    package = folder / "elsewhere" / "my_package_of_nets"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "nets.py").write_text("from my_package_of_nets import other\n" + OWN)
    (package / "other.py").touch()
    path = config_with(folder, '[model]\nname = "my_package_of_nets.nets:net"\n')
    with reading_record(trust(code=[package])):
        assert build(reading.read(path)).model.kind == "chain"
    impostor = folder / "another" / "my_package_of_nets"
    impostor.mkdir(parents=True)
    (impostor / "__init__.py").write_text(TOUCH)
    with (
        pytest.raises(InputError, match="is imported already"),
        reading_record(trust(code=[impostor])),
    ):
        build(reading.read(path))


@pytest.mark.promise("code-by-its-path")
@pytest.mark.parametrize("reference", ["pip:main", "click:edit"])
def test_the_current_folder_shadows_no_installed_package(folder, reference, monkeypatch):
    top = reference.partition(":")[0]
    monkeypatch.delitem(sys.modules, top, raising=False)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    references.resolve("model", reference)
    assert Path(sys.modules[top].__file__).parent != folder


@pytest.mark.promise("code-by-its-path")
def test_processes_of_fbp_do_not_look_into_the_current_folder(folder):
    (folder / "json.py").write_text(TOUCH)
    (folder / "mlflow.py").write_text(TOUCH)
    from fbp._python import python_with_code

    done = subprocess.run(
        python_with_code("import json, mlflow, fbp; print(fbp.__file__)"),
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert Path(done.stdout.strip()) == Path(fbp.__file__), done.stderr


@pytest.mark.promise("own-runs-go-on")
def test_a_run_of_ones_own_is_read_with_what_it_was_begun_with(folder, monkeypatch):
    (folder / "nets_of_mine.py").write_text(OWN)
    references.resolve("model", "nets_of_mine:net")  # as when the run was begun
    run = a_run(folder, 'name = "nets_of_mine:net"')
    own_trust.remember(run, layout.config(run).read_text())
    with reading_record(own_trust.recall(run)):
        reading.read(layout.config(run))
    stored = next(Path(os.environ["XDG_STATE_HOME"]).rglob(f"{run.name}.json"))
    assert stored.stat().st_mode & 0o077 == 0
    # the same record, but elsewhere, or of another configuration
    copy = run.with_name("copy")
    run.rename(copy)
    assert own_trust.recall(copy) == NO_TRUST
    copy.rename(run)
    layout.config(run).write_text(layout.config(run).read_text() + "\n")
    assert own_trust.recall(run) == NO_TRUST
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "empty"))
    assert own_trust.recall(run) == NO_TRUST


@pytest.mark.promise("own-runs-go-on")
@pytest.mark.parametrize("content", ["", "{", "[]", '{"folder": 1}', "[" * 100_000, "\0"])
def test_a_damaged_state_trusts_nothing(folder, content):
    run = a_run(folder, 'name = "mlp"')
    path = Path(os.environ["XDG_STATE_HOME"]) / "fbp" / "trust" / f"{run.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    assert own_trust.recall(run) == NO_TRUST


# --- git --------------------------------------------------------------------------------------

HOSTILE = {
    "core.fsmonitor": "touch {0}; false",
    "core.sshCommand": "touch {0}",
    "core.pager": "touch {0}",
    "core.editor": "touch {0}",
    "diff.external": "touch {0}",
    "diff.odd.command": "touch {0}",
    "diff.odd.textconv": "touch {0}; cat",
    "filter.odd.clean": "touch {0}; cat",
    "filter.odd.smudge": "touch {0}; cat",
    "filter.odd.process": "touch {0}",
    "filter.a=b.clean": "touch {0}; cat",
    "uploadpack.packObjectsHook": "touch {0}",
    "alias.status": "!touch {0}",
    "alias.rev-parse": "!touch {0}",
    "credential.helper": "!touch {0}",
}


@pytest.fixture
def repository(tmp_path):
    """Return a git repository with a commit and a change."""

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", "-C", tmp_path, *identity, *words], capture_output=True)
        assert done.returncode == 0, done.stderr

    git("init", "-q")
    (tmp_path / ".gitattributes").write_text("*.txt diff=odd filter=odd\n*.md filter=a=b\n")
    for name in ("a.txt", "b.md"):
        (tmp_path / name).write_text("old\n")
    git("add", ".")
    git("commit", "-qm", "first")
    for name in ("a.txt", "b.md"):
        (tmp_path / name).write_text("new\n")
    return tmp_path, git


@pytest.mark.promise("git-runs-nothing")
@pytest.mark.parametrize("name", HOSTILE)
def test_no_program_of_a_repository_is_executed(repository, name):
    folder, git = repository
    executed = folder / "executed"
    git("config", name, HOSTILE[name].format(executed))
    facts = git_state.read(folder)
    assert facts["dirty"] == "true"
    assert "+new" in facts["diff"]
    assert not executed.exists()


@pytest.mark.promise("git-runs-nothing")
@pytest.mark.parametrize(
    "hook", ["post-index-change", "pre-commit", "post-checkout", "fsmonitor-watchman"]
)
def test_no_hook_of_a_repository_is_executed(repository, hook):
    folder, _ = repository
    path = folder / ".git" / "hooks" / hook
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\ntouch {folder}/executed\n")
    path.chmod(0o755)
    os.utime(folder / "a.txt", (1, 1))
    git_state.read(folder)
    assert not (folder / "executed").exists()


@pytest.mark.promise("git-runs-nothing")
def test_git_runs_where_the_user_stands_not_where_a_record_says(
    folder, tmp_path_factory, monkeypatch
):
    """The tag mlflow.source.name of a record is a text that is shown, no place to go to."""
    asked = []
    monkeypatch.setattr(git_state, "read", lambda place: asked.append(place.resolve()) or {})
    hostile = tmp_path_factory.mktemp("hostile")
    monkeypatch.setattr(launch.shipper, "launch", lambda *_: Sent())
    config = reading.read(write_config(folder))
    identity = launch.RunIdentity(hostile / "x.toml", "x")
    launch.launch_config(config, identity, launch.RunRequest(lambda label: Silent()))
    assert asked == [folder]


class Sent:
    def wait(self, timeout=None):
        return 0


class Silent:
    def begin(self, steps, epochs): ...
    def advance(self, step, epoch, latest): ...
    def note(self, text): ...
    def close(self): ...


@pytest.mark.promise("unknown-is-not-clean")
@pytest.mark.parametrize("script", ["sleep 5", "exit 1", "kill -9 $$"])
def test_a_git_that_fails_is_unknown(repository, monkeypatch, tmp_path_factory, script):
    folder, _ = repository
    programs = tmp_path_factory.mktemp("bin")
    real = subprocess.run(["which", "git"], capture_output=True, text=True).stdout.strip()
    (programs / "git").write_text(
        f'#!/bin/sh\ncase "$*" in *status*) {script};; *) exec {real} "$@";; esac\n'
    )
    (programs / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(git_state, "_SECONDS", 0.5)
    assert git_state.read(folder)["dirty"] == "unknown"


# --- facts ------------------------------------------------------------------------------------


def raise_error(*_, **__):
    raise RuntimeError("no such fact")


@pytest.mark.promise("facts-stop-no-run")
@pytest.mark.parametrize(
    "fact",
    ["getpass.getuser", "importlib.metadata.version", "platform.processor", "git missing",
     "dist-info"],
)  # fmt: skip
def test_what_is_only_recorded_stops_no_run(folder, monkeypatch, fact):
    if fact == "dist-info":
        (folder / "lib" / "foo-1.0.dist-info").mkdir(parents=True)
        (folder / "lib" / "bar-1.0.dist-info").mkdir()
        (folder / "lib" / "bar-1.0.dist-info" / "METADATA").write_bytes(b"\xff\xfe\0")
        monkeypatch.syspath_prepend(folder / "lib")
    elif fact == "git missing":
        monkeypatch.setenv("PATH", "")
    else:
        module, _, name = fact.rpartition(".")
        monkeypatch.setattr(sys.modules[module], name, raise_error)
    facts = environment.describe()
    json.dumps(facts)
    assert environment.run_tags(git_state.read(folder))["fbp.version"] == fbp.__version__


@pytest.mark.promise("facts-stop-no-run")
def test_a_run_without_home_or_user(folder):
    environ = {key: value for key, value in os.environ.items() if key not in ("HOME", "USER")}
    environ |= {"LOGNAME": "", "XDG_STATE_HOME": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    code = (
        "import os, pwd\n"
        "def none(*_): raise KeyError('no such user')\n"
        "pwd.getpwuid = none\n"
        "from fbp.cli import main\nmain()"
    )
    write_config(folder)
    for name in ("click.py", "pip.py", "conftest.py"):
        (folder / name).unlink()
    (folder / "runner.py").write_text(code)
    words = [sys.executable, "-P", "runner.py", "run", "small.toml", "--set", "tracking.sink=jsonl"]
    done = subprocess.run(words, capture_output=True, text=True, env=environ, cwd=folder)
    assert done.returncode == 0, done.stderr


# --- resuming ---------------------------------------------------------------------------------


def interrupted(folder: Path) -> Path:
    """A run with a module of the user's own, stopped cleanly at its end by a signal."""
    (folder / "resumed_nets.py").write_text(
        "import fbp\ndef net(outputs: int):\n    return fbp.chain(fbp.layers.dense(8), "
        "fbp.layers.relu(), fbp.layers.dense(outputs))\n"
    )
    path = config_with(folder, '[model]\nname = "resumed_nets:net"\n[tracking]\nsink = "jsonl"\n')
    code = (
        "from pathlib import Path\n"
        "from fbp.experiment.commands.launch import *\n"
        "from tests.projects import Silent\n"
        "request = RunRequest(lambda label: Silent(), stop_at=3)\n"
        f"print(launch(Path({str(path)!r}), (), request).folder)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


def resumed(run: Path, *options: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-P", *command("resume", run.name, *options)[1:]]
    return subprocess.run(words, capture_output=True, text=True, timeout=240)


@pytest.mark.promise("resume-compares")
@pytest.mark.slow
def test_changed_code_is_not_resumed_without_a_word(folder):
    run = interrupted(folder)
    module = folder / "resumed_nets.py"
    module.write_text(module.read_text().replace("relu", "tanh"))
    done = resumed(run)
    assert done.returncode == 2
    assert "code of your own has changed since the run began" in done.stderr
    assert "resumed_nets.py" in done.stderr
    done = resumed(run, "--accept-changes")
    assert done.returncode == 0, done.stderr
    assert "resumed_nets.py" in journal.read_tags(run)["fbp.resumed_with"]


@pytest.mark.promise("resume-compares")
@pytest.mark.slow
def test_a_changed_configuration_is_not_resumed(folder):
    run = interrupted(folder)
    config = layout.config(run)
    config.write_text(config.read_text().replace("learning_rate = 0.01", "learning_rate = 0.02"))
    done = resumed(run)
    assert done.returncode == 2
    assert "trust" in done.stderr or "optimizer_learning_rate" in done.stderr


@pytest.mark.promise("resume-compares")
@pytest.mark.slow
def test_an_unchanged_run_is_resumed_with_its_own_code(folder):
    run = interrupted(folder)
    done = resumed(run)
    assert done.returncode == 0, done.stderr
    assert "fbp.resumed_with" not in journal.read_tags(run)
    assert "identical to the bit" in said("reproduce", run.name)
