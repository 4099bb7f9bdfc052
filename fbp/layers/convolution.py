"""Convolutions, images as (B, H, W, C) and sequences as (B, T, C), kernels as (window..., in / groups, out).

With a convolution ``z = w * x + b`` the four equations keep their form; a sum over positions joins the sum over examples:

    (2) hidden error      dC/dx = delta * w flipped in space, in and out exchanged: a convolution again
    (3) bias gradient     dC/db = sum of delta over examples and positions
    (4) weight gradient   dC/dw[k] = sum over positions p of x[stride p + dilation k]^T delta[p]: for each place k of the
                          window one GEMM over all examples and positions

Source: LeCun et al. (1989), *Backpropagation applied to handwritten zip code recognition*.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fbp import initializers
from fbp._kernels import DILATED_MIN_CHANNELS, by_platform, convolution
from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Cache, Grads, Initializer, Key, Layer, Params, Shape

Padding = Literal["SAME", "VALID"] | int | Sequence[tuple[int, int]]


class Window(NamedTuple):
    """How a window moves over the spatial axes; one entry per axis."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Padding

    @property
    def extent(self) -> tuple[int, ...]:
        """How far a window reaches, dilation included."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.size, self.dilation, strict=True))

    def pads(self, spatial: Shape) -> list[tuple[int, int]]:
        """Zeros before and after each axis of an input of that size."""
        if isinstance(self.padding, str):
            return list(lax.padtype_to_pads(spatial, self.extent, self.stride, self.padding))
        if isinstance(self.padding, int):
            return [(self.padding, self.padding)] * len(self.size)
        return [(low, high) for low, high in self.padding]

    def tiles(self, spatial: Shape) -> bool:
        """Whether windows lie side by side from the first place on: none overlap, nothing is padded, none is left between."""
        return self.stride == self.size == self.extent and not any(map(any, self.pads(spatial)))

    def output(self, spatial: Shape) -> Shape:
        """The size of the output for an input of that size; ShapeError where the window does not fit."""
        padded = [
            n + low + high for n, (low, high) in zip(spatial, self.pads(spatial), strict=True)
        ]
        if any(n < extent for n, extent in zip(padded, self.extent, strict=True)):
            raise ShapeError(
                f"a window of {' x '.join(map(str, self.extent))} does not fit an input of {' x '.join(map(str, spatial))} "
                f"with padding {self.padding!r}"
            )
        if any(extent > 2 * n + 1 for n, extent in zip(spatial, self.extent, strict=True)):
            raise ShapeError(
                f"a window of {' x '.join(map(str, self.extent))} is more than twice as large as the input of "
                f"{' x '.join(map(str, spatial))}: most of it would only ever see padding"
            )
        return tuple(
            (n - e) // s + 1 for n, e, s in zip(padded, self.extent, self.stride, strict=True)
        )

    def places(self, x: Array, fill: float = 0.0) -> list[Array]:
        """For each place of the window, in row-major order, what lies there at each position: ``(B, *output, C)``."""
        spatial = x.shape[1:-1]
        pads, output = self.pads(spatial), self.output(spatial)
        padded = jnp.pad(
            x,
            [(0, 0), *((max(lo, 0), max(hi, 0)) for lo, hi in pads), (0, 0)],
            constant_values=fill,
        )
        found = []
        for place in itertools.product(*map(range, self.size)):
            start = [
                k * d - min(low, 0)
                for k, d, (low, _) in zip(place, self.dilation, pads, strict=True)
            ]
            stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, output, self.stride, strict=True)]
            found.append(
                lax.slice(
                    padded,
                    (0, *start, 0),
                    (x.shape[0], *stop, x.shape[-1]),
                    (1, *self.stride, 1),
                )
            )
        return found


def window_of(
    kind: str,
    rank: int,
    size: int | Sequence[int],
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
    padding: Padding,
) -> Window:
    """A checked window over ``rank`` axes; one number stands for all of them."""

    def each(name: str, value: int | Sequence[int]) -> tuple[int, ...]:
        values = (value,) * rank if isinstance(value, int) else tuple(value)
        if len(values) != rank or any(v < 1 for v in values):
            raise InputError(
                f"{kind}: {name} must be {rank} whole numbers of at least 1, or one for all, got {value!r}"
            )
        return values

    if isinstance(padding, str) and padding not in ("SAME", "VALID"):
        raise InputError(
            f"{kind}: padding must be 'SAME', 'VALID', a number or a pair for each axis, got {padding!r}"
        )
    if not isinstance(padding, (str, int)) and len(padding) != rank:
        raise InputError(
            f"{kind}: padding must have a pair for each of {rank} axes, got {padding!r}"
        )
    return Window(each("window", size), each("stride", stride), each("dilation", dilation), padding)


def conv1d(
    channels: int,
    window: int,
    *,
    stride: int = 1,
    padding: Padding = "SAME",
    dilation: int = 1,
    groups: int = 1,
    weights: Initializer | None = None,
    bias: Initializer | None = None,
) -> Layer:
    """A convolution over sequences ``(B, T, C) -> (B, T', channels)``; see :func:`conv2d`."""
    return _convolution(
        "conv1d", 1, channels, window, stride, padding, dilation, groups, weights, bias
    )


def conv2d(
    channels: int,
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    weights: Initializer | None = None,
    bias: Initializer | None = None,
) -> Layer:
    """A convolution over images ``(B, H, W, C) -> (B, H', W', channels)``.

    Args:
        channels: how many kernels.
        window: the kernel's size; here and below, one number stands for both axes.
        stride: how far the kernel moves between outputs.
        padding: ``SAME`` (an output for each stride), ``VALID`` (no padding), a number of zeros on every side, or a pair
            (before, after) for each axis.
        dilation: the distance between the kernel's places.
        groups: input and output channels in so many groups that do not see each other; ``groups=C`` is depthwise.
        weights, bias: initializers; he_normal and zeros by default.

    Returns:
        A layer with parameters ``{"w": (*window, C / groups, channels), "b": (channels,)}``. Its cache is its input.

    Raises:
        InputError: for a window, stride, dilation or number of groups that makes no sense.
        ShapeError: where the input has another rank, channels that ``groups`` does not divide, or no room for the window.
    """
    return _convolution(
        "conv2d", 2, channels, window, stride, padding, dilation, groups, weights, bias
    )


def _convolution(
    kind: str,
    rank: int,
    channels: int,
    size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
    weights: Initializer | None,
    bias: Initializer | None,
) -> Layer:
    window = window_of(kind, rank, size, stride, dilation, padding)
    if channels < 1 or groups < 1 or channels % groups:
        raise InputError(
            f"{kind}: channels must be a multiple of groups, both at least 1, got {channels} and {groups}"
        )
    draw_weights, draw_bias = weights or initializers.he_normal(), bias or initializers.zeros()

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        check_rank(kind, rank, shape)
        if shape[-1] % groups:
            raise ShapeError(
                f"{kind} of {groups} groups expects channels that are a multiple of {groups}, got {shape[-1]}"
            )
        w_key, b_key = jax.random.split(key)
        dtype = jnp.result_type(float)
        params = {
            "w": draw_weights(w_key, (*window.size, shape[-1] // groups, channels), dtype),
            "b": draw_bias(b_key, (channels,), dtype),
        }
        return params, (*window.output(shape[:-1]), channels)

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        check_rank(kind, rank, x.shape[1:])
        if x.shape[-1] != params["w"].shape[-2] * groups:
            raise ShapeError(
                f"{kind} expects {params['w'].shape[-2] * groups} channels, got an input of shape {x.shape}"
            )
        return convolve(x, params["w"], window, groups) + params["b"], x

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        x, w = cache, params["w"]
        grads = {
            "w": weight_gradient(x, delta, w.shape, window, groups),  # equation (4)
            "b": delta.reshape(-1, channels).sum(axis=0),  # equation (3)
        }
        return input_delta(delta, w, x.shape, window, groups), grads  # equation (2)

    return Layer(
        init, forward, backward, name=f"{kind}({channels}, {'x'.join(map(str, window.size))})"
    )


def conv_transpose1d(
    channels: int, window: int, *, stride: int = 1, padding: Padding = "SAME", weights: Initializer | None = None,
    bias: Initializer | None = None,
) -> Layer:  # fmt: skip
    """A transposed convolution over sequences ``(B, T, C) -> (B, T', channels)``; see :func:`conv_transpose2d`."""
    return _transposed("conv_transpose1d", 1, channels, window, stride, padding, weights, bias)


def conv_transpose2d(
    channels: int, window: int | Sequence[int], *, stride: int | Sequence[int] = 1, padding: Padding = "SAME",
    weights: Initializer | None = None, bias: Initializer | None = None,
) -> Layer:  # fmt: skip
    """The transpose of a convolution: its forward is a convolution's input delta, its input delta is the convolution.

    ``SAME`` makes an image ``stride`` times as large, ``VALID`` leaves room for every place of the window:
    ``(n - 1) stride + window``. Parameters ``{"w": (*window, channels, C), "b": (channels,)}``; the cache is the input.
    Dumoulin and Visin (2016), *A guide to convolution arithmetic for deep learning*.
    """
    return _transposed("conv_transpose2d", 2, channels, window, stride, padding, weights, bias)


def _transposed(
    kind: str,
    rank: int,
    channels: int,
    size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: Padding,
    weights: Initializer | None,
    bias: Initializer | None,
) -> Layer:
    window = window_of(kind, rank, size, stride, 1, padding)
    if channels < 1:
        raise InputError(f"{kind}: channels must be at least 1, got {channels}")
    draw_weights, draw_bias = weights or initializers.he_normal(), bias or initializers.zeros()

    def larger(spatial: Shape) -> Shape:
        """The size of the image whose convolution has the size ``spatial``."""
        if window.padding == "SAME":
            return tuple(n * s for n, s in zip(spatial, window.stride, strict=True))
        pads = window.pads(spatial)
        sizes = tuple(
            (n - 1) * s + k - low - high
            for n, s, k, (low, high) in zip(spatial, window.stride, window.size, pads, strict=True)
        )
        if any(n < 1 for n in sizes):
            raise ShapeError(
                f"{kind}: padding {window.padding!r} leaves nothing of an input of {spatial}"
            )
        return sizes

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        check_rank(kind, rank, shape)
        w_key, b_key = jax.random.split(key)
        dtype = jnp.result_type(float)
        drawn = draw_weights(
            w_key, (*window.size, shape[-1], channels), dtype
        )  # (in, out), as the initializers count
        params = {"w": drawn.swapaxes(-1, -2), "b": draw_bias(b_key, (channels,), dtype)}
        return params, (*larger(shape[:-1]), channels)

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        check_rank(kind, rank, x.shape[1:])
        if x.shape[-1] != params["w"].shape[-1]:
            raise ShapeError(
                f"{kind} expects {params['w'].shape[-1]} channels, got an input of shape {x.shape}"
            )
        shape = (x.shape[0], *larger(x.shape[1:-1]), channels)
        return input_delta(x, params["w"], shape, window, 1) + params["b"], x

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        grads = {
            "w": weight_gradient(
                delta, cache, params["w"].shape, window, 1
            ),  # the roles of input and delta exchanged
            "b": delta.reshape(-1, channels).sum(axis=0),
        }
        return convolve(delta, params["w"], window, 1), grads

    return Layer(
        init, forward, backward, name=f"{kind}({channels}, {'x'.join(map(str, window.size))})"
    )


def check_rank(kind: str, rank: int, shape: Shape) -> None:
    """ShapeError unless an example has ``rank`` spatial axes and one of channels."""
    if len(shape) != rank + 1:
        axes = "(T, C)" if rank == 1 else "(H, W, C)"
        raise ShapeError(f"{kind} expects examples of shape {axes}, got {shape}")


def convolve(x: Array, w: Array, window: Window, groups: int) -> Array:
    """``z[p] = sum_k x[stride p + dilation k] w[k]``: a convolution as neural networks write it (a correlation)."""
    once = (1,) * len(window.size)
    return convolution(
        x, w, window.stride, window.pads(x.shape[1:-1]), once, window.dilation, groups
    )


def input_delta(delta: Array, w: Array, shape: Shape, window: Window, groups: int) -> Array:
    """Equation (2): delta, spread by the stride, convolved with the flipped kernel, for an input of ``shape``."""
    rank = len(window.size)
    kernels = w.shape[-1] // groups
    by_group = jnp.flip(w, range(rank)).reshape(*window.size, w.shape[-2], groups, kernels)
    exchanged = (
        jnp.moveaxis(by_group, -1, rank)
        .swapaxes(-1, -2)
        .reshape(*window.size, kernels, groups * w.shape[-2])
    )
    pads = []
    for n, spread, extent, stride, (low, _) in zip(
        shape[1:-1],
        delta.shape[1:-1],
        window.extent,
        window.stride,
        window.pads(shape[1:-1]),
        strict=True,
    ):
        dilated = (spread - 1) * stride + 1
        pads.append((extent - 1 - low, n - dilated + low))
    return convolution(delta, exchanged, (1,) * rank, pads, window.stride, window.dilation, groups)


def weight_gradient(x: Array, delta: Array, shape: Shape, window: Window, groups: int) -> Array:
    """Equation (4) for a kernel of ``shape``: x convolved with delta, the examples in the place of channels."""
    rank = len(window.size)
    pads = [
        (low, (k - 1) * d + (n - 1) * s + 1 - size - low)
        for size, n, k, d, s, (low, _) in zip(
            x.shape[1:-1], delta.shape[1:-1], window.size, window.dilation, window.stride, window.pads(x.shape[1:-1]),
            strict=True,
        )
    ]  # fmt: skip

    def on_cpu(x: Array, delta: Array) -> Array:
        """XLA's own weight gradient leaves the fast path inside a scan: it takes forty times as long."""
        if groups > 1 or len(x) < DILATED_MIN_CHANNELS:
            return _by_place(x, delta, shape, window, groups)
        kernel, once = jnp.moveaxis(delta, 0, rank), (1,) * rank
        found = convolution(x.swapaxes(0, -1), kernel, window.dilation, pads, once, window.stride)
        return jnp.moveaxis(found, 0, rank)

    def elsewhere(x: Array, delta: Array) -> Array:
        space = "HW"[:rank]
        return lax.conv_general_dilated(
            x,
            delta,
            window.dilation,
            pads,
            rhs_dilation=window.stride,
            dimension_numbers=(f"C{space}N", f"I{space}O", f"{space}NC"),
            batch_group_count=groups,
        )

    return by_platform(on_cpu, elsewhere, x, delta)


def _by_place(x: Array, delta: Array, shape: Shape, window: Window, groups: int) -> Array:
    """Equation (4) as one product for each place of the window, over all examples and positions."""
    by_group = delta.reshape(-1, groups, delta.shape[-1] // groups)
    found = [
        jnp.einsum("ngi,ngo->igo", place.reshape(-1, groups, shape[-2]), by_group).reshape(
            shape[-2:]
        )
        for place in window.places(x)
    ]
    return jnp.stack(found).reshape(shape)
