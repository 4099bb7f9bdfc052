"""Graphs and shared parameters: deltas summed, mistakes named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import layers, losses
from fbp.errors import InputError, ShapeError
from tests.tables import draw, numbers


def diamond():
    return fbp.graph(
        {
            "stem": (layers.dense(4), "x"),
            "left": (fbp.chain(layers.dense(4), layers.tanh()), "stem"),
            "right": (layers.sigmoid(), "stem"),
            "sum": (layers.add(), "left", "right", "stem"),
        }
    )


def test_deltas_are_summed_over_all_consumers():
    model = diamond()
    params, _ = draw(model, (3,))
    x, y = numbers(5, 3), numbers(5, 4, seed=2)
    found = fbp.deltas(model, losses.quadratic)(params, x, y)
    assert set(found) == {"stem", "left/0", "left/1", "right", "sum"}

    def cost(shift):
        stem = layers.dense(4).forward(params["stem"], x)[0] + shift
        left = jnp.tanh(layers.dense(4).forward(params["left"][0], stem)[0])
        return losses.quadratic.value(left + jax.nn.sigmoid(stem) + stem, y).mean()

    np.testing.assert_allclose(
        found["stem"], jax.grad(cost)(jnp.zeros((5, 4))), rtol=1e-4, atol=1e-6
    )


def test_several_outputs_each_with_a_loss_of_its_own():
    model = fbp.graph(
        {
            "body": (layers.dense(4), "x"),
            "mean": (layers.dense(2), "body"),
            "kind": (layers.dense(3), "body"),
        },
        outputs=("mean", "kind"),
    )
    params, shapes = draw(model, (3,))
    assert shapes == ((2,), (3,))
    loss = losses.weighted((losses.mean_squared_error, 1.0), (losses.softmax_cross_entropy, 0.3))
    target = numbers(5, 2, seed=2), np.array([0, 1, 2, 1, 0])
    report = fbp.check_gradients(model, loss, params, numbers(5, 3), target)
    assert report.ok, str(report)
    seed = jnp.array([1.0, 0, 0, 0, 0])
    cost, _ = fbp.value_and_grad(model, loss)(params, numbers(5, 3), target, cost_weights=seed)
    one, _ = fbp.value_and_grad(model, loss)(
        params, numbers(5, 3)[:1], jax.tree.map(lambda a: a[:1], target)
    )
    np.testing.assert_allclose(cost, one, rtol=1e-5)


def test_tokens_and_numbers_side_by_side():
    model = fbp.graph(
        {
            "table": (fbp.chain(layers.embedding(7, 4), layers.flatten()), "tokens"),
            "both": (layers.concatenate(), "table", "numbers"),
            "out": (layers.dense(2), "both"),
        },
        inputs=("tokens", "numbers"),
    )
    params, _ = draw(model, ((3,), (5,)))
    x = np.array([[0, 1, 6], [2, 2, 2]]), numbers(2, 5)
    assert fbp.check_gradients(model, losses.quadratic, params, x, numbers(2, 2, seed=3)).ok
    with pytest.raises(ShapeError, match="expects an array for each in a tuple, got one"):
        model.forward(params, numbers(2, 5))


def test_a_graph_under_precision_repeat_and_map_layers():
    model = diamond()
    names = []
    fbp.map_layers(lambda path, layer: names.append(path) or layer, model)
    assert names == ["stem", "left/0", "left/1", "right", "sum"]
    block = fbp.graph({"a": (layers.dense(4), "x"), "b": (layers.add(), "a", "x")})
    report = check(fbp.repeat(block, 3), (4,))
    assert report.ok, str(report)


def check(model, shape):
    params, out_shape = draw(model, shape)
    return fbp.check_gradients(
        model, losses.quadratic, params, numbers(4, *shape), numbers(4, *out_shape, seed=2)
    )


def test_a_dropped_consumer_is_caught():
    good = diamond()

    def backward(params, cache, delta):
        input_delta, grads = good.backward(params, cache, delta)
        return input_delta - delta @ params["stem"]["w"].T, grads

    broken = fbp.Layer(good.init, good.forward, backward, parts=good.parts, rebuild=good.rebuild)
    assert not check(broken, (3,)).ok


D = layers.dense(3)


@pytest.mark.parametrize(
    ("nodes", "options", "problem"),
    [
        (
            {"a": (D, "c"), "b": (D, "a"), "c": (D, "b")},
            {},
            "graph: a cycle: .* -> .* -> .* -> .*; remove one",
        ),
        (
            {"a": (D, "y")},
            {},
            "node 'a' reads 'y', which is neither a node nor an input; there are x, a",
        ),
        (
            {"a": (D, "x"), "b": (D, "x")},
            {},
            r"the node 'a' leads to no output \(b\); connect or remove it",
        ),
        ({"a": (D, "x")}, {"inputs": ("x", "y")}, "the input 'y' leads to no output"),
        ({"a": (D, "x")}, {"outputs": "b"}, "the output 'b' is no node"),
        ({"a": (D, "x")}, {"inputs": ("x", "x")}, "different names of inputs"),
        ({"a": D}, {}, r"node 'a': expected \(layer, input, ...\)"),
        ({"x": (D, "x")}, {}, "'x' cannot be the name of a node"),
        ({}, {}, "at least one node"),
    ],
    ids=[
        "cycle",
        "missing",
        "unused node",
        "unused input",
        "no output",
        "one name twice",
        "no input",
        "name",
        "empty",
    ],
)
def test_mistakes_are_named(nodes, options, problem):
    with pytest.raises(InputError, match=problem):
        fbp.graph(nodes, **options)


def test_shapes_are_named_by_node():
    model = fbp.graph(
        {"a": (layers.dense(3), "x"), "b": (layers.dense(4), "x"), "sum": (layers.add(), "a", "b")}
    )
    with pytest.raises(
        ShapeError, match=r"layer sum \(add\): add expects inputs of one shape, got \(3,\), \(4,\)"
    ):
        model.init(jax.random.key(0), (2,))
    params, _ = draw(diamond(), (3,))
    with pytest.raises(ShapeError, match="expects parameters for stem, left, right, sum"):
        diamond().forward({"stem": params["stem"]}, numbers(2, 3))


class TestShared:
    def test_the_gradient_is_the_sum_over_both_uses(self):
        chain = fbp.chain(layers.dense(4), layers.tanh(), layers.dense(4))
        model = fbp.tie(chain, {"2": "0"})
        params, _ = draw(model, (4,))
        assert params[2] == ()
        x, y = numbers(5, 4), numbers(5, 4, seed=2)
        _, grads = fbp.value_and_grad(model, losses.quadratic)(params, x, y)
        _, apart = fbp.value_and_grad(chain, losses.quadratic)((params[0], (), params[0]), x, y)
        np.testing.assert_allclose(grads[0]["w"], apart[0]["w"] + apart[2]["w"], rtol=1e-5)
        assert set(fbp.deltas(model, losses.quadratic)(params, x, y)) == {"0", "1", "2"}

    def test_paths_that_make_no_sense(self):
        chain = fbp.chain(layers.dense(4), layers.dense(4), layers.dense(5))
        with pytest.raises(InputError, match="no layer at path '7'; expected one of 0, 1, 2"):
            fbp.tie(chain, {"7": "0"}).init(jax.random.key(0), (4,))
        with pytest.raises(ShapeError, match="'2' needs parameters of shapes"):
            fbp.tie(chain, {"2": "0"}).init(jax.random.key(0), (4,))
        with pytest.raises(InputError, match="has none of its own"):
            fbp.tie(chain, {"1": "0", "2": "1"})

    def test_composites_that_share_show_the_deltas_of_both(self):
        block = lambda: fbp.chain(layers.dense(3), layers.tanh())
        model = fbp.tie(fbp.chain(block(), block(), layers.dense(2)), {"1": "0"})
        params, _ = draw(model, (3,))
        x, y = numbers(5, 3), numbers(5, 2, seed=2)
        found = fbp.deltas(model, losses.quadratic)(params, x, y)
        apart = fbp.chain(block(), block(), layers.dense(2))
        expected = fbp.deltas(apart, losses.quadratic)((params[0], params[0], params[2]), x, y)
        assert set(found) == set(expected)
        for path in expected:
            np.testing.assert_allclose(found[path], expected[path], rtol=1e-5, atol=1e-7)

    def test_statistics_are_not_shared(self):
        chain = fbp.chain(layers.batch_norm(), layers.dense(4), layers.batch_norm())
        with pytest.raises(InputError, match="statistics of its own input"):
            fbp.tie(chain, {"2": "0"}).init(jax.random.key(0), (4,))


def test_sequences_with_lengths_in_a_graph():
    model = fbp.graph(
        {
            "h": (layers.lstm(4, with_lengths=True), "x", "n"),
            "a": (layers.attention(2, with_lengths=True), "h", "n"),
        },
        inputs=("x", "n"),
    )
    params, shape = draw(model, ((5, 2), ()))
    assert shape == (5, 4)
    x = numbers(3, 5, 2), np.array([5, 1, 3])
    assert fbp.check_gradients(model, losses.quadratic, params, x, numbers(3, 5, 4, seed=2)).ok
