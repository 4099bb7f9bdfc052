"""Flax NNX + Optax as in its tutorials: an optimizer object, a jitted step, a loop over batches."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.contestants import Contestant
from benchmarks.contestants.optax_costs import cost_of
from benchmarks.works import Work


def _linear(params: Any, w: str = "w", b: str = "b") -> nnx.Linear:
    layer = nnx.Linear(*params[w].shape, rngs=nnx.Rngs(0))
    layer.kernel[...], layer.bias[...] = jnp.asarray(params[w]), jnp.asarray(params[b])
    return layer


def sigmoids(params: Any) -> nnx.Module:
    first, _, second, _ = params
    return nnx.Sequential(_linear(first), nnx.sigmoid, _linear(second), nnx.sigmoid)


def relus(params: Any) -> nnx.Module:
    *hidden, last = (part for part in params if part)
    return nnx.Sequential(
        *(layer for part in hidden for layer in (_linear(part), nnx.relu)), _linear(last)
    )


class _Residual(nnx.Module):
    def __init__(self, params: Any):
        self.linear = _linear(params)

    def __call__(self, x: Any) -> Any:
        return x + nnx.relu(self.linear(x))


def residuals(params: Any) -> nnx.Module:
    first, _, *blocks, last = params
    return nnx.Sequential(
        _linear(first), nnx.relu, *(_Residual(part["body"][0]) for part in blocks), _linear(last)
    )


class convolutions(nnx.Module):
    def __init__(self, params: Any):
        first, second, third, last = (part for part in params if part)
        self.first, self.second = self.convolution(first), self.convolution(second)
        self.third, self.last = _linear(third), _linear(last)

    @staticmethod
    def convolution(params: Any) -> nnx.Conv:
        *window, inputs, outputs = params["w"].shape
        layer = nnx.Conv(inputs, outputs, tuple(window), rngs=nnx.Rngs(0))
        layer.kernel[...], layer.bias[...] = jnp.asarray(params["w"]), jnp.asarray(params["b"])
        return layer

    def __call__(self, x: Any) -> Any:
        for layer in (self.first, self.second):
            x = nnx.max_pool(nnx.relu(layer(x)), window_shape=(2, 2), strides=(2, 2))
        return self.last(nnx.relu(self.third(x.reshape(len(x), -1))))


def _embed(table: Any) -> nnx.Embed:
    layer = nnx.Embed(*table["w"].shape, rngs=nnx.Rngs(0))
    layer.embedding[...] = jnp.asarray(table["w"])
    return layer


class lstm(nnx.Module):
    def __init__(self, params: Any):
        table, cell, head = params
        self.table, self.head = _embed(table), _linear(head)
        features = cell["wh"].shape[0]
        made = nnx.OptimizedLSTMCell(cell["wx"].shape[0], features, rngs=nnx.Rngs(0))
        made.dense_i.kernel[...] = jnp.asarray(
            cell["wx"]
        )  # its gates stand in the order i, f, g, o, too
        made.dense_h.kernel[...], made.dense_h.bias[...] = (
            jnp.asarray(cell["wh"]),
            jnp.asarray(cell["b"]),
        )
        self.cell = nnx.RNN(made)

    def __call__(self, x: Any) -> Any:
        return self.head(self.cell(self.table(x)))


def _norm(params: Any) -> nnx.LayerNorm:
    layer = nnx.LayerNorm(len(params["scale"]), epsilon=1e-5, rngs=nnx.Rngs(0))
    layer.scale[...], layer.bias[...] = jnp.asarray(params["scale"]), jnp.asarray(params["offset"])
    return layer


class _Attention(nnx.Module):
    def __init__(self, params: Any):
        features = params["wo"].shape[0]
        self.look = nnx.MultiHeadAttention(4, features, decode=False, rngs=nnx.Rngs(0))
        parts = zip(
            (self.look.query, self.look.key, self.look.value),
            np.split(params["wqkv"], 3, axis=1),
            np.split(params["bqkv"], 3),
            strict=True,
        )
        for layer, w, b in parts:
            layer.kernel[...] = jnp.asarray(w.reshape(features, 4, -1))
            layer.bias[...] = jnp.asarray(b.reshape(4, -1))
        self.look.out.kernel[...] = jnp.asarray(params["wo"].reshape(4, -1, features))
        self.look.out.bias[...] = jnp.asarray(params["bo"])

    def __call__(self, x: Any) -> Any:
        return self.look(x, mask=nnx.make_causal_mask(x[..., 0]))


class _Block(nnx.Module):
    def __init__(self, params: Any):
        (first, look), (second, up, _, down) = params[0]["body"], params[1]["body"]
        self.first, self.second, self.attend = _norm(first), _norm(second), _Attention(look)
        self.up, self.down = _linear(up), _linear(down)

    def __call__(self, x: Any) -> Any:
        x = x + self.attend(self.first(x))
        return x + self.down(nnx.gelu(self.up(self.second(x)), approximate=False))


class gpt(nnx.Module):
    def __init__(self, params: Any):
        table, places, *blocks, last, _ = params
        self.table, self.places = _embed(table), nnx.Param(jnp.asarray(places["w"]))
        self.blocks = nnx.Sequential(*(_Block(block) for block in blocks))
        self.last = _norm(last)

    def __call__(self, x: Any) -> Any:
        return self.table.attend(self.last(self.blocks(self.table(x) + self.places[...])))


class attention(nnx.Module):
    def __init__(self, params: Any):
        self.attend = _Attention(params["body"])

    def __call__(self, x: Any) -> Any:
        return x + self.attend(x)


def prepare(work: Work) -> Contestant:
    if work.network not in globals():
        raise NotImplementedError("its GRU has no bias behind the recurrent weights")
    x, y = work.examples()
    initial = work.initial()
    rule = getattr(optax, work.optimizer)(
        work.rate
    )  # one for all: another would be traced and compiled anew

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, x: Any, y: Any) -> Any:
        cost, grads = nnx.value_and_grad(lambda model: cost_of(work, model(x), y))(model)
        optimizer.update(model, grads)
        return cost

    def start() -> tuple[nnx.Module, nnx.Optimizer]:
        model = globals()[work.network](initial)
        jax.block_until_ready(nnx.state(model))
        return model, nnx.Optimizer(model, rule, wrt=nnx.Param)

    def train(state: tuple[nnx.Module, nnx.Optimizer]) -> list[float]:
        costs = []
        for first in range(0, len(x), work.batch):
            rows = slice(first, first + work.batch)
            costs.append(step(*state, x[rows], y[rows]))
        return jnp.stack(costs).tolist()

    return Contestant(start, train)
