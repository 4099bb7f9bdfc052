"""Attention: the whole and the blockwise form against other formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import layers
from fbp.errors import InputError, ShapeError
from fbp.layers import _attention, _attention_core
from tests.tables import draw, numbers
from tests.test_core import compiled_cost

LENGTHS = jnp.array([5, 9, 1])


@pytest.fixture
def small_blocks(monkeypatch):
    """The blockwise form for any length, in blocks of 4."""
    monkeypatch.setattr(_attention_core, "BLOCKWISE_MIN_KEYS", 1)
    monkeypatch.setattr(_attention_core, "MAX_BLOCK", 4)


def parts(positions=9, keys=9, dtype=jnp.float32):
    return tuple(
        jnp.asarray(numbers(3, n, 2, 4, seed=i), dtype)
        for i, n in enumerate((positions, keys, keys))
    )


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all", "lengths"])
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
class TestBlockwise:
    def test_is_the_whole_form_and_jax_nns(self, causal, lengths, x64, monkeypatch):
        layer = layers.dot_product_attention(causal=causal, with_lengths=lengths is not None)
        x = parts(dtype=jnp.float64) if lengths is None else (*parts(dtype=jnp.float64), lengths)
        delta = jnp.asarray(numbers(3, 9, 2, 4, seed=7), jnp.float64)

        def run(q, k, v):
            given = (q, k, v) if lengths is None else (q, k, v, lengths)
            y, cache = layer.forward((), given)
            return y, layer.backward((), cache, delta)[0][:3]

        whole = jax.jit(run)(*x[:3])
        monkeypatch.setattr(_attention_core, "BLOCKWISE_MIN_KEYS", 1)
        monkeypatch.setattr(_attention_core, "MAX_BLOCK", 4)
        blocks = jax.jit(lambda *a: run(*a))(*x[:3])

        def reference(q, k, v):
            return jax.nn.dot_product_attention(
                q, k, v, is_causal=causal, key_value_seq_lengths=lengths
            )

        expected, pull_back = jax.vjp(reference, *x[:3])
        for y, deltas in (whole, blocks):
            np.testing.assert_allclose(
                y, expected, rtol=1e-6, atol=1e-7
            )  # theirs is a softmax in float32
            for ours, theirs in zip(deltas, pull_back(delta), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(blocks), strict=True):
            assert jnp.linalg.norm(a - b) <= 1e-13 * jnp.linalg.norm(a)

    def test_passes_the_check(self, causal, lengths, small_blocks):
        layer = layers.dot_product_attention(causal=causal, with_lengths=lengths is not None)
        x = parts() if lengths is None else (*parts(), lengths)
        report = fbp.check_gradients(
            layer, fbp.losses.quadratic, (), x, numbers(3, 9, 2, 4, seed=8)
        )
        assert report.ok, str(report)


def test_more_keys_than_queries_in_blocks_that_do_not_fit(small_blocks):
    x = parts(positions=3, keys=7)
    report = fbp.check_gradients(
        layers.dot_product_attention(), fbp.losses.quadratic, (), x, numbers(3, 3, 2, 4, seed=8)
    )
    assert report.ok, str(report)


def test_an_example_without_keys_gives_zeros_and_no_delta(small_blocks):
    layer = layers.dot_product_attention(with_lengths=True)
    y, cache = layer.forward((), (*parts(), jnp.array([0, 9, 9])))
    deltas, _ = layer.backward((), cache, jnp.ones_like(y))
    assert not y[0].any()
    assert all(jnp.isfinite(d).all() and not d[0].any() for d in deltas[:3])


def test_padding_contributes_nothing():
    layer = layers.attention(2, with_lengths=True)
    params, _ = draw(layer, (9, 4))
    x = numbers(3, 9, 4)
    garbage = x.copy()
    garbage[0, 5:], garbage[2, 1:] = 1e3, -1e3
    y, cache = layer.forward(params, (x, LENGTHS))
    other, _ = layer.forward(params, (garbage, LENGTHS))
    np.testing.assert_allclose(y[0, :5], other[0, :5], rtol=1e-5, atol=1e-6)
    delta = np.zeros((3, 9, 4), np.float32)
    delta[0, :5], delta[2, :1] = 1, 1
    (x_delta, none), _ = layer.backward(params, cache, delta)
    assert none is None
    assert not x_delta[0, 5:].any()
    assert not x_delta[2, 1:].any()


def test_long_sequences_take_the_blockwise_form_and_little_memory():
    """At most 0.3 of the scratch memory of jax.grad through jax.nn's attention, at T = 2048."""
    q, k, v = (numbers(1, 2048, 4, 32, seed=i) for i in range(3))
    layer = layers.dot_product_attention(causal=True)

    def ours(q, k, v):
        y, cache = layer.forward((), (q, k, v))
        return layer.backward((), cache, y)[0]

    def autodiff(q, k, v):
        y, pull_back = jax.vjp(lambda *x: jax.nn.dot_product_attention(*x, is_causal=True), q, k, v)
        return pull_back(y)

    assert (
        compiled_cost(ours, q, k, v)["scratch"] <= 0.3 * compiled_cost(autodiff, q, k, v)["scratch"]
    )


def test_causal_attention_does_not_look_ahead():
    layer = layers.attention(2, causal=True)
    params, _ = draw(layer, (6, 4))
    x = numbers(1, 6, 4)
    changed = x.copy()
    changed[0, 4:] = 9
    a, b = (layer.forward(params, given)[0] for given in (x, changed))
    np.testing.assert_array_equal(a[0, :4], b[0, :4])


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = (np.broadcast_to(numbers(1, 1, 1, 8, seed=i), (1, 1, 6, 8)) for i in range(2))
    scores = jnp.einsum("bntd,bnsd->ts", _attention.rotate(q), _attention.rotate(k))
    for distance in range(-4, 5):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4)
    assert abs(scores[0, 0] - scores[0, 3]) > 1e-3


def test_weights_are_float32_inside_bfloat16():
    x = tuple(a.astype(jnp.bfloat16) for a in parts())
    y, _ = layers.dot_product_attention().forward((), x)
    exact, _ = layers.dot_product_attention().forward((), tuple(a.astype(jnp.float32) for a in x))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(np.float32), exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    ("make", "shape", "problem"),
    [
        (
            lambda: layers.attention(3),
            (5, 8),
            "attention of 3 heads expects features that are a multiple of 3, got 8",
        ),
        (
            lambda: layers.attention(2),
            (5, 8, 1),
            r"expects examples of shape \(T, F\), got \(5, 8, 1\)",
        ),
        (lambda: layers.attention(4, rotary=True), (5, 4), "an even head size, got 1"),
        (lambda: layers.attention(2, cross=True), (5, 8), "the shapes of x and memory"),
        (
            lambda: layers.attention(2, cross=True, causal=True),
            ((5, 8), (6, 8)),
            "as many queries as keys, got 5 and 6",
        ),
    ],
)
def test_a_shape_that_does_not_fit_is_named_with_its_place(make, shape, problem):
    with pytest.raises(ShapeError, match=f"layer 0.*{problem}"):
        fbp.chain(make()).init(jax.random.key(0), shape)


def test_wrong_inputs_are_refused():
    q, k, v = parts()
    with pytest.raises(ShapeError, match="expects the input"):
        layers.dot_product_attention().forward((), (q, k))
    with pytest.raises(ShapeError, match="expects q"):
        layers.dot_product_attention().forward((), (q, k, v[:, :3]))
    layer = layers.attention(2)
    params, _ = draw(layer, (5, 4))
    with pytest.raises(ShapeError, match="attention expects 4 features"):
        layer.forward(params, numbers(2, 5, 6))
    with pytest.raises(InputError, match="heads: expected a number of at least 1"):
        layers.attention(0)
