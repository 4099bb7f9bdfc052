"""The algorithm as a whole: the textbook's loop, what it costs, and deltas as values."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
import fbp.datasets
from fbp import layers, losses
from fbp.layers import _recurrent_scan
from tests.tables import (
    COSTS_MORE,
    LAYERS,
    MODELS,
    MORE_SCRATCH,
    activations_slowly,
    compile_as_shipped,
    draw,
    model_batch,
    numbers,
)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def textbook_step(weights, biases, xs, ys, eta):
    """Take one step of the textbook's algorithm, example by example: columns, W a + b."""
    nabla_w = [np.zeros_like(w) for w in weights]
    nabla_b = [np.zeros_like(b) for b in biases]
    for x, y in zip(xs, ys, strict=True):
        activations, zs = [x[:, None]], []
        for w, b in zip(weights, biases, strict=True):
            zs.append(w @ activations[-1] + b)
            activations.append(sigmoid(zs[-1]))
        prime = [sigmoid(z) * (1 - sigmoid(z)) for z in zs]
        delta = (activations[-1] - y[:, None]) * prime[-1]  # (1)
        for layer in reversed(range(len(weights))):
            nabla_b[layer] += delta  # (3)
            nabla_w[layer] += delta @ activations[layer].T  # (4)
            if layer:
                delta = (weights[layer].T @ delta) * prime[layer - 1]  # (2)
    n = len(xs)
    return (
        [w - eta / n * g for w, g in zip(weights, nabla_w, strict=True)],
        [b - eta / n * g for b, g in zip(biases, nabla_b, strict=True)],
    )


def assert_an_epoch_follows_the_textbook(x, labels, batch_size, eta):
    """784-30-10, float64, the same weights and order: equal to 1e-9 over a full epoch."""
    random = np.random.default_rng(0)
    examples, y = len(x), np.eye(10)[labels]
    weights = [random.normal(size=(30, 784)), random.normal(size=(10, 30))]
    biases = [random.normal(size=(30, 1)), random.normal(size=(10, 1))]

    model = fbp.chain(layers.dense(30), layers.sigmoid(), layers.dense(10), layers.sigmoid())
    params = []
    for w, b in zip(weights, biases, strict=True):
        params += [{"w": jnp.asarray(w.T), "b": jnp.asarray(b[:, 0])}, ()]
    optimizer = fbp.optimizers.sgd(eta)
    state = fbp.training.TrainState(
        tuple(params), optimizer.init(tuple(params)), jnp.int32(0), jax.random.key(7)
    )
    steps = fbp.training.make_steps(
        model, losses.quadratic, optimizer, batch_size=batch_size, max_steps=examples
    )
    order = np.asarray(fbp.training.example_order(state.key, 0, examples))
    state, _, taken = jax.jit(steps)(state, jnp.asarray(x), jnp.asarray(y), examples // batch_size)

    for rows in order.reshape(-1, batch_size):
        weights, biases = textbook_step(weights, biases, x[rows], y[rows], eta)
    assert taken == examples // batch_size
    for ours, w, b in zip(state.params[::2], weights, biases, strict=True):
        assert np.linalg.norm(ours["w"].T - w) <= 1e-9 * np.linalg.norm(w)
        assert np.linalg.norm(ours["b"][:, None] - b) <= 1e-9 * np.linalg.norm(b)


# On random examples large steps are chaotic: two roundings of NumPy's own loop part as fast as it
# parts from fbp's.
@pytest.mark.parametrize(
    ("batch_size", "eta"), [(1, 0.1), (10, 3.0), (500, 3.0)], ids=["single", "batch", "full"]
)
def test_training_follows_the_textbooks_loop_in_numpy(batch_size, eta, x64):
    random = np.random.default_rng(0)
    assert_an_epoch_follows_the_textbook(
        random.uniform(size=(500, 784)), random.integers(0, 10, 500), batch_size, eta
    )


def test_training_on_mnist_follows_the_textbooks_loop_in_numpy(mnist_folder, x64):
    data = fbp.datasets.mnist(mnist_folder).train
    x = data.x[:12800].reshape(-1, 784).astype(np.float64)
    assert_an_epoch_follows_the_textbook(x, data.y[:12800], 10, 3.0)


def compiled_cost(function, *arguments):
    compiled = compile_as_shipped(jax.jit(function).lower(*arguments))
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "flops": analysis.get("flops", 0),
        "bytes": analysis.get("bytes accessed", 0),
        "scratch": memory.temp_size_in_bytes,
    }


CHEAP_MODELS = [case for case in MODELS if not case.costly]


@pytest.mark.parametrize("case", activations_slowly(CHEAP_MODELS))
def test_a_handwritten_backward_costs_no_more_than_autodiff(case):
    """FLOPs, bytes accessed and scratch memory of the compiled programs: no noise in these."""
    params, _ = draw(case.model, case.shape)
    x, y = model_batch(case, 128)
    ours = compiled_cost(fbp.value_and_grad(case.model, case.loss), params, x, y)

    def cost(params, x, y):
        return case.loss.value(case.model.forward(params, x)[0], y).mean()

    autodiff = compiled_cost(jax.value_and_grad(cost), params, x, y)
    allowed, _ = MORE_SCRATCH.get((case.name, jax.lib.__version__), (1, ""))
    autodiff["scratch"] *= allowed
    assert all(ours[figure] <= autodiff[figure] for figure in ours), (ours, autodiff)


def layer_costs(layer, params, x, delta, key=None):
    """(ours, autodiff's) for one forward and one backward pass."""
    leaves, structure = jax.tree.flatten(x)
    floating = [np.issubdtype(leaf.dtype, np.floating) for leaf in leaves]

    def ours(params, x, delta):
        y, cache = layer.forward(params, x, key=key)
        return y, layer.backward(params, cache, delta)

    def autodiff(params, x, delta):
        given = jax.tree.leaves(x)

        def output(params, points):
            points = iter(points)
            parts = [
                next(points) if is_point else part
                for part, is_point in zip(given, floating, strict=True)
            ]
            return layer.forward(params, jax.tree.unflatten(structure, parts), key=key)[0]

        y, pull_back = jax.vjp(
            output, params, [part for part, chosen in zip(given, floating, strict=True) if chosen]
        )
        return y, pull_back(delta)

    return compiled_cost(ours, params, x, delta), compiled_cost(autodiff, params, x, delta)


CHEAP = [case for case in LAYERS if case.name not in COSTS_MORE]


@pytest.mark.slow
@pytest.mark.parametrize("case", CHEAP, ids=[f"{case.name}-{i}" for i, case in enumerate(CHEAP)])
def test_a_layers_backward_costs_no_more_than_autodiff(case):
    layer = case.make()
    params, shape = draw(layer, case.shape)
    ours, autodiff = layer_costs(
        layer, params, case.input(16), numbers(16, *shape, seed=2), case.key
    )
    assert all(ours[figure] <= autodiff[figure] for figure in ours), (ours, autodiff)


@pytest.mark.parametrize("make", [layers.rnn, layers.lstm, layers.gru], ids=["rnn", "lstm", "gru"])
def test_recurrent_layers_cost_less(make, monkeypatch):
    """XLA counts a loop's body once: a second step in it adds what each step costs."""
    length, layer = 32, make(64)
    params, shape = draw(layer, (length, 32))

    def costs(steps_in_a_turn):
        def scan_over_time(step, state, inputs, *, reverse, unroll):
            return jax.lax.scan(step, state, inputs, reverse=reverse, unroll=steps_in_a_turn)

        monkeypatch.setattr(_recurrent_scan, "scan_over_time", scan_over_time)
        return layer_costs(layer, params, numbers(32, length, 32), numbers(32, *shape, seed=2))

    ours, autodiff = (
        {
            figure: one[figure] + (length - 1) * (two[figure] - one[figure])
            for figure in ("flops", "bytes")
        }
        for one, two in zip(costs(1), costs(2), strict=True)
    )
    assert ours["flops"] <= autodiff["flops"], (ours, autodiff)
    assert ours["bytes"] <= 0.9 * autodiff["bytes"], (ours, autodiff)
    monkeypatch.undo()
    ours, autodiff = layer_costs(
        layer, params, numbers(32, length, 32), numbers(32, *shape, seed=2)
    )
    assert ours["scratch"] <= 0.9 * autodiff["scratch"], (ours, autodiff)


def test_reading_deltas_costs_nothing_when_unused():
    case = MODELS[2]
    params, _ = draw(case.model, case.shape)
    x, y = model_batch(case, 128)

    def tapped(params, x, y):
        cost, grads = fbp.value_and_grad(fbp.tap(case.model), case.loss)(params, x, y)
        return cost, fbp.untap(grads)[0]

    assert compiled_cost(tapped, params, x, y) == compiled_cost(
        fbp.value_and_grad(case.model, case.loss), params, x, y
    )


def small():
    model = fbp.chain(
        layers.dense(5), fbp.residual(layers.dense(5), layers.tanh()), layers.dense(3)
    )
    return model, *draw(model, (4,))[:1], numbers(7, 4), numbers(7, 3, seed=2)


def test_deltas_are_the_derivatives_at_each_layers_output():
    model, params, x, y = small()
    found = fbp.deltas(model, losses.quadratic)(params, x, y)
    assert set(found) == {"0", "1", "1/body/0", "1/body/1", "1/shortcut", "2"}

    def cost(shift):  # the derivative by what is added to the first layer's output
        first = layers.dense(5).forward(params[0], x)[0] + shift
        rest = fbp.chain(*model.parts.values())
        output = model.parts["2"].forward(params[2], rest.parts["1"].forward(params[1], first)[0])[
            0
        ]
        return losses.quadratic.value(output, y).mean()

    np.testing.assert_allclose(found["0"], jax.grad(cost)(jnp.zeros((7, 5))), rtol=1e-4, atol=1e-6)


def test_replaced_deltas_reach_every_gradient_before_them():
    model, params, x, y = small()
    stopped = fbp.replace_deltas(
        model, lambda path, delta: 0 * delta if path == "1/body/1" else delta
    )
    grads = fbp.value_and_grad(stopped, losses.quadratic)(params, x, y)[1]
    reference = fbp.value_and_grad(model, losses.quadratic)(params, x, y)[1]
    assert not np.any(grads[1]["body"][0]["w"])
    assert np.any(grads[0]["w"])  # by the shortcut
    np.testing.assert_array_equal(grads[2]["w"], reference[2]["w"])


def test_feedback_alignment_is_one_replaced_backward():
    """Lillicrap et al. (2016): the hidden error goes back through fixed random weights."""
    model, params, x, y = small()

    def aligned(path, layer):
        if not layer.name.startswith("dense"):
            return layer

        def backward(params, cache, delta):
            _, grads = layer.backward(params, cache, delta)
            return delta @ jax.random.normal(jax.random.key(1), params["w"].T.shape), grads

        return layer._replace(backward=backward)

    grads = fbp.value_and_grad(fbp.map_layers(aligned, model), losses.quadratic)(params, x, y)[1]
    reference = fbp.value_and_grad(model, losses.quadratic)(params, x, y)[1]
    np.testing.assert_allclose(grads[2]["w"], reference[2]["w"])
    assert not np.allclose(grads[0]["w"], reference[0]["w"])


def test_the_seed_masks_and_weighs_examples():
    model, params, x, y = small()
    gradient = fbp.value_and_grad(model, losses.quadratic)
    mask = np.array([1, 1, 0, 1, 0, 0, 1], np.float32)
    cost, grads = gradient(params, x, y, cost_weights=mask / mask.sum())
    kept = mask.astype(bool)
    expected_cost, expected = gradient(params, x[kept], y[kept])
    np.testing.assert_allclose(cost, expected_cost, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    with pytest.raises(fbp.ShapeError, match=r"one number per example, shape \(7,\), got \(3,\)"):
        gradient(params, x, y, cost_weights=jnp.ones(3))


BRIDGED = [
    next(case for case in LAYERS if case.name == name and not case.tokens)
    for name in (
        "conv2d",
        "max_pool",
        "batch_norm",
        "lstm",
        "gru",
        "attention",
        "repeat",
        "recompute",
        "graph",
        "tie",
    )
] + [case for case in LAYERS if case.lengths or case.name in ("embedding", "dropout")]


class TestBridge:
    def test_as_function_under_grad_vmap_and_scan_is_the_handwritten_backward(self):
        model, params, x, y = small()
        doubled = model._replace(
            backward=lambda p, c, d: jax.tree.map(lambda g: 2 * g, model.backward(p, c, d))
        )
        function = fbp.as_function(doubled)
        cost = lambda params: losses.quadratic.value(function(params, x), y).mean()
        ours = jax.jit(jax.grad(cost))(params)
        reference = fbp.value_and_grad(model, losses.quadratic)(params, x, y)[1]
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
            np.testing.assert_allclose(a, 2 * b, rtol=1e-4, atol=1e-6)
        mapped = jax.vmap(jax.grad(lambda x: function(params, x[None]).sum()))(x)
        assert mapped.shape == x.shape

    @pytest.mark.slow
    @pytest.mark.parametrize("case", BRIDGED, ids=[case.name for case in BRIDGED])
    def test_as_function_of_any_layer_inside_jit_vmap_and_scan(self, case):
        layer = case.make()
        params, shape = draw(layer, case.shape)
        function, x, delta = fbp.as_function(layer), case.input(3, 4), numbers(4, *shape, seed=2)
        cost = lambda params, x: jnp.vdot(function(params, x, case.key), delta)
        expected = lambda x: layer.backward(
            params, layer.forward(params, x, key=case.key)[1], delta
        )[1]

        @jax.jit
        def everything(x):
            gradient = jax.grad(cost)
            scanned = jax.lax.scan(lambda _, one: (None, gradient(params, one)), None, x)[1]
            return scanned, jax.vmap(lambda one: gradient(params, one))(x), jax.vmap(expected)(x)

        for scanned, mapped, reference in zip(*map(jax.tree.leaves, everything(x)), strict=True):
            np.testing.assert_allclose(scanned, reference, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(mapped, reference, rtol=1e-4, atol=1e-5)

    def test_second_derivatives(self, x64):
        """JAX can differentiate backward itself in reverse mode; forward mode raises."""
        layer = fbp.chain(layers.dense(4), layers.layer_norm(), layers.tanh(), layers.attention(2))
        params, _ = draw(layer, (3, 4))
        params, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, numbers(2, 3, 4)))
        ours, plain = fbp.as_function(layer), lambda params, x: layer.forward(params, x)[0]

        def slope(function):
            gradient = jax.grad(lambda x: (function(params, x) ** 3).sum())
            return jax.jit(jax.grad(lambda x: (gradient(x) ** 2).sum()))(x)

        np.testing.assert_allclose(slope(ours), slope(plain), rtol=1e-8)
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(lambda x: ours(params, x), (x,), (x,))

    def test_from_function_inside_jit_vmap_scan_and_a_second_grad(self):
        layer = fbp.from_function(
            lambda params, x: jnp.sin(params * x), lambda key, shape: (jnp.ones(()), shape)
        )
        x, delta = numbers(3, 4, 2), numbers(4, 2, seed=2)

        def one(x):
            _, cache = layer.forward(2.0, x)
            return layer.backward(2.0, cache, delta)

        scanned = jax.jit(lambda x: jax.lax.scan(lambda _, x: (None, one(x)), None, x)[1])(x)
        mapped = jax.jit(jax.vmap(one))(x)
        np.testing.assert_allclose(scanned[0], 2 * np.cos(2 * x) * delta, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scanned[1], mapped[1], rtol=1e-5)
        curved = jax.grad(lambda x: one(x)[0].sum())(x[0])
        np.testing.assert_allclose(curved, -4 * np.sin(2 * x[0]) * delta, rtol=1e-4, atol=1e-5)

    def test_from_function_is_a_layer_like_any_other(self):
        normalize = fbp.from_function(lambda params, x: x / (1 + jnp.abs(x)))
        model = fbp.chain(layers.dense(4), normalize, layers.dense(2))
        params, shape = draw(model, (3,))
        assert shape == (2,)
        assert fbp.check_gradients(model, losses.quadratic, params, numbers(5, 3), numbers(5, 2)).ok


def test_shapes_that_do_not_fit_are_named_with_their_layer():
    model = fbp.chain(layers.dense(4), fbp.residual(layers.dense(3), layers.relu()))
    with pytest.raises(
        fbp.ShapeError, match=r"layer 1: branches of a sum .* body: \(3,\), shortcut: \(4,\)"
    ):
        model.init(jax.random.key(0), (2,))
    good = fbp.chain(layers.dense(4), fbp.residual(layers.dense(4)))
    params, _ = good.init(jax.random.key(0), (2,))
    with pytest.raises(
        fbp.ShapeError,
        match=r"layer 0 \(dense\(4\)\): expected an input whose last axis is 2 .*\(7, 3\)",
    ):
        good.forward(params, jnp.ones((7, 3)))
    with pytest.raises(fbp.ShapeError, match="a chain of 2 layers expects parameters for 2, got 1"):
        good.forward(params[:1], jnp.ones((7, 2)))


def test_importing_fbp_is_cheap_and_pulls_in_no_heavy_package(tmp_path):
    """At most 0.05 s of CPU time beyond importing jax; and none of the runner's packages.

    As a user has it: the bytecode is there, because an installation or the first import wrote it.
    """
    script = (
        "import time, sys, jax, jax.numpy; began = time.process_time(); import fbp; "
        "print(time.process_time() - began); print(*sys.modules)"
    )
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    seconds, modules = [], set()
    for _ in range(4):
        output = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        ).stdout
        first, second = output.splitlines()
        seconds.append(float(first))
        modules |= set(second.split())
    assert not modules & {
        "mlflow",
        "matplotlib",
        "sklearn",
        "pandas",
        "pydantic",
        "optax",
        "flax",
        "rich",
        "click",
    }
    assert min(seconds) <= 0.05


def test_everything_public_says_what_it_is():
    for module in (
        fbp,
        fbp.layers,
        fbp.losses,
        fbp.optimizers,
        fbp.schedules,
        fbp.initializers,
        fbp.training,
        fbp.models,
    ):
        for name, value in vars(module).items():
            if (
                not name.startswith("_")
                and callable(value)
                and getattr(value, "__module__", "").startswith("fbp")
            ):
                assert value.__doc__, f"{module.__name__}.{name}"


def test_a_layer_is_exactly_three_functions():
    _, _, backward = layers.dense(3)
    assert fbp.Layer._fields == ("init", "forward", "backward")
    changed = layers.dense(3)._replace(backward=backward)
    assert (changed.name, len(changed)) == ("dense(3)", 3)
