"""Data sets made by a formula and a seed."""

import numpy as np

from fbp.datasets.base import Dataset, classification, regression


def xor(examples: int = 400, noise: float = 0.1, seed: int = 0) -> Dataset:
    """The four corners (+-1, +-1) with normal noise; class 1 where the signs differ. Minsky and Papert (1969)."""
    draw = np.random.default_rng(seed)
    corners = draw.integers(0, 2, (examples, 2))
    x = 2.0 * corners - 1 + noise * draw.normal(size=(examples, 2))
    return classification("xor", x, corners[:, 0] ^ corners[:, 1], ("same", "different"))


def spirals(
    examples: int = 1000, turns: float = 1.75, noise: float = 0.02, seed: int = 0
) -> Dataset:
    """Two interleaved spirals in the unit disc. Lang and Witbrock (1988)."""
    draw = np.random.default_rng(seed)
    label = draw.integers(0, 2, examples)
    radius = np.sqrt(draw.uniform(0.01, 1, examples))
    angle = 2 * np.pi * turns * radius + np.pi * label
    x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return classification(
        "spirals", x + noise * draw.normal(size=x.shape), label, ("first", "second")
    )


def moons(examples: int = 1000, noise: float = 0.15, seed: int = 0) -> Dataset:
    """Two interleaved half circles."""
    from sklearn.datasets import make_moons

    x, label = make_moons(examples, noise=noise, random_state=seed)
    return classification("moons", x, label, ("upper", "lower"))


def circles(
    examples: int = 1000, noise: float = 0.08, factor: float = 0.5, seed: int = 0
) -> Dataset:
    """A circle around another, ``factor`` times as large."""
    from sklearn.datasets import make_circles

    x, label = make_circles(examples, noise=noise, factor=factor, random_state=seed)
    return classification("circles", x, label, ("outer", "inner"))


def linear(examples: int = 1000, features: int = 5, noise: float = 0.1, seed: int = 0) -> Dataset:
    """``y = x w + b`` with normal x, w, b, and normal noise of deviation ``noise``: least squares is the right answer."""
    draw = np.random.default_rng(seed)
    x, w, b = draw.normal(size=(examples, features)), draw.normal(size=features), draw.normal()
    return regression("linear", x, x @ w + b + noise * draw.normal(size=examples))


def sine(examples: int = 1000, periods: float = 2.0, noise: float = 0.05, seed: int = 0) -> Dataset:
    """``y = sin(pi periods x)`` for x in [-1, 1], with normal noise."""
    draw = np.random.default_rng(seed)
    x = draw.uniform(-1, 1, (examples, 1))
    return regression(
        "sine", x, np.sin(np.pi * periods * x[:, 0]) + noise * draw.normal(size=examples)
    )
