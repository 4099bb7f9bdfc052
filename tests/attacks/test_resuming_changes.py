"""Attacks on what a run is resumed with: changed code, configuration or environment."""

import json
import sys

import pytest

import fbp
from fbp.experiment.config.trust import trust_of
from fbp.experiment.rundir import journal, layout, tags
from tests.attacks.own_code import OWN, resumed


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
