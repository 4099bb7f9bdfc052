"""The training works: network, examples, loss and optimizer, the same for every contestant."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.data import numbers, pictures, tokens


class Work(NamedTuple):
    """A training work.

    Attributes:
        name: the key in `WORKS`.
        about: a description of one line.
        network: the name of the function that builds the network in each contestant's file.
        examples: a function that returns ``x`` and ``y``, ``batch * steps`` examples in order.
        batch: the number of examples in a step.
        loss: ``quadratic`` is half the squared distance, ``mean_squared`` the mean over outputs,
            ``cross_entropy`` that of softmax, from logits.
        optimizer: Adam (0.9, 0.999, 1e-8) or SGD.
        rate: its learning rate.
    """

    name: str
    about: str
    network: str
    examples: Callable[[], tuple[np.ndarray, np.ndarray]]
    batch: int
    loss: Literal["quadratic", "mean_squared", "cross_entropy"] = "cross_entropy"
    optimizer: Literal["adam", "sgd"] = "adam"
    rate: float = 1e-3

    def initial(self) -> Any:
        """Return the weights that all contestants start from: fbp's parameters as NumPy arrays."""
        import jax

        from benchmarks.contestants import ours

        shape = self.examples()[0].shape[1:]
        return jax.tree.map(np.array, ours.network(self).init(jax.random.key(0), shape)[0])


def _one_hot_pictures() -> tuple[np.ndarray, np.ndarray]:
    x, y = pictures(12_800)
    return x, np.eye(10, dtype=np.float32)[y]


def _square_pictures() -> tuple[np.ndarray, np.ndarray]:
    x, y = pictures(2560)
    return x.reshape(-1, 28, 28, 1), y


WORKS = {
    work.name: work
    for work in (
        Work(
            "nielsen",
            "784-30-10, sigmoid, quadratic cost, SGD, batch 10, 1,280 steps",
            "sigmoids",
            _one_hot_pictures,
            10,
            "quadratic",
            "sgd",
            3.0,
        ),
        Work(
            "mlp",
            "784-512-512-10, relu, Adam, batch 128, 100 steps",
            "relus",
            lambda: pictures(12_800),
            128,
        ),
        Work(
            "wide",
            "1024-4096-4096-1024, relu, mean squared error, SGD, batch 256, 4 steps",
            "relus",
            lambda: (numbers(1024, 1024), numbers(1024, 1024, seed=1)),
            256,
            "mean_squared",
            "sgd",
            0.3,
        ),
        Work(
            "deep",
            "64 residual blocks of width 256, Adam, batch 128, 20 steps",
            "residuals",
            lambda: pictures(2560),
            128,
            rate=1e-4,
        ),
        Work(
            "cnn",
            "two 3 x 3 convolutions (32, 64), max pooling, dense 128, Adam, batch 64, 40 steps",
            "convolutions",
            _square_pictures,
            64,
        ),
        Work(
            "lstm",
            "character model: embedding 64, LSTM 256, T 64, Adam, batch 32, 20 steps",
            "lstm",
            lambda: tokens(640, 64),
            32,
        ),
        Work("gru", "the same with a GRU", "gru", lambda: tokens(640, 64), 32),
        Work(
            "gpt",
            "4 layers, width 128, 4 heads, T 64, tied weights, Adam, batch 16, 20 steps",
            "gpt",
            lambda: tokens(320, 64),
            16,
        ),
        Work(
            "attention",
            "causal attention with a shortcut, 4 heads, width 256, T 2048, Adam, batch 1, 4 steps",
            "attention",
            lambda: (numbers(4, 2048, 256), numbers(4, 2048, 256, seed=1)),
            1,
            "mean_squared",
        ),
    )
}
