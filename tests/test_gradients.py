"""Every backward pass against jax.vjp and differences; kinks."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import layers, losses
from fbp.layer import Loss
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


def test_layers_before_whole_numbers_have_no_delta():
    model = fbp.chain(layers.flatten(), layers.embedding(7, 4), layers.dense(3))
    params, _ = draw(model, (2, 3))
    tokens = np.random.default_rng(0).integers(0, 7, (5, 2, 3))
    target = numbers(5, 6, 3)
    assert fbp.check_gradients(model, losses.quadratic, params, tokens, target).ok
    assert set(fbp.deltas(model, losses.quadratic)(params, tokens, target)) == {"1", "2"}


def test_relu_lets_nan_through():
    assert jnp.isnan(layers.relu().forward((), jnp.array([[jnp.nan]]))[0]).all()
