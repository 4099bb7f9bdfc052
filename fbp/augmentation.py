"""Pictures changed at random while training, on the device: functions ``(key, x (B, H, W, C)) -> x``.

They are pure, so the same key gives the same pictures: a resumed run sees what an unbroken one would have seen. Each example is
changed by numbers of its own.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Key

Augmentation = Callable[[Key, Array], Array]


def shift(pixels: int) -> Augmentation:
    """Moved by up to ``pixels`` in each direction; zeros move in."""
    return _moved("shift", pixels, "constant")


def crop(margin: int) -> Augmentation:
    """A window of the picture's size cut from it at random, after ``margin`` pixels were added on each side by reflection."""
    return _moved("crop", margin, "reflect")


def _moved(name: str, pixels: int, mode: str) -> Augmentation:
    if pixels < 0:
        raise InputError(f"{name}: expected at least 0 pixels, got {pixels}")

    def change(key: Key, x: Array) -> Array:
        _check_pictures(name, x)
        wide = jnp.pad(x, [(0, 0), (pixels, pixels), (pixels, pixels), (0, 0)], mode=mode)
        corners = jax.random.randint(key, (x.shape[0], 2), 0, 2 * pixels + 1)
        return jax.vmap(lambda picture, at: lax.dynamic_slice(picture, (*at, 0), x.shape[1:]))(
            wide, corners
        )

    return change


def _check_pictures(name: str, x: Array) -> None:
    if x.ndim != 4:
        raise ShapeError(f"{name} expects pictures (B, H, W, C), got an array of shape {x.shape}")


def flip() -> Augmentation:
    """Left and right exchanged, in half of the cases."""

    def change(key: Key, x: Array) -> Array:
        _check_pictures("flip", x)
        flipped = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
        return jnp.where(flipped, x[:, :, ::-1], x)

    return change


def cutout(size: int) -> Augmentation:
    """A square of ``size`` pixels set to 0, its middle anywhere in the picture. DeVries and Taylor (2017)."""
    if size < 0:
        raise InputError(f"cutout: expected at least 0 pixels, got {size}")

    def change(key: Key, x: Array) -> Array:
        _check_pictures("cutout", x)
        height, width = x.shape[1:3]
        middle = jax.random.uniform(key, (x.shape[0], 2)) * jnp.array([height, width])
        first = jnp.round(middle - size / 2)

        def inside(length: int, begin: Array) -> Array:
            places = jnp.arange(length)
            return (places >= begin[:, None]) & (places < begin[:, None] + size)

        hole = inside(height, first[:, 0])[:, :, None] & inside(width, first[:, 1])[:, None, :]
        return jnp.where(hole[..., None], 0, x)

    return change


def compose(steps: Sequence[Augmentation]) -> Augmentation:
    """One after another, each with a key of its own."""

    def change(key: Key, x: Array) -> Array:
        for i, step in enumerate(steps):
            x = step(jax.random.fold_in(key, i), x)
        return x

    return change
