"""The mean cost of a batch by Optax, as Flax's and Equinox's tutorials compute it."""

from typing import Any

import optax

from benchmarks.works import Work


def cost_of(work: Work, output: Any, y: Any) -> Any:
    if work.loss == "quadratic":
        return optax.l2_loss(output, y).sum(axis=-1).mean()
    if work.loss == "mean_squared":
        return optax.squared_error(output, y).mean()
    return optax.softmax_cross_entropy_with_integer_labels(output, y).mean()
