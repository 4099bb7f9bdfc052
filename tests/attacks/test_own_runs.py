"""Attacks on runs that were begun here: their trust is found again, and is not inherited."""

import json
import shutil
import stat
import sys

import numpy as np
import pytest

import fbp
from fbp.experiment.commands import launch
from fbp.experiment.commands.launch import RunRequest
from fbp.experiment.rundir import journal, layout
from tests.attacks.own_code import TRAP, entry_of, resumed
from tests.projects import Silent, write_config


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
