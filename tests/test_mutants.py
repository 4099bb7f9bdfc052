"""The check of gradients finds layers that are wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import layers, losses
from fbp.layer import Layer
from tests.tables import (
    draw,
    numbers,
)


class Mutant:
    """A layer or loss that is wrong in one way."""

    def __init__(self, name, model, loss=losses.quadratic, shape=(6,)):
        self.name, self.model, self.loss, self.shape = name, model, loss, shape


def mutated(layer: Layer, change) -> Layer:
    """Return the layer with a backward that ``change`` falsifies."""

    def backward(params, cache, delta):
        return change(params, cache, delta, layer.backward(params, cache, delta))

    return layer._replace(backward=backward)


def between(layer: Layer) -> Layer:
    return fbp.chain(layers.dense(6), layer, layers.dense(3))


DENSE = layers.dense(6)
MUTANTS = [
    Mutant(
        "input delta has the wrong sign", between(mutated(DENSE, lambda p, c, d, r: (-r[0], r[1])))
    ),
    Mutant(
        "weight is not transposed", between(mutated(DENSE, lambda p, c, d, r: (d @ p["w"], r[1])))
    ),
    Mutant(
        "bias gradient is the batch's mean",
        between(mutated(DENSE, lambda p, c, d, r: (r[0], {**r[1], "b": d.mean(axis=0)}))),
    ),
    Mutant(
        "bias gradient is dropped",
        between(mutated(DENSE, lambda p, c, d, r: (r[0], {**r[1], "b": 0 * r[1]["b"]}))),
    ),
    Mutant(
        "weight gradient misses one example",
        between(mutated(DENSE, lambda p, c, d, r: (r[0], {**r[1], "w": c[1:].T @ d[1:]}))),
    ),
    Mutant(
        "weight gradient is transposed",
        between(mutated(DENSE, lambda p, c, d, r: (r[0], {**r[1], "w": r[1]["w"].T}))),
    ),
    Mutant(
        "one number of a weight's gradient is off by a thousandth",
        between(
            mutated(
                DENSE, lambda p, c, d, r: (r[0], {**r[1], "w": r[1]["w"].at[0, 0].multiply(1.001)})
            )
        ),
    ),
    Mutant("sigma' is left out", between(mutated(layers.sigmoid(), lambda p, c, d, r: (d, ())))),
    Mutant(
        "sigma' is a instead of a(1-a)",
        between(mutated(layers.sigmoid(), lambda p, c, d, r: (d * c, ()))),
    ),
    Mutant(
        "relu's mask is inverted",
        between(mutated(layers.relu(), lambda p, c, d, r: (jnp.where(c, d, 0), ()))),
    ),
    Mutant("relu lets all pass", between(mutated(layers.relu(), lambda p, c, d, r: (d, ())))),
    Mutant(
        "softmax's Jacobian is taken as diagonal",
        between(mutated(layers.softmax(), lambda p, c, d, r: (d * c * (1 - c), ()))),
    ),
    Mutant(
        "a shortcut's delta is dropped",
        between(mutated(fbp.residual(DENSE), lambda p, c, d, r: (r[0] - d, r[1]))),
    ),
    Mutant(
        "a layer returns no gradients",
        between(mutated(DENSE, lambda p, c, d, r: (r[0], {"w": r[1]["w"]}))),
    ),
    Mutant(
        "gradients are NaN",
        between(
            mutated(DENSE, lambda p, c, d, r: (r[0], jax.tree.map(lambda g: g * jnp.nan, r[1])))
        ),
    ),
    Mutant(
        "the loss misses 1/K",
        between(DENSE),
        losses.mean_squared_error._replace(delta=lambda a, y: 2 * (a - y)),
    ),
    Mutant(
        "the loss misses the factor 2",
        between(DENSE),
        losses.mean_squared_error._replace(delta=lambda a, y: (a - y) / 3),
    ),
    Mutant(
        "the loss is reduced twice",
        between(DENSE),
        losses.quadratic._replace(delta=lambda a, y: (a - y) / len(a)),
    ),
]


PICTURE, SERIES = (6, 5, 3), (5, 4)


def gradient(name, change):
    """A mutation of one parameter's gradient."""
    return lambda p, c, d, r: (r[0], {**r[1], name: change(r[1][name])})


def first_half(g):
    return g.at[..., : g.shape[-1] // 2].set(0)


FAMILIES = {
    "convolution: the input delta is a place off": (
        layers.conv2d(4, 3),
        PICTURE,
        lambda p, c, d, r: (jnp.roll(r[0], 1, axis=1), r[1]),
    ),
    "convolution: the kernel's gradient is flipped": (
        layers.conv2d(4, 3),
        PICTURE,
        gradient("w", lambda g: g[::-1]),
    ),
    "convolution: two groups see each other": (
        layers.conv1d(4, 3, groups=2),
        SERIES,
        gradient("w", lambda g: jnp.roll(g, 2, axis=-1)),
    ),
    "transposed convolution: channels exchanged": (
        layers.conv_transpose2d(3, 3, stride=2),
        PICTURE,
        gradient("w", lambda g: g.swapaxes(-1, -2)),
    ),
    "max pooling: the delta goes to every place": (
        layers.max_pool(2),
        (4, 4, 3),
        lambda p, c, d, r: (jnp.repeat(jnp.repeat(d, 2, 1), 2, 2), ()),
    ),
    "average pooling: not divided": (
        layers.avg_pool(2),
        (4, 4, 3),
        lambda p, c, d, r: (4 * r[0], ()),
    ),
    "upsampling: the mean, not the sum": (
        layers.upsample(2),
        PICTURE,
        lambda p, c, d, r: (r[0] / 4, ()),
    ),
    "layer norm: what the mean absorbs is left in": (
        layers.layer_norm(),
        SERIES,
        lambda p, c, d, r: (r[0] + (d * p["scale"]).mean(-1, keepdims=True), r[1]),
    ),
    "group norm: statistics taken as constants": (
        layers.group_norm(2),
        SERIES,
        lambda p, c, d, r: (d * p["scale"] * c[1].inverse, r[1]),
    ),
    "batch norm: statistics taken as constants": (
        layers.batch_norm(),
        SERIES,
        lambda p, c, d, r: (d * p["scale"] * c[1].inverse, r[1]),
    ),
    "weight norm: the length's gradient is left in the direction": (
        layers.weight_norm(layers.dense(3)),
        SERIES,
        gradient("v", lambda g: g + 0.1),
    ),
    "dropout: survivors not scaled": (
        layers.dropout(0.4),
        SERIES,
        lambda p, c, d, r: (jnp.where(c, d, 0), ()),
    ),
    "dropout: another mask": (
        layers.dropout(0.4),
        SERIES,
        lambda p, c, d, r: (jnp.where(c, 0, d), ()),
    ),
    "positions: only the first example counts": (
        layers.learned_positions(),
        SERIES,
        gradient("w", lambda g: g / 5),
    ),
    "rnn: one step too few": (layers.rnn(4), SERIES, gradient("wh", lambda g: 0.8 * g)),
    "lstm: the forget gate is forgotten": (
        layers.lstm(4),
        SERIES,
        gradient("b", lambda g: g.at[4:8].set(0)),
    ),
    "gru: the reset gate is not on the recurrent bias": (
        layers.gru(4),
        SERIES,
        gradient("bh", lambda g: 2 * g),
    ),
    "attention: keys get no gradient": (
        layers.attention(2),
        SERIES,
        gradient("wqkv", lambda g: g.at[:, 4:8].set(0)),
    ),
    "attention: queries not scaled": (
        layers.attention(2),
        SERIES,
        gradient("wqkv", lambda g: g.at[:, :4].multiply(1.4)),
    ),
    "attention: the shortcut around the softmax": (
        layers.attention(2),
        SERIES,
        lambda p, c, d, r: (r[0] + d, r[1]),
    ),
    "repeat: gradients in the wrong order": (
        fbp.repeat(fbp.residual(layers.dense(4)), 3),
        SERIES,
        lambda p, c, d, r: (r[0], jax.tree.map(lambda g: g[::-1], r[1])),
    ),
    "unembedding: half of the table": (layers.unembedding(7), SERIES, gradient("w", first_half)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_check_catches_a_mutant_of_each_family(name):
    layer, shape, change = FAMILIES[name]
    params, out_shape = draw(layer, shape)
    wrong = mutated(layer, change)
    report = fbp.check_gradients(
        wrong,
        losses.quadratic,
        params,
        numbers(5, *shape),
        numbers(5, *out_shape, seed=2),
        key=jax.random.key(1),
    )
    assert not report.ok


def test_the_check_catches_an_embedding_that_counts_a_token_once():
    layer = layers.embedding(4, 3)
    once = mutated(
        layer,
        lambda p, c, d, r: (
            None,
            {"w": jnp.zeros_like(p["w"]).at[c.ravel()].set(d.reshape(-1, 3))},
        ),
    )
    params, _ = draw(layer, (5,))
    tokens = np.random.default_rng(0).integers(0, 4, (5, 5))
    assert not fbp.check_gradients(once, losses.quadratic, params, tokens, numbers(5, 5, 3)).ok


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_check_catches_mutants(mutant):
    params, shape = draw(mutant.model, mutant.shape)
    report = fbp.check_gradients(
        mutant.model, mutant.loss, params, numbers(5, *mutant.shape), numbers(5, *shape, seed=2)
    )
    assert not report.ok
    assert not report.worst.ok
    assert "WRONG" in str(report)


def test_finite_differences_alone_catch_a_forward_and_backward_that_are_wrong_together(key):
    """jax.vjp of a forward with a wrong custom derivative agrees with it; differences do not."""

    @jax.custom_jvp
    def square(x):
        return x * x

    square.defjvp(lambda primals, tangents: (square(primals[0]), 3 * primals[0] * tangents[0]))
    wrong = Layer(
        lambda key, shape: ((), shape),
        lambda params, x, *, key=None: (square(x), x),
        lambda params, cache, delta: (3 * cache * delta, ()),
        name="square",
    )
    model = fbp.chain(layers.dense(4), wrong)
    params, _ = model.init(key, (3,))
    report = fbp.check_gradients(
        model, losses.quadratic, params, jax.random.normal(key, (5, 3)), jnp.ones((5, 4))
    )
    assert not report.ok
    assert {row.against for row in report.failures} == {"differences"}


def test_the_report_names_the_layer_that_is_wrong(key):
    model = fbp.chain(
        layers.dense(6), mutated(layers.tanh(), lambda p, c, d, r: (2 * r[0], ())), layers.dense(3)
    )
    params, _ = model.init(key, (4,))
    report = fbp.check_gradients(
        model, losses.quadratic, params, jax.random.normal(key, (5, 4)), jnp.zeros((5, 3))
    )
    assert [row.layer for row in report.failures if row.against == "vjp"] == ["1 tanh"]


def dropping_combinator(body):
    """A residual that forgets the shortcut's delta."""
    return Layer(
        lambda key, shape: ((body.init(key, shape)[0],), shape),
        lambda params, x, *, key=None: (lambda y, cache: (x + y, cache))(
            *body.forward(params[0], x)
        ),
        lambda params, cache, delta: (lambda dx, grads: (dx, (grads,)))(
            *body.backward(params[0], cache, delta)
        ),
        parts={"0": body},
        rebuild=lambda parts: dropping_combinator(parts["0"]),
    )


def check_at(model, x, shape):
    params, out_shape = draw(model, shape)
    return fbp.check_gradients(
        model, losses.quadratic, params, x, numbers(len(x), *out_shape, seed=2)
    )


def test_a_combinator_that_drops_a_delta_is_caught_even_before_all_parameters():
    assert not check_at(
        fbp.chain(layers.tanh(), dropping_combinator(layers.dense(3))), numbers(4, 3), (3,)
    ).ok


def test_a_composite_whose_own_backward_is_not_its_parts_is_caught():
    good = fbp.chain(layers.dense(3), layers.tanh())
    doubled = lambda p, c, d: jax.tree.map(lambda a: 2 * a, good.backward(p, c, d))
    model = Layer(good.init, good.forward, doubled, parts=good.parts, rebuild=good.rebuild)
    assert not check_at(model, numbers(4, 3), (3,)).ok


def test_a_wrong_layer_behind_a_dead_one_is_caught():
    dead = fbp.from_function(lambda params, x: 0 * x)
    wrong = mutated(DENSE, lambda p, c, d, r: (7 * r[0], r[1]))
    assert not check_at(fbp.chain(layers.dense(6), wrong, dead), numbers(4, 6), (6,)).ok


def test_a_gradient_that_is_zero_but_for_rounding_passes():
    total = fbp.from_function(lambda params, x: x.sum(axis=-1, keepdims=True))
    assert check_at(fbp.chain(layers.dense(4), layers.softmax(), total), numbers(5, 3), (3,)).ok
