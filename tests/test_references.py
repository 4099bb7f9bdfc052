"""A user's own code named in a configuration: every kind of thing, every kind of mistake."""

import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp.errors import InputError
from fbp.experiment.config import reading, references, writing
from fbp.experiment.config.trust import Trust, trust_of
from fbp.experiment.runner import build
from tests.own_functions import KEYS, OWN, override, refusal
from tests.projects import said

GOOD = [
    ("data", "points", ", examples = 50"),
    ("model", "net", ", width = 3"),
    ("activation", "swish", ", beta = 2.0"),
    ("initializer", "draw", ", scale = 0.5"),
    ("initializer", "draw_factory", ", scale = 0.5"),
    ("loss", "cost", ", power = 2"),
    ("loss", "instance", ""),
    ("optimizer", "rule", ", strength = 3.0"),
    ("optimizer", "rule_pair", ""),
    ("schedule", "halving", ", every = 3"),
    ("metric", "top", ", k = 1"),
    ("metric", "top_factory", ", k = 1"),
    ("metric", "top_other_names", ""),
    ("metric", "margin", ""),
    ("metric", "decorated_top", ", k = 1"),
    ("augmentation", "noise", ", scale = 0.2"),
    ("augmentation", "noise_factory", ", scale = 0.2"),
]


@pytest.mark.parametrize(("kind", "name", "more"), GOOD)
@pytest.mark.parametrize("where", ["mine", "./mine.py"])
def test_every_kind_can_be_a_users_own(own_minimal, kind, name, more, where):
    config = reading.read(own_minimal, [override(kind, f"{where}:{name}", more)])
    built = build.build(config)
    params, _ = built.model.init(jax.random.key(0), built.shape)
    x, y = (jnp.asarray(part[:8]) for part in built.data.train)
    cost, _ = fbp.value_and_grad(built.model, built.loss)(params, x, y)
    assert np.isfinite(cost)
    text = writing.to_toml(config)
    with references.reading_record(Trust(frozenset(writing.names_in(config)))):
        again = reading.parse(tomllib.loads(text), "again")
    assert writing.to_toml(again) == text


def test_a_users_arguments_reach_the_function(own_minimal):
    overrides = [
        override("model", "mine:net", ", width = 3, act = {name = 'mine:swish', beta = 2.0}"),
        "metrics.names=['accuracy', {name='mine:top', k=1}, "
        "{name='mine:decorated_top', k=3, label='all'}]",
        "augmentation.names=['mine:noise']",
    ]
    built = build.build(reading.read(own_minimal, overrides))
    assert built.model.parts["0"].name == "dense(3)"
    assert list(built.metrics) == ["accuracy", "top", "all"]
    assert built.metrics["accuracy"].higher_is_better
    assert built.metrics["all"].format == ".1%"
    output, target = jnp.array([[1.0, 2.0, 0.0]]), jnp.array([2])
    assert [float(m(output, target)[0]) for m in built.metrics.values()] == [0, 0, 1]
    x = jnp.zeros((2, 4))
    assert built.augment(jax.random.key(0), x).std() > 0.02


@pytest.mark.parametrize("kind", KEYS)
class TestMistakesOfEveryKind:
    def test_a_module_that_does_not_exist(self, own_minimal, kind):
        line = refusal(own_minimal, override(kind, "nowhere:f"))
        assert f"{kind} 'nowhere:f' cannot be imported: No module named 'nowhere'" in line

    def test_an_attribute_that_does_not_exist(self, own_minimal, kind):
        line = refusal(own_minimal, override(kind, "mine:gone"))
        assert f"{kind} 'mine:gone': the module mine has no 'gone'" in line

    def test_an_import_that_raises(self, own_minimal, kind):
        line = refusal(own_minimal, override(kind, "broken:f"))
        assert f"{kind} 'broken:f' cannot be imported: " in line

    def test_what_is_not_callable(self, own_minimal, kind):
        line = refusal(own_minimal, override(kind, "mine:constant"))
        assert f"{kind} 'mine:constant': expected a" in line
        assert line.endswith("got a value of type int")

    def test_pythons_own_modules(self, own_minimal, kind):
        line = refusal(own_minimal, override(kind, "os:system"))
        assert f"{kind} 'os:system': expected a module with a {kind}, got one of Python" in line

    def test_no_reference_at_all(self, own_minimal, kind):
        assert "expected package.module:function" in refusal(own_minimal, override(kind, "a/b:c"))

    def test_a_file_that_does_not_exist(self, own_minimal, kind):
        line = refusal(own_minimal, override(kind, "./gone.py:f"))
        assert f"{kind} '{own_minimal.parent}/gone.py:f': there is no file" in line

    def test_a_file_that_only_the_configuration_names(self, own_minimal, kind):
        key, _, value = override(kind, "./mine.py:net").partition("=")
        section, _, inner = key.partition(".")
        table = {"name": "x", **tomllib.loads(own_minimal.read_text())}
        written = tomllib.loads(f"value = {value}")["value"]
        table[section] = {**table.get(section, {}), inner: written} if inner else written
        with pytest.raises(InputError) as caught:
            reading.parse(table, "x")
        (line,) = str(caught.value).splitlines()
        assert f"{kind} './mine.py:net': a configuration cannot name a file" in line
        assert "--set KEY=./mine.py:net" in line
        assert "mine" not in sys.modules

    def test_a_record_that_names_a_file(self, own_minimal, kind):
        with references.reading_record():
            line = refusal(own_minimal, override(kind, "./mine.py:net"))
        assert f"{kind} './mine.py:net': the record names code outside of fbp" in line
        assert "--code mine.py" in line

    def test_a_record_that_names_a_module(self, own_minimal, kind):
        (own_minimal.parent / "unheard.py").write_text("raise SystemExit('executed')")
        with references.reading_record():
            line = refusal(own_minimal, override(kind, "unheard:f"))
        assert f"{kind} 'unheard:f': the record names code outside of fbp" in line
        assert "--trust unheard:f" in line

    def test_an_unknown_argument(self, own_minimal, kind):
        name, key = {
            "data": ("points", "examples"),
            "model": ("net", "width"),
            "activation": ("swish", "beta"),
            "initializer": ("draw", "scale"),
            "loss": ("cost", "power"),
            "optimizer": ("rule", "strength"),
            "schedule": ("halving", "every"),
            "metric": ("top_factory", "k"),
            "augmentation": ("noise", "scale"),
        }[kind]
        more = ", k = 1" if name == "top_factory" else ""
        line = refusal(own_minimal, override(kind, f"mine:{name}", f"{more}, {key}_ = 1"))
        assert f"{key}_: unknown key; did you mean " in line
        assert f"'{key}'" in line
        line = refusal(own_minimal, override(kind, f"mine:{name}", f", {key} = [1]"))
        assert f"{key}: expected a" in line


def test_an_optional_argument_that_a_file_cannot_hold_may_stay_away(own_minimal):
    assert build.build(reading.read(own_minimal, [override("model", "mine:net_optional_thing")]))
    line = refusal(own_minimal, override("model", "mine:net_optional_thing", ", thing = 3"))
    assert "model.thing: a file cannot hold a value of the type" in line


def test_a_required_argument_must_be_there(own_minimal):
    line = refusal(own_minimal, override("metric", "mine:top_factory"))
    assert line.endswith("metrics.names.1: k: expected a value, got none; add it")


def test_files_of_one_name_are_modules_of_their_own(own_minimal):
    other = own_minimal.parent / "other"
    other.mkdir()
    source = "import fbp\ndef net(outputs: int):\n    return fbp.layers.dense(outputs)  # {}\n"
    (own_minimal.parent / "own.py").write_text(source.format(1))
    (other / "own.py").write_text(source.format(2))
    paths = [Path("own.py"), Path("other/own.py"), Path("other/../own.py")]
    configs = [reading.read(own_minimal, [f"model={{name='{path}:net'}}"]) for path in paths]
    names = [config.model.name for config in configs]
    assert names == [f"{path.resolve()}:net" for path in paths]
    modules = [references.resolve("model", name).__globals__ for name in names]
    assert [Path(module["__file__"]) for module in modules] == [path.resolve() for path in paths]
    assert modules[0]["__name__"] == modules[2]["__name__"] != modules[1]["__name__"]
    assert "own" not in sys.modules


def test_a_record_with_its_code(own_minimal):
    elsewhere = own_minimal.parent / "elsewhere"
    elsewhere.mkdir()
    code = elsewhere / "mine.py"
    code.write_text(OWN)
    table = {"name": "x", **tomllib.loads(own_minimal.read_text())}
    table["model"] = {"name": "/home/somebody/mine.py:net"}
    with references.reading_record(trust_of(code=code)):
        config = reading.parse(table, "record")
    assert config.model.name == f"{code}:net"
    assert build.build(config).model.parts["0"].name == "dense(4)"
    table["model"] = {"name": "mine:net"}
    (own_minimal.parent / "mine.py").write_text("raise SystemExit('executed')")
    with references.reading_record(trust_of(code=code)):
        assert build.build(reading.parse(table, "record")).model.parts["0"].name == "dense(4)"


class TestTracker:
    def test_one_run_with_another_tracker_is_announced_without_mlflow(self, own_minimal):
        overrides = ["tracking.sink=jsonl", "training.steps=2"]
        words = [word for override in overrides for word in ("--set", override)]
        assert "MLflow" not in said("run", str(own_minimal), *words)
        assert said("runs").endswith("\n1 run\n")

    def test_a_reference_is_resolved_and_the_library_s_own_are_not_imported(self, own_minimal):
        for sink in ("mlflow", "jsonl", "mine:Tracker"):
            assert reading.read(own_minimal, [f"tracking.sink={sink}"]).tracking.sink == sink
        line = refusal(own_minimal, "tracking.sink=mlfow")
        assert line.endswith("tracking.sink: unknown tracker 'mlfow'; did you mean 'mlflow'?")
        assert "tracker 'mine:gone': the module mine has no 'gone'" in refusal(
            own_minimal, "tracking.sink=mine:gone"
        )
