"""Random changes of pictures while training, on the device: ``(key, x (B, H, W, C)) -> x``.

The functions are pure: the same key gives the same pictures, so a resumed run sees the pictures of
an uninterrupted one. Each example is changed by random numbers of its own.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from fbp._arguments import checked
from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Key

Augmentation: TypeAlias = Callable[[Key, Array], Array]
"""``(key, x (B, H, W, C)) -> x``, of the same shape."""


@checked
def shift(pixels: int) -> Augmentation:
    """Return a shift by up to ``pixels`` in each direction; zeros fill the border.

    Args:
        pixels: the largest shift.
    """
    return _window_at_random("shift", pixels, "constant")


@checked
def crop(margin: int) -> Augmentation:
    """Return a random crop of the picture's size from the picture extended by reflection.

    Args:
        margin: pixels that are added on each side.
    """
    return _window_at_random("crop", margin, "reflect")


def _window_at_random(name: str, pixels: int, mode: str) -> Augmentation:
    if pixels < 0:
        raise InputError(f"{name}: expected at least 0 pixels, got {pixels}")

    def change(key: Key, x: Array) -> Array:
        _check_pictures(name, x)
        wide = jnp.pad(x, [(0, 0), (pixels, pixels), (pixels, pixels), (0, 0)], mode=mode)
        corners = jax.random.randint(key, (x.shape[0], 2), 0, 2 * pixels + 1)
        window = lambda picture, corner: lax.dynamic_slice(picture, (*corner, 0), x.shape[1:])
        return jax.vmap(window)(wide, corners)

    return change


def _check_pictures(name: str, x: Array) -> None:
    if x.ndim != 4:
        raise ShapeError(f"{name} expects pictures (B, H, W, C), got an array of shape {x.shape}")


def flip() -> Augmentation:
    """Return an exchange of left and right with probability 1/2."""

    def change(key: Key, x: Array) -> Array:
        _check_pictures("flip", x)
        flipped = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
        return jnp.where(flipped, x[:, :, ::-1], x)

    return change


@checked
def cutout(size: int) -> Augmentation:
    """Return a square hole of zeros, its centre anywhere in the picture. DeVries and Taylor (2017).

    Args:
        size: side of the square in pixels.
    """
    if size < 0:
        raise InputError(f"cutout: expected at least 0 pixels, got {size}")

    def change(key: Key, x: Array) -> Array:
        _check_pictures("cutout", x)
        height, width = x.shape[1:3]
        centre = jax.random.uniform(key, (x.shape[0], 2)) * jnp.array([height, width])
        corner = jnp.round(centre - size / 2)

        def inside(length: int, start: Array) -> Array:
            pixels = jnp.arange(length)
            return (pixels >= start[:, None]) & (pixels < start[:, None] + size)

        hole = inside(height, corner[:, 0])[:, :, None] & inside(width, corner[:, 1])[:, None, :]
        return jnp.where(hole[..., None], 0, x)

    return change


@checked
def compose(steps: Sequence[Augmentation]) -> Augmentation:
    """Return augmentations in sequence, each with a key of its own.

    Args:
        steps: the augmentations.
    """

    def change(key: Key, x: Array) -> Array:
        for i, step in enumerate(steps):
            x = step(jax.random.fold_in(key, i), x)
        return x

    return change
