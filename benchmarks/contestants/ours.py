"""fbp: the backward pass by hand, all steps one program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fbp
from benchmarks.contestants import Contestant
from benchmarks.works import Work
from fbp import initializers, layers, losses, models, optimizers

LOSSES = {
    "quadratic": losses.quadratic,
    "mean_squared": losses.mean_squared_error,
    "cross_entropy": losses.softmax_cross_entropy,
}


def network(work: Work) -> fbp.Layer:
    if work.network == "sigmoids":
        standard = {
            "weights": initializers.small_normal(1.0),
            "bias": initializers.small_normal(1.0),
        }
        return fbp.chain(
            layers.dense(30, **standard),
            layers.sigmoid(),
            layers.dense(10, **standard),
            layers.sigmoid(),
        )
    if work.network == "relus":
        return models.mlp(1024, (4096, 4096)) if work.name == "wide" else models.mlp(10, (512, 512))
    if work.network == "residuals":
        draw = initializers.scaled(initializers.he_normal(), 1 / 64)
        blocks = [fbp.residual(layers.dense(256, weights=draw), layers.relu()) for _ in range(64)]
        return fbp.chain(layers.dense(256), layers.relu(), *blocks, layers.dense(10))
    if work.network == "convolutions":
        return models.cnn(10)
    if work.network in ("lstm", "gru"):
        return getattr(models, work.network)(65, (256,), vocabulary=65, sequence=True)
    if work.network == "gpt":
        return models.gpt(65)
    return fbp.residual(layers.attention(4, causal=True))


def prepare(work: Work) -> Contestant:
    optimizer = getattr(optimizers, work.optimizer)(work.rate)
    x, y = (jnp.asarray(part) for part in work.examples())
    count = len(x) // work.batch
    steps = fbp.training.make_steps(
        network(work),
        LOSSES[work.loss],
        optimizer,
        batch_size=work.batch,
        max_steps=count,
        shuffle=False,
        gradient_norm=False,  # nobody else computes it
    )  # fmt: skip
    run, initial = jax.jit(steps, donate_argnums=0), work.initial()

    def start() -> Any:
        params = jax.tree.map(jnp.array, initial)
        state = fbp.training.TrainState(
            params, optimizer.init(params), jnp.int32(0), jax.random.key(0)
        )
        return jax.block_until_ready(state)

    return Contestant(start, lambda state: np.asarray(run(state, x, y, count)[1].cost).tolist())
