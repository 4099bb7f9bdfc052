"""Every backward pass against jax.vjp and differences; the check itself against wrong ones."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import layers, losses
from fbp.layer import Layer, Loss
from tests.tables import (
    LAYERS,
    LOSSES,
    MODELS,
    activations_slowly,
    draw,
    loss_point,
    model_batch,
    numbers,
    quick_jit,
    repeated_slowly,
)


def ids(cases):
    return [f"{case.name}-{i}" for i, case in enumerate(cases)]


def public_names(module):
    return {
        name
        for name in vars(module)
        if not name.startswith("_") and inspect.isfunction(getattr(module, name))
    }


def test_every_public_layer_loss_and_model_is_in_the_table():
    combinators = {
        name
        for name in public_names(fbp)
        if getattr(fbp, name).__module__.startswith("fbp.combinators.")
    }
    elsewhere = {"precision", "zero_state"}  # rounds, or is no layer: tested below
    parts = {
        name
        for name in public_names(fbp.blocks)
        if getattr(fbp.blocks, name).__module__ == "fbp.blocks"
    }
    assert {case.name for case in LAYERS} == (
        public_names(layers) | combinators | parts
    ) - elsewhere
    named = {name for name, value in vars(losses).items() if isinstance(value, Loss)}
    assert {case.name for case in LOSSES} == named | {"huber"}  # weighted: test_losses.py
    constructors = {
        name
        for name in public_names(fbp.models)
        if getattr(fbp.models, name).__module__.startswith("fbp.models.")
    }
    assert {case.name.split()[0] for case in MODELS} == constructors


@pytest.mark.parametrize("case", LAYERS, ids=ids(LAYERS))
def test_layer_agrees_with_vjp_and_finite_differences(case):
    layer = case.make()
    params, shape = draw(layer, case.shape)
    target = numbers(5, *shape, seed=2)
    report = fbp.check_gradients(
        layer, losses.quadratic, params, case.input(5), target, key=case.key
    )
    assert report.ok, str(report)


@pytest.mark.parametrize("case", repeated_slowly(LAYERS))
def test_layer_in_float32_cut_apart_by_jit_vmap_and_scan(case):
    """Shapes and dtypes stay; caches hold arrays only, so they cross programs."""
    layer = case.make()
    params, shape = draw(layer, case.shape)
    x, delta = case.input(3, 5), numbers(5, *shape, seed=2)
    forward = functools.partial(layer.forward, key=case.key)
    first = jax.tree.map(lambda part: part[0], x)
    y, cache = quick_jit(forward)(params, first)
    assert (y.shape, y.dtype) == ((5, *shape), jnp.float32)
    ours = quick_jit(layer.backward)(params, cache, delta)

    @quick_jit
    def others(params, x, delta):
        def one(_, x):
            _, cache = forward(params, x)
            return None, layer.backward(params, cache, delta)

        first = jax.tree.map(lambda part: part[0], x)
        if case.tokens:
            reference = None, jax.vjp(lambda p: forward(p, first)[0], params)[1](delta)[0]
        else:
            grads, input_delta = jax.vjp(lambda p, x: forward(p, x)[0], params, first)[1](delta)
            reference = (*input_delta[:-1], None) if case.lengths else input_delta, grads
        return reference, jax.lax.scan(one, None, x)[1], jax.vmap(lambda x: one(None, x)[1])(x)

    reference, scanned, mapped = others(params, x, delta)
    rounding = 1e-6 * max(
        np.linalg.norm(their) for their in jax.tree.leaves(reference)
    )  # of what cancels to 0
    for our, their in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        assert our.dtype == jnp.float32
        assert np.linalg.norm(our - their) <= 1e-5 * np.linalg.norm(their) + rounding
    for our, one_scanned, one_mapped in zip(
        *map(jax.tree.leaves, (ours, scanned, mapped)), strict=True
    ):
        np.testing.assert_allclose(one_scanned, one_mapped, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one_scanned[0], our, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 4), (3, 5, 4)], ids=["BK", "BTK"])
@pytest.mark.parametrize("case", LOSSES, ids=ids(LOSSES))
def test_loss_delta_is_the_derivative_of_its_value(case, shape, x64):
    output, target = loss_point(case, jax.random.key(3), shape)
    step = 1e-6 * np.random.default_rng(4).normal(size=shape)

    @quick_jit
    def measure(output, target):
        reference = jax.grad(lambda a: case.loss.value(a, target).sum())(output)
        slope = (
            case.loss.value(output + step, target) - case.loss.value(output - step, target)
        ) / 2
        return case.loss.value(output, target), case.loss.delta(output, target), reference, slope

    values, delta, reference, slope = measure(output, target)
    assert values.shape == (shape[0],)
    assert delta.shape == output.shape
    assert np.linalg.norm(delta - reference) <= 1e-10 * np.linalg.norm(reference)
    expected = (delta * step).reshape(shape[0], -1).sum(axis=1)
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("case", activations_slowly(MODELS))
def test_model(case):
    """Without finite differences: those are taken of each layer."""
    params, _ = draw(case.model, case.shape)
    report = fbp.check_gradients(case.model, case.loss, params, *model_batch(case, 6), directions=0)
    assert report.ok, str(report)


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


class TestKinks:
    """The convention: at a kink, the derivative from the left."""

    @pytest.mark.parametrize(
        ("layer", "slope"),
        [(layers.relu(), 0.0), (layers.leaky_relu(0.2), 0.2), (layers.elu(0.5), 0.5)],
        ids=["relu", "leaky_relu", "elu"],
    )
    def test_activation_at_zero(self, layer, slope):
        _, cache = layer.forward((), jnp.zeros((1, 1)))
        assert layer.backward((), cache, jnp.ones((1, 1)))[0] == slope

    def test_absolute_error_at_zero(self):
        assert losses.mean_absolute_error.delta(jnp.zeros((1, 1)), jnp.zeros((1, 1))) == 0

    def test_maxout_tie_goes_to_the_first(self):
        layer = layers.maxout(2)
        _, cache = layer.forward((), jnp.ones((1, 2)))
        assert layer.backward((), cache, jnp.ones((1, 1)))[0].tolist() == [[1.0, 0.0]]


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


@pytest.mark.parametrize(
    "activation", [layers.relu, layers.leaky_relu, layers.elu, layers.selu, layers.sigmoid]
)
def test_right_layers_pass_exactly_at_their_kinks(activation):
    """An example of zeros and fresh biases put every pre-activation at exactly 0."""
    model = fbp.chain(layers.dense(4), activation(), layers.dense(4), activation(), layers.dense(2))
    params, _ = model.init(jax.random.key(0), (3,))
    x = numbers(5, 3)
    x[0] = 0
    report = fbp.check_gradients(
        model, losses.softmax_cross_entropy, params, x, np.zeros(5, np.int32)
    )
    assert report.ok, str(report)


def test_a_gradient_that_is_zero_but_for_rounding_passes():
    total = fbp.from_function(lambda params, x: x.sum(axis=-1, keepdims=True))
    assert check_at(fbp.chain(layers.dense(4), layers.softmax(), total), numbers(5, 3), (3,)).ok


def test_layers_before_whole_numbers_have_no_delta():
    model = fbp.chain(layers.flatten(), layers.embedding(7, 4), layers.dense(3))
    params, _ = draw(model, (2, 3))
    tokens = np.random.default_rng(0).integers(0, 7, (5, 2, 3))
    target = numbers(5, 6, 3)
    assert fbp.check_gradients(model, losses.quadratic, params, tokens, target).ok
    assert set(fbp.deltas(model, losses.quadratic)(params, tokens, target)) == {"1", "2"}


def test_relu_lets_nan_through():
    assert jnp.isnan(layers.relu().forward((), jnp.array([[jnp.nan]]))[0]).all()
