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
from fbp.experiment.commands import progress
from fbp.experiment.config import reading, references, writing
from fbp.experiment.config.trust import Trust, trust_of
from fbp.experiment.rundir import layout, metric_table
from fbp.experiment.runner import build, loop, test_evaluation
from fbp.experiment.runner import run as run_module
from fbp.experiment.runner.run_start import RunIdentity
from tests.projects import Silent, said, silent_compiler
from tests.test_config import MINIMAL

OWN = """
import jax, jax.numpy as jnp, numpy as np, fbp
from fbp.datasets import Dataset, Examples

class Thing:
    pass

def raises(*_, **__):
    raise KeyError("oh no")

def nothing():
    return None

def net(outputs: int, width: int = 4, act: fbp.blocks.Activation = fbp.layers.relu):
    return fbp.chain(fbp.layers.dense(width), act(), fbp.layers.dense(outputs))
def net_raises(outputs: int):
    return {}["x"]
def net_nothing(outputs: int):
    return None
def net_thing(outputs: int, thing: Thing):
    return net(outputs)
def net_optional_thing(outputs: int, thing: Thing = Thing()):
    return net(outputs)
def net_without():
    return net(3)
def net_with_text_in_cache(outputs: int):
    layer = fbp.Layer(lambda key, shape: ((), shape),
                      lambda params, x, *, key=None: (x, "cache"),
                      lambda params, cache, delta: (delta, ()), name="odd")
    return fbp.chain(fbp.layers.dense(4), fbp.residual(layer), fbp.layers.dense(outputs))

def swish(beta: float = 1.0):
    init = lambda key, shape: ((), shape)
    return fbp.from_function(lambda params, x: x * jax.nn.sigmoid(beta * x), init)

def draw(key, shape, dtype, scale: float = 1.0):
    return scale * jax.random.normal(key, shape, dtype)
def draw_factory(scale: float = 1.0):
    return lambda key, shape, dtype=jnp.float32: jnp.full(shape, scale, dtype)
def draw_wrong(key, shape, dtype):
    return jnp.zeros((7,), dtype)
def draw_raises(key, shape, dtype):
    raise KeyError("oh no")

def cost(power: int = 4):
    return fbp.losses.from_function(
        lambda output, target: (abs(jax.nn.softmax(output) - target) ** power).sum(axis=1),
        targets="one_hot", inverse_link=jax.nn.softmax)
instance = fbp.losses.hinge
def cost_wrong():
    return fbp.Loss(lambda output, target: output - target, lambda output, target: output)
def cost_raises():
    return fbp.Loss(raises, raises)

def rule(learning_rate: float, strength: float = 2.0):
    return fbp.optimizers.sgd(learning_rate)
def rule_pair(learning_rate):
    return (lambda params: (), lambda grads, state, params: (grads, state))
def rule_wrong(learning_rate):
    return fbp.Optimizer(lambda params: (), lambda grads, state, params: ((), state))
def rule_state(learning_rate):
    return fbp.Optimizer(lambda params: (), lambda grads, state, params: (grads, (1.0,)))
def rule_raises(learning_rate):
    return fbp.Optimizer(raises, raises)

def halving(value, steps: int, every: int = 5):
    return lambda step: value * 0.5 ** (step // every)
def rows(value):
    return lambda step: jnp.ones((2,)) * value
def rows_raises(value):
    return raises

def points(examples: int = 40):
    x = np.random.default_rng(0).normal(size=(examples, 2)).astype(np.float32)
    return Dataset("points", Examples(x, (x[:, 0] > 0).astype(np.int32)), classes=("a", "b"))
def points_wrong():
    return Dataset("points", Examples([1, 2], [3, 4]))

def top(output, target, k: int = 2):
    return (jnp.argsort(output, axis=1)[:, -k:] == target[:, None]).any(axis=1).astype(float)
@fbp.metrics.metric(higher_is_better=True, format=".1%")
def decorated_top(output, target, k: int = 2):
    return top(output, target, k)

def top_factory(k: int):
    return lambda output, target: top(output, target, k)
def top_other_names(y_pred, y_true):
    return top(y_pred, y_true)
margin = fbp.metrics.Metric(lambda output, target: output.max(axis=1), name="margin",
                            higher_is_better=True)
def top_wrong(output, target):
    return output
def top_raises(output, target):
    raise KeyError("oh no")

def noise(key, x, scale: float = 0.1):
    return x + scale * jax.random.normal(key, x.shape)
def noise_factory(scale: float = 0.1):
    return lambda key, x: x + scale
def noise_wrong(key, x):
    return x[:, :1]
def noise_raises(key, x):
    raise KeyError("oh no")

class Tracker:
    def __init__(self, run): ...

constant = 3
"""


@pytest.fixture
def minimal(tmp_path, monkeypatch):
    """A project with a configuration, and a module and a file of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("mine", "broken"):
        sys.modules.pop(module, None)
    references._trusted_files.clear()
    from fbp.experiment.config.arguments import section_model

    section_model.cache_clear()
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("def f(:\n")
    path = tmp_path / "minimal.toml"
    path.write_text(MINIMAL.replace('name = "mlp"', 'name = "mlp"\nhidden = [4]'))
    yield path
    for module in ("mine", "broken"):
        sys.modules.pop(module, None)


# Where each kind is named, in a configuration that is otherwise right.
KEYS = {
    "data": "data={{name='{}'{}}}",
    "model": "model={{name='{}'{}}}",
    "activation": "model.activation={{name='{}'{}}}",
    "initializer": "model.weights={{name='{}'{}}}",
    "loss": "loss={{name='{}'{}}}",
    "optimizer": "optimizer={{name='{}', learning_rate=0.1{}}}",
    "schedule": "schedule={{name='{}'{}}}",
    "metric": "metrics.names=['accuracy', {{name='{}'{}}}]",
    "augmentation": "augmentation.names=[{{name='{}'{}}}]",
}


def override(kind, reference, more=""):
    return KEYS[kind].format(reference, more)


def refusal(minimal, *overrides):
    with pytest.raises(InputError) as caught:
        build.build(reading.read(minimal, overrides))
    (line,) = str(caught.value).splitlines()
    return line


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
def test_every_kind_can_be_a_users_own(minimal, kind, name, more, where):
    config = reading.read(minimal, [override(kind, f"{where}:{name}", more)])
    built = build.build(config)
    params, _ = built.model.init(jax.random.key(0), built.shape)
    x, y = (jnp.asarray(part[:8]) for part in built.data.train)
    cost, _ = fbp.value_and_grad(built.model, built.loss)(params, x, y)
    assert np.isfinite(cost)
    text = writing.to_toml(config)
    with references.reading_record(Trust(frozenset(writing.names_in(config)))):
        again = reading.parse(tomllib.loads(text), "again")
    assert writing.to_toml(again) == text


def test_a_users_arguments_reach_the_function(minimal):
    overrides = [
        override("model", "mine:net", ", width = 3, act = {name = 'mine:swish', beta = 2.0}"),
        "metrics.names=['accuracy', {name='mine:top', k=1}, "
        "{name='mine:decorated_top', k=3, label='all'}]",
        "augmentation.names=['mine:noise']",
    ]
    built = build.build(reading.read(minimal, overrides))
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
    def test_a_module_that_does_not_exist(self, minimal, kind):
        line = refusal(minimal, override(kind, "nowhere:f"))
        assert f"{kind} 'nowhere:f' cannot be imported: No module named 'nowhere'" in line

    def test_an_attribute_that_does_not_exist(self, minimal, kind):
        line = refusal(minimal, override(kind, "mine:gone"))
        assert f"{kind} 'mine:gone': the module mine has no 'gone'" in line

    def test_an_import_that_raises(self, minimal, kind):
        line = refusal(minimal, override(kind, "broken:f"))
        assert f"{kind} 'broken:f' cannot be imported: " in line

    def test_what_is_not_callable(self, minimal, kind):
        line = refusal(minimal, override(kind, "mine:constant"))
        assert f"{kind} 'mine:constant': expected a" in line
        assert line.endswith("got a value of type int")

    def test_pythons_own_modules(self, minimal, kind):
        line = refusal(minimal, override(kind, "os:system"))
        assert f"{kind} 'os:system': expected a module with a {kind}, got one of Python" in line

    def test_no_reference_at_all(self, minimal, kind):
        assert "expected package.module:function" in refusal(minimal, override(kind, "a/b:c"))

    def test_a_file_that_does_not_exist(self, minimal, kind):
        line = refusal(minimal, override(kind, "./gone.py:f"))
        assert f"{kind} '{minimal.parent}/gone.py:f': there is no file" in line

    def test_a_file_that_only_the_configuration_names(self, minimal, kind):
        key, _, value = override(kind, "./mine.py:net").partition("=")
        section, _, inner = key.partition(".")
        table = {"name": "x", **tomllib.loads(minimal.read_text())}
        written = tomllib.loads(f"value = {value}")["value"]
        table[section] = {**table.get(section, {}), inner: written} if inner else written
        with pytest.raises(InputError) as caught:
            reading.parse(table, "x")
        (line,) = str(caught.value).splitlines()
        assert f"{kind} './mine.py:net': a configuration cannot name a file" in line
        assert "--set KEY=./mine.py:net" in line
        assert "mine" not in sys.modules

    def test_a_record_that_names_a_file(self, minimal, kind):
        with references.reading_record():
            line = refusal(minimal, override(kind, "./mine.py:net"))
        assert f"{kind} './mine.py:net': the record names code outside of fbp" in line
        assert "--code mine.py" in line

    def test_a_record_that_names_a_module(self, minimal, kind):
        (minimal.parent / "unheard.py").write_text("raise SystemExit('executed')")
        with references.reading_record():
            line = refusal(minimal, override(kind, "unheard:f"))
        assert f"{kind} 'unheard:f': the record names code outside of fbp" in line
        assert "--trust unheard:f" in line

    def test_an_unknown_argument(self, minimal, kind):
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
        line = refusal(minimal, override(kind, f"mine:{name}", f"{more}, {key}_ = 1"))
        assert f"{key}_: unknown key; did you mean " in line
        assert f"'{key}'" in line
        line = refusal(minimal, override(kind, f"mine:{name}", f", {key} = [1]"))
        assert f"{key}: expected a" in line


@pytest.mark.parametrize(
    ("kind", "name", "problem"),
    [
        (
            "data",
            "nothing",
            "data 'mine:nothing': expected a function that returns a Dataset, got None",
        ),
        (
            "model",
            "net_nothing",
            "model 'mine:net_nothing': expected a function that returns a Layer, got None",
        ),
        (
            "activation",
            "nothing",
            "activation 'mine:nothing': expected a function that returns a Layer, got None",
        ),
        (
            "initializer",
            "nothing",
            "initializer 'mine:nothing': expected a function (key, shape, dtype)",
        ),
        (
            "initializer",
            "draw_wrong",
            "initializer 'mine:draw_wrong': expected float32 of shape (4, 4), "
            "got float32 of shape (7,)",
        ),
        (
            "loss",
            "nothing",
            "loss 'mine:nothing': expected a Loss, or a function that returns one, got None",
        ),
        (
            "loss",
            "cost_wrong",
            "loss 'mine:cost_wrong': expected a value of shape (B,), got float32 of shape (B, 3)",
        ),
        (
            "optimizer",
            "rule_wrong",
            "optimizer 'mine:rule_wrong': expected updates of the parameters' structure",
        ),
        (
            "optimizer",
            "rule_state",
            "optimizer 'mine:rule_state': expected an update that keeps the structure",
        ),
        (
            "schedule",
            "nothing",
            "schedule 'mine:nothing': expected a function that returns a schedule",
        ),
        (
            "schedule",
            "rows",
            "schedule 'mine:rows': expected one number, of shape (), got float32 of shape (2,)",
        ),
        ("metric", "nothing", "metric 'mine:nothing': expected a function (output, target)"),
        (
            "metric",
            "top_wrong",
            "metric 'top_wrong': expected one number per example, of shape (B,), "
            "got float32 of shape (B, 3)",
        ),
        ("augmentation", "nothing", "augmentation 'mine:nothing': expected a function (key, x)"),
        (
            "augmentation",
            "noise_wrong",
            "augmentation 'mine:noise_wrong': expected examples as they came, float32 of shape "
            "(B, 4), got float32 of shape (B, 1)",
        ),
        ("data", "raises", "data 'mine:raises' raised KeyError: 'oh no'"),
        ("data", "points_wrong", "data 'points', train part: expected examples with features"),
        ("model", "net_raises", "model 'mine:net_raises' raised KeyError: 'x'"),
        ("activation", "raises", "activation 'mine:raises' raised KeyError"),
        ("initializer", "draw_raises", "initializer 'mine:draw_raises' raised KeyError"),
        ("loss", "raises", "loss 'mine:raises' raised KeyError"),
        ("loss", "cost_raises", "loss 'mine:cost_raises' raised KeyError"),
        ("optimizer", "rule_raises", "optimizer 'mine:rule_raises' raised KeyError"),
        ("schedule", "rows_raises", "schedule 'mine:rows_raises' raised KeyError"),
        ("metric", "top_raises", "metric 'top_raises' raised KeyError"),
        ("augmentation", "noise_raises", "augmentation 'mine:noise_raises' raised KeyError"),
        (
            "model",
            "net_with_text_in_cache",
            "model 'mine:net_with_text_in_cache', layer 1/body (odd): expected arrays in the cache "
            "that forward returns, got a value of type str; put only arrays there",
        ),
        ("model", "net_thing", "expected arguments of types that a file can hold"),
        (
            "model",
            "net_without",
            "model 'mine:net_without': expected a function with an argument 'outputs'",
        ),
    ],
)
def test_what_a_reference_stands_for_is_checked(minimal, kind, name, problem):
    assert problem in refusal(minimal, override(kind, f"mine:{name}"))


def test_an_optional_argument_that_a_file_cannot_hold_may_stay_away(minimal):
    assert build.build(reading.read(minimal, [override("model", "mine:net_optional_thing")]))
    line = refusal(minimal, override("model", "mine:net_optional_thing", ", thing = 3"))
    assert "model.thing: a file cannot hold a value of the type" in line


def test_a_required_argument_must_be_there(minimal):
    line = refusal(minimal, override("metric", "mine:top_factory"))
    assert line.endswith("metrics.names.1: k: expected a value, got none; add it")


def test_files_of_one_name_are_modules_of_their_own(minimal):
    other = minimal.parent / "other"
    other.mkdir()
    source = "import fbp\ndef net(outputs: int):\n    return fbp.layers.dense(outputs)  # {}\n"
    (minimal.parent / "own.py").write_text(source.format(1))
    (other / "own.py").write_text(source.format(2))
    paths = [Path("own.py"), Path("other/own.py"), Path("other/../own.py")]
    configs = [reading.read(minimal, [f"model={{name='{path}:net'}}"]) for path in paths]
    names = [config.model.name for config in configs]
    assert names == [f"{path.resolve()}:net" for path in paths]
    modules = [references.resolve("model", name).__globals__ for name in names]
    assert [Path(module["__file__"]) for module in modules] == [path.resolve() for path in paths]
    assert modules[0]["__name__"] == modules[2]["__name__"] != modules[1]["__name__"]
    assert "own" not in sys.modules


def test_a_record_with_its_code(minimal):
    elsewhere = minimal.parent / "elsewhere"
    elsewhere.mkdir()
    code = elsewhere / "mine.py"
    code.write_text(OWN)
    table = {"name": "x", **tomllib.loads(minimal.read_text())}
    table["model"] = {"name": "/home/somebody/mine.py:net"}
    with references.reading_record(trust_of(code=code)):
        config = reading.parse(table, "record")
    assert config.model.name == f"{code}:net"
    assert build.build(config).model.parts["0"].name == "dense(4)"
    table["model"] = {"name": "mine:net"}
    (minimal.parent / "mine.py").write_text("raise SystemExit('executed')")
    with references.reading_record(trust_of(code=code)):
        assert build.build(reading.parse(table, "record")).model.parts["0"].name == "dense(4)"


def test_a_summary_that_cannot_be_made_costs_a_note_only(minimal, monkeypatch):
    def fail(*_):
        raise TypeError("no summary\nof this")

    monkeypatch.setattr(run_module._summary, "summarize", fail)
    reporter, notes = Silent(), []
    reporter.note = notes.append
    folder = layout.new_run_folder(minimal.parent / "mlruns", "minimal")
    config = reading.read(minimal, ["training.steps=2"])
    outcome = run_module.run(config, RunIdentity(minimal, "minimal"), folder, reporter)
    assert outcome.status == "FINISHED"
    assert notes[-1] == "the model has no summary and no picture: TypeError: no summary"
    assert not layout.summary(folder).exists()


class TestMetrics:
    def test_values(self):
        output, y = jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 0.0]])
        np.testing.assert_allclose(fbp.metrics.accuracy(output, jnp.array([1, 1])), [1, 0])
        np.testing.assert_allclose(fbp.metrics.absolute_error(output, y), [1, 1.5])

    def test_the_default_is_by_the_kind_of_targets(self, minimal):
        assert list(build.build(reading.read(minimal)).metrics) == ["accuracy"]
        overrides = ["data={name='linear'}", "loss={name='huber'}"]
        assert list(build.build(reading.read(minimal, overrides)).metrics) == ["absolute_error"]
        assert build.build(reading.read(minimal, ["metrics.names=[]"])).metrics == {}

    @pytest.mark.parametrize(
        "names", ["['accuracy', 'accuracy']", "[{name='accuracy', label='loss'}]"]
    )
    def test_names_are_unique(self, minimal, names):
        assert "metrics.names: expected different names" in refusal(
            minimal, f"metrics.names={names}"
        )

    def test_they_can_be_selected_by(self, minimal):
        overrides = ["metrics.names=['mine:top']", "selection.metric=validation_top"]
        assert build.build(reading.read(minimal, overrides))
        line = refusal(minimal, "selection.metric=validation_top")
        assert "no metric 'validation_top' is logged" in line


class TestTracker:
    def test_one_run_with_another_tracker_is_announced_without_mlflow(self, minimal):
        overrides = ["tracking.sink=jsonl", "training.steps=2"]
        words = [word for override in overrides for word in ("--set", override)]
        assert "MLflow" not in said("run", str(minimal), *words)
        assert said("runs").endswith("\n1 run\n")

    def test_a_reference_is_resolved_and_the_library_s_own_are_not_imported(self, minimal):
        for sink in ("mlflow", "jsonl", "mine:Tracker"):
            assert reading.read(minimal, [f"tracking.sink={sink}"]).tracking.sink == sink
        line = refusal(minimal, "tracking.sink=mlfow")
        assert line.endswith("tracking.sink: unknown tracker 'mlfow'; did you mean 'mlflow'?")
        assert "tracker 'mine:gone': the module mine has no 'gone'" in refusal(
            minimal, "tracking.sink=mine:gone"
        )


def test_weighted_losses_are_named_with_their_weights(minimal):
    parts = "loss={name='weighted', parts=[[{name='mine:cost', power=2}, 0.5], ['mine:cost', 1]]}"
    built = build.build(reading.read(minimal, [parts]))
    assert built.loss.targets == "one_hot"
    assert built.data.train.y.shape[1:] == (3,)
    assert "expected at least one pair" in refusal(minimal, "loss={name='weighted'}")
    assert "unknown loss 'hing'; did you mean 'hinge'" in refusal(
        minimal, "loss={name='weighted', parts=[['hing', 1.0]]}"
    )


class TestCoupledLoss:
    """A loss whose cost of one example depends on the others of its batch."""

    def test_the_test_part_is_evaluated_in_batches_as_in_training(self, minimal):
        source = """
def contrast():
    def cost(output, target):
        return ((output - output.mean(axis=0)) ** 2).sum(axis=1)
    return fbp.losses.from_function(cost, targets="labels", coupled=True)
"""
        (minimal.parent / "mine.py").write_text(OWN + source)
        overrides = [override("loss", "mine:contrast"), "training.batch_size=4"]
        experiment = build.build(reading.read(minimal, overrides))
        assert loop.evaluation_batch(experiment) == 4
        params, _ = experiment.model.init(jax.random.key(0), experiment.shape)
        x, y = (jnp.asarray(part) for part in experiment.data.test)
        metrics = test_evaluation.evaluate_and_write(
            experiment, params, minimal.parent, silent_compiler()
        )
        output, _ = experiment.model.forward(params, x)
        batches = [output[start : start + 4] for start in range(0, len(x), 4)]
        costs = [((batch - batch.mean(axis=0)) ** 2).sum(axis=1) for batch in batches]
        np.testing.assert_allclose(metrics["test_loss"], np.concatenate(costs).mean(), rtol=1e-5)
        assert fbp.check_gradients(experiment.model, experiment.loss, params, x[:5], y[:5]).ok

    def test_a_loss_of_whole_sequences_has_no_costs_by_position(self):
        whole = fbp.losses.from_function(
            lambda output, target: output.sum(axis=(1, 2)) * 0.0 + target.sum(axis=1)
        )
        output, y = jnp.ones((2, 3, 5)), np.zeros((2, 3), np.int32)
        alone = test_evaluation._takes_single_positions
        assert alone(fbp.losses.softmax_cross_entropy, output, y)
        assert not alone(whole, output, y)
        assert not alone(fbp.losses.softmax_cross_entropy._replace(coupled=True), output, y)


def test_the_users_metrics_are_shown_like_the_librarys(minimal):
    overrides = ["metrics.names=['accuracy', 'mine:margin', {name='mine:top', label='best'}]"]
    build.build(reading.read(minimal, overrides))
    names = ("loss", "accuracy", "margin", "best")
    values = {f"{part}_{name}": 0.5 for part in ("train", "validation", "test") for name in names}
    table = progress.results_table({"run": values})
    assert [str(column.header) for column in table.columns] == ["part", *names]
    line = progress.metrics_line({"loss": 0.5, "learning_rate": 0.1, "delta_norm/1": 1.0, **values})
    assert line.startswith("loss 0.5  train loss 0.5  val loss 0.5  train accuracy 50.00%")
    assert "train margin 0.5" in line
    assert metric_table.better("validation_margin") == "max"
    chunk = {"loss": 0.5, "margin": 0.25, "examples_per_second": 10.0}
    assert progress.metrics_line(chunk) == "loss 0.5  margin 0.25  10 examples/s"
