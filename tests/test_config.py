"""Configurations: what is read, what is written back, and what is refused in which words."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp.errors import InputError
from fbp.experiment.config import reading, writing
from fbp.experiment.config.catalogue import CATALOGUE, lookup, summary
from fbp.experiment.config.trust import NOTHING, trust_of
from fbp.experiment.runner import build
from tests.projects import MINIMAL

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.toml"))


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "minimal.toml"
    path.write_text(MINIMAL)
    return path


def problems(path, *overrides):
    with pytest.raises(InputError) as caught:
        reading.read(path, overrides)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiments_are_valid_and_say_source_cost_and_expected_result(path):
    read = reading.read(path)
    assert read.name == path.stem
    assert read.description
    header = path.read_text().split("\n\n")[0]
    for word in ("Source:", "Run:", "Cost:", "Expected:"):
        assert f"# {word}" in header


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_resolved_configuration_reads_back_as_itself(path, tmp_path):
    read = reading.read(path)
    resolved = tmp_path / "resolved.toml"
    resolved.write_text(writing.to_toml(read))
    assert writing.to_table(reading.read(resolved)) == writing.to_table(read)


def test_every_default_is_filled_in(minimal):
    flat = writing.flat_params(reading.read(minimal))
    assert flat["optimizer_name"] == "adam"
    assert flat["optimizer_beta2"] == "0.999"
    assert flat["training_batch_size"] == "32"
    assert flat["model_activation"] == "relu"


def test_overrides(minimal):
    read = reading.read(
        minimal,
        [
            "optimizer.learning_rate=3e-4",
            "model.hidden=[8, 8]",
            "model.activation=tanh",
            "training.batch_size=full",
            "seed=3",
        ],
    )
    flat = writing.flat_params(read)
    assert flat["optimizer_learning_rate"] == "0.0003"
    assert flat["model_hidden"] == "[8, 8]"
    assert flat["model_activation"] == "tanh"
    assert flat["training_batch_size"] == "full"
    assert read.seed == 3
    nested = reading.read(
        minimal, ["model.activation.name=leaky_relu", "model.activation.slope=0.3"]
    )
    assert writing.flat_params(nested)["model_activation_slope"] == "0.3"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "optimizer.learning_rat=1",
            "optimizer.learning_rat: unknown key; did you mean 'learning_rate'?",
        ),
        ("optimiser.name=adam", "optimiser: unknown key; did you mean 'optimizer'?"),
        ("training.epoch=3", "training.epoch: unknown key; did you mean 'epochs'?"),
        (
            "optimizer.learning_rate=-1",
            "optimizer.learning_rate: expected a number greater than 0, got -1",
        ),
        ("optimizer.learning_rate='x'", "optimizer.learning_rate: expected a number, got 'x'"),
        (
            "optimizer.learning_rate=nan",
            "optimizer.learning_rate: expected a finite number, got nan",
        ),
        ("optimizer.beta1=1.0", "optimizer.beta1: expected a number less than 1, got 1.0"),
        (
            "optimizer.name=adamm",
            "optimizer.name: unknown optimizer 'adamm'; did you mean 'adam' or 'nadam' or 'adamw'?",
        ),
        (
            "data.name=mnits",
            "data.name: unknown data 'mnits'; did you mean 'mnist' or 'moons' or 'digits'?",
        ),
        ("data.validation=1.5", "data.validation: expected a number less than 1, got 1.5"),
        ("data.standardize=1", "data.standardize: expected a boolean, got 1"),
        ("model.hidden=3", "model.hidden: expected a list, got 3"),
        (
            "model.hidden=[3, 0]",
            "model.hidden.1: expected a number greater than or equal to 1, got 0",
        ),
        (
            "model.activation=rel",
            "model.activation: unknown activation 'rel'; did you mean 'relu' or 'elu' or 'selu'?",
        ),
        (
            "model.name=fbp.models:mpl",
            "model.name: model 'fbp.models:mpl': the module fbp.models has no 'mpl'",
        ),
        (
            "model.name=nowhere:f",
            "model.name: model 'nowhere:f' cannot be imported: No module named 'nowhere'",
        ),
        ("model={}", f"model.name: expected one of {', '.join(CATALOGUE['model'])}, got nothing"),
        ("loss=3", "loss: expected a section [loss] with a name, got 3"),
        ("loss.label_smoothing=1", "loss.label_smoothing: expected a number less than 1, got 1"),
        (
            "training.batch_size=0",
            "training.batch_size: expected a number greater than or equal to 1 or 'full', got 0",
        ),
        (
            "training.batch_size=fill",
            "training.batch_size: expected an integer or 'full', got 'fill'",
        ),
        ("training.epochs=1.5", "training.epochs: expected an integer, got 1.5"),
        ("training.epochs=1979-05-27", "training.epochs: expected an integer, got 1979-05-27"),
        ("seed=-1", "seed: expected a number greater than or equal to 0, got -1"),
        (
            "tracking.experiment=''",
            "tracking.experiment: expected a text of at least 1 character, got ''",
        ),
        ("augmentation=[1]", "augmentation: expected a table of keys and values, got [1]"),
        (
            "schedule.name=cosin",
            "schedule.name: unknown schedule 'cosin'; did you mean 'cosine' or 'cosine_restarts'?",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(minimal, override, problem):
    assert problems(minimal, override) == [problem]


def test_all_that_is_wrong_is_said_at_once(minimal):
    found = problems(
        minimal, "optimizer.learning_rate=-1", "model.hiden=[3]", "training.epochs=0", "sed=3"
    )
    assert len(found) == 4


def test_files_that_cannot_be_read(tmp_path):
    assert problems(tmp_path / "none.toml")[0].startswith("no such file")
    (tmp_path / "bad.toml").write_text("[data\n")
    assert problems(tmp_path / "bad.toml")[0].startswith("not valid TOML")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    assert problems(tmp_path / "binary.toml")[0].startswith("expected a TOML file in UTF-8")
    assert problems(tmp_path)[0].startswith("expected a file, got a folder")
    (tmp_path / "empty.toml").write_text("")
    assert len(problems(tmp_path / "empty.toml")) == 4  # data, model, loss, optimizer


def test_bad_overrides(minimal):
    with pytest.raises(InputError, match=r"expected section.key=value"):
        reading.read(minimal, ["optimizer.learning_rate"])
    with pytest.raises(InputError, match="seed is not a section"):
        reading.read(minimal, ["seed=1", "seed.x=1"])


@pytest.mark.parametrize("kind", CATALOGUE)
def test_everything_that_can_be_named_has_a_line(kind):
    for name in CATALOGUE[kind]:
        assert 10 < len(summary(kind, name)) < 130, name


@pytest.mark.parametrize("name", CATALOGUE["optimizer"])
def test_every_optimizer_can_be_built_and_steps(minimal, name):
    read = reading.read(
        minimal, ["optimizer={}", f"optimizer.name={name}", "optimizer.learning_rate=0.1"]
    )
    optimizer = build.build_optimizer(read, build.build_schedule(read, 100))
    params = {"w": jnp.ones((2, 2))}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates["w"].shape == (2, 2)


@pytest.mark.parametrize("name", CATALOGUE["schedule"])
def test_every_schedule_can_be_built_and_falls_or_stays(minimal, name):
    needed = {
        "step_decay": ["schedule.every=10"],
        "piecewise": ["schedule.values=[0.01, 0.001]", "schedule.boundaries=[50]"],
        "exponential": ["schedule.factor=0.1"],
    }
    read = reading.read(minimal, [f"schedule.name={name}", *needed.get(name, [])])
    schedule = build.build_schedule(read, 100)
    assert 0 <= float(schedule(99)) <= 0.01 + 1e-9
    assert float(schedule(30)) > 0


def assert_builds(minimal, *overrides):
    model = build.build_model(reading.read(minimal, ["model.hidden=[4]", *overrides]), 3)
    params = jax.eval_shape(lambda key: model.init(key, (4,))[0], jax.random.key(0))
    kept = {"glu": 2, "maxout": 2}.get(model.parts["2"].name.partition("(")[0], 4)
    assert fbp._backprop.count_parameters(params) == 4 * 4 + 4 + kept * 3 + 3


@pytest.mark.parametrize("name", CATALOGUE["activation"])
def test_every_activation_can_be_named(minimal, name):
    assert_builds(minimal, f"model.activation={name}")


@pytest.mark.parametrize("name", CATALOGUE["initializer"])
def test_every_initializer_can_be_named(minimal, name):
    value = {
        "constant": ", value = 0.1",
        "scaled": ", initializer = 'zeros', factor = 2.0",
        "for_activation": ", kind = 'relu'",
    }
    value = value.get(name, "")
    assert_builds(minimal, f"model.weights={{name = '{name}'{value}}}")


@pytest.mark.parametrize("name", CATALOGUE["loss"])
def test_every_loss_fits_data_it_is_meant_for(minimal, name):
    activation = {"cross_entropy": "softmax", "binary_cross_entropy": "sigmoid"}.get(name)
    overrides = [
        f"loss.name={name}",
        *([f"model.output_activation={activation}"] if activation else []),
    ]
    if name == "poisson":
        overrides += ["data.name=diabetes"]
    if name == "weighted":
        overrides += ["loss.parts=[['hinge', 0.5], [{name='hinge'}, 0.5]]"]
    built = build.build(reading.read(minimal, overrides))
    params, _ = built.model.init(jax.random.key(0), built.shape)
    x, y = (part[:8] for part in built.data.train)
    cost, _ = fbp.value_and_grad(built.model, built.loss)(params, x, y)
    assert np.isfinite(cost)


class TestFit:
    def refused(self, minimal, *overrides):
        with pytest.raises(InputError) as caught:
            build.build(reading.read(minimal, overrides))
        return str(caught.value)

    def test_a_batch_larger_than_the_data(self, minimal):
        assert "at most the 120 training examples, got 500" in self.refused(
            minimal, "training.batch_size=500"
        )

    def test_a_loss_for_classes_on_numbers(self, minimal):
        assert "expects classes, but data 'linear' has numbers" in self.refused(
            minimal, "data.name=linear"
        )

    def test_smoothing_numbers(self, minimal):
        found = self.refused(
            minimal, "data.name=linear", "loss.name=huber", "loss.label_smoothing=0.1"
        )
        assert "loss.label_smoothing: expected classes" in found

    def test_counts_for_classes(self, minimal):
        assert "expects counts" in self.refused(minimal, "loss.name=poisson")

    def test_standardized_classes(self, minimal):
        assert "expected a regression, got classes" in self.refused(
            minimal, "data.standardize_targets=true"
        )

    def test_a_model_of_ones_own(self, minimal, tmp_path, monkeypatch):
        (tmp_path / "mine.py").write_text(
            "import fbp\n"
            "def good(outputs: int, width: int = 4):\n"
            "    dense, relu = fbp.layers.dense, fbp.layers.relu\n"
            "    return fbp.chain(dense(width), relu(), dense(outputs))\n"
            "def misfit(outputs: int):\n"
            "    dense = fbp.layers.dense\n"
            "    return fbp.chain(dense(5), fbp.residual(dense(4)), dense(outputs))\n"
            "def nothing(outputs: int):\n"
            "    return None\n"
            "def two(outputs: int):\n"
            "    return fbp.layers.dense(2)\n"
            "def broken(outputs: int):\n"
            "    return {}['x']\n"
            "def untyped(outputs, width=8, *rest, **options):\n"
            "    return good(outputs, width)\n"
            "def forgetful(outputs: int):\n"
            "    layer = fbp.layers.dense(outputs)\n"
            "    return layer._replace(backward=lambda p, c, d: (layer.backward(p, c, d)[0], {}))\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        assert (
            build.build(reading.read(minimal, ["model.name=mine:good", "model.width=7"]))
            .model.parts["0"]
            .name
            == "dense(7)"
        )
        assert problems(minimal, "model.name=mine:good", "model.widht=7") == [
            "model.widht: unknown key; did you mean 'width'?"
        ]
        found = self.refused(minimal, "model.name=mine:misfit")
        assert (
            "model: for examples of shape (4,), layer 1: branches of a sum must give the same shape"
            in found
        )
        assert "expected a function that returns a Layer" in self.refused(
            minimal, "model.name=mine:nothing"
        )
        assert "expected outputs of shape (B, 3), got (B, 2)" in self.refused(
            minimal, "model.name=mine:two"
        )
        assert "mine:broken' raised KeyError" in self.refused(minimal, "model.name=mine:broken")
        assert "gradients of another structure" in self.refused(
            minimal, "model.name=mine:forgetful"
        )
        assert (
            build.build(reading.read(minimal, ["model.name=mine:untyped", "model.width=3"]))
            .model.parts["0"]
            .name
            == "dense(3)"
        )
        (tmp_path / "syntax.py").write_text("def f(:\n")
        assert "cannot be imported" in problems(minimal, "model.name=syntax:f")[0]
        for name in (":", "..x:f", "json:"):
            assert (
                "expected package.module:function" in problems(minimal, f"model.name='{name}'")[0]
            )

    @pytest.mark.parametrize("key", ["schedule.warmup", "optimizer.accumulate"])
    def test_more_than_the_runs_steps(self, minimal, key):
        assert f"{key}: expected at most the run's 30 steps" in self.refused(minimal, f"{key}=31")

    def test_targets_and_outputs_outside_what_a_loss_can_use(self, minimal):
        found = self.refused(minimal, "data={name='sine'}", "loss.name=sigmoid_cross_entropy")
        assert "expects targets between 0 and 1, got values from -1" in found
        assert "expects counts" in self.refused(minimal, "data={name='sine'}", "loss.name=poisson")
        assert "expects probabilities" in self.refused(minimal, "loss.name=cross_entropy")


def test_a_variant_may_change_what_a_section_names(minimal):
    minimal.write_text(MINIMAL + '[[variant]]\nname = "a"\nset = { "optimizer.name" = "sgd" }\n')
    variant = reading.variants(reading.read(minimal), "x")["a"]
    assert writing.flat_params(variant)["optimizer_name"] == "sgd"
    assert "optimizer_beta1" not in writing.flat_params(variant)


@pytest.mark.parametrize("name", ["", "lr=0.1", "a/b"])
def test_a_variants_name_must_be_one_that_mlflow_can_keep(minimal, name):
    minimal.write_text(MINIMAL + f'[[variant]]\nname = "{name}"\nset = {{ seed = 1 }}\n')
    assert problems(minimal) == [
        "variant.0.name: expected a letter or digit, then letters, digits, spaces and . - _ only, "
        f"got {name!r}"
    ]


def test_schedules_count_steps_also_with_accumulation(minimal):
    """The last of 40 steps, the tenth update of four, has the rate of the last step."""
    read = reading.read(
        minimal, ["optimizer={name='sgd', learning_rate=1.0, accumulate=4}", "schedule.name=cosine"]
    )
    schedule = build.build_schedule(read, 40)
    optimizer = build.build_optimizer(read, schedule)
    params = {"w": jnp.ones((1, 1))}
    state = optimizer.init(params)
    for step in range(40):
        updates, state = optimizer.update({"w": jnp.ones((1, 1))}, state, params)
        expected = -schedule(step) if step % 4 == 3 else 0
        np.testing.assert_allclose(updates["w"][0, 0], expected, atol=1e-6)


def test_variants_override_and_are_checked(minimal):
    minimal.write_text(MINIMAL + '[[variant]]\nname = "a"\nset = { "model.hidden" = [3] }\n')
    read = reading.read(minimal)
    ((name, variant),) = reading.variants(read, "x").items()
    assert (name, writing.flat_params(variant)["model_hidden"]) == ("a", "[3]")
    minimal.write_text(MINIMAL + '[[variant]]\nname = "a"\nset = { "model.hiden" = [3] }\n')
    with pytest.raises(
        InputError, match=r"variant 'a': model.hiden: unknown key; did you mean 'hidden'"
    ):
        reading.variants(reading.read(minimal), "x")


def test_a_variants_table_is_put_into_the_section(minimal):
    """As TOML reads a dotted key without quotes; a table with a name takes the section's place."""
    text = (
        MINIMAL
        + '[training]\nbatch_size = 7\n[[variant]]\nname = "a"\nset = { training.epochs = 1 }\n'
    )
    minimal.write_text(text + '[[variant]]\nname = "b"\nset = { data.name = "iris" }\n')
    found = reading.variants(reading.read(minimal), "x")
    assert (found["a"].training.epochs, found["a"].training.batch_size) == (1, 7)
    assert found["b"].data.name == "iris"


def test_every_variant_that_is_wrong_is_told(minimal):
    wrong = '[[variant]]\nname = "{}"\nset = {{ "training.{}" = {} }}\n'
    minimal.write_text(MINIMAL + wrong.format("a", "epochs", "'x'") + wrong.format("b", "epoch", 1))
    with pytest.raises(InputError) as raised:
        reading.variants(reading.read(minimal), "x")
    assert str(raised.value).splitlines() == [
        "x, variant 'a': training.epochs: expected an integer, got 'x'",
        "x, variant 'b': training.epoch: unknown key; did you mean 'epochs'?",
    ]


def test_models_named_in_records_must_be_trusted(project, monkeypatch):
    (project / "unheard_of.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(str(project))  # as for a script that lies here
    (project / "one.toml").write_text('model = { name = "unheard_of:model" }')
    (project / "other.py").touch()
    for trust in (trust_of(["unheard_of:model"]), trust_of(code="unheard_of.py")):
        reading.require_trusted_names(project / "one.toml", trust)
    for trust in (NOTHING, trust_of(["unheard_of:other"]), trust_of(code="other.py")):
        with pytest.raises(fbp.InputError, match="--trust unheard_of:model"):
            reading.require_trusted_names(project / "one.toml", trust)
    for name in ("os:system", "subprocess:run", "importlib.util:find_spec"):
        with pytest.raises(fbp.InputError, match="one of Python's own"):
            lookup("model", name)
