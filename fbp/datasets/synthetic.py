"""Data sets made by a formula and a seed."""

import numpy as np

from fbp.datasets.base import Dataset, classification, regression
from fbp.errors import ArgumentError


def xor(examples: int = 400, noise: float = 0.1, seed: int = 0) -> Dataset:
    """Return the four corners (+-1, +-1) with normal noise; class 1 if the signs differ.

    Minsky and Papert (1969), *Perceptrons*.

    Args:
        examples: N; inputs are ``(N, 2)``.
        noise: standard deviation of the noise.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    corners = random.integers(0, 2, (examples, 2))
    x = 2.0 * corners - 1 + noise * random.normal(size=(examples, 2))
    return classification("xor", x, corners[:, 0] ^ corners[:, 1], ("same", "different"))


def spirals(
    examples: int = 1000, turns: float = 1.75, noise: float = 0.02, seed: int = 0
) -> Dataset:
    """Return two interleaved spirals in the unit disc. Lang and Witbrock (1988).

    Args:
        examples: N; inputs are ``(N, 2)``.
        turns: full turns of each spiral.
        noise: standard deviation of the noise.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, examples)
    radius = np.sqrt(random.uniform(0.01, 1, examples))
    angle = 2 * np.pi * turns * radius + np.pi * label
    x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return classification(
        "spirals", x + noise * random.normal(size=x.shape), label, ("first", "second")
    )


def moons(examples: int = 1000, noise: float = 0.15, seed: int = 0) -> Dataset:
    """Return two interleaved half circles: scikit-learn's ``make_moons``, number for number.

    Args:
        examples: N; inputs are ``(N, 2)``.
        noise: standard deviation of the noise.
        seed: of the order and the noise.
    """
    upper, lower = (np.linspace(0, np.pi, count) for count in _halves(examples))
    x = np.stack(
        [
            np.append(np.cos(upper), 1 - np.cos(lower)),
            np.append(np.sin(upper), 1 - np.sin(lower) - 0.5),
        ],
        axis=1,
    )
    return _shuffled("moons", x, noise, seed, ("upper", "lower"))


def circles(
    examples: int = 1000, noise: float = 0.08, factor: float = 0.5, seed: int = 0
) -> Dataset:
    """Return a circle around another: scikit-learn's ``make_circles``, number for number.

    Args:
        examples: N; inputs are ``(N, 2)``.
        noise: standard deviation of the noise.
        factor: radius of the inner circle; the outer one's is 1.
        seed: of the order and the noise.

    Raises:
        InputError: ``factor`` is not in [0, 1).
    """
    if not 0 <= factor < 1:
        raise ArgumentError(
            "circles", "factor", f"expected a number from 0 to below 1, got {factor}"
        )
    outer, inner = (np.linspace(0, 2 * np.pi, count, endpoint=False) for count in _halves(examples))
    x = np.stack(
        [
            np.append(np.cos(outer), np.cos(inner) * factor),
            np.append(np.sin(outer), np.sin(inner) * factor),
        ],
        axis=1,
    )
    return _shuffled("circles", x, noise, seed, ("outer", "inner"))


def _halves(examples: int) -> tuple[int, int]:
    return examples // 2, examples - examples // 2


def _shuffled(
    name: str, x: np.ndarray, noise: float, seed: int, classes: tuple[str, str]
) -> Dataset:
    """Shuffle two halves and add noise with the legacy generator, which scikit-learn uses."""
    random = np.random.RandomState(seed)
    label = np.repeat((0, 1), _halves(len(x)))
    order = np.arange(len(x))
    random.shuffle(order)
    x = x[order] + random.normal(scale=noise, size=x.shape)
    return classification(name, x, label[order], classes)


def linear(examples: int = 1000, features: int = 5, noise: float = 0.1, seed: int = 0) -> Dataset:
    """Return ``y = x w + b`` with normal x, w, b and normal noise; least squares solves it.

    Args:
        examples: N.
        features: F; inputs are ``(N, F)``, targets ``(N, 1)``.
        noise: standard deviation of the noise.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    x, w, b = (
        random.normal(size=(examples, features)),
        random.normal(size=features),
        random.normal(),
    )
    return regression("linear", x, x @ w + b + noise * random.normal(size=examples))


def sine(examples: int = 1000, periods: float = 2.0, noise: float = 0.05, seed: int = 0) -> Dataset:
    """Return ``y = sin(pi periods x)`` for uniform x in [-1, 1], with normal noise.

    Args:
        examples: N; inputs and targets are ``(N, 1)``.
        periods: number of periods from -1 to 1.
        noise: standard deviation of the noise.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (examples, 1))
    return regression(
        "sine", x, np.sin(np.pi * periods * x[:, 0]) + noise * random.normal(size=examples)
    )
