"""jax.grad of plain functions, all steps in one ``lax.scan``: an expert's code, no library."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.contestants import Contestant
from benchmarks.works import Work


def _dense(params: Any, x: Any) -> Any:
    return x @ params["w"] + params["b"]


def sigmoids(params: Any, x: Any) -> Any:
    first, _, second, _ = params
    return jax.nn.sigmoid(_dense(second, jax.nn.sigmoid(_dense(first, x))))


def relus(params: Any, x: Any) -> Any:
    *hidden, last = (part for part in params if part)
    for part in hidden:
        x = jax.nn.relu(_dense(part, x))
    return _dense(last, x)


def residuals(params: Any, x: Any) -> Any:
    first, _, *blocks, last = params
    x = jax.nn.relu(_dense(first, x))
    for block in blocks:
        x = x + jax.nn.relu(_dense(block["body"][0], x))
    return _dense(last, x)


def convolutions(params: Any, x: Any) -> Any:
    first, second, third, last = (part for part in params if part)
    for part in (first, second):
        x = lax.conv_general_dilated(
            x, part["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + part["b"])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return _dense(last, jax.nn.relu(_dense(third, x.reshape(len(x), -1))))


def lstm(params: Any, x: Any) -> Any:
    table, cell, head = params
    z = table["w"][x.T] @ cell["wx"] + cell["b"]

    def step(state: Any, z: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(z + h @ cell["wh"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((len(x), cell["wh"].shape[0]))
    return _dense(head, lax.scan(step, (zeros, zeros), z)[1].swapaxes(0, 1))


def gru(params: Any, x: Any) -> Any:
    table, cell, head = params
    z = table["w"][x.T] @ cell["wx"] + cell["b"]

    def step(h: Any, z: Any) -> Any:
        (z_u, z_r, z_n), (s_u, s_r, s_n) = (jnp.split(a, 3, axis=-1) for a in (z, h @ cell["wh"]))
        u, r = jax.nn.sigmoid(z_u + s_u), jax.nn.sigmoid(z_r + s_r)
        n = jnp.tanh(z_n + r * (s_n + cell["bh"]))
        h = (1 - u) * n + u * h
        return h, h

    return _dense(
        head, lax.scan(step, jnp.zeros((len(x), cell["wh"].shape[0])), z)[1].swapaxes(0, 1)
    )


def _norm(params: Any, x: Any) -> Any:
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * params["scale"] + params["offset"]


def _attend(params: Any, x: Any) -> Any:
    qkv = (x @ params["wqkv"] + params["bqkv"]).reshape(*x.shape[:2], 3, 4, -1)
    o = jax.nn.dot_product_attention(*(qkv[:, :, i] for i in range(3)), is_causal=True)
    return o.reshape(x.shape) @ params["wo"] + params["bo"]


def gpt(params: Any, x: Any) -> Any:
    table, places, *blocks, last, _ = params
    x = table["w"][x] + places["w"]
    for first, second in blocks:
        norm, look = first["body"]
        x = x + _attend(look, _norm(norm, x))
        norm, up, _, down = second["body"]
        x = x + _dense(down, jax.nn.gelu(_dense(up, _norm(norm, x)), approximate=False))
    return _norm(last, x) @ table["w"].T


def attention(params: Any, x: Any) -> Any:
    return x + _attend(params["body"], x)


def cost_of(work: Work, output: Any, y: Any) -> Any:
    if work.loss == "quadratic":
        return 0.5 * ((output - y) ** 2).sum(axis=-1).mean()
    if work.loss == "mean_squared":
        return ((output - y) ** 2).mean()
    return (
        jax.nn.logsumexp(output, axis=-1)
        - jnp.take_along_axis(output, y[..., None], axis=-1)[..., 0]
    ).mean()


def prepare(work: Work) -> Contestant:
    network = globals()[work.network]
    b1, b2, eps = 0.9, 0.999, 1e-8

    def cost(params: Any, x: Any, y: Any) -> Any:
        return cost_of(work, network(params, x), y)

    def sgd(params: Any, state: Any, grads: Any, at: Any) -> Any:
        return jax.tree.map(lambda p, g: p - work.rate * g, params, grads), state

    def adam(params: Any, state: Any, grads: Any, at: Any) -> Any:
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state[0], grads)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state[1], grads)
        m_scale, v_scale = 1 / (1 - b1 ** (at + 1)), 1 / (1 - b2 ** (at + 1))
        moved = jax.tree.map(
            lambda p, m, v: p - work.rate * m * m_scale / (jnp.sqrt(v * v_scale) + eps),
            params,
            first,
            second,
        )
        return moved, (first, second)

    update = {"adam": adam, "sgd": sgd}[work.optimizer]

    def run(params: Any, state: Any, x: Any, y: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            params, state, at = carry
            value, grads = jax.value_and_grad(cost)(params, *batch)
            return (*update(params, state, grads, at), at + 1), value

        (params, state, _), costs = lax.scan(step, (params, state, jnp.float32(0)), (x, y))
        return costs, params, state

    compiled = jax.jit(run, donate_argnums=(0, 1))
    initial = work.initial()
    x, y = (jnp.asarray(a).reshape(-1, work.batch, *a.shape[1:]) for a in work.examples())

    def start() -> Any:
        params = jax.tree.map(jnp.array, initial)
        state = (
            tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(2))
            if work.optimizer == "adam"
            else ()
        )
        return jax.block_until_ready((params, state))

    return Contestant(start, lambda state: np.asarray(compiled(*state, x, y)[0]).tolist())
