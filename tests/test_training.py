"""Steps, chunks, epochs and evaluation as pure functions."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import initializers, layers, losses, training
from fbp.diagnostics import dead_units, layer_norms, per_example_gradient_norms
from tests.tables import draw, numbers

MODEL = fbp.chain(layers.dense(8), layers.relu(), layers.dense(3))
LOSS = losses.softmax_cross_entropy
OPTIMIZER = fbp.optimizers.adam(0.01)
X, Y = numbers(50, 4), np.random.default_rng(2).integers(0, 3, 50).astype(np.int32)


def begin():
    params, _ = draw(MODEL, (4,))
    return training.TrainState(params, OPTIMIZER.init(params), jnp.int32(0), jax.random.key(3))


def runner(batch_size=8, **options):
    return jax.jit(
        training.make_steps(MODEL, LOSS, OPTIMIZER, batch_size=batch_size, max_steps=64, **options)
    )


def same_bits(a, b):
    data = lambda leaf: (
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    )
    return all(
        np.array_equal(data(x), data(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_cutting_a_run_into_chunks_changes_not_one_bit():
    run = runner()
    whole, history, taken = run(begin(), X, Y, 20)
    assert taken == 20
    pieces, costs = begin(), []
    for count in (1, 5, 6, 8):  # across the ends of epochs, which have 6 steps
        pieces, part, _ = run(pieces, X, Y, count)
        costs += part.cost[:count].tolist()
    assert same_bits(whole, pieces)
    assert costs == history.cost[:20].tolist()


def test_single_steps_give_the_same_as_the_program_of_many():
    whole, _, _ = runner()(begin(), X, Y, 6)
    step, state = jax.jit(training.make_step(MODEL, LOSS, OPTIMIZER)), begin()
    order = training.example_order(state.key, 0, 50)
    for rows in np.asarray(order)[:48].reshape(6, 8):
        state, info = step(state, X[rows], Y[rows])
    assert info.gradient_norm > 0
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_each_epoch_has_an_order_of_its_own_that_is_a_permutation():
    first, second = (training.example_order(jax.random.key(0), epoch, 50) for epoch in (0, 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()


def test_without_shuffling_examples_come_as_they_lie():
    _, history, _ = runner(batch_size=25, shuffle=False)(begin(), X, Y, 1)
    cost = LOSS.value(MODEL.forward(begin().params, X[:25])[0], Y[:25]).mean()
    np.testing.assert_allclose(history.cost[0], cost, rtol=1e-6)


def test_training_stops_after_a_cost_that_is_not_finite():
    x = X.copy()
    x[7] = np.nan
    order = np.asarray(training.example_order(begin().key, 0, 50))
    _, history, taken = runner()(begin(), x, Y, 40)
    assert taken == np.flatnonzero(order == 7)[0] // 8 + 1
    assert np.isfinite(history.cost[: taken - 1]).all()
    assert np.isnan(history.cost[taken - 1])


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(fbp.InputError, match="between 1 and the 50 training examples, got 51"):
        runner(batch_size=51)(begin(), X, Y, 1)


def test_without_jit_on_numpy_arrays_and_never_beyond_the_capacity():
    steps = training.make_steps(MODEL, LOSS, OPTIMIZER, batch_size=8, max_steps=3)
    _, history, taken = steps(begin(), X, Y, 10)
    assert taken == 3
    assert (history.cost > 0).all()


def test_gradients_keep_the_dtypes_of_their_parameters():
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), begin().params)
    _, grads = fbp.value_and_grad(MODEL, LOSS)(params, X, Y)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}
    state = training.TrainState(params, OPTIMIZER.init(params), jnp.int32(0), jax.random.key(3))
    assert runner()(state, X, Y, 5)[2] == 5


@pytest.mark.parametrize("batch_size", [7, 50, 64, 10])
def test_evaluation_counts_every_example_once_whatever_the_batch_size(batch_size):
    params = begin().params
    found = jax.jit(
        training.make_evaluate(
            MODEL, LOSS, batch_size=batch_size, metrics={"accuracy": fbp.metrics.accuracy}
        )
    )(params, X, Y)
    output = MODEL.forward(params, X)[0]
    np.testing.assert_allclose(found["loss"], LOSS.value(output, Y).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], (output.argmax(axis=1) == Y).mean(), rtol=1e-6)
    np.testing.assert_allclose(
        jax.jit(training.make_predict(MODEL, batch_size=batch_size))(params, X),
        output,
        rtol=1e-5,
        atol=1e-6,
    )


def test_training_learns():
    x = numbers(256, 2, seed=5)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int32)
    model = fbp.models.mlp(2, (16,), layers.tanh)
    optimizer = fbp.optimizers.adam(0.02)
    state = training.initial_state(model, optimizer, jax.random.key(0), (2,))
    run = jax.jit(
        training.make_steps(model, LOSS, optimizer, batch_size=32, max_steps=400), donate_argnums=0
    )
    state, _, _ = run(state, x, y, 400)
    accuracy = training.make_evaluate(
        model, LOSS, batch_size=256, metrics={"accuracy": fbp.metrics.accuracy}
    )
    assert accuracy(state.params, x, y)["accuracy"] > 0.97


def test_diagnosis_has_a_norm_for_every_layer_and_parameter():
    state = begin()
    found = jax.jit(layer_norms(MODEL, LOSS, OPTIMIZER))(state.params, state.opt_state, X, Y)
    assert set(found.delta_norm) == {"0", "1", "2"}
    assert (
        set(found.gradient_norm)
        == set(found.update_norm)
        == set(found.update_ratio)
        == {"0/b", "0/w", "2/b", "2/w"}
    )
    _, grads = fbp.value_and_grad(MODEL, LOSS)(state.params, X, Y)
    np.testing.assert_allclose(found.gradient_norm["0/w"], np.linalg.norm(grads[0]["w"]), rtol=1e-5)
    delta = fbp.deltas(MODEL, LOSS)(state.params, X, Y)["1"]
    np.testing.assert_allclose(found.delta_norm["1"], np.linalg.norm(delta), rtol=1e-5)


def test_per_example_gradient_norms():
    params = begin().params
    norms = per_example_gradient_norms(MODEL, LOSS)(params, X[:3], Y[:3])
    for i in range(3):
        grads = fbp.value_and_grad(MODEL, LOSS)(params, X[i : i + 1], Y[i : i + 1])[1]
        np.testing.assert_allclose(norms[i], fbp.optimizers.global_norm(grads), rtol=1e-4)


def test_dead_units_are_found():
    params = begin().params
    params[0]["b"] = params[0]["b"].copy()
    params[0]["b"][:2] = -1e6
    assert dead_units(MODEL)(params, X)["1"] >= 0.25


def test_population_statistics_make_evaluation_agree_with_the_whole_data_as_one_batch():
    model = fbp.chain(
        layers.dense(5), layers.batch_norm(), fbp.residual(layers.relu(), layers.batch_norm())
    )
    params, _ = draw(model, (4,))
    x = 3 + 2 * numbers(60, 4)
    filled = jax.jit(training.make_fill_statistics(model, batch_size=60))(
        params, x, jax.random.key(0)
    )
    as_one_batch, _ = model.forward(params, x, key=jax.random.key(0))
    np.testing.assert_allclose(model.forward(filled, x)[0], as_one_batch, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(filled[0]["w"], params[0]["w"])
    hidden = layers.dense(5).forward(params[0], x)[0]
    in_parts = jax.jit(training.make_fill_statistics(model, batch_size=20))(
        params, x, jax.random.key(0)
    )
    np.testing.assert_allclose(in_parts[1]["variance"], hidden.var(axis=0), rtol=1e-4)
    with pytest.raises(fbp.InputError, match="at least batch_size = 100 examples, got 60"):
        training.make_fill_statistics(model, batch_size=100)(params, x, jax.random.key(0))


class TestInitializers:
    @pytest.mark.parametrize(
        ("initializer", "deviation"),
        [
            (initializers.small_normal(0.01), 0.01),
            (initializers.glorot_normal(), (2 / 500) ** 0.5),
            (initializers.glorot_uniform(), (2 / 500) ** 0.5),
            (initializers.he_normal(), (2 / 200) ** 0.5),
            (initializers.he_uniform(), (2 / 200) ** 0.5),
            (initializers.lecun_normal(), (1 / 200) ** 0.5),
            (initializers.lecun_uniform(), (1 / 200) ** 0.5),
            (initializers.scaled_normal(), (1 / 200) ** 0.5),
            (initializers.scaled(initializers.small_normal(1.0), 0.5), 0.5),
        ],
    )
    def test_deviation(self, initializer, deviation):
        drawn = initializer(jax.random.key(0), (200, 300), jnp.float32)
        np.testing.assert_allclose(drawn.std(), deviation, rtol=0.03)
        assert abs(drawn.mean()) < 0.02 * deviation * 3

    def test_orthogonal(self):
        w = initializers.orthogonal()(jax.random.key(0), (40, 40), jnp.float32)
        np.testing.assert_allclose(w @ w.T, np.eye(40), atol=1e-5)

    def test_constants(self):
        for made, value in (
            (initializers.zeros(), 0),
            (initializers.ones(), 1),
            (initializers.constant(3.0), 3),
        ):
            assert (made(jax.random.key(0), (2, 3), jnp.float32) == value).all()

    def test_deep_residual_networks_start_at_a_size_that_does_not_depend_on_depth(self):
        sizes = []
        for depth in (4, 64):
            model = fbp.models.mlp(10, (32,) * depth, residual_blocks=True)
            params, _ = model.init(jax.random.key(0), (32,))
            sizes.append(float(jnp.std(model.forward(params, numbers(64, 32))[0])))
        assert 1 / 5 < sizes[0] / sizes[1] < 5


def test_a_graph_with_several_inputs_and_outputs_trains():
    layers, losses = fbp.layers, fbp.losses
    model = fbp.graph(
        {
            "both": (layers.concatenate(), "a", "b"),
            "norm": (layers.batch_norm(), "both"),
            "sum": (layers.dense(1), "norm"),
            "sign": (layers.dense(2), "norm"),
        },
        inputs=("a", "b"),
        outputs=("sum", "sign"),
    )
    loss = losses.weighted((losses.mean_squared_error, 1.0), (losses.softmax_cross_entropy, 0.5))
    random = np.random.default_rng(0)
    a, b = (random.normal(size=(50, n)).astype(np.float32) for n in (2, 3))
    total = a.sum(axis=1) + b.sum(axis=1)
    x, y = (a, b), (total[:, None], (total > 0).astype(np.int32))
    optimizer = fbp.optimizers.adam(0.05)
    steps = jax.jit(fbp.training.make_steps(model, loss, optimizer, batch_size=8, max_steps=200))
    state, history, _ = steps(
        fbp.training.initial_state(model, optimizer, jax.random.key(0), ((2,), (3,))), x, y, 200
    )
    params = jax.jit(fbp.training.make_fill_statistics(model, batch_size=8))(
        state.params, x, jax.random.key(0)
    )
    measured = fbp.training.make_evaluate(model, loss, batch_size=16)(params, x, y)
    assert measured["loss"] < 0.3 < history.cost[0]
    sums, signs = fbp.training.make_predict(model, batch_size=16)(params, x)
    assert (sums.shape, signs.shape) == ((50, 1), (50, 2))
    hidden = fbp.precision(layers.batch_norm())
    hidden_params, _ = hidden.init(jax.random.key(0), (2,))
    fill = fbp.training.make_fill_statistics(hidden, batch_size=8)
    filled = fill(hidden_params, a, jax.random.key(0))
    np.testing.assert_allclose(filled["mean"], a[:48].mean(axis=0), rtol=0.02, atol=0.01)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adagrad", "adadelta", "rmsprop", "adam"])
def test_an_exported_training_step_is_serialized_and_runs_again(name):
    model = fbp.chain(layers.dense(3), layers.relu(), layers.dense(2))
    rule = getattr(fbp.optimizers, name)(0.1)
    optimizer = fbp.optimizers.chain(rule, fbp.optimizers.average_parameters(0.9))
    state = training.initial_state(model, optimizer, jax.random.key(0), (4,))
    step = jax.jit(training.make_step(model, losses.mean_squared_error, optimizer))
    x, y = numbers(5, 4), numbers(5, 2, seed=2)
    exported = jax.export.export(step)(state, x, y)
    again = jax.export.deserialize(exported.serialize())
    for ours, other in zip(
        *map(jax.tree.leaves, (step(state, x, y), again.call(state, x, y))), strict=False
    ):
        data = [
            jax.random.key_data(leaf) if leaf.dtype == state.key.dtype else leaf
            for leaf in (ours, other)
        ]
        np.testing.assert_array_equal(*data)


def test_every_named_state_of_an_optimizer_can_be_exported():
    from fbp.optimizers import base, rules, transforms

    states = {
        value
        for module in (base, rules, transforms, training)
        for name, value in vars(module).items()
        if isinstance(value, type) and name.endswith(("State", "Info"))
    }
    assert len(states) > 10
    for state in states:
        with pytest.raises(ValueError, match=r"[Dd]uplicate"):  # registered already
            jax.export.register_namedtuple_serialization(
                state, serialized_name=f"{state.__module__}.{state.__qualname__}"
            )
