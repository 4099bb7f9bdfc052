"""Each implementation of an operation, forced, against vjp and finite differences."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import _kernels, layers, losses
from fbp.layers import _convolution, _recurrent_scan
from tests.tables import compile_as_shipped


@pytest.fixture(params=["always", "never"])
def threshold(request, monkeypatch):
    """Use the implementations for large sizes at any size, or at none."""
    limit = 1 if request.param == "always" else 10**9
    monkeypatch.setattr(_kernels, "DILATED_MIN_CHANNELS", limit)
    monkeypatch.setattr(_convolution, "DILATED_MIN_CHANNELS", limit)
    monkeypatch.setattr(_kernels, "MIN_FEATURES_TO_SPLIT", limit)
    monkeypatch.setattr(_kernels, "MIN_BATCH_TO_SPLIT", 2)
    return request.param


CONVOLUTIONS = {
    "plain": (layers.conv2d(3, 3), (5, 6, 2)),
    "stride": (layers.conv2d(3, 3, stride=2), (7, 6, 2)),
    "uneven": (layers.conv2d(3, (2, 3), stride=(1, 2), padding=[(1, 0), (2, 1)]), (6, 7, 2)),
    "dilation": (layers.conv2d(2, 3, dilation=2, padding="VALID"), (7, 8, 2)),
    "stride and dilation": (layers.conv2d(2, 2, stride=2, dilation=2, padding=1), (7, 8, 2)),
    "groups": (layers.conv2d(4, 3, groups=2), (5, 5, 4)),
    "one axis": (layers.conv1d(3, 3, stride=2), (9, 2)),
    "transposed": (layers.conv_transpose2d(2, 3, stride=2), (3, 4, 3)),
    "pooled in tiles": (fbp.chain(layers.conv2d(2, 3), layers.max_pool(2)), (4, 6, 2)),
    "tiles with a rest": (fbp.chain(layers.conv2d(2, 3), layers.avg_pool((2, 3))), (5, 7, 2)),
    "pooled with overlap": (
        fbp.chain(layers.conv2d(2, 3), layers.max_pool(3, stride=2, padding="SAME")),
        (5, 6, 2),
    ),
}
RECURRENT = {
    "lstm": (layers.lstm(5), (4, 3)),
    "gru": (layers.gru(4, output="last"), (4, 3)),
    "rnn": (layers.rnn(3, reverse=True), (4, 3)),
}


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *RECURRENT])
def test_all_implementations_give_the_same_deltas(threshold, x64, name):
    layer, shape = (CONVOLUTIONS | RECURRENT)[name]
    params, out = layer.init(jax.random.key(0), shape)
    x, y = (
        jax.random.normal(jax.random.key(1), (3, *shape)),
        jax.random.normal(jax.random.key(2), (3, *out)),
    )
    report = fbp.check_gradients(layer, losses.mean_squared_error, params, x, y)
    assert report.ok, str(report)


def test_the_chosen_implementation_is_compiled(threshold):
    """Distances are doubled, and a recurrence's batch is split in two."""
    layer = layers.conv2d(8, 3)
    params, _ = layer.init(jax.random.key(0), (6, 6, 4))
    program = jax.jit(layer.forward).lower(params, jnp.ones((2, 6, 6, 4))).as_text()
    assert ("rhs_dilate = [2, 2]" in program) == (threshold == "always")
    cell = layers.lstm(10)
    params, _ = cell.init(jax.random.key(0), (4, 3))
    x, delta = jnp.ones((6, 4, 3)), jnp.ones((6, 4, 10))
    program = (
        jax.jit(lambda p, x: cell.backward(p, cell.forward(p, x)[1], delta))
        .lower(params, x)
        .as_text()
    )
    for product in (
        "(tensor<3x10xf32>, tensor<10x40xf32>)",
        "(tensor<3x40xf32>, tensor<40x10xf32>)",
    ):
        assert (product in program) == (threshold == "always")


@pytest.mark.parametrize("make", [layers.lstm, layers.gru, layers.rnn])
@pytest.mark.parametrize("batch", [2, 5])
def test_a_split_batch_with_lengths_and_state(monkeypatch, x64, make, batch):
    """A batch split in two gives the same states, deltas and gradients as one that is not."""
    layer = make(4, with_lengths=True, with_state=True)
    params, _ = layer.init(jax.random.key(0), (6, 3))
    x, lengths = jax.random.normal(jax.random.key(1), (batch, 6, 3)), jnp.arange(batch) + 1
    state = jax.tree.map(lambda s: s + 0.1, layers.zero_state(layer, params, batch))

    def forward_and_backward():
        output, cache = layer.forward(params, (x, lengths, state))
        return output, layer.backward(params, cache, jax.tree.map(jnp.cos, output))

    whole = forward_and_backward()
    monkeypatch.setattr(_kernels, "MIN_FEATURES_TO_SPLIT", 1)
    monkeypatch.setattr(_kernels, "MIN_BATCH_TO_SPLIT", 2)
    lowered = jax.jit(lambda x: layer.forward(params, (x, lengths, state))[0]).lower(x).as_text()
    assert f"tensor<{batch - batch // 2}x4xf64>" in lowered  # the batch is split
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12),
        forward_and_backward(),
        whole,
    )


def test_constants_are_those_of_the_kernels():
    """Otherwise the tests above would not force an implementation."""
    assert _convolution.DILATED_MIN_CHANNELS == _kernels.DILATED_MIN_CHANNELS
    assert _recurrent_scan.RNN_UNROLL == _kernels.RNN_UNROLL


def test_delayed_gradients_keep_their_bits_and_weights_are_not_copied_in_the_loop():
    special = {
        "a": jnp.array([1.5, -0.0, jnp.nan, jnp.inf]),
        "b": jnp.zeros((0, 2)),
        "c": jnp.bfloat16(2),
    }
    for grads in (special, {}, {"a": jnp.array([jnp.nan, 1.0])}):
        for delayed, grad in zip(
            jax.tree.leaves(grads),
            jax.tree.leaves(jax.jit(_kernels.delay_until_backward_done)(grads)),
            strict=True,
        ):
            assert delayed.dtype == grad.dtype
            assert delayed.tobytes() == grad.tobytes()
    model = fbp.models.mlp(4, (64, 96))
    params, _ = model.init(jax.random.key(0), (8,))
    optimizer = fbp.optimizers.sgd(0.1)
    state = fbp.training.TrainState(params, optimizer.init(params), jnp.int32(0), jax.random.key(0))
    steps = fbp.training.make_steps(
        model, fbp.losses.softmax_cross_entropy, optimizer, batch_size=8, max_steps=9
    )
    program = compile_as_shipped(
        jax.jit(steps, donate_argnums=0).lower(
            state, jnp.ones((80, 8)), jnp.zeros(80, jnp.int32), 9
        )
    )
    assert "f32[64,96]" in program.as_text()
    assert not re.search(r"f32\[64,96\]\S* copy\(", program.as_text())
