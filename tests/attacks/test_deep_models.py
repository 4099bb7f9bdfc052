"""Deep models: pictures that can be seen, and measurements that compile quickly."""

import jax
import numpy as np
import pytest

import fbp
from fbp import _diagram, _summary, diagnostics, layers, losses, training
from fbp.experiment.figures import curves, folding, model_drawing, norms
from fbp.experiment.rundir.series import Series, read_series
from fbp.experiment.runner.run import run
from tests.attacks.short_runs import DENSE, begin
from tests.cases import slow_but
from tests.projects import Silent


def block(width=4):
    return fbp.residual(layers.dense(width), layers.relu())


def shared():
    once = layers.dense(4)
    return fbp.chain(*[once] * 200)


DEEP_MODELS = {
    "dense": lambda: fbp.chain(
        *[part for _ in range(150) for part in (layers.dense(4), layers.relu())], layers.dense(2)
    ),
    "residual": lambda: fbp.chain(layers.dense(4), *[block() for _ in range(80)]),
    "alternating": lambda: fbp.chain(
        *[part for _ in range(40) for part in (layers.dense(4), layers.dense(3), block(3))]
    ),
    "all different": lambda: fbp.chain(*[layers.dense(i % 89 + 1) for i in range(178)]),
    "repeats": lambda: fbp.chain(
        layers.dense(4), *[fbp.repeat(block(), 3) for _ in range(60)], layers.dense(2)
    ),
    "branches": lambda: fbp.parallel(
        *[fbp.chain(layers.dense(4), layers.relu(), layers.dense(5)) for _ in range(60)]
    ),
    "skips over everything": lambda: fbp.residual(*[layers.dense(4) for _ in range(120)]),
    "nested": lambda: fbp.chain(
        layers.dense(4), *[fbp.residual(block(), block(), layers.dense(4)) for _ in range(40)]
    ),
    "shared": shared,
}


def diagram_of(name):
    model, shape = DEEP_MODELS[name](), (4,)
    return _diagram.make_diagram(model, _summary.summarize(model, shape), shape)


@pytest.mark.promise("pictures-are-bounded")
@pytest.mark.parametrize("name", DEEP_MODELS)
def test_picture_of_a_deep_model_is_folded(name):
    diagram = diagram_of(name)
    assert len(diagram.boxes) > folding.MAX_BOXES
    folded = folding.fold(diagram)
    assert len(folded.boxes) <= folding.MAX_BOXES
    if not any("more" in line for box in folded.boxes.values() for line in box.lines):
        total = sum(box.parameters for box in diagram.boxes.values())
        assert sum(box.parameters for box in folded.boxes.values()) == total
    for source, target in folded.arrows:
        assert source < target
        assert {source, target} <= set(folded.boxes)
    reached = {target for _, target in folded.arrows}
    assert reached == set(folded.boxes) - {0}, "each box but the input has an arrow to it"
    inches = model_drawing.draw(diagram, name).get_size_inches()
    assert max(inches) < 60, inches


@pytest.mark.promise("pictures-are-bounded")
def test_fold_says_how_many_blocks_there_are():
    folded = folding.fold(diagram_of("residual"))
    lines = [box.lines for box in folded.boxes.values()]
    assert lines == [("input",), ("dense(4)",), ("dense(4)", "relu"), ("+",)]
    assert [box.groups for box in folded.boxes.values()][2:] == [("1/body/0 x 80",)] * 2
    _, before, dense, add = folded.boxes
    assert folded.arrows == [(0, before), (before, dense), (dense, add), (before, add)]


@pytest.mark.promise("pictures-are-bounded")
def test_small_model_is_drawn_as_it_is():
    model = fbp.chain(*[block() for _ in range(20)])
    diagram = _diagram.make_diagram(model, _summary.summarize(model, (4,)), (4,))
    assert folding.fold(diagram) is diagram


@pytest.mark.promise("pictures-are-bounded")
def test_pictures_of_many_layers_and_many_runs_are_bounded():
    steps = np.arange(5)
    heat = norms.NormMap([f"{i} {'long' * 50}" for i in range(1000)], steps, np.ones((1000, 5)))
    tall = norms.delta_norms({"": heat})
    many = norms.delta_norms({f"run {i}": heat for i in range(100)})
    assert tall.get_size_inches()[1] < 12
    assert many.get_size_inches()[1] < 70
    series = {f"{part}_loss": Series(steps, np.ones(5), steps) for part in ("train", "validation")}
    compared = curves.compared_curves({f"run {i}": series for i in range(500)})
    labels = [text.get_text() for text in compared.legends[0].get_texts()]
    assert len(labels) <= 41
    assert labels[-1].startswith("and ")


@pytest.mark.promise("deep-models-compile")
@pytest.mark.parametrize(
    "name", slow_but(["dense", "residual", "repeats", "shared"], "residual", "shared")
)
def test_norms_reduced_apart_are_the_same_norms(name):
    model, optimizer = DEEP_MODELS[name](), fbp.optimizers.adam(0.01)
    state = training.initial_state(model, optimizer, jax.random.key(0), (4,))
    x = jax.random.normal(jax.random.key(1), (8, 4))
    y = jax.numpy.zeros((8, model.init(jax.random.key(0), (4,))[1][0]))
    parts = model, losses.mean_squared_error, optimizer
    arguments = state.params, state.opt_state, x, y
    together = diagnostics.layer_norms(*parts)(*arguments)
    paths = list(_summary.layer_names(model))
    apart = diagnostics.norms_of(
        jax.jit(diagnostics.layer_tensors(*parts))(*arguments), state.params, paths
    )
    assert jax.tree.structure(together) == jax.tree.structure(apart)
    assert list(together.delta_norm) == list(apart.delta_norm)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), together, apart)


@pytest.mark.promise("deep-models-compile")
def test_costs_of_equal_layers_are_counted_once(monkeypatch):
    model = DEEP_MODELS["dense"]()
    _summary.summarize(model, (4,))
    lowered, lower = [], jax.stages.Traced.lower
    monkeypatch.setattr(
        jax.stages.Traced, "lower", lambda *args, **more: lowered.append(1) or lower(*args, **more)
    )
    summary = _summary.summarize(model, (4,))
    assert len(summary.rows) == 301
    assert len(lowered) <= 6  # dense(4), relu and dense(2), forward and backward


@pytest.mark.promise("deep-models-compile")
def test_deep_run_has_the_metrics_of_any_run(project):
    """A model with more parameters than are reduced in one program."""
    outcome = run(*begin(project, DENSE.replace("[8]", f"{[4] * 60}")), Silent())
    assert outcome.status == "FINISHED"
    names = set(read_series(outcome.folder))
    for path in ("1", "59", "121"):
        assert {f"{kind}/{path}/w" for kind in ("gradient_norm", "update_norm", "update_ratio")} | {
            f"delta_norm/{path}"
        } <= names
