"""The window of convolutions and pooling, and how it moves over the spatial axes."""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import lax

from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Shape

Padding = Literal["SAME", "VALID"] | int | Sequence[tuple[int, int]]


class Window(NamedTuple):
    """How a window moves over the spatial axes; one entry per axis."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Padding

    @property
    def extent(self) -> tuple[int, ...]:
        """Size of the window with its dilation."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.size, self.dilation, strict=True))

    def pads(self, spatial: Shape) -> list[tuple[int, int]]:
        """Return the zeros before and after each axis of an input of size ``spatial``."""
        if isinstance(self.padding, str):
            return list(lax.padtype_to_pads(spatial, self.extent, self.stride, self.padding))
        if isinstance(self.padding, int):
            return [(self.padding, self.padding)] * len(self.size)
        return [(low, high) for low, high in self.padding]

    def is_non_overlapping(self, spatial: Shape) -> bool:
        """Return whether windows lie side by side, without overlap, padding or gaps."""
        return self.stride == self.size == self.extent and not any(map(any, self.pads(spatial)))

    def output(self, spatial: Shape) -> Shape:
        """Return the output's size for an input of size ``spatial``.

        Raises:
            ShapeError: if the window does not fit.
        """
        pads = zip(spatial, self.pads(spatial), strict=True)
        padded = [n + low + high for n, (low, high) in pads]
        window, size = (" x ".join(map(str, shape)) for shape in (self.extent, spatial))
        if any(n < extent for n, extent in zip(padded, self.extent, strict=True)):
            raise ShapeError(
                f"a window of {window} does not fit an input of {size} "
                f"with padding {self.padding!r}"
            )
        if any(extent > 2 * n + 1 for n, extent in zip(spatial, self.extent, strict=True)):
            raise ShapeError(
                f"a window of {window} is more than twice as large as the input of {size}: "
                "most of it would only ever see padding"
            )
        return tuple(
            (n - e) // s + 1 for n, e, s in zip(padded, self.extent, self.stride, strict=True)
        )

    def offsets(self) -> list[tuple[int, ...]]:
        """Return the offsets in the window, in row-major order."""
        return list(itertools.product(*map(range, self.size)))

    def patches(self, x: Array, fill: float = 0.0) -> list[Array]:
        """Return, for each offset, the values that the windows have there.

        Args:
            x: (B, spatial..., C).
            fill: the value of padding.

        Returns:
            An array (B, *output, C) for each offset.
        """
        spatial = x.shape[1:-1]
        pads, output = self.pads(spatial), self.output(spatial)
        widths = [(0, 0), *((max(low, 0), max(high, 0)) for low, high in pads), (0, 0)]
        padded = jnp.pad(x, widths, constant_values=fill)
        patches = []
        for offset in self.offsets():
            axes = zip(offset, self.dilation, pads, strict=True)
            start = [k * d - min(low, 0) for k, d, (low, _) in axes]
            stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, output, self.stride, strict=True)]
            limits = (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *self.stride, 1)
            patches.append(lax.slice(padded, *limits))
        return patches

    def __str__(self) -> str:
        return "x".join(map(str, self.size))


def make_window(
    kind: str,
    rank: int,
    size: int | Sequence[int],
    *,
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int] = 1,
) -> Window:
    """Return a checked window over ``rank`` axes; one number stands for all of them.

    Raises:
        InputError: if a size, stride, dilation or padding is not possible.
    """

    def for_each_axis(name: str, value: int | Sequence[int]) -> tuple[int, ...]:
        values = (value,) * rank if isinstance(value, int) else tuple(value)
        if len(values) != rank or any(v < 1 for v in values):
            raise InputError(
                f"{kind}: {name} must be {rank} whole numbers of at least 1, or one for all, "
                f"got {value!r}"
            )
        return values

    if isinstance(padding, str) and padding not in ("SAME", "VALID"):
        raise InputError(
            f"{kind}: padding must be 'SAME', 'VALID', a number or a pair for each axis, "
            f"got {padding!r}"
        )
    if not isinstance(padding, (str, int)) and len(padding) != rank:
        raise InputError(
            f"{kind}: padding must have a pair for each of {rank} axes, got {padding!r}"
        )
    return Window(
        for_each_axis("window", size),
        for_each_axis("stride", stride),
        for_each_axis("dilation", dilation),
        padding,
    )
