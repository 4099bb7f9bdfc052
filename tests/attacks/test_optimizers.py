"""Attacks on optimizers, schedules and initializers at the limits of their dtypes and protocols."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbp import initializers, optimizers, schedules
from fbp.errors import InputError
from fbp.layer import Optimizer

RULES = {
    "sgd": optimizers.sgd,
    "momentum": optimizers.momentum,
    "nesterov": optimizers.nesterov,
    "adagrad": optimizers.adagrad,
    "adadelta": optimizers.adadelta,
    "rmsprop": optimizers.rmsprop,
    "rmsprop, centered, with momentum": lambda rate: optimizers.rmsprop(
        rate, centered=True, momentum=0.9
    ),
    "adam": optimizers.adam,
    "amsgrad": optimizers.amsgrad,
    "nadam": optimizers.nadam,
    "adamw": optimizers.adamw,
    "lion": optimizers.lion,
    "lamb": optimizers.lamb,
    "clip_by_value": lambda rate: optimizers.chain(
        optimizers.clip_by_value(1.0), optimizers.sgd(rate)
    ),
    "clip_by_norm": lambda rate: optimizers.chain(
        optimizers.clip_by_norm(1.0), optimizers.sgd(rate)
    ),
    "clip_by_global_norm": lambda rate: optimizers.chain(
        optimizers.clip_by_global_norm(1.0), optimizers.sgd(rate)
    ),
    "adaptive_grad_clip": lambda rate: optimizers.chain(
        optimizers.adaptive_grad_clip(1.0), optimizers.sgd(rate)
    ),
    "l1": lambda rate: optimizers.chain(optimizers.l1(0.1), optimizers.sgd(rate)),
    "l2": lambda rate: optimizers.chain(optimizers.l2(0.1), optimizers.sgd(rate)),
    "accumulate": lambda rate: optimizers.accumulate(optimizers.adam(rate), 1),
    "average_parameters": lambda rate: optimizers.chain(
        optimizers.adam(rate), optimizers.average_parameters(0.9)
    ),
}
NEED_PARAMS = {"adamw", "lamb", "adaptive_grad_clip", "l1", "l2", "average_parameters"}
GRADIENTS = {
    "zero": [0.0, 0.0, 0.0, 0.0],
    "some zero": [0.0, 2.0, 0.0, -1.0],
    "small": [1e-5, -3e-5, 0.0, 2e-5],
    "large": [300.0, -200.0, 150.0, 0.0],
}


@pytest.mark.promise("narrow-gradients")
def test_every_rule_of_the_catalogue_is_attacked():
    returning = {
        name
        for name, function in vars(optimizers).items()
        if inspect.isfunction(function)
        and inspect.signature(function).return_annotation is Optimizer
    }
    building_blocks = {"chain", "scale", "scale_by_learning_rate", "decoupled_weight_decay"}
    assert returning - building_blocks <= set(RULES), "add it to RULES"


def stepper(optimizer, dtype, count=3):
    """Return a function from a gradient to the parameters after some steps."""

    @jax.jit
    def moved(grads):
        params = {"w": jnp.asarray([[1.0, -2.0], [0.5, 0.25]], dtype)}
        state = optimizer.init(params)
        for _ in range(count):
            updates, state = optimizer.update(grads, state, params)
            assert updates["w"].dtype == grads["w"].dtype
            params = optimizers.apply_updates(params, updates)
        return params["w"]

    return lambda gradient: np.asarray(
        moved({"w": jnp.asarray(gradient, dtype).reshape(2, 2)}), np.float64
    )


@pytest.mark.promise("narrow-gradients")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_right_in_every_dtype(rule, dtype):
    narrow = stepper(RULES[rule](0.125), dtype)
    updated = {name: narrow(gradient) for name, gradient in GRADIENTS.items()}
    tolerance = 8 * float(jnp.finfo(dtype).eps)
    with jax.enable_x64(True):
        exact = stepper(RULES[rule](0.125), "float64")
        for name, gradient in GRADIENTS.items():
            same_numbers = np.asarray(jnp.asarray(gradient, dtype), np.float64)
            np.testing.assert_allclose(
                updated[name], exact(same_numbers), tolerance, 4 * tolerance, err_msg=name
            )


CLIPS = {
    "clip_by_norm": optimizers.clip_by_norm,
    "clip_by_global_norm": optimizers.clip_by_global_norm,
}


@pytest.mark.promise("norms-keep-their-range")
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize(
    ("dtype", "size", "limit"),
    [
        ("float16", 400.0, 1.0), ("float16", 6e4, 1.0), ("float16", 1e-4, 1e-3),
        ("bfloat16", 1e20, 1.0), ("bfloat16", 1e38, 2.0), ("float32", 1e20, 1.0),
        ("float32", 2e38, 1.0), ("float32", 1e-30, 1e-32), ("float32", 3.0, 1.0),
    ],
)  # fmt: skip
def test_clipping_reaches_its_limit(clip, dtype, size, limit):
    grads = {"w": jnp.full((50, 20), size, dtype)}
    updates, _ = jax.jit(CLIPS[clip](limit).update)(grads, (), None)
    clipped = np.asarray(updates["w"], np.float64)
    assert np.linalg.norm(clipped) == pytest.approx(limit, rel=0.02)


@pytest.mark.promise("norms-keep-their-range")
@pytest.mark.parametrize("size", [0.0, 1e-36, 1e-30, 1e-20, 1.0, 1e15, 1e19, 1e20, 1e30, 1e36])
def test_a_norm_is_right_wherever_it_has_a_place(size):
    numbers = np.random.default_rng(0).standard_normal(100).astype(np.float32) * np.float32(size)
    expected = np.linalg.norm(numbers.astype(np.float64))
    for function in (optimizers.global_norm, jax.jit(optimizers.global_norm)):
        assert float(function({"a": numbers[:30], "b": numbers[30:]})) == pytest.approx(
            expected, rel=1e-5, abs=1e-42
        )


@pytest.mark.promise("norms-keep-their-range")
@pytest.mark.parametrize(
    "rule", ["adagrad", "adadelta", "rmsprop", "adam", "amsgrad", "nadam", "adamw", "lamb"]
)
def test_a_parameter_does_not_stand_still_without_a_word(rule):
    """Squares that overflow would divide the gradient to 0."""
    moved = stepper(RULES[rule](0.125), "float32", count=1)([1e20, 0, 0, 0])
    assert np.isnan(moved[0, 0])
    assert np.isfinite(moved[0, 1])


@pytest.mark.promise("rules-have-derivatives")
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_has_a_derivative(rule):
    """By the gradients, the parameters and the learning rate, through two steps."""
    start = jnp.asarray([[1.0, -2.0], [0.5, 0.25]])

    def trained(grads, params, rate):
        optimizer = RULES[rule](rate)
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(grads, state, params)
            params = optimizers.apply_updates(params, updates)
        return (params * start).sum()

    derivatives = jax.jit(jax.grad(trained, (0, 1, 2)))
    for name, gradient in GRADIENTS.items():
        parts = derivatives(jnp.asarray(gradient).reshape(2, 2), start, 0.1)
        assert all(np.isfinite(part).all() for part in parts), name


@pytest.mark.promise("rules-have-derivatives")
@pytest.mark.parametrize("rule", RULES)
def test_the_derivative_is_that_of_differences(rule):
    def moved(factor):
        optimizer, params = RULES[rule](0.1), jnp.asarray([[1.0, -2.0], [0.5, 0.25]])
        grads = factor * jnp.asarray([[0.3, -0.2], [0.1, 0.45]])
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(grads, state, params)
            params = optimizers.apply_updates(params, updates)
        return params.sum()

    with jax.enable_x64(True):
        slope = (moved(1 + 1e-6) - moved(1 - 1e-6)) / 2e-6
        assert float(jax.grad(moved)(1.0)) == pytest.approx(float(slope), rel=1e-5, abs=1e-7)


@pytest.mark.promise("sums-are-wide")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("every", [1, 4, 100, 1000])
def test_micro_batches_are_summed_in_float32(dtype, every):
    optimizer = optimizers.accumulate(optimizers.sgd(1.0), every)
    params, grads = jnp.zeros(2, dtype), jnp.ones(2, dtype)
    state = optimizer.init(params)

    def body(carry, _):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        return (optimizers.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(body, (params, state), length=every)
    np.testing.assert_allclose(np.asarray(params, np.float64), -1, rtol=1e-3)


@pytest.mark.promise("sums-are-wide")
def test_averages_are_kept_in_float32():
    optimizer = optimizers.chain(optimizers.sgd(0.1), optimizers.average_parameters(0.999))
    params = jnp.full(2, 1.5, "bfloat16")
    state = optimizer.init(params)
    for _ in range(50):
        _, state = optimizer.update(jnp.zeros_like(params), state, params)
    averaged = optimizers.averaged(state, params)
    assert averaged.dtype == params.dtype
    np.testing.assert_array_equal(averaged, params)


# --- the protocol -----------------------------------------------------------------------------


@pytest.mark.promise("optax-protocol")
@pytest.mark.parametrize("rule", RULES)
def test_parameters_are_needed_only_by_rules_that_read_them(rule):
    optimizer, grads = RULES[rule](0.1), {"w": jnp.ones((2, 2))}
    state = optimizer.init(grads)
    if rule in NEED_PARAMS:
        with pytest.raises(InputError, match=r"params: this rule needs the parameters") as caught:
            optimizer.update(grads, state)
        assert "\n" not in str(caught.value)
    else:
        without, _ = optimizer.update(grads, state)
        updates, _ = optimizer.update(grads, state, grads, value=1.0, grad=grads)
        jax.tree.map(np.testing.assert_array_equal, without, updates)


def foreign(**parameters):
    """A transform of another library whose ``update`` takes these keyword arguments."""
    calls = []

    def update(updates, state, params=None, *, value):
        calls.append(value)
        return jax.tree.map(lambda u: u * value, updates), state

    def update_with_any(updates, state, params=None, **extra):
        calls.append(extra)
        return updates, state

    def plain(updates, state, params=None):
        calls.append(None)
        return updates, state

    functions = {"value": update, "any": update_with_any, "none": plain}
    return Optimizer(lambda params: (), functions[parameters["takes"]]), calls


@pytest.mark.promise("optax-protocol")
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("takes", "received"), [("value", 2.0), ("any", {"value": 2.0, "more": 1}), ("none", None)]
)
def test_further_arguments_reach_what_takes_them(takes, received, wrapped):
    transform, calls = foreign(takes=takes)
    optimizer = optimizers.chain(
        optimizers.clip_by_global_norm(1.0), transform, optimizers.sgd(0.1)
    )
    if wrapped:
        optimizer = optimizers.chain(optimizers.accumulate(optimizer, 1))
    params = jnp.ones(3)
    optimizer.update(params, optimizer.init(params), params, value=2.0, more=1)
    assert calls == [received]


@pytest.mark.promise("optax-protocol")
def test_a_missing_argument_is_named():
    transform, _ = foreign(takes="value")
    optimizer = optimizers.chain(transform, optimizers.sgd(0.1))
    with pytest.raises(InputError, match=r"value: missing: call .*value=\.\.\."):
        optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)), jnp.ones(3))


def _adam(**changes):
    optimizer, params = optimizers.adam(0.1), {"w": jnp.ones(3)}
    arguments = {"grads": params, "state": optimizer.init(params), "params": params} | changes
    return optimizer.update(arguments["grads"], arguments["state"], arguments["params"])


WRONG_CALLS = {
    "swapped": (
        lambda: optimizers.sgd(0.1).update((), {"w": jnp.ones(3)}, {"w": jnp.ones(3)}),
        r"grads: expected the structure of the parameters.*the order is update\(grads, state",
    ),
    "swapped, without parameters": (
        lambda: optimizers.momentum(0.1).update(
            optimizers.momentum(0.1).init(jnp.ones(3)), jnp.ones(3)
        ),
        "state: expected a tuple of 2 states, as init",
    ),
    "another state": (
        lambda: optimizers.chain(optimizers.accumulate(optimizers.sgd(0.1), 2)).update(
            {"w": jnp.ones(3)}, 3, None
        ),
        "state: expected a tuple of 1 states",
    ),
    "state of another rule": (
        lambda: _adam(state=optimizers.momentum(0.1).init({"w": jnp.ones(3)})),
        "state: expected AdamState, as init",
    ),
    "gradients of another structure": (
        lambda: _adam(grads={"v": jnp.ones(3)}),
        "grads: expected the structure of the parameters",
    ),
    "gradients of another shape": (
        lambda: _adam(grads={"w": jnp.ones(4)}),
        r"grads: expected the shape of the parameters, \(3,\), got \(4,\) at \['w'\]",
    ),
    "a text": (lambda: _adam(grads={"w": "x"}, params=None), "expected arrays of real numbers"),
    "booleans": (lambda: _adam(grads={"w": jnp.ones(3, bool)}), "expected arrays of real numbers"),
    "a factory in a chain": (
        lambda: optimizers.chain(optimizers.adam, optimizers.sgd(0.1)),
        "chain: place 0: expected an optimizer, got 'adam'; call it",
    ),
    "a number in a chain": (
        lambda: optimizers.chain(optimizers.sgd(0.1), 0.5),
        "chain: place 1: expected an optimizer, got 0.5",
    ),
    "a factory to accumulate": (
        lambda: optimizers.accumulate(optimizers.adam, 2),
        "accumulate: optimizer: expected an optimizer",
    ),
    "a schedule of texts": (
        lambda: _updated(optimizers.sgd(lambda step: "x")),
        "expected a schedule step -> number, got a function that returns str",
    ),
    "a factory of a schedule": (
        lambda: _updated(optimizers.sgd(lambda step: schedules.constant(0.1))),
        "got a function that returns function; call the factory",
    ),
    "a schedule of arrays": (
        lambda: _updated(optimizers.sgd(lambda step: jnp.ones(2))),
        r"of shape \(2,\)",
    ),
    "a mask of another structure": (
        lambda: _updated(optimizers.adamw(0.1, mask=lambda params: True)),
        "mask: expected a function that returns one boolean for each parameter",
    ),
    "a mask of numbers": (
        lambda: _updated(optimizers.adamw(0.1, mask=lambda params: {"w": jnp.ones(3)})),
        "mask: expected a function that returns one boolean for each parameter",
    ),
    "updates of another structure": (
        lambda: optimizers.apply_updates({"w": jnp.ones(3)}, {"v": jnp.ones(3)}),
        "apply_updates: updates: expected the structure of the parameters",
    ),
}


def _updated(optimizer):
    params = {"w": jnp.ones(3)}
    return optimizer.update(params, optimizer.init(params), params)


@pytest.mark.promise("wrong-updates-are-told")
@pytest.mark.parametrize("call", WRONG_CALLS)
def test_a_wrong_call_is_told_in_one_line(call):
    function, message = WRONG_CALLS[call]
    with pytest.raises(InputError, match=message) as caught:
        function()
    assert "\n" not in str(caught.value)


# --- schedules and initializers ---------------------------------------------------------------

SCHEDULES = {
    "constant": (schedules.constant(0.3), lambda t: 0.3),
    "step_decay": (schedules.step_decay(0.3, 7), lambda t: 0.3 * 0.1 ** (t // 7)),
    "piecewise": (schedules.piecewise([0.3, 0.1], [10]), lambda t: 0.3 if t < 10 else 0.1),
    "piecewise, whole numbers": (schedules.piecewise([3, 1], [10]), lambda t: 3 if t < 10 else 1),
    "exponential": (schedules.exponential(0.3, 7, 0.5), lambda t: 0.3 * 0.5 ** (t / 7)),
    "polynomial": (schedules.polynomial(0.3, 30), lambda t: 0.3 * (1 - min(t / 30, 1))),
    "inverse_square_root": (
        schedules.inverse_square_root(0.3, 7), lambda t: 0.3 * np.sqrt(7 / max(t, 7))),
    "cosine": (
        schedules.cosine(0.3, 30), lambda t: 0.15 * (1 + np.cos(np.pi * min(t / 30, 1)))),
    "cosine_restarts": (
        schedules.cosine_restarts(0.3, 7), lambda t: 0.15 * (1 + np.cos(np.pi * (t % 7) / 7))),
    "cosine_restarts, growing": (
        schedules.cosine_restarts(0.3, 7, growth=2),
        lambda t: 0.15 * (1 + np.cos(np.pi * (t / 7 if t < 7 else (t - 7) / 14))) if t < 21
        else 0.15 * (1 + np.cos(np.pi * (t - 21) / 28))),
    "warmup": (schedules.warmup(schedules.constant(0.3), 7), lambda t: 0.3 * min(t / 7, 1)),
    "one_cycle": (
        schedules.one_cycle(0.3, 30),
        lambda t: 0.012 + 0.288 * 0.5 * (1 - np.cos(np.pi * t / 9)) if t < 9
        else 1.2e-6 + (0.3 - 1.2e-6) * 0.5 * (1 + np.cos(np.pi * min((t - 9) / 21, 1)))),
}  # fmt: skip


@pytest.mark.promise("dtype-of-the-default")
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_has_the_precision_of_the_default(name):
    schedule, expected = SCHEDULES[name]
    with jax.enable_x64(True):
        for step in (0, 3, 7, 9, 13, 20, 29, 31):
            for count in (jnp.asarray(step, jnp.int32), jnp.asarray(step), step):
                value = schedule(count)
                assert jnp.asarray(value).dtype == jnp.float64
                assert float(value) == pytest.approx(expected(step), rel=1e-12, abs=1e-15)


INITIALIZERS = {
    "zeros": initializers.zeros,
    "ones": initializers.ones,
    "constant": lambda: initializers.constant(0.5),
    "small_normal": initializers.small_normal,
    "scaled_normal": initializers.scaled_normal,
    "scaled": lambda: initializers.scaled(initializers.he_normal(), 0.5),
    "glorot_uniform": initializers.glorot_uniform,
    "he_normal": initializers.he_normal,
    "lecun_uniform": initializers.lecun_uniform,
    "orthogonal": initializers.orthogonal,
}


@pytest.mark.promise("dtype-of-the-default")
@pytest.mark.parametrize("name", INITIALIZERS)
def test_an_initializer_has_the_dtype_of_the_default(name):
    draw, key = INITIALIZERS[name](), jax.random.key(0)
    assert draw(key, (4, 4)).dtype == jnp.float32
    assert draw(key, (4, 4), jnp.bfloat16).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        assert draw(key, (4, 4)).dtype == jnp.float64


FAN_IN = {
    "scaled_normal": (initializers.scaled_normal, 1.0),
    "lecun_normal": (initializers.lecun_normal, 1.0),
    "lecun_uniform": (initializers.lecun_uniform, 1.0),
    "he_normal": (initializers.he_normal, 2.0),
    "he_uniform": (initializers.he_uniform, 2.0),
}


@pytest.mark.promise("fan-in-counts-the-window")
@pytest.mark.parametrize("shape", [(64, 64), (3, 3, 32, 64), (7, 16, 64), (2, 3, 3, 8, 64)])
@pytest.mark.parametrize("name", FAN_IN)
def test_a_window_counts(name, shape):
    factory, gain = FAN_IN[name]
    weights = np.asarray(factory()(jax.random.key(0), shape))
    expected = np.sqrt(gain / np.prod(shape[:-1]))
    assert weights.std() == pytest.approx(expected, rel=0.1)
