"""Attacks on the code that a reader gives: that very file, and nothing that lies around."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fbp
from fbp.experiment.config import reading, references
from fbp.experiment.config.trust import Trust, trust_of
from fbp.experiment.rundir import layout
from fbp.experiment.tracking import sink
from tests.attacks.own_code import TRAP, read_record, table_with


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
