"""Convolutions of images (B, H, W, C) and sequences (B, T, C).

Kernels are (window..., in / groups, out). With a convolution ``z = w * x + b`` the four equations
keep their form; a sum over positions joins the sum over examples:

    (2) hidden error      dC/dx = delta * w flipped in space, in and out exchanged: a convolution
    (3) bias gradient     dC/db = sum of delta over examples and positions
    (4) weight gradient   dC/dw[k] = sum over positions p of x[stride p + dilation k]^T delta[p]:
                          for each offset k in the window one GEMM over all examples and positions

Source: LeCun et al. (1989), *Backpropagation applied to handwritten zip code recognition*.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fbp import initializers
from fbp._arguments import checked
from fbp._kernels import DILATED_MIN_CHANNELS, ConvolutionShape, by_platform, convolution
from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Cache, Grads, Initializer, Key, Layer, Params, Shape
from fbp.layers._window import Padding, Window, make_window


@checked
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
    """Return a convolution over sequences ``(B, T, C) -> (B, T', channels)``.

    Args:
        channels: number of kernels.
        window: as in :func:`conv2d`, like all arguments.
        stride: distance between the kernel's positions.
        padding: ``SAME``, ``VALID``, a number or one pair.
        dilation: distance between the kernel's values.
        groups: number of groups of channels.
        weights: initializer of ``w``; he_normal by default.
        bias: initializer of ``b``; zeros by default.

    Returns:
        A layer with parameters ``{"w": (window, C / groups, channels), "b": (channels,)}``. Its
        cache is its input.

    Raises:
        InputError: as :func:`conv2d`.
        ShapeError: as :func:`conv2d`.
    """
    moving = make_window("conv1d", 1, window, stride=stride, padding=padding, dilation=dilation)
    return _convolution("conv1d", channels, moving, groups=groups, weights=weights, bias=bias)


@checked
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
    """Return a convolution over images ``(B, H, W, C) -> (B, H', W', channels)``.

    Args:
        channels: number of kernels.
        window: the kernel's size; here and below, one number stands for both axes.
        stride: distance between the kernel's positions.
        padding: ``SAME`` (an output for each stride), ``VALID`` (no padding), a number of zeros on
            every side, or a pair (before, after) for each axis.
        dilation: distance between the kernel's values.
        groups: number of groups of input and output channels that do not see each other;
            ``groups=C`` is depthwise.
        weights: initializer of ``w``; he_normal by default.
        bias: initializer of ``b``; zeros by default.

    Returns:
        A layer with parameters ``{"w": (*window, C / groups, channels), "b": (channels,)}``. Its
        cache is its input.

    Raises:
        InputError: if a window, stride, dilation or number of groups is not possible.
        ShapeError: if the input has another rank, channels that ``groups`` does not divide, or no
            room for the window.
    """
    moving = make_window("conv2d", 2, window, stride=stride, padding=padding, dilation=dilation)
    return _convolution("conv2d", channels, moving, groups=groups, weights=weights, bias=bias)


def _convolution(
    kind: str,
    channels: int,
    window: Window,
    *,
    groups: int,
    weights: Initializer | None,
    bias: Initializer | None,
) -> Layer:
    """Return the convolution that both public ones are."""
    rank = len(window.size)
    if channels < 1 or groups < 1 or channels % groups:
        raise InputError(
            f"{kind}: channels must be a multiple of groups, both at least 1, "
            f"got {channels} and {groups}"
        )
    draw_weights, draw_bias = weights or initializers.he_normal(), bias or initializers.zeros()

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        check_rank(kind, rank, shape)
        if shape[-1] % groups:
            raise ShapeError(
                f"{kind} of {groups} groups expects channels that are a multiple of {groups}, "
                f"got {shape[-1]}"
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
                f"{kind} expects {params['w'].shape[-2] * groups} channels, "
                f"got an input of shape {x.shape}"
            )
        return convolve(x, params["w"], window, groups) + params["b"], x

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        x, w = cache, params["w"]
        grads = {
            "w": weight_gradient(x, delta, w.shape, window, groups),  # equation (4)
            "b": delta.reshape(-1, channels).sum(axis=0),  # equation (3)
        }
        return conv_input_delta(delta, w, x.shape, window, groups), grads  # equation (2)

    name = f"{kind}({channels}, {window})"
    return Layer(init, forward, backward, kind=kind, name=name, incremental=None)


@checked
def conv_transpose1d(
    channels: int,
    window: int,
    *,
    stride: int = 1,
    padding: Padding = "SAME",
    weights: Initializer | None = None,
    bias: Initializer | None = None,
) -> Layer:
    """Return a transposed convolution over sequences ``(B, T, C) -> (B, T', channels)``.

    Args:
        channels: number of output channels.
        window: as in :func:`conv_transpose2d`, like all arguments.
        stride: the factor by which ``SAME`` lengthens the sequence.
        padding: ``SAME``, ``VALID``, a number or one pair.
        weights: initializer of ``w``; he_normal by default.
        bias: initializer of ``b``; zeros by default.

    Returns:
        A layer with parameters ``{"w": (window, channels, C), "b": (channels,)}``. Its cache is its
        input.

    Raises:
        InputError: as :func:`conv2d`.
        ShapeError: as :func:`conv2d`.
    """
    moving = make_window("conv_transpose1d", 1, window, stride=stride, padding=padding)
    return _transposed("conv_transpose1d", channels, moving, weights=weights, bias=bias)


@checked
def conv_transpose2d(
    channels: int,
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    weights: Initializer | None = None,
    bias: Initializer | None = None,
) -> Layer:
    """Return the transpose of a convolution over images ``(B, H, W, C) -> (B, H', W', channels)``.

    Its forward is a convolution's input delta, its input delta is the convolution. Dumoulin and
    Visin (2016), *A guide to convolution arithmetic for deep learning*.

    Args:
        channels: number of output channels.
        window: the kernel's size; here and below, one number stands for both axes.
        stride: the factor by which ``SAME`` enlarges the image.
        padding: as in :func:`conv2d`. ``VALID`` leaves room for the whole window:
            ``(n - 1) stride + window``.
        weights: initializer of ``w``; he_normal by default.
        bias: initializer of ``b``; zeros by default.

    Returns:
        A layer with parameters ``{"w": (*window, channels, C), "b": (channels,)}``. Its cache is
        its input.

    Raises:
        InputError: as :func:`conv2d`.
        ShapeError: as :func:`conv2d`.
    """
    moving = make_window("conv_transpose2d", 2, window, stride=stride, padding=padding)
    return _transposed("conv_transpose2d", channels, moving, weights=weights, bias=bias)


def _transposed(
    kind: str,
    channels: int,
    window: Window,
    *,
    weights: Initializer | None,
    bias: Initializer | None,
) -> Layer:
    """Return the transposed convolution that both public ones are."""
    rank = len(window.size)
    draw_weights, draw_bias = weights or initializers.he_normal(), bias or initializers.zeros()

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        check_rank(kind, rank, shape)
        w_key, b_key = jax.random.split(key)
        dtype = jnp.result_type(float)
        # (in, out), as the initializers count
        w = draw_weights(w_key, (*window.size, shape[-1], channels), dtype)
        params = {"w": w.swapaxes(-1, -2), "b": draw_bias(b_key, (channels,), dtype)}
        return params, (*_transposed_size(kind, window, shape[:-1]), channels)

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        check_rank(kind, rank, x.shape[1:])
        if x.shape[-1] != params["w"].shape[-1]:
            raise ShapeError(
                f"{kind} expects {params['w'].shape[-1]} channels, got an input of shape {x.shape}"
            )
        shape = (x.shape[0], *_transposed_size(kind, window, x.shape[1:-1]), channels)
        return conv_input_delta(x, params["w"], shape, window, 1) + params["b"], x

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        grads = {
            # the roles of input and delta exchanged
            "w": weight_gradient(delta, cache, params["w"].shape, window, 1),
            "b": delta.reshape(-1, channels).sum(axis=0),
        }
        return convolve(delta, params["w"], window, 1), grads

    name = f"{kind}({channels}, {window})"
    return Layer(init, forward, backward, kind=kind, name=name, incremental=None)


def _transposed_size(kind: str, window: Window, spatial: Shape) -> Shape:
    """Return the size of the image whose convolution has the size ``spatial``."""
    if window.padding == "SAME":
        return tuple(n * s for n, s in zip(spatial, window.stride, strict=True))
    pads = window.pads(spatial)
    output_size = tuple(
        (n - 1) * s + k - low - high
        for n, s, k, (low, high) in zip(spatial, window.stride, window.size, pads, strict=True)
    )
    if any(n < 1 for n in output_size):
        raise ShapeError(
            f"{kind}: padding {window.padding!r} leaves nothing of an input of {spatial}"
        )
    return output_size


def check_rank(kind: str, rank: int, shape: Shape) -> None:
    """Raise ShapeError unless an example has ``rank`` spatial axes and one of channels."""
    if len(shape) != rank + 1:
        axes = "(T, C)" if rank == 1 else "(H, W, C)"
        raise ShapeError(f"{kind} expects examples of shape {axes}, got {shape}")


def convolve(x: Array, w: Array, window: Window, groups: int) -> Array:
    """Return ``z[p] = sum_k x[stride p + dilation k] w[k]``: what neural networks call convolution.

    Elsewhere it is called correlation.
    """
    ones, pads = (1,) * len(window.size), window.pads(x.shape[1:-1])
    shape = ConvolutionShape(window.stride, pads, ones, window.dilation, groups)
    return convolution(x, w, shape)


def conv_input_delta(delta: Array, w: Array, shape: Shape, window: Window, groups: int) -> Array:
    """Return equation (2) for an input of ``shape``.

    It is the convolution of delta, dilated by the stride, with the flipped kernel.
    """
    rank = len(window.size)
    kernels = w.shape[-1] // groups
    by_group = jnp.flip(w, range(rank)).reshape(*window.size, w.shape[-2], groups, kernels)
    exchanged = (
        jnp.moveaxis(by_group, -1, rank)
        .swapaxes(-1, -2)
        .reshape(*window.size, kernels, groups * w.shape[-2])
    )
    sizes = zip(shape[1:-1], delta.shape[1:-1], window.extent, window.stride, strict=True)
    pads = [
        (extent - 1 - low, size - ((positions - 1) * stride + 1) + low)
        for (size, positions, extent, stride), (low, _) in zip(
            sizes, window.pads(shape[1:-1]), strict=True
        )
    ]
    moving = ConvolutionShape((1,) * rank, pads, window.stride, window.dilation, groups)
    return convolution(delta, exchanged, moving)


def weight_gradient(x: Array, delta: Array, shape: Shape, window: Window, groups: int) -> Array:
    """Return equation (4) for a kernel of ``shape``.

    It is the convolution of x with delta, the examples in the place of channels. Which form
    computes it depends on the platform and the number of examples.
    """
    rank = len(window.size)
    pads = [
        (low, (k - 1) * d + (n - 1) * s + 1 - size - low)
        for size, n, k, d, s, (low, _) in zip(
            x.shape[1:-1],
            delta.shape[1:-1],
            window.size,
            window.dilation,
            window.stride,
            window.pads(x.shape[1:-1]),
            strict=True,
        )
    ]

    def on_cpu(x: Array, delta: Array) -> Array:
        # XLA's own weight gradient leaves the fast path inside a scan: forty times as long.
        if groups > 1 or len(x) < DILATED_MIN_CHANNELS:
            return _gradient_per_offset(x, delta, shape, window, groups)
        kernel, ones = jnp.moveaxis(delta, 0, rank), (1,) * rank
        moving = ConvolutionShape(window.dilation, pads, ones, window.stride)
        return jnp.moveaxis(convolution(x.swapaxes(0, -1), kernel, moving), 0, rank)

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


def _gradient_per_offset(
    x: Array, delta: Array, shape: Shape, window: Window, groups: int
) -> Array:
    """Return equation (4) as one GEMM for each offset, over all examples and positions."""
    by_group = delta.reshape(-1, groups, delta.shape[-1] // groups)
    gradients = []
    for patch in window.patches(x):
        rows = patch.reshape(-1, groups, shape[-2])
        gradients.append(jnp.einsum("ngi,ngo->igo", rows, by_group).reshape(shape[-2:]))
    return jnp.stack(gradients).reshape(shape)
