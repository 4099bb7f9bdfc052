"""MNIST from $FBP_DATA/mnist where it is there, random pictures of the same shape elsewhere (time does not care)."""

import os
from pathlib import Path

import numpy as np

from fbp import datasets


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """``x (count, 784)`` float32 in [0, 1] and labels ``(count,)`` int32."""
    folder = Path(os.environ.get("FBP_DATA", "data")) / "mnist"
    if folder.is_dir():
        x, y = datasets.mnist(str(folder)).train
        return x[:count].reshape(count, 784), y[:count]
    random = np.random.default_rng(0)
    return random.uniform(size=(count, 784)).astype(np.float32), random.integers(0, 10, count).astype(np.int32)
