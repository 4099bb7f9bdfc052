"""Attacks on numbers of the library: labels, masks, ranges, empty batches, wrong arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import layers, losses, models, optimizers, schedules
from fbp.errors import InputError
from fbp.training import make_evaluate

LABEL_LOSSES = {
    "softmax_cross_entropy": losses.softmax_cross_entropy,
    "multiclass_hinge": losses.multiclass_hinge,
    "cross_entropy": losses.cross_entropy,
}
CLASSES = 3


def outputs(loss, *shape):
    logits = jax.random.normal(jax.random.key(0), (*shape, CLASSES))
    return jax.nn.softmax(logits) if loss.takes_probabilities else logits


# --- labels -----------------------------------------------------------------------------------


@pytest.mark.promise("labels-are-classes")
@pytest.mark.parametrize("name", LABEL_LOSSES)
@pytest.mark.parametrize("label", [CLASSES, CLASSES + 1, 1000, 2**31 - 1])
@pytest.mark.parametrize("dtype", ["int32", "uint32", "int16", "uint8"])
@pytest.mark.parametrize("shape", [(4,), (4, 2)])
def test_a_label_beyond_the_classes_is_told(name, label, dtype, shape):
    loss = LABEL_LOSSES[name]
    if label > np.iinfo(dtype).max:
        pytest.skip("the dtype cannot hold this label")
    output = outputs(loss, *shape)
    target = jnp.zeros(shape, dtype).at[(1,) + (0,) * (len(shape) - 1)].set(label)
    for function in (loss.value, loss.delta):
        with pytest.raises(InputError, match=r"labels from 0 to 2 \(negative: no target\)"):
            function(output, target)
    costs, delta = jax.jit(loss.value)(output, target), jax.jit(loss.delta)(output, target)
    assert np.isnan(costs[1])
    assert np.isnan(delta[1]).any()
    assert np.isfinite(np.delete(costs, 1)).all()
    assert np.isfinite(np.delete(delta, 1, axis=0)).all()


@pytest.mark.promise("labels-are-classes")
def test_labels_that_begin_with_one_do_not_train():
    model = fbp.chain(layers.dense(CLASSES))
    params, _ = model.init(jax.random.key(0), (2,))
    x, y = jnp.ones((3, 2)), jnp.array([1, 2, 3])
    run = fbp.value_and_grad(model, losses.softmax_cross_entropy)
    with pytest.raises(InputError, match="labels begin with 0"):
        run(params, x, y)
    cost, grads = jax.jit(run)(params, x, y)
    assert np.isnan(cost)
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(grads))


@pytest.mark.promise("labels-are-classes")
@pytest.mark.parametrize("token", [-1, -100, 5, 1000])
def test_a_token_beyond_the_vocabulary_is_nan(token):
    layer = layers.embedding(5, 2)
    params, _ = layer.init(jax.random.key(0), (3,))
    y, cache = layer.forward(params, jnp.array([[0, token, 4]]))
    assert np.isnan(y[0, 1]).all()
    _, grads = layer.backward(params, cache, jnp.ones_like(y))
    assert np.isfinite(grads["w"]).all()


@pytest.mark.promise("no-target-no-part")
@pytest.mark.parametrize("name", LABEL_LOSSES)
@pytest.mark.parametrize("label", [-1, -2, -100, -(2**31)])
@pytest.mark.parametrize("row", [-np.inf, np.nan, np.inf, 1e38])
def test_any_negative_label_is_no_target(name, label, row):
    """Whatever the output is there."""
    loss = LABEL_LOSSES[name]
    output = outputs(loss, 4).at[1].set(row)
    target = jnp.array([0, label, 2, 1])
    costs, delta = loss.value(output, target), loss.delta(output, target)
    assert costs[1] == 0
    assert not delta[1].any()
    clean = output.at[1].set(0.5), target.at[1].set(0)  # as large: GPUs round by the batch size
    rest = np.array([0, 2, 3])
    assert np.array_equal(costs[rest], loss.value(*clean)[rest])
    assert np.array_equal(delta[rest], loss.delta(*clean)[rest])


@pytest.mark.promise("no-target-no-part")
@pytest.mark.parametrize("name", LABEL_LOSSES)
@pytest.mark.parametrize("sequence", [False, True])
@jax.default_matmul_precision("highest")  # a GPU may round to TF32, by the batch's size
def test_means_are_over_what_has_a_target(name, sequence):
    loss = LABEL_LOSSES[name]
    activation = [layers.softmax()] if loss.takes_probabilities else []
    model = fbp.chain(layers.dense(CLASSES), *activation)
    shape = (6, 3) if sequence else (6,)
    x = jax.random.normal(jax.random.key(1), (*shape, 4))
    params, _ = model.init(jax.random.key(0), x.shape[1:])
    y = jax.random.randint(jax.random.key(2), shape, 0, CLASSES)
    without = y.at[jnp.array([1, 4])].set(-100)
    labelled = np.array([0, 2, 3, 5])
    run = fbp.value_and_grad(model, loss)
    cost, grads = run(params, x, without)
    expected, expected_grads = run(params, x[labelled], y[labelled])
    np.testing.assert_allclose(cost, expected, rtol=1e-6)
    for ours, theirs in zip(*map(jax.tree.leaves, (grads, expected_grads)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    metrics = {"accuracy": fbp.metrics.accuracy}
    for size in (6, 4, 1):
        evaluate = make_evaluate(model, loss, batch_size=size, metrics=metrics)
        whole, part = evaluate(params, x, without), evaluate(params, x[labelled], y[labelled])
        for key, value in part.items():
            np.testing.assert_allclose(whole[key], value, rtol=1e-6)
    assert fbp.check_gradients(model, loss, params, x, without).ok


# --- masks ------------------------------------------------------------------------------------

MASKED = {
    "attention": (layers.attention(2, with_lengths=True), (3, 4)),
    "causal attention": (layers.attention(2, causal=True, with_lengths=True), (3, 4)),
    "rnn": (layers.rnn(4, with_lengths=True), (3, 4)),
    "lstm": (layers.lstm(4, with_lengths=True), (3, 4)),
    "gru": (layers.gru(4, with_lengths=True), (3, 4)),
}


@pytest.mark.promise("masks-select")
@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("lengths", [(2, 1), (1, 3), (0, 2)])
def test_what_lies_behind_a_length_changes_nothing(name, value, lengths):
    layer, shape = MASKED[name]
    params, _ = layer.init(jax.random.key(0), shape)
    x = jax.random.normal(jax.random.key(1), (2, *shape))
    real = np.arange(shape[0]) < np.array(lengths)[:, None]
    real, lengths = jnp.asarray(real)[..., None], jnp.array(lengths)
    delta = jnp.where(real, jax.random.normal(jax.random.key(2), x.shape), 0)

    def run(x):
        y, cache = layer.forward(params, (x, lengths))
        input_delta, grads = layer.backward(params, cache, delta)
        return jnp.where(real, y, 0), input_delta[0], grads

    expected, actual = run(jnp.where(real, x, 0)), run(jnp.where(real, x, value))
    for ours, theirs in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.promise("masks-select")
def test_keys_behind_a_length_change_nothing():
    layer = layers.dot_product_attention(with_lengths=True)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 4, 2, 3))
    lengths = jnp.array([2, 0])
    real = (jnp.arange(4) < lengths[:, None])[..., None, None]

    def run(k, v):
        y, cache = layer.forward((), (q, k, v, lengths))
        return y, layer.backward((), cache, jnp.ones_like(y))[0][:3]

    clean = run(jnp.where(real, k, 0), jnp.where(real, v, 0))
    dirty = run(jnp.where(real, k, jnp.nan), jnp.where(real, v, jnp.inf))
    for ours, theirs in zip(*map(jax.tree.leaves, (dirty, clean)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.promise("masks-select")
def test_a_weight_of_zero_leaves_out_whatever_is_there():
    model = fbp.chain(layers.dense(1))
    params, _ = model.init(jax.random.key(0), (2,))
    x, y = jnp.ones((3, 2)), jnp.array([[1.0], [jnp.nan], [2.0]])
    run = fbp.value_and_grad(model, losses.mean_squared_error)
    cost, grads = run(params, x, y, cost_weights=jnp.array([0.5, 0.0, 0.5]))
    assert np.isfinite(cost)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


# --- examples that are coupled ----------------------------------------------------------------


def pairs(output, target):
    """A cost over all pairs of a batch."""
    return ((output - output.mean(axis=0) - target) ** 2).sum(axis=1)


@pytest.mark.promise("coupled-examples-are-told")
def test_weights_and_single_examples_of_a_coupled_loss_are_refused():
    loss = losses.from_function(pairs, coupled=True)
    model = fbp.chain(layers.dense(1))
    params, _ = model.init(jax.random.key(0), (2,))
    x, y = jnp.ones((3, 2)), jnp.ones((3, 1))
    with pytest.raises(InputError, match="couples the examples"):
        fbp.value_and_grad(model, loss)(params, x, y, cost_weights=jnp.ones(3) / 3)
    with pytest.raises(InputError, match="couples the examples"):
        fbp.diagnostics.per_example_gradient_norms(model, loss)


@pytest.mark.promise("coupled-examples-are-told")
def test_each_example_draws_its_own_mask():
    model = fbp.chain(layers.dropout(0.5), layers.dense(1))
    params, _ = model.init(jax.random.key(0), (64,))
    x, y = jnp.ones((8, 64)), jnp.ones((8, 1))
    norms = fbp.diagnostics.per_example_gradient_norms(model, losses.mean_squared_error)
    assert len(set(np.asarray(norms(params, x, y)).tolist())) == 1
    assert len(set(np.asarray(norms(params, x, y, jax.random.key(1))).tolist())) > 1


@pytest.mark.promise("coupled-examples-are-told")
def test_batch_norm_in_training_has_no_gradient_of_one_example():
    model = fbp.chain(layers.dense(2), layers.batch_norm(), layers.dense(1))
    params, _ = model.init(jax.random.key(0), (2,))
    norms = fbp.diagnostics.per_example_gradient_norms(model, losses.mean_squared_error)
    x, y = jnp.ones((3, 2)), jnp.ones((3, 1))
    assert norms(params, x, y).shape == (3,)
    with pytest.raises(InputError, match=r"batch_norm.* couples the examples"):
        norms(params, x, y, jax.random.key(0))


# --- arguments --------------------------------------------------------------------------------

WRONG = {
    "dense of a text": lambda: layers.dense("a"),
    "dense of nothing": lambda: layers.dense(),
    "dense of 0": lambda: layers.dense(0),
    "dense of -1": lambda: layers.dense(-1),
    "dense of 1.5": lambda: layers.dense(1.5),
    "dense of True": lambda: layers.dense(True),
    "dense of a list": lambda: layers.dense([3]),
    "dense with a number for weights": lambda: layers.dense(3, weights=0.1),
    "dense with an unknown option": lambda: layers.dense(3, biass=False),
    "dense with a number for bias": lambda: layers.dense(3, bias=1),
    "dropout of 1": lambda: layers.dropout(1),
    "dropout of -0.1": lambda: layers.dropout(-0.1),
    "dropout of 1.5": lambda: layers.dropout(1.5),
    "dropout of 50": lambda: layers.dropout(50),
    "dropout of nan": lambda: layers.dropout(float("nan")),
    "dropout of a text": lambda: layers.dropout("0.5"),
    "dropout of None": lambda: layers.dropout(None),
    "stochastic_depth of 1": lambda: layers.stochastic_depth(1.0),
    "conv2d of window 0": lambda: layers.conv2d(3, 0),
    "conv2d of a text as window": lambda: layers.conv2d(3, "3"),
    "conv2d of stride 0": lambda: layers.conv2d(3, 3, stride=0),
    "conv2d of unknown padding": lambda: layers.conv2d(3, 3, padding="same"),
    "conv2d of dilation 0": lambda: layers.conv2d(3, 3, dilation=0),
    "conv2d of groups 0": lambda: layers.conv2d(3, 3, groups=0),
    "conv1d of channels 0": lambda: layers.conv1d(0, 3),
    "max_pool of window 0": lambda: layers.max_pool(0),
    "avg_pool of window -2": lambda: layers.avg_pool(-2),
    "attention of 0 heads": lambda: layers.attention(0),
    "attention of a text": lambda: layers.attention("2"),
    "attention causal by a number": lambda: layers.attention(2, causal=1),
    "embedding of 0 tokens": lambda: layers.embedding(0, 3),
    "lstm of 0 features": lambda: layers.lstm(0),
    "lstm of an unknown output": lambda: layers.lstm(3, output="all"),
    "group_norm of 0 groups": lambda: layers.group_norm(0),
    "layer_norm of epsilon 0": lambda: layers.layer_norm(epsilon=0.0),
    "batch_norm of a negative epsilon": lambda: layers.batch_norm(epsilon=-1e-5),
    "leaky_relu of a text": lambda: layers.leaky_relu("0.1"),
    "maxout of 0 pieces": lambda: layers.maxout(0),
    "upsample by 0": lambda: layers.upsample(0),
    "huber of 0": lambda: losses.huber(0),
    "huber of a text": lambda: losses.huber("1"),
    "mlp of a text": lambda: models.mlp(3, hidden="64"),
    "mlp of width 0": lambda: models.mlp(3, hidden=[0]),
    "mlp of 0 outputs": lambda: models.mlp(0, hidden=[4]),
    "repeat 0 times": lambda: fbp.repeat(layers.dense(3), 0),
    "repeat of a text": lambda: fbp.repeat(layers.dense(3), "3"),
    "sgd of 0": lambda: optimizers.sgd(0.0),
    "sgd of nan": lambda: optimizers.sgd(float("nan")),
    "sgd of inf": lambda: optimizers.sgd(float("inf")),
    "sgd of -1": lambda: optimizers.sgd(-1.0),
    "adam of a text": lambda: optimizers.adam("0.1"),
    "adam of a list": lambda: optimizers.adam([0.1]),
    "adam of beta1 1": lambda: optimizers.adam(0.1, beta1=1.0),
    "adam of epsilon 0": lambda: optimizers.adam(0.1, epsilon=0.0),
    "momentum of 1": lambda: optimizers.momentum(0.1, momentum=1.0),
    "accumulate every 0": lambda: optimizers.accumulate(optimizers.sgd(0.1), every=0),
    "clip by 0": lambda: optimizers.clip_by_global_norm(0.0),
    "clip by -1": lambda: optimizers.clip_by_value(-1.0),
    "decay of -1": lambda: optimizers.l2(-1.0),
    "cosine of 0 steps": lambda: schedules.cosine(0.1, 0),
    "warmup of a text": lambda: schedules.warmup("a", 10),
    "an uncalled layer": lambda: fbp.chain(layers.dense),
    "an uncalled loss": lambda: fbp.value_and_grad(fbp.chain(layers.dense(3)), losses.huber),
}


@pytest.mark.promise("wrong-arguments-are-told")
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_told_in_one_line(case):
    with pytest.raises(InputError) as caught:
        WRONG[case]()
    assert "\n" not in str(caught.value)


@pytest.mark.promise("wrong-arguments-are-told")
@pytest.mark.parametrize(
    "make",
    [lambda x: layers.dropout(x), lambda x: optimizers.adam(x), lambda x: losses.huber(x),
     lambda x: optimizers.clip_by_global_norm(x), lambda x: layers.leaky_relu(x)],
)  # fmt: skip
def test_a_tracer_is_no_wrong_argument(make):
    jax.jit(lambda x: (make(x), x)[1])(0.5)
    make(jnp.asarray(0.5)), make(np.float32(0.5)), make(np.asarray(0.5))


# --- empty batches ----------------------------------------------------------------------------

EMPTY = {
    "dense": (layers.dense(3), (4,)),
    "relu": (layers.relu(), (4,)),
    "softmax": (layers.softmax(), (4,)),
    "flatten": (layers.flatten(), (2, 2, 1)),
    "reshape": (layers.reshape((4,)), (2, 2)),
    "dropout": (layers.dropout(0.5), (4,)),
    "conv2d": (layers.conv2d(2, 3), (4, 4, 1)),
    "max_pool": (layers.max_pool(2), (4, 4, 1)),
    "avg_pool": (layers.avg_pool(2), (4, 4, 1)),
    "global_avg_pool": (layers.global_avg_pool(), (4, 4, 2)),
    "layer_norm": (layers.layer_norm(), (4,)),
    "rms_norm": (layers.rms_norm(), (4,)),
    "group_norm": (layers.group_norm(2), (4, 4, 2)),
    "rnn": (layers.rnn(3), (4, 2)),
    "lstm": (layers.lstm(3), (4, 2)),
    "gru": (layers.gru(3), (4, 2)),
    "attention": (layers.attention(2), (4, 4)),
    "glu": (layers.glu(), (4,)),
    "maxout": (layers.maxout(2), (4,)),
}


@pytest.mark.promise("an-empty-batch-is-empty")
@pytest.mark.parametrize("name", EMPTY)
def test_a_batch_without_examples_gives_none(name):
    layer, shape = EMPTY[name]
    params, out = layer.init(jax.random.key(0), shape)
    for key in (None, jax.random.key(1)):
        y, cache = layer.forward(params, jnp.zeros((0, *shape)), key=key)
        assert y.shape == (0, *out)
        delta, grads = layer.backward(params, cache, jnp.zeros_like(y))
        assert delta.shape == (0, *shape)
        assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


@pytest.mark.promise("an-empty-batch-is-empty")
def test_a_batch_without_examples_has_no_mean():
    model = fbp.chain(layers.dense(1))
    params, _ = model.init(jax.random.key(0), (2,))
    run = fbp.value_and_grad(model, losses.mean_squared_error)
    with pytest.raises(InputError, match="at least one example"):
        run(params, jnp.zeros((0, 2)), jnp.zeros((0, 1)))
    for loss in (
        losses.mean_squared_error,
        losses.mean_absolute_error,
        losses.huber(),
        losses.log_cosh,
        losses.quadratic,
    ):
        assert loss.value(jnp.zeros((0, 2)), jnp.zeros((0, 2))).shape == (0,)
        assert loss.delta(jnp.zeros((0, 2)), jnp.zeros((0, 2))).shape == (0, 2)


# --- layers at their limits -------------------------------------------------------------------


@pytest.mark.promise("limits-are-right")
def test_weight_norm_of_zero_weights_is_finite():
    layer = layers.weight_norm(layers.dense(2))
    params, _ = layer.init(jax.random.key(0), (3,))
    params = jax.tree.map(jnp.zeros_like, params)
    y, cache = layer.forward(params, jnp.ones((2, 3)))
    _, grads = layer.backward(params, cache, jnp.ones_like(y))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, grads)))


@pytest.mark.promise("limits-are-right")
def test_no_pool_looks_into_padding_alone():
    for pool in (layers.max_pool, layers.avg_pool):
        for padding in (((3, 3), (3, 3)), ((2, 0), (0, 0)), ((0, 0), (0, 3))):
            layer = pool(2, padding=padding)
            with pytest.raises(InputError, match="lies in padding alone"):
                layer.init(jax.random.key(0), (4, 4, 1))
            with pytest.raises(InputError, match="lies in padding alone"):
                layer.forward((), jnp.ones((1, 4, 4, 1)))
        layer = pool(2, padding=((1, 1), (1, 0)))
        y, _ = layer.forward((), jnp.ones((1, 4, 4, 1)))
        assert np.isfinite(y).all()


# --- the gradient check -----------------------------------------------------------------------


def hidden_term(at):
    """A layer whose forward hides a term from autodiff, and whose backward lacks it, too."""
    forward = lambda params, x: x * x + jax.lax.stop_gradient(jnp.sin(x))
    hidden = fbp.from_function(forward, lambda key, shape: ((), shape))
    parts = [hidden, layers.dense(3)] if at == "first" else [layers.dense(3), hidden]
    return fbp.chain(*parts)


@pytest.mark.promise("the-check-finds")
@pytest.mark.parametrize("at", ["first", "last"])
def test_a_term_that_the_forward_hides_is_found(at):
    model = hidden_term(at)
    params, _ = model.init(jax.random.key(0), (4,))
    x = jax.random.normal(jax.random.key(1), (5, 4))
    report = fbp.check_gradients(model, losses.mean_squared_error, params, x, jnp.ones((5, 3)))
    assert any(row.against == "differences" for row in report.failures)


@pytest.mark.promise("the-check-finds")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_wrong_in_one_dtype_only_is_found(dtype):
    dense = layers.dense(3)

    def backward(params, cache, delta):
        input_delta, grads = dense.backward(params, cache, delta)
        factor = 1.5 if delta.dtype == dtype else 1
        return input_delta, grads | {"w": (grads["w"] * factor).astype(grads["w"].dtype)}

    x = jax.random.normal(jax.random.key(1), (5, 4)).astype(dtype)
    y = jnp.ones((5, 3), dtype)
    for model, ok in ((dense, True), (dense._replace(backward=backward), False)):
        params, _ = model.init(jax.random.key(0), (4,))
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        report = fbp.check_gradients(model, losses.mean_squared_error, params, x, y)
        assert report.ok is ok, report
        assert all(row.against == "float64" for row in report.failures)
