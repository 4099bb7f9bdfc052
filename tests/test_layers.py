"""Layers beyond the table: other formulas, options with several inputs, and bad input."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import layers, losses
from fbp.errors import InputError, ShapeError
from fbp.layers import _convolution
from tests.tables import compile_as_shipped, draw, numbers, quick_jit


def slow_convolution(x, w, stride, pads, dilation, groups):
    """The definition, one number after another."""
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    kh, kw, depth, channels = w.shape
    height = (x.shape[1] - dilation * (kh - 1) - 1) // stride + 1
    width = (x.shape[2] - dilation * (kw - 1) - 1) // stride + 1
    out = np.zeros((x.shape[0], height, width, channels))
    for i, j, c in itertools.product(range(height), range(width), range(channels)):
        group = c // (channels // groups)
        for a, b, d in itertools.product(range(kh), range(kw), range(depth)):
            place = x[:, stride * i + dilation * a, stride * j + dilation * b, group * depth + d]
            out[:, i, j, c] += place * w[a, b, d, c]
    return out


@pytest.mark.parametrize(
    ("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 1, 4)]
)
def test_convolution_is_its_definition(stride, dilation, groups):
    layer = layers.conv2d(
        4, 3, stride=stride, dilation=dilation, groups=groups, padding=[(1, 2), (0, 1)]
    )
    params, shape = draw(layer, (7, 6, 4))
    x = numbers(2, 7, 6, 4)
    y, _ = layer.forward(params, x)
    assert y.shape[1:] == shape
    expected = (
        slow_convolution(x, params["w"], stride, [(1, 2), (0, 1)], dilation, groups) + params["b"]
    )
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": "VALID", "stride": 3},
        {"dilation": 2},
        {"groups": 2},
        {"groups": 4, "stride": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("examples", [3, 33])
def test_both_forms_of_the_weight_gradient_agree(examples, options, monkeypatch):
    """What a CPU uses for few examples, or many, and the convolution that accelerators use."""
    layer = layers.conv2d(8, (3, 2), **options)
    params, shape = draw(layer, (9, 8, 4))
    window = _convolution.make_window(
        "c",
        2,
        (3, 2),
        stride=options.get("stride", 1),
        padding=options.get("padding", "SAME"),
        dilation=options.get("dilation", 1),
    )
    x, delta = (
        jnp.asarray(numbers(examples, 9, 8, 4)),
        jnp.asarray(numbers(examples, *shape, seed=2)),
    )

    def gradient():
        return _convolution.weight_gradient(
            x, delta, params["w"].shape, window, options.get("groups", 1)
        )

    on_cpu = gradient()
    monkeypatch.setattr(
        _convolution, "by_platform", lambda cpu, other, *arguments: other(*arguments)
    )
    np.testing.assert_allclose(on_cpu, gradient(), rtol=1e-4, atol=1e-4)


def test_a_transposed_convolution_is_the_transpose():
    """<conv(x), y> = <x, conv_transpose(y)> with the same kernel."""
    down, up = layers.conv2d(3, 3, stride=2), layers.conv_transpose2d(2, 3, stride=2)
    params, shape = draw(down, (6, 8, 2))
    x, y = numbers(4, 6, 8, 2), numbers(4, *shape, seed=2)
    there = np.vdot(down.forward(params | {"b": np.zeros(3, np.float32)}, x)[0], y)
    back = np.vdot(x, up.forward({"w": params["w"], "b": np.zeros(2, np.float32)}, y)[0])
    np.testing.assert_allclose(there, back, rtol=1e-4)


def test_a_tie_in_max_pooling_goes_to_the_first_in_row_major_order():
    layer = layers.max_pool(2)
    _, cache = layer.forward((), jnp.ones((1, 2, 2, 1)))
    delta, _ = layer.backward((), cache, jnp.ones((1, 1, 1, 1)))
    assert delta.ravel().tolist() == [1, 0, 0, 0]


def test_padding_counts_neither_in_max_nor_in_average():
    x = -jnp.ones((1, 3, 3, 1))
    for make in (layers.max_pool, layers.avg_pool):
        np.testing.assert_allclose(make(2, padding="SAME").forward((), x)[0], -1)


class TestNormalization:
    def test_statistics_are_in_float32_under_mixed_precision(self):
        layer = layers.layer_norm()
        params, _ = draw(layer, (512,))
        x = (1000 + numbers(4, 512)).astype(np.float32)
        half = layer.forward(
            jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), x.astype(jnp.bfloat16)
        )[0]
        assert half.dtype == jnp.bfloat16
        n = layer.forward(params, x.astype(jnp.bfloat16).astype(np.float32))[0]
        np.testing.assert_allclose(
            half.astype(np.float32), n, rtol=0.02, atol=0.02
        )  # bfloat16 has 8 bits

    def test_group_norm_of_one_group_and_of_single_channels(self):
        x = numbers(2, 4, 4, 6)
        one, _ = layers.group_norm(1).forward({"scale": np.ones(6), "offset": np.zeros(6)}, x)
        np.testing.assert_allclose(np.asarray(one).mean(axis=(1, 2, 3)), 0, atol=1e-5)
        each, _ = layers.group_norm(6).forward({"scale": np.ones(6), "offset": np.zeros(6)}, x)
        np.testing.assert_allclose(np.asarray(each).std(axis=(1, 2)), 1, atol=1e-3)

    def test_weight_norm_starts_as_the_layer_it_wraps(self):
        inner = layers.dense(3)
        params, _ = layers.weight_norm(inner).init(jax.random.key(0), (4,))
        x = numbers(2, 4)
        plain, _ = inner.forward({"w": params["v"], "b": params["b"]}, x)
        np.testing.assert_allclose(
            layers.weight_norm(inner).forward(params, x)[0], plain, rtol=1e-5
        )


class TestDropout:
    def test_share_and_mean(self):
        x = np.ones((1000, 100), np.float32)
        y, _ = layers.dropout(0.3).forward((), x, key=jax.random.key(0))
        assert abs((np.asarray(y) == 0).mean() - 0.3) < 0.01
        assert abs(float(y.mean()) - 1) < 0.02

    def test_evaluation_is_the_identity(self):
        x = numbers(3, 4)
        for layer in (layers.dropout(0.9), layers.stochastic_depth(0.9)):
            assert layer.forward((), x)[0] is x

    def test_stochastic_depth_drops_whole_examples(self):
        y, _ = layers.stochastic_depth(0.5).forward(
            (), np.ones((200, 5), np.float32), key=jax.random.key(0)
        )
        assert set(np.asarray(y).sum(axis=1).tolist()) == {0.0, 10.0}


CELLS = {"rnn": layers.rnn, "lstm": layers.lstm, "gru": layers.gru}


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("output", ["sequence", "last"])
@pytest.mark.parametrize("cell", CELLS)
class TestRecurrent:
    def test_lengths_and_carried_state(self, cell, output, reverse, x64):
        layer = CELLS[cell](5, output=output, reverse=reverse, with_lengths=True, with_state=True)
        params, _ = draw(CELLS[cell](5), (7, 3))
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)
        x, lengths = jnp.asarray(numbers(4, 7, 3), jnp.float64), jnp.array([7, 3, 1, 5])
        state = tuple(
            jnp.asarray(numbers(4, 5, seed=i), jnp.float64)
            for i in range(2 if cell == "lstm" else 1)
        )

        @quick_jit
        def everything(params, x, state):
            y, cache = layer.forward(params, (x, lengths, state))
            delta = jax.tree.map(lambda a: jnp.asarray(numbers(*a.shape, seed=5), jnp.float64), y)
            reference = jax.vjp(
                lambda p, x, s: layer.forward(p, (x, lengths, s))[0], params, x, state
            )[1](delta)
            return y, layer.backward(params, cache, delta), reference

        y, ((x_delta, none, state_delta), grads), reference = everything(params, x, state)
        assert none is None
        for ours, theirs in zip(
            jax.tree.leaves((grads, x_delta, state_delta)), jax.tree.leaves(reference), strict=True
        ):
            assert jnp.linalg.norm(ours - theirs) <= 1e-10 * jnp.linalg.norm(theirs)
        assert not x_delta[1, 3:].any()  # padding
        garbage = x.at[1, 3:].set(1e6)
        again, _, _ = everything(params, garbage, state)
        for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_is_the_recurrence_step_by_step(self, cell, output, reverse):
        layer = CELLS[cell](4, output=output, reverse=reverse)
        params, _ = draw(layer, (6, 3))
        x = numbers(2, 6, 3)
        sigmoid = lambda z: 1 / (1 + np.exp(-z))
        h = c = np.zeros((2, 4))
        outputs = {}
        for t in reversed(range(6)) if reverse else range(6):
            z, s = x[:, t] @ params["wx"] + params["b"], h @ params["wh"]
            if cell == "rnn":
                h = np.tanh(z + s)
            elif cell == "lstm":
                i, f, g, o = np.split(z + s, 4, axis=1)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
            else:
                (z_u, z_r, z_n), (s_u, s_r, s_n) = np.split(z, 3, axis=1), np.split(s, 3, axis=1)
                u = sigmoid(z_u + s_u)
                n = np.tanh(z_n + sigmoid(z_r + s_r) * (s_n + params["bh"]))
                h = (1 - u) * n + u * h
            outputs[t] = h
        expected = np.stack([outputs[t] for t in range(6)], axis=1) if output == "sequence" else h
        np.testing.assert_allclose(layer.forward(params, x)[0], expected, rtol=1e-4, atol=1e-5)


def test_two_halves_with_a_carried_state_are_the_whole_sequence():
    layer, whole = layers.lstm(4, with_state=True), layers.lstm(4)
    params, _ = draw(whole, (6, 3))
    x = numbers(2, 6, 3)
    first, state = layer.forward(params, (x[:, :3], layers.zero_state(layer, params, 2)))[0]
    second, _ = layer.forward(params, (x[:, 3:], state))[0]
    np.testing.assert_allclose(
        np.concatenate([first, second], axis=1), whole.forward(params, x)[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("cell", CELLS)
def test_the_zero_state_does_not_depend_on_the_layers_name(cell):
    layer = CELLS[cell](4, with_state=True)
    params, _ = draw(layer, (6, 3))
    for renamed in (fbp.Layer(*layer), layer._replace(name="lstm of mine")):
        state = layers.zero_state(renamed, params, 2)
        assert [part.shape for part in state] == [(2, 4)] * (2 if cell == "lstm" else 1)
        renamed.forward(params, (numbers(2, 6, 3), state))
    with pytest.raises(ShapeError, match="zero_state expects the parameters of a recurrent layer"):
        layers.zero_state(layers.dense(3), draw(layers.dense(3), (4,))[0], 2)


def test_how_layers_run_one_position_at_a_time():
    """Positionwise, by an incremental form, or not at all."""
    positionwise = [layers.dense(3), layers.relu(), layers.layer_norm(), layers.dropout(0.1)]
    positionwise += [layers.embedding(3, 2), layers.add(), layers.batch_norm(), layers.softmax()]
    assert {layer.incremental for layer in positionwise} == {"positionwise"}
    mixing = [layers.conv1d(3, 3), layers.max_pool(2), layers.flatten(), layers.transpose((1, 0))]
    mixing += [layers.group_norm(1), layers.attention(2), layers.lstm(3, reverse=True)]
    mixing += [layers.gru(3, output="last"), layers.rnn(3, with_lengths=True)]
    mixing += [layers.dot_product_attention(causal=True), layers.attention(2, cross=True)]
    assert {layer.incremental for layer in mixing} == {None}
    unlimited = [layers.lstm(3), layers.sinusoidal_positions()]
    limited = [layers.attention(2, causal=True), layers.learned_positions()]
    assert [layer.incremental.limited for layer in (*unlimited, *limited)] == [False] * 2 + [
        True
    ] * 2


def test_weight_norm_takes_a_layer_and_not_its_factory():
    with pytest.raises(InputError, match="weight_norm: expected a Layer, got 'dense'; call it"):
        layers.weight_norm(layers.dense)


def test_recurrent_defaults():
    params, _ = layers.lstm(8).init(jax.random.key(0), (5, 3))
    assert params["b"].reshape(4, 8).sum(axis=1).tolist() == [
        0,
        8,
        0,
        0,
    ]  # the forget gate's bias is 1
    for gate in np.split(np.asarray(params["wh"]), 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(8), atol=1e-5)


class TestRepeat:
    def test_is_the_chain_of_its_copies(self):
        layer, times = fbp.residual(layers.dense(5), layers.tanh()), 4
        params, _ = draw(fbp.repeat(layer, times), (5,))
        unrolled = tuple(jax.tree.map(lambda p, i=i: p[i], params) for i in range(times))
        x, y = numbers(3, 5), numbers(3, 5, seed=2)
        cost, grads = fbp.value_and_grad(fbp.repeat(layer, times), losses.quadratic)(params, x, y)
        expected_cost, expected = fbp.value_and_grad(fbp.chain(*[layer] * times), losses.quadratic)(
            unrolled, x, y
        )
        np.testing.assert_allclose(cost, expected_cost, rtol=1e-5)
        for i in range(times):
            ours = jax.tree.map(lambda g, i=i: g[i], grads)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
                ours,
                expected[i],
            )

    def test_deltas_come_stacked(self):
        model = fbp.chain(layers.dense(5), fbp.repeat(fbp.residual(layers.dense(5)), 3))
        params, _ = draw(model, (4,))
        found = fbp.deltas(model, losses.quadratic)(params, numbers(2, 4), numbers(2, 5))
        assert found["1/body"].shape == (3, 2, 5)

    def test_bytes_and_scratch_against_autodiff_and_a_program_that_does_not_grow(self):
        """Bytes at most 0.8x; with recompute, scratch memory at most 0.4x."""
        block = fbp.residual(
            layers.layer_norm(), layers.dense(128), layers.gelu(), layers.dense(64)
        )
        x, y = numbers(64, 64), numbers(64, 64, seed=2)

        def compiled(model, gradient):
            params, _ = draw(model, (64,))
            return compile_as_shipped(jax.jit(gradient).lower(params, x, y))

        def ours(model):
            return compiled(model, fbp.value_and_grad(model, losses.quadratic))

        def figure(program, name):
            return (
                program.cost_analysis()[name]
                if name == "bytes accessed"
                else program.memory_analysis().temp_size_in_bytes
            )

        plain, frugal = fbp.repeat(block, 32), fbp.repeat(fbp.recompute(block), 32)
        theirs = compiled(
            plain,
            jax.grad(lambda p, x, y: losses.quadratic.value(plain.forward(p, x)[0], y).mean()),
        )
        program = ours(plain)
        assert figure(program, "bytes accessed") <= 0.8 * figure(theirs, "bytes accessed")
        assert figure(program, "scratch") <= 0.8 * figure(theirs, "scratch")
        assert figure(ours(frugal), "scratch") <= 0.4 * figure(theirs, "scratch")
        assert len(program.as_text().splitlines()) <= 1.05 * len(
            ours(fbp.repeat(block, 3)).as_text().splitlines()
        )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.bfloat16, 0.05), (jnp.float16, 0.01)], ids=["bfloat16", "float16"]
)
def test_precision_computes_inside_and_keeps_float32_outside(dtype, tolerance):
    model = fbp.chain(layers.dense(16), layers.gelu(), layers.layer_norm(), layers.dense(3))
    params, _ = draw(model, (8,))
    x, y = numbers(32, 8), 1e-4 * numbers(32, 3, seed=2)
    mixed = fbp.precision(model, dtype)
    output, cache = mixed.forward(params, x)
    assert output.dtype == jnp.float32
    assert all(leaf.dtype in (dtype, jnp.float32) for leaf in jax.tree.leaves(cache))
    assert any(leaf.dtype == dtype for leaf in jax.tree.leaves(cache))
    _, ours = fbp.value_and_grad(mixed, losses.quadratic)(params, x, y)
    _, exact = fbp.value_and_grad(model, losses.quadratic)(params, x, y)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def test_loss_scaling_keeps_small_deltas_of_float16():
    layer = layers.dense(4)
    params, _ = draw(layer, (4,))
    delta = np.full((2, 4), 1e-8, np.float32)  # below the smallest float16
    for scale, survives in ((None, True), (1.0, False)):
        mixed = fbp.precision(layer, jnp.float16, loss_scale=scale)
        _, cache = mixed.forward(params, numbers(2, 4))
        assert bool(jnp.any(mixed.backward(params, cache, delta)[1]["w"])) == survives


@pytest.mark.parametrize(
    ("make", "shape", "problem"),
    [
        (
            lambda: layers.conv2d(4, 3), (8, 8),
            r"conv2d expects examples of shape \(H, W, C\), got \(8, 8\)"),
        (lambda: layers.conv1d(4, 3), (8, 8, 1), r"conv1d expects examples of shape \(T, C\)"),
        (lambda: layers.conv2d(4, 3, groups=2), (8, 8, 3), "multiple of 2, got 3"),
        (lambda: layers.conv2d(4, 9, padding="VALID"), (8, 8, 3),
         "a window of 9 x 9 does not fit an input of 8 x 8"),
        (lambda: layers.max_pool(9), (8, 8, 3), "a window of 9 x 9 does not fit"),
        (lambda: layers.conv2d(4, 19), (8, 8, 3),
         "a window of 19 x 19 is more than twice as large as the input of 8 x 8"),
        (lambda: layers.max_pool(2), (8,), "expects examples of shape"),
        (lambda: layers.global_avg_pool(), (8,), "expects examples with positions and channels"),
        (lambda: layers.group_norm(4), (8, 6), "multiple of 4"),
        (lambda: layers.reshape((3, -1)), (4,),
         r"reshape to \(3, -1\) does not fit an input of shape \(4,\)"),
        (lambda: layers.transpose((1, 0)), (4,), "does not fit"),
        (lambda: layers.crop([(2, 2)]), (4, 1), "leaves nothing"),
        (lambda: layers.lstm(3), (4,), r"lstm expects examples of shape \(T, F\), got \(4,\)"),
        (lambda: layers.learned_positions(5), (6, 2), "at most 5 positions"),
        (lambda: layers.glu(), (5,), "an even last axis"),
        (lambda: layers.maxout(2), (5,), "multiple of 2"),
        (lambda: fbp.repeat(layers.dense(3), 2), (4,),
         r"keeps the shape \(4,\), but dense\(3\) gives \(3,\)"),
    ],
)  # fmt: skip
def test_a_shape_that_does_not_fit_is_named_with_its_place(make, shape, problem):
    model = fbp.chain(layers.identity(), make())
    with pytest.raises(ShapeError, match=problem) as caught:
        model.init(jax.random.key(0), shape)
    assert str(caught.value).startswith("layer 1")


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.dense(0),
        lambda: layers.conv2d(3, 3, groups=2),
        lambda: layers.conv2d(3, 0),
        lambda: layers.conv2d(3, 3, padding="SOME"),
        lambda: layers.conv2d(3, (3, 3, 3)),
        lambda: layers.max_pool((2, 2, 2)).init(jax.random.key(0), (4, 4, 1)),
        lambda: layers.embedding(0, 3),
        lambda: layers.lstm(0),
        lambda: layers.lstm(3, output="all"),
        lambda: layers.group_norm(0),
        lambda: layers.upsample(0),
        lambda: layers.reshape((-1, -1)),
        lambda: layers.transpose((0, 2)),
        lambda: layers.pad([(-1, 0)]),
        lambda: fbp.repeat(layers.dense(3), 0),
        lambda: fbp.parallel(),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make):
    with pytest.raises(InputError):
        make()


def test_tokens_must_be_whole_numbers():
    layer = layers.embedding(5, 2)
    with pytest.raises(ShapeError, match="whole numbers"):
        layer.forward(layer.init(jax.random.key(0), (3,))[0], jnp.ones((1, 3)))
