"""Examples: MNIST if $FBP_DATA/mnist exists, else random pictures of the same shape and cost."""

import os
from pathlib import Path

import numpy as np


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``x (count, 784)``, float32 in [0, 1], and labels ``(count,)``, int32."""
    from fbp import datasets

    folder = Path(os.environ.get("FBP_DATA", "data")) / "mnist"
    if folder.is_dir():
        x, y = datasets.mnist(str(folder)).train
        return x[:count].reshape(count, 784), y[:count]
    random = np.random.default_rng(0)
    return random.uniform(size=(count, 784)).astype(np.float32), random.integers(
        0, 10, count
    ).astype(np.int32)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Return standard normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tokens(count: int, positions: int, vocabulary: int = 65) -> tuple[np.ndarray, np.ndarray]:
    """Return sequences and their next tokens, ``(count, positions)``, int32.

    Each token is a function of the one before it, except for a tenth that are random.
    """
    random = np.random.default_rng(0)
    following = random.permutation(vocabulary)
    stream = [0]
    for noise in random.integers(0, 10 * vocabulary, count * (positions + 1)):
        stream.append(int(following[stream[-1]]) if noise >= vocabulary else int(noise))
    rows = np.array(stream[1:], np.int32).reshape(count, positions + 1)
    return rows[:, :-1].copy(), rows[:, 1:].copy()
