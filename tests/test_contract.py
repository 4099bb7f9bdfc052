"""The contract of a layer: its description decides, never its name; exchanges keep it."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import diagnostics, layers, losses, optimizers, training
from tests.tables import LAYERS, draw, numbers, quick_jit

MSE = losses.mean_squared_error


def scale(factor):
    """The layer of the README: three functions and nothing else."""
    return fbp.Layer(
        init=lambda key, shape: ((), shape),
        forward=lambda params, x, *, key=None: (factor * x, ()),
        backward=lambda params, cache, delta: (factor * delta, ()),
    )


def shift():
    """A user's own layer whose learnable parameters have names that others use."""
    names = ("mean", "scale", "g", "b")

    def forward(params, x, *, key=None):
        return x * params["scale"] - params["mean"] + params["g"] + params["b"], x

    def backward(params, x, delta):
        total = delta.reshape(-1, delta.shape[-1]).sum(axis=0)
        along = (delta * x).reshape(-1, delta.shape[-1]).sum(axis=0)
        grads = {"scale": along, "mean": -total, "g": total, "b": total}
        return delta * params["scale"], grads

    return fbp.Layer(
        init=lambda key, shape: ({name: jnp.ones(shape[-1:]) for name in names}, shape),
        forward=forward,
        backward=backward,
    )


def renamed(layer):
    """The same layer under another name, copied as a user might."""
    other = copy.copy(layer)
    other.name = "mine"
    return other


def deltas_of(model, shape, *, tokens=0, **options):
    params, out_shape = draw(model, shape)
    x = np.ones((3, *shape), np.int32) if tokens else numbers(3, *shape)
    return fbp.deltas(model, MSE, **options)(params, x, numbers(3, *out_shape, seed=2))


class TestOwnParameters:
    def test_a_learnable_mean_is_checked_and_moved_even_beside_a_batch_norm(self):
        model = fbp.chain(layers.dense(3), layers.batch_norm(), shift())
        params, _ = draw(model, (2,))
        x, y = numbers(4, 2), numbers(4, 3, seed=2)
        report = fbp.check_gradients(model, MSE, params, x, y, key=jax.random.key(0))
        assert report.ok, str(report)
        against = {row.tensor for row in report.rows if row.against == "differences"}
        assert {"2/mean", "2/scale", "2/g", "2/b"} <= against
        assert not {"1/mean", "1/variance"} & against
        _, grads = fbp.value_and_grad(model, MSE)(params, x, y)
        assert all(np.abs(grads[2][name]).max() > 0 for name in ("mean", "scale", "g", "b"))

    def test_statistics_fill_batch_norm_and_leave_a_learnable_mean_alone(self):
        model = fbp.chain(layers.batch_norm(), shift())
        params, _ = draw(model, (2,))
        x = numbers(16, 2)
        fill = fbp.training.make_fill_statistics(model, batch_size=8)
        filled = fill(params, x, jax.random.key(0))
        np.testing.assert_allclose(filled[0]["mean"], x.mean(axis=0), atol=1e-6)
        np.testing.assert_array_equal(filled[1]["mean"], params[1]["mean"])

    def test_weight_decay_seizes_no_name(self):
        matrix = fbp.Layer(
            init=lambda key, shape: ({"g": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}, shape),
            forward=lambda params, x, *, key=None: (x, ()),
            backward=lambda params, cache, delta: (delta, jax.tree.map(jnp.zeros_like, params)),
            not_decayed=("b",),
        )
        model = fbp.chain(matrix, fbp.repeat(layers.dense(2), 3), layers.batch_norm())
        params, _ = draw(model, (2,))
        mask = fbp.optimizers.decay_mask(model)(params)
        assert mask[0] == {"g": True, "b": False}
        assert mask[1] == {"w": True, "b": False}
        assert not any(mask[2].values())


WRAPPERS = {
    "precision": lambda layer: fbp.precision(layer, jnp.float32),
    "recompute": fbp.recompute,
    "repeat": lambda layer: fbp.repeat(layer, 2),
    "residual": fbp.residual,
    "renamed": renamed,
    "nested": lambda layer: fbp.repeat(fbp.recompute(fbp.residual(layer)), 2),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
class TestInsideComposites:
    def test_population_statistics_are_filled(self, wrap):
        model = fbp.chain(wrap(renamed(layers.batch_norm())))
        params, _ = draw(model, (2,))
        x = numbers(16, 2)
        fill = jax.jit(fbp.training.make_fill_statistics(model, batch_size=8))
        leaves = jax.tree_util.tree_leaves_with_path(fill(params, x, jax.random.key(0)))
        means = [np.asarray(leaf) for path, leaf in leaves if path[-1].key == "mean"]
        assert len(means) == 1
        mean = means[0].reshape(-1, 2)[0]  # inside repeat, of the first copy
        np.testing.assert_allclose(mean, x.mean(axis=0), atol=1e-5)

    def test_deltas_are_those_of_the_plain_model(self, wrap):
        inner = fbp.chain(layers.dense(2), scale(0.5))
        model = fbp.chain(wrap(inner), layers.dense(2))
        paths = [path for path in deltas_of(model, (2,)) if path.startswith("0")]
        assert any(path.endswith("/0") for path in paths)
        assert any(path.endswith("/1") for path in paths)

    def test_an_observation_under_jit_leaks_no_tracer(self, wrap):
        model = fbp.chain(wrap(fbp.chain(layers.dense(2), layers.relu())))
        params, _ = draw(model, (2,))
        for observed in (
            jax.jit(fbp.diagnostics.dead_units(model))(params, numbers(5, 2)),
            jax.vmap(fbp.diagnostics.dead_units(model), (None, 0))(params, numbers(3, 5, 2)),
            jax.lax.map(lambda x: fbp.diagnostics.dead_units(model)(params, x), numbers(3, 5, 2)),
        ):
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(observed))


def test_a_chain_inside_precision_shows_three_deltas():
    model = fbp.precision(fbp.chain(layers.dense(4), layers.tanh(), layers.dense(2)))
    assert list(deltas_of(model, (3,))) == ["0", "1", "2"]


def test_deltas_inside_loss_scaling_are_the_costs_own():
    inner = fbp.chain(layers.dense(4), layers.tanh(), layers.dense(2))
    plain = deltas_of(inner, (3,))
    scaled = deltas_of(fbp.precision(inner, jnp.float32, loss_scale=1024.0), (3,))
    for path, delta in plain.items():
        np.testing.assert_allclose(scaled[path], delta, rtol=1e-5)


class TestPaths:
    MODEL = fbp.chain(
        fbp.residual(layers.dense(3), layers.tanh()),
        fbp.repeat(fbp.recompute(fbp.residual(layers.dense(3))), 2),
        fbp.tie(fbp.chain(layers.dense(3), layers.tanh(), layers.dense(3)), {"2": "0"}),
    )

    def test_composites_stand_beside_their_parts(self):
        deltas = deltas_of(self.MODEL, (3,))
        assert {"0", "0/body/0", "0/body/1", "1", "1/body", "2/0", "2/2"} <= set(deltas)
        assert deltas["0"].shape == (3, 3)
        assert deltas["1"].shape == (2, 3, 3)

    def test_the_delta_at_a_residual_block_is_the_derivative_by_its_output(self):
        model = fbp.chain(fbp.residual(layers.dense(3)), layers.dense(2))
        params, _ = draw(model, (3,))
        x, y = numbers(4, 3), numbers(4, 2, seed=2)
        block, _ = model.parts["0"].forward(params[0], x)
        cost = lambda a: MSE.value(model.parts["1"].forward(params[1], a)[0], y).mean()
        delta = fbp.deltas(model, MSE, paths=["0"])(params, x, y)
        assert list(delta) == ["0"]
        np.testing.assert_allclose(delta["0"], jax.grad(cost)(block), rtol=1e-4, atol=1e-6)

    def test_replacing_a_composites_delta_reaches_its_whole_inside(self):
        model = fbp.chain(fbp.residual(layers.dense(3)), layers.dense(2))
        params, _ = draw(model, (3,))
        x, y = numbers(4, 3), numbers(4, 2, seed=2)
        stopped = fbp.replace_deltas(model, lambda path, delta: 0 * delta, paths=["0"])
        _, grads = fbp.value_and_grad(stopped, MSE)(params, x, y)
        assert not any(np.abs(leaf).max() for leaf in jax.tree.leaves(grads[0]))
        deltas = fbp.deltas(stopped, MSE)(params, x, y)  # an exchange outlives a rebuild
        assert not np.abs(deltas["0/body"]).max()

    @pytest.mark.parametrize("use", [fbp.tap, fbp.replace_deltas, fbp.deltas])
    def test_a_path_that_names_nothing_is_told_with_the_nearest(self, use):
        arguments = {fbp.tap: (), fbp.replace_deltas: (lambda path, d: d,), fbp.deltas: (MSE,)}
        with pytest.raises(fbp.InputError, match=r"'0/bod/0'; did you mean '0/body/0'"):
            use(self.MODEL, *arguments[use], paths=["0/bod/0"])


class TestExchange:
    def test_a_backward_keeps_the_whole_description(self):
        for layer in (layers.lstm(4), layers.batch_norm(), fbp.residual(layers.dense(3))):
            other = layer._replace(backward=layer.backward)
            kept = {name: value for name, value in vars(layer).items() if name != "rebuild"}
            assert {name: vars(other)[name] for name in kept} == kept
            assert (other.rebuild is None) == (layer.rebuild is None)

    def test_a_forward_makes_an_opaque_layer_with_the_same_parameters(self):
        layer = fbp.residual(layers.dense(3))
        other = layer._replace(forward=layer.forward)
        assert (other.kind, other.name, other.parts, other.rebuild) == (
            "layer",
            layer.name,
            {},
            None,
        )
        assert layers.batch_norm()._replace(forward=scale(1).forward).nontrainable

    def test_a_name_changes_nothing_else(self):
        layer = layers.batch_norm()._replace(name="mine")
        assert (layer.name, layer.kind) == ("mine", "batch_norm")


@pytest.mark.parametrize(
    "make",
    [
        lambda: fbp.chain(layers.relu),
        lambda: fbp.residual(layers.dense),
        lambda: fbp.residual(layers.dense(2), shortcut=layers.identity),
        lambda: fbp.parallel(layers.relu),
        lambda: fbp.repeat(layers.relu, 2),
        lambda: fbp.recompute(layers.relu),
        lambda: fbp.precision(layers.relu),
        lambda: fbp.tie(layers.relu, {}),
        lambda: fbp.graph({"a": (layers.relu, "x")}),
        lambda: layers.weight_norm(layers.dense),
        lambda: fbp.value_and_grad(layers.relu, MSE),
        lambda: fbp.deltas(layers.relu, MSE),
        lambda: fbp.check_gradients(layers.relu, MSE, (), numbers(1, 1), numbers(1, 1)),
        lambda: fbp.summarize(layers.relu, (2,)),
        lambda: fbp.generation.sample(layers.relu, (4,), count=1),
    ],
)
def test_a_factory_in_place_of_a_layer_says_call_it(make):
    with pytest.raises(fbp.InputError, match=r"expected a Layer, got '.*'; call it"):
        make()


@pytest.mark.parametrize(
    "thing", [3, None, "relu", lambda: 0], ids=["number", "none", "text", "function"]
)
def test_something_else_than_a_layer_is_refused(thing):
    with pytest.raises(fbp.InputError, match=r"repeat: expected a Layer, got"):
        fbp.repeat(thing, 2)


class TestIncremental:
    @pytest.mark.parametrize("cell", [layers.rnn, layers.lstm, layers.gru])
    def test_a_renamed_recurrent_layer_gets_its_zero_state(self, cell):
        layer = cell(4, with_state=True)
        params, _ = draw(layer, (5, 3))
        for other in (layer, renamed(layer), fbp.Layer(*layer, name="mine")):
            state = layers.zero_state(other, params, 2)
            _y, last = other.forward(params, (numbers(2, 5, 3), state))[0]
            assert jax.tree.map(jnp.shape, last) == jax.tree.map(jnp.shape, state)

    @pytest.mark.parametrize(
        "model",
        [
            fbp.models.gpt(7, 1, 2, 8),
            fbp.models.lstm(7, (6,), embedding_width=4, vocabulary=7, sequence=True),
            fbp.models.gru(7, (6,), embedding_width=4, vocabulary=7, sequence=True),
        ],
        ids=["gpt", "lstm", "gru"],
    )
    def test_a_model_with_exchanged_backwards_samples_the_same(self, model):
        params, _ = draw(model, (8,))
        args = params, jnp.array([1, 2]), jax.random.key(0)
        plain = fbp.generation.sample(model, (8,), count=3)(*args)
        for other in (fbp.replace_deltas(model, lambda path, delta: delta), fbp.tap(model)):
            tokens = fbp.generation.sample(other, (8,), count=3)(*args)
            np.testing.assert_array_equal(tokens, plain)

    @pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
    def test_streams_compose(self, wrap):
        block = fbp.chain(layers.layer_norm(), layers.attention(2, causal=True), scale(0.5))
        model = fbp.chain(layers.embedding(7, 4), wrap(block), layers.dense(7))
        params, _ = draw(model, (6,))
        stepped = fbp.generation.incremental(model, (6,), batch=2)
        tokens = np.random.default_rng(0).integers(0, 7, (2, 6)).astype(np.int32)
        full, _ = model.forward(params, tokens)

        def step(state, token):
            y, state = stepped.step(params, token[:, None], state)
            return state, y[:, 0]

        run = quick_jit(lambda tokens: jax.lax.scan(step, stepped.start(), tokens.T)[1])
        np.testing.assert_allclose(run(tokens).swapaxes(0, 1), full, rtol=1e-4, atol=1e-5)

    def test_a_layer_that_mixes_positions_is_named(self):
        model = fbp.chain(layers.embedding(7, 4), layers.conv1d(4, 3), layers.dense(7))
        with pytest.raises(fbp.InputError, match=r"layer 1 \(conv1d.*\) mixes positions"):
            fbp.generation.sample(model, (8,), count=3)

    def test_a_layer_of_ones_own_that_mixes_positions_is_found_out(self):
        mix = fbp.Layer(
            init=lambda key, shape: ((), shape),
            forward=lambda params, x, *, key=None: (x + x.mean(axis=1, keepdims=True), ()),
            backward=lambda params, cache, delta: (delta, ()),
        )
        model = fbp.chain(layers.embedding(7, 4), mix, layers.dense(7))
        with pytest.raises(fbp.InputError, match="a layer mixes positions, or depends on later"):
            fbp.generation.sample(model, (8,), count=3)


KEEPS_SHAPE = [case for case in LAYERS if not case.tokens and not case.lengths]
EVERY = [pytest.param(case, id=f"{case.name}-{i}") for i, case in enumerate(LAYERS)]


@pytest.mark.parametrize("case", EVERY)
def test_a_renamed_copy_of_every_layer_passes_through_every_feature(case):
    layer = renamed(case.make())
    params, out_shape = draw(layer, case.shape)
    x = case.input(2)
    assert repr(layer) == "mine"
    delta = jax.tree.map(lambda sizes: numbers(2, *sizes, seed=2), out_shape, is_leaf=_is_shape)

    def everything(params, x, delta):
        results = []
        for model, own in (
            (layer, params),
            (fbp.chain(layer), (params,)),
            (fbp.chain(fbp.recompute(layer)), (params,)),
            (fbp.chain(fbp.precision(layer, jnp.float32)), (params,)),
        ):
            tapped = fbp.tap(model, lambda delta: jax.tree.map(jnp.sum, delta))
            _y, cache = tapped.forward(own, x, key=case.key)
            _, grads = tapped.backward(own, cache, delta)
            grads, observed = fbp.untap(grads)
            assert jax.tree.structure(grads) == jax.tree.structure(own)
            assert observed
            results.append(jax.tree.leaves(grads))
        fbp.diagnostics.dead_units(fbp.chain(layer))((params,), x)
        return results

    jax.eval_shape(everything, params, x, delta)
    inputs = ("x", "y", "z", "w")[: len(x)] if isinstance(x, tuple) else "x"
    names = inputs if isinstance(inputs, tuple) else (inputs,)
    node = fbp.graph({"mine": (layer, *names)}, inputs=inputs)
    jax.eval_shape(lambda p, x: node.forward(p, x, key=case.key)[0], {"mine": params}, x)
    if out_shape == case.shape and _is_shape(case.shape) and not case.lengths:
        repeated = fbp.repeat(layer, 2)
        stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
        tapped = fbp.tap(repeated)

        def run(params, x, delta):
            return tapped.backward(params, tapped.forward(params, x, key=case.key)[1], delta)[1]

        grads, observed = fbp.untap(jax.eval_shape(run, stacked, x, delta))
        assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, stacked)
        assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(observed))


def _is_shape(node):
    return isinstance(node, tuple) and all(isinstance(size, int) for size in node)


def test_summaries_show_every_layer_inside_wrappers():
    model = fbp.chain(
        fbp.precision(fbp.chain(layers.dense(4), scale(2))),
        fbp.repeat(fbp.recompute(fbp.residual(layers.dense(4))), 3),
        layers.weight_norm(layers.dense(2)),
    )
    rows = {row.path: row for row in fbp.summarize(model, (4,)).rows}
    assert set(rows) == {"0/0", "0/1", "1/body", "1/shortcut", "2"}
    assert rows["1/body"].copies == 3
    assert rows["1/body"].parameters == 3 * 20


def test_dead_units_of_a_layer_with_several_outputs():
    layer = layers.lstm(3, with_state=True)
    params, _ = draw(layer, (4, 2))
    x = numbers(2, 4, 2), layers.zero_state(layer, params, 2)
    shares = jax.jit(fbp.diagnostics.dead_units(layer))(params, x)
    assert jax.tree.structure(shares["model"]) == jax.tree.structure((0.0, (0.0, 0.0)))


X = jnp.ones((2, 3))
MODEL = fbp.chain(layers.dense(4), layers.relu(), layers.dense(3))
TAKE_A_LAYER = {
    "value_and_grad": lambda layer: fbp.value_and_grad(layer, losses.quadratic),
    "deltas": lambda layer: fbp.deltas(layer, losses.quadratic),
    "map_layers": lambda layer: fbp.map_layers(lambda path, part: part, layer),
    "make_step": lambda layer: training.make_step(layer, losses.quadratic, optimizers.sgd(0.1)),
    "make_steps": lambda layer: training.make_steps(
        layer, losses.quadratic, optimizers.sgd(0.1), batch_size=2, max_steps=1
    ),
    "make_evaluate": lambda layer: training.make_evaluate(layer, losses.quadratic, batch_size=2),
    "make_predict": lambda layer: training.make_predict(layer, batch_size=2),
    "has_statistics": training.has_statistics,
    "make_fill_statistics": lambda layer: training.make_fill_statistics(layer, batch_size=2),
    "dead_units": diagnostics.dead_units,
    "layer_norms": lambda layer: diagnostics.layer_norms(
        layer, losses.quadratic, optimizers.sgd(0.1)
    ),
    "per_example_gradient_norms": lambda layer: diagnostics.per_example_gradient_norms(
        layer, losses.quadratic
    ),
}


@pytest.mark.parametrize("name", TAKE_A_LAYER)
def test_whatever_takes_a_layer_says_call_it(name):
    with pytest.raises(fbp.InputError, match=f"^{name}: expected a Layer, got 'relu'; call it"):
        TAKE_A_LAYER[name](layers.relu)


TAKE_A_LOSS = {
    "value_and_grad": lambda loss: fbp.value_and_grad(MODEL, loss),
    "deltas": lambda loss: fbp.deltas(MODEL, loss),
    "make_step": lambda loss: training.make_step(MODEL, loss, optimizers.sgd(0.1)),
    "make_evaluate": lambda loss: training.make_evaluate(MODEL, loss, batch_size=2),
    "layer_norms": lambda loss: diagnostics.layer_norms(MODEL, loss, optimizers.sgd(0.1)),
    "weighted": lambda loss: losses.weighted((loss, 1.0)),
}


@pytest.mark.parametrize("name", TAKE_A_LOSS)
def test_whatever_takes_a_loss_says_call_it(name):
    with pytest.raises(fbp.InputError, match=f"^{name}: expected a Loss, got 'huber'; call it"):
        TAKE_A_LOSS[name](losses.huber)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fbp.deltas(MODEL, losses.quadratic, paths="0"), r"got '0'; write \['0'\]"),
        (lambda: fbp.tap(MODEL, paths="0"), "expected a list of paths"),
        (lambda: fbp.tie(MODEL, {"7": "0"}), "tie: no layer at path '7'; expected one of 0, 1, 2"),
        (lambda: fbp.tie(MODEL, {"2": "0/w"}), "no layer at path '0/w'"),
        (lambda: fbp.bidirectional(layers.dense, 3), "expected rnn, lstm or gru"),
        (lambda: fbp.bidirectional(3, 3), "expected rnn, lstm or gru, not called, got 3"),
        (lambda: losses.weighted(losses.quadratic, losses.huber()), "expected pairs"),
        (
            lambda: losses.weighted((losses.quadratic, 1), (losses.quadratic, 1)).value(
                (X, X), (X, X, X)
            ),
            "weighted of 2 losses expects as many outputs and targets, got 2 and 3",
        ),
    ],
)
def test_mistakes_in_a_line(make, message):
    with pytest.raises(fbp.InputError, match=message):
        make()


@pytest.mark.parametrize("replace", [lambda path, delta: delta.sum(), lambda path, delta: None])
def test_a_replaced_delta_has_the_shape_of_the_delta(replace, key):
    model = fbp.replace_deltas(MODEL, replace, paths=["2"])
    params, _ = model.init(key, (3,))
    with pytest.raises(fbp.ShapeError, match=r"layer 2: .* a delta of shape \(2, 3\), got"):
        fbp.value_and_grad(model, losses.quadratic)(params, X, X)


@pytest.mark.parametrize(
    ("cell", "state"),
    [
        ("gru", jnp.ones((2, 3))),
        ("gru", (jnp.ones((2, 5)),)),
        ("gru", (jnp.ones((1, 3)),)),
        ("lstm", (jnp.ones((2, 3)),)),
    ],
)
def test_a_state_that_does_not_fit(cell, state, key):
    layer = getattr(layers, cell)(3, with_state=True)
    params, _ = layer.init(key, (4, 2))
    with pytest.raises(fbp.ShapeError, match=r"expects a state of \d arrays? of shape \(2, 3\)"):
        layer.forward(params, (jnp.ones((2, 4, 2)), state))


def test_a_function_of_several_inputs_is_a_node(key):
    product = fbp.from_function(lambda params, x: x[0] * x[1])
    model = fbp.graph({"product": (product, "a", "b")}, inputs=("a", "b"))
    params, shape = model.init(key, ((3,), (3,)))
    assert shape == (3,)
    y, cache = model.forward(params, (X, 2 * X))
    (a, b), _ = model.backward(params, cache, jnp.ones_like(y))
    assert (a == 2).all()
    assert (b == 1).all()
    _, cache = product.forward((), (X, jnp.ones((2, 3), int)))
    assert product.backward((), cache, X)[0][1] is None


def test_precision_lets_whole_numbers_through():
    whole = jnp.ones((2, 3, 3), int)
    assert fbp.precision(layers.flatten()).forward((), whole)[0].dtype == whole.dtype
