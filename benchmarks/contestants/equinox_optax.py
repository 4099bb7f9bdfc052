"""Equinox + Optax as in its tutorials: modules under vmap, filter_jit, a loop over batches."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.contestants import Contestant
from benchmarks.contestants.optax_costs import cost_of
from benchmarks.works import Work

KEY = jax.random.key(0)


def _linear(params: Any, w: str = "w", b: str = "b") -> eqx.nn.Linear:
    layer = eqx.nn.Linear(*params[w].shape, key=KEY)
    new = jnp.asarray(params[w].T), jnp.asarray(params[b])
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, new)


def sigmoids(params: Any) -> eqx.Module:
    first, _, second, _ = params
    sigmoid = eqx.nn.Lambda(jax.nn.sigmoid)
    return eqx.nn.Sequential([_linear(first), sigmoid, _linear(second), sigmoid])


def relus(params: Any) -> eqx.Module:
    *hidden, last = (part for part in params if part)
    relu = eqx.nn.Lambda(jax.nn.relu)
    return eqx.nn.Sequential(
        [*(layer for part in hidden for layer in (_linear(part), relu)), _linear(last)]
    )


class _Residual(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x: Any, *, key: Any = None) -> Any:
        return x + jax.nn.relu(self.linear(x))


def residuals(params: Any) -> eqx.Module:
    first, _, *blocks, last = params
    every = (_Residual(_linear(part["body"][0])) for part in blocks)
    return eqx.nn.Sequential([_linear(first), eqx.nn.Lambda(jax.nn.relu), *every, _linear(last)])


class _Convolutions(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    third: eqx.nn.Linear
    last: eqx.nn.Linear
    pool: eqx.nn.MaxPool2d

    def __call__(self, x: Any) -> Any:
        for layer in (self.first, self.second):
            x = self.pool(jax.nn.relu(layer(x)))
        return self.last(jax.nn.relu(self.third(x.transpose(1, 2, 0).ravel())))


def convolutions(params: Any) -> eqx.Module:
    def convolution(params: Any) -> eqx.nn.Conv2d:
        *window, inputs, outputs = params["w"].shape
        layer = eqx.nn.Conv2d(inputs, outputs, tuple(window), padding=1, key=KEY)
        new = (
            jnp.asarray(params["w"].transpose(3, 2, 0, 1)),
            jnp.asarray(params["b"].reshape(-1, 1, 1)),
        )
        return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, new)

    first, second, third, last = (part for part in params if part)
    pool = eqx.nn.MaxPool2d(2, 2)
    return _Convolutions(
        convolution(first), convolution(second), _linear(third), _linear(last), pool
    )


class _Recurrent(eqx.Module):
    table: eqx.nn.Embedding
    cell: Any
    head: eqx.nn.Linear

    def __call__(self, x: Any) -> Any:
        zeros = jnp.zeros(self.cell.hidden_size)
        pair = isinstance(self.cell, eqx.nn.LSTMCell)

        def step(state: Any, x: Any) -> Any:
            state = self.cell(x, state)
            return state, state[0] if pair else state

        states = jax.lax.scan(step, (zeros, zeros) if pair else zeros, jax.vmap(self.table)(x))[1]
        return jax.vmap(self.head)(states)


def _embedding(table: Any) -> eqx.nn.Embedding:
    return eqx.nn.Embedding(weight=jnp.asarray(table["w"]))


def lstm(params: Any) -> eqx.Module:
    table, cell, head = params
    made = eqx.nn.LSTMCell(
        cell["wx"].shape[0], cell["wh"].shape[0], key=KEY
    )  # gates i, f, g, o, too
    new = jnp.asarray(cell["wx"].T), jnp.asarray(cell["wh"].T), jnp.asarray(cell["b"])
    made = eqx.tree_at(lambda cell: (cell.weight_ih, cell.weight_hh, cell.bias), made, new)
    return _Recurrent(_embedding(table), made, _linear(head))


def gru(params: Any) -> eqx.Module:
    table, cell, head = params
    features = cell["wh"].shape[0]
    order = np.r_[features : 2 * features, :features, 2 * features : 3 * features]  # r, u, n
    made = eqx.nn.GRUCell(cell["wx"].shape[0], features, key=KEY)
    new = tuple(
        jnp.asarray(a)
        for a in (cell["wx"][:, order].T, cell["wh"][:, order].T, cell["b"][order], cell["bh"])
    )
    made = eqx.tree_at(
        lambda cell: (cell.weight_ih, cell.weight_hh, cell.bias, cell.bias_n), made, new
    )
    return _Recurrent(_embedding(table), made, _linear(head))


def _norm(params: Any) -> eqx.nn.LayerNorm:
    layer = eqx.nn.LayerNorm(len(params["scale"]), eps=1e-5)
    new = jnp.asarray(params["scale"]), jnp.asarray(params["offset"])
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, new)


class _Attention(eqx.Module):
    look: eqx.nn.MultiheadAttention

    def __init__(self, params: Any):
        features = params["wo"].shape[0]
        yes = {f"use_{part}_bias": True for part in ("query", "key", "value", "output")}
        made = eqx.nn.MultiheadAttention(4, features, **yes, key=KEY)
        new = [
            _linear({"w": w, "b": b})
            for w, b in zip(
                np.split(params["wqkv"], 3, axis=1), np.split(params["bqkv"], 3), strict=True
            )
        ]
        new.append(_linear(params, "wo", "bo"))
        names = ("query_proj", "key_proj", "value_proj", "output_proj")
        self.look = eqx.tree_at(lambda look: [getattr(look, name) for name in names], made, new)

    def __call__(self, x: Any) -> Any:
        return self.look(x, x, x, mask=jnp.tril(jnp.ones((len(x), len(x)), bool)))


class _Block(eqx.Module):
    first: eqx.nn.LayerNorm
    attend: _Attention
    second: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, params: Any):
        (first, look), (second, up, _, down) = params[0]["body"], params[1]["body"]
        self.first, self.second, self.attend = _norm(first), _norm(second), _Attention(look)
        self.up, self.down = _linear(up), _linear(down)

    def __call__(self, x: Any) -> Any:
        x = x + self.attend(jax.vmap(self.first)(x))
        inside = jax.vmap(
            lambda x: self.down(jax.nn.gelu(self.up(self.second(x)), approximate=False))
        )
        return x + inside(x)


class gpt(eqx.Module):
    table: eqx.nn.Embedding
    places: Any
    blocks: list[_Block]
    last: eqx.nn.LayerNorm

    def __init__(self, params: Any):
        table, places, *blocks, last, _ = params
        self.table, self.places, self.last = (
            _embedding(table),
            jnp.asarray(places["w"]),
            _norm(last),
        )
        self.blocks = [_Block(block) for block in blocks]

    def __call__(self, x: Any) -> Any:
        x = jax.vmap(self.table)(x) + self.places
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.last)(x) @ self.table.weight.T


class attention(eqx.Module):
    attend: _Attention

    def __init__(self, params: Any):
        self.attend = _Attention(params["body"])

    def __call__(self, x: Any) -> Any:
        return x + self.attend(x)


def prepare(work: Work) -> Contestant:
    x, y = work.examples()
    if work.network == "convolutions":
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    model = globals()[work.network](work.initial())
    optimizer = getattr(optax, work.optimizer)(work.rate)

    @eqx.filter_jit
    def step(model: Any, state: Any, x: Any, y: Any) -> Any:
        cost, grads = eqx.filter_value_and_grad(lambda model: cost_of(work, jax.vmap(model)(x), y))(
            model
        )
        updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, cost

    def start() -> Any:
        return jax.block_until_ready((model, optimizer.init(eqx.filter(model, eqx.is_array))))

    def train(given: Any) -> list[float]:
        (model, state), costs = given, []
        for first in range(0, len(x), work.batch):
            rows = slice(first, first + work.batch)
            model, state, cost = step(model, state, x[rows], y[rows])
            costs.append(cost)
        return jnp.stack(costs).tolist()

    return Contestant(start, train)
