"""Every optimizer against its rule in NumPy, and the transforms and schedules by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import optimizers, schedules
from fbp.errors import InputError

LR = 0.1


def sgd(g, w, t, m):
    return -LR * g


def momentum(g, w, t, m):
    m["v"] = 0.9 * m.get("v", 0) + g
    return -LR * m["v"]


def nesterov(g, w, t, m):
    m["v"] = 0.9 * m.get("v", 0) + g
    return -LR * (g + 0.9 * m["v"])


def adagrad(g, w, t, m):
    m["G"] = m.get("G", 0) + g**2
    return -LR * g / (np.sqrt(m["G"]) + 1e-10)


def adadelta(g, w, t, m):
    m["g"] = 0.9 * m.get("g", 0) + 0.1 * g**2
    u = np.sqrt(m.get("u", 0) + 1e-6) / np.sqrt(m["g"] + 1e-6) * g
    m["u"] = 0.9 * m.get("u", 0) + 0.1 * u**2
    return -LR * u


def rmsprop(g, w, t, m):
    m["v"] = 0.9 * m.get("v", 0) + 0.1 * g**2
    return -LR * g / (np.sqrt(m["v"]) + 1e-8)


def rmsprop_centered_momentum(g, w, t, m):
    m["v"] = 0.9 * m.get("v", 0) + 0.1 * g**2
    m["a"] = 0.9 * m.get("a", 0) + 0.1 * g
    m["b"] = 0.8 * m.get("b", 0) + g / (np.sqrt(m["v"] - m["a"] ** 2) + 1e-8)
    return -LR * m["b"]


def _moments(g, m, beta1=0.9, beta2=0.999):
    m["m"] = beta1 * m.get("m", 0) + (1 - beta1) * g
    m["v"] = beta2 * m.get("v", 0) + (1 - beta2) * g**2


def adam(g, w, t, m, epsilon=1e-8):
    _moments(g, m)
    return -LR * m["m"] / (1 - 0.9**t) / (np.sqrt(m["v"] / (1 - 0.999**t)) + epsilon)


def amsgrad(g, w, t, m):
    _moments(g, m)
    m["x"] = np.maximum(m.get("x", 0), m["v"])
    return -LR * m["m"] / (1 - 0.9**t) / (np.sqrt(m["x"] / (1 - 0.999**t)) + 1e-8)


def nadam(g, w, t, m):
    _moments(g, m)
    first = 0.9 * m["m"] / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
    return -LR * first / (np.sqrt(m["v"] / (1 - 0.999**t)) + 1e-8)


def adamw(g, w, t, m):
    return adam(g, w, t, m) - LR * 0.05 * w * (w.ndim > 1)


def lion(g, w, t, m):
    u = np.sign(0.9 * m.get("m", 0) + 0.1 * g)
    m["m"] = 0.99 * m.get("m", 0) + 0.01 * g
    return -LR * (u + 0.05 * w * (w.ndim > 1))


def lamb(g, w, t, m):
    u = -adam(g, w, t, m, 1e-6) / LR + 0.05 * w * (w.ndim > 1)
    ratio = np.linalg.norm(w) / np.linalg.norm(u)
    return -LR * u * (ratio if np.linalg.norm(w) > 0 else 1)


RULES = {
    "sgd": (optimizers.sgd(LR), sgd),
    "momentum": (optimizers.momentum(LR), momentum),
    "nesterov": (optimizers.nesterov(LR), nesterov),
    "adagrad": (optimizers.adagrad(LR), adagrad),
    "adadelta": (optimizers.adadelta(LR), adadelta),
    "rmsprop": (optimizers.rmsprop(LR), rmsprop),
    "rmsprop centered": (
        optimizers.rmsprop(LR, centered=True, momentum=0.8),
        rmsprop_centered_momentum,
    ),
    "adam": (optimizers.adam(LR), adam),
    "amsgrad": (optimizers.amsgrad(LR), amsgrad),
    "nadam": (optimizers.nadam(LR), nadam),
    "adamw": (optimizers.adamw(LR, weight_decay=0.05), adamw),
    "lion": (optimizers.lion(LR, weight_decay=0.05), lion),
    "lamb": (optimizers.lamb(LR, weight_decay=0.05), lamb),
}


def test_every_optimizer_is_in_the_table():
    from fbp.optimizers import aliases

    names = {
        name
        for name, value in vars(aliases).items()
        if getattr(value, "__module__", "") == aliases.__name__
    }
    assert names == {name.split()[0] for name in RULES}


@pytest.mark.parametrize("name", RULES)
def test_rule(name, x64):
    optimizer, rule = RULES[name]
    random = np.random.default_rng(0)
    params = {"w": random.normal(size=(3, 4)), "b": np.zeros(4)}
    expected, memories = dict(params), {"w": {}, "b": {}}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for t in range(1, 8):
        grads = {key: random.normal(size=value.shape) for key, value in params.items()}
        updates, state = update(grads, state, params)
        params = optimizers.apply_updates(params, updates)
        for key in expected:
            expected[key] = expected[key] + rule(grads[key], expected[key], t, memories[key])
            np.testing.assert_allclose(params[key], expected[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_dtypes_are_kept_and_nothing_is_traced_twice(name):
    optimizer, _ = RULES[name]
    params = {"w": jnp.ones((3, 2)), "h": jnp.ones((2, 2), jnp.bfloat16)}
    state = optimizer.init(params)
    traced = 0

    @jax.jit
    def update(grads, state, params):
        nonlocal traced
        traced += 1
        return optimizer.update(grads, state, params)

    for _ in range(3):
        updates, state = update(params, state, params)
        params = optimizers.apply_updates(params, updates)
    assert traced == 1
    assert {key: value.dtype for key, value in params.items()} == {
        "w": jnp.float32,
        "h": jnp.bfloat16,
    }


def test_hyper_parameters_may_be_traced():
    def trained(rate, beta, decay):
        optimizer = optimizers.chain(
            optimizers.clip_by_global_norm(decay),
            optimizers.l2(decay),
            optimizers.adamw(rate, beta1=beta, weight_decay=decay),
            optimizers.average_parameters(beta),
        )
        params = jnp.ones((2, 2))
        return optimizer.update(params, optimizer.init(params), params)[0]

    rates = jnp.array([0.1, 0.2])
    mapped = jax.jit(jax.vmap(trained))(rates, jnp.array([0.9, 0.8]), jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(mapped[1], trained(0.2, 0.8, 0.2), rtol=1e-5)


def updated(transform, grads, params=None):
    params = grads if params is None else params
    return transform.update(grads, transform.init(params), params)[0]


class TestClipping:
    grads = {"a": jnp.array([3.0, -4.0]), "b": jnp.array([0.0, 12.0])}

    def test_by_value(self):
        assert updated(optimizers.clip_by_value(3.5), self.grads)["a"].tolist() == [3.0, -3.5]

    def test_by_norm_of_each_parameter(self):
        clipped = updated(optimizers.clip_by_norm(6.0), self.grads)
        np.testing.assert_allclose(clipped["a"], [3, -4])
        np.testing.assert_allclose(clipped["b"], [0, 6])

    def test_by_global_norm(self):
        clipped = updated(optimizers.clip_by_global_norm(6.5), self.grads)  # the global norm is 13
        np.testing.assert_allclose(clipped["a"], [1.5, -2], rtol=1e-6)
        np.testing.assert_allclose(
            updated(optimizers.clip_by_global_norm(14.0), self.grads)["b"], [0, 12]
        )

    def test_adaptively_by_unit(self):
        w, g = jnp.array([[3.0, 1.0], [4.0, 0.0]]), jnp.array([[0.3, 0.0], [0.4, 2.0]])
        clipped = updated(
            optimizers.adaptive_grad_clip(0.2), g, w
        )  # columns of norm 5 and 1, gradients of norm 0.5 and 2
        np.testing.assert_allclose(clipped, [[0.3, 0.0], [0.4, 0.2]], rtol=1e-6)

    def test_a_zero_gradient_stays_zero(self):
        zero = {"w": jnp.zeros((2, 2))}
        for clip in (
            optimizers.clip_by_norm,
            optimizers.clip_by_global_norm,
            optimizers.adaptive_grad_clip,
        ):
            assert not updated(clip(1.0), zero)["w"].any()


class TestPenalties:
    params = {
        "w": jnp.array([[2.0, -1.0]]),
        "b": jnp.array([5.0, 5.0]),
    }
    zero = jax.tree.map(jnp.zeros_like, params)

    def test_l2_and_l1_take_weights_only_by_default(self):
        decayed = updated(optimizers.l2(0.1), self.zero, self.params)
        np.testing.assert_allclose(decayed["w"], [[0.2, -0.1]])
        assert not decayed["b"].any()
        np.testing.assert_allclose(
            updated(optimizers.l1(0.1), self.zero, self.params)["w"], [[0.1, -0.1]]
        )

    def test_a_mask_chooses(self):
        everything = lambda params: jax.tree.map(lambda _: True, params)
        assert updated(optimizers.l2(0.1, everything), self.zero, self.params)["b"].tolist() == [
            0.5,
            0.5,
        ]


def table_of_layers():
    """Every layer and model of the tables, with the shapes of its parameters."""
    from tests.tables import LAYERS, MODELS

    for case in [*LAYERS, *MODELS]:
        layer = case.make() if hasattr(case, "make") else case.model
        shapes = jax.eval_shape(lambda key: layer.init(key, case.shape)[0], jax.random.key(0))  # noqa: B023
        yield case.name, layer, shapes


class TestDecayMask:
    """What weight decay leaves out is what the layers say."""

    # of fbp's own layers: biases, scales of normalization layers, what is filled from data
    not_decayed = ("b", "bh", "bq", "bkv", "bqkv", "bo", "bias", "scale", "offset", "g")
    not_decayed += ("mean", "variance")

    def test_of_every_layer_and_model_weights_decay_and_nothing_else(self):
        for name, layer, shapes in table_of_layers():
            mask = optimizers.decay_mask(layer)(shapes)
            assert jax.tree.structure(mask) == jax.tree.structure(shapes)
            for path, decays in jax.tree_util.tree_leaves_with_path(mask):
                leaf = str(getattr(path[-1], "key", "")) if path else ""
                if leaf in self.not_decayed:
                    assert not decays, (name, path)
            for (path, leaf), decays in zip(
                jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(mask), strict=True
            ):
                own = str(getattr(path[-1], "key", "")) if path else ""
                if own not in self.not_decayed:
                    assert decays == (leaf.ndim >= 2), (name, path)

    def own(self, shape=(2, 2), **description):
        """A layer of one's own whose parameters have the names of fbp's biases and scales."""

        def init(key, in_shape):
            return {name: jnp.ones(shape) for name in ("b", "g", "mean", "scale")}, in_shape

        return fbp.Layer(
            init,
            lambda p, x, *, key=None: (x, ()),
            lambda p, cache, delta: (delta, p),
            **description,
        )

    def mask(self, layer):
        params, _ = layer.init(jax.random.key(0), (2,))
        return optimizers.decay_mask(layer)(params)

    def test_no_name_is_seized(self):
        assert all(self.mask(self.own()).values())
        assert all(optimizers.weights_only(self.own().init(None, (2,))[0]).values())
        assert not any(self.mask(self.own(shape=(2,))).values())

    def test_a_layer_declares_what_does_not_decay(self):
        layer = self.own(not_decayed=["g"], nontrainable=["mean"])
        expected = {"b": True, "g": False, "mean": False, "scale": True}
        assert self.mask(layer) == expected
        for wrap in (fbp.recompute, fbp.precision, lambda inner: fbp.repeat(inner, 3)):
            assert self.mask(wrap(layer)) == expected
        assert self.mask(fbp.residual(fbp.layers.relu(), layer))["body"][1] == expected
        one_axis = self.own(shape=(2,), not_decayed=["g"], nontrainable=["mean"])
        assert self.mask(one_axis) == expected

    def test_axes_that_repeat_adds_do_not_count(self):
        layer = fbp.repeat(fbp.layers.dense(2), 3)
        params, _ = layer.init(jax.random.key(0), (2,))
        assert optimizers.decay_mask(layer)(params) == {"w": True, "b": False}
        assert optimizers.weights_only(params) == {"w": True, "b": True}
        nested = fbp.repeat(fbp.repeat(fbp.layers.dense(2), 3), 2)
        assert self.mask(nested) == {"w": True, "b": False}

    def test_it_reaches_decay_and_penalties_in_a_jitted_step(self):
        layer = fbp.repeat(fbp.layers.dense(2, bias=fbp.initializers.ones()), 3)
        params, _ = layer.init(jax.random.key(0), (2,))
        zero = jax.tree.map(jnp.zeros_like, params)
        mask = optimizers.decay_mask(layer)
        for transform in (
            optimizers.l1(0.1, mask),
            optimizers.l2(0.1, mask),
            optimizers.decoupled_weight_decay(0.1, mask),
            optimizers.adamw(0.1, weight_decay=0.1, mask=mask),
            optimizers.lion(0.1, weight_decay=0.1, mask=mask),
            optimizers.lamb(0.1, weight_decay=0.1, mask=mask),
        ):
            updates, _ = jax.jit(transform.update)(zero, transform.init(params), params)
            assert updates["w"].any()
            assert not updates["b"].any()


def test_accumulation_over_micro_batches_is_one_step_on_their_mean():
    inner = optimizers.adam(0.1)
    optimizer = optimizers.accumulate(inner, 3)
    params = state_params = jnp.array([1.0, 2.0])
    grads = [jnp.array([0.3, -1.0]), jnp.array([0.6, 2.0]), jnp.array([-0.3, 5.0])]
    state = optimizer.init(params)
    for i, g in enumerate(grads):
        updates, state = jax.jit(optimizer.update)(g, state, state_params)
        assert updates.any() == (i == 2)
    expected, _ = inner.update(sum(grads) / 3, inner.init(params), params)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_averaged_parameters():
    optimizer = optimizers.chain(optimizers.sgd(1.0), optimizers.average_parameters(0.5))
    params = jnp.array(0.0)
    state = optimizer.init(params)
    assert optimizers.averaged(state, params) == 0
    for _ in range(2):  # parameters 1, then 2
        updates, state = optimizer.update(jnp.array(-1.0), state, params)
        params = optimizers.apply_updates(params, updates)
    np.testing.assert_allclose(
        optimizers.averaged(state, params), (0.25 * 1 + 0.5 * 2) / 0.75, rtol=1e-6
    )
    assert optimizers.averaged((), params) is params


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (schedules.constant(0.1), {0: 0.1, 1000: 0.1}),
        (schedules.step_decay(1.0, 10, 0.5), {0: 1, 9: 1, 10: 0.5, 25: 0.25}),
        (
            schedules.piecewise([1.0, 0.5, 0.1], [10, 20]),
            {0: 1, 9: 1, 10: 0.5, 19: 0.5, 20: 0.1, 99: 0.1},
        ),
        (schedules.exponential(1.0, 10, 0.5), {0: 1, 10: 0.5, 5: 0.5**0.5}),
        (schedules.polynomial(1.0, 10, 0.2), {0: 1, 5: 0.6, 10: 0.2, 50: 0.2}),
        (schedules.polynomial(1.0, 10, power=2.0), {5: 0.25}),
        (schedules.inverse_square_root(1.0, 100), {0: 1, 100: 1, 400: 0.5}),
        (schedules.cosine(1.0, 10, 0.1), {0: 1, 5: 0.55, 10: 0.1, 99: 0.1}),
        (schedules.cosine_restarts(1.0, 10), {0: 1, 5: 0.5, 10: 1, 15: 0.5}),
        (
            schedules.cosine_restarts(1.0, 10, growth=2),
            {0: 1, 5: 0.5, 10: 1, 20: 0.5, 30: 1, 50: 0.5, 70: 1},
        ),
        (schedules.warmup(schedules.polynomial(1.0, 10), 4), {0: 0, 2: 0.5, 4: 1, 9: 0.5, 14: 0}),
        (schedules.one_cycle(1.0, 100, 0.3), {0: 0.04, 30: 1, 100: 4e-6}),
    ],
)
def test_schedule(schedule, expected):
    traced = jax.jit(schedule)
    for step, value in expected.items():
        np.testing.assert_allclose(schedule(step), value, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(traced(jnp.int32(step)), value, rtol=1e-5, atol=1e-7)


def test_a_schedule_drives_the_optimizer():
    optimizer = optimizers.sgd(schedules.piecewise([1.0, 0.1], [1]))
    state = optimizer.init(jnp.zeros(()))
    first, state = optimizer.update(jnp.ones(()), state, None)
    second, _ = optimizer.update(jnp.ones(()), state, None)
    np.testing.assert_allclose([first, second], [-1.0, -0.1], rtol=1e-6)


def test_bad_schedules_are_refused():
    with pytest.raises(InputError, match="one more value than boundaries"):
        schedules.piecewise([1.0], [3])
    with pytest.raises(InputError, match="growth: expected a number of at least 1"):
        schedules.cosine_restarts(1.0, 10, growth=0)


def test_bias_corrections_are_exact_for_decays_near_one():
    optimizer = optimizers.average_parameters(0.99999)
    state, params = optimizer.init(jnp.ones(3)), jnp.ones(3)
    for _ in range(3):
        _, state = optimizer.update(jnp.zeros(3), state, params)
    np.testing.assert_allclose(optimizers.averaged(state, params), 1, rtol=1e-6)
    adam = optimizers.adam(1.0, beta2=0.99999, epsilon=1e-30)
    updates, _ = adam.update(params, adam.init(params), params)
    np.testing.assert_allclose(updates, -1, rtol=1e-6)


def test_a_schedule_may_return_a_plain_number():
    optimizer = optimizers.sgd(lambda step: 0.5)
    assert optimizer.update(jnp.ones(()), optimizer.init(jnp.ones(())), None)[0] == -0.5
