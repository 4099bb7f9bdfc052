"""Normalization: mean 0 and deviation 1 (or a root mean square of 1), then a scale and an offset.

With n = (x - mean) / deviation over some axes and g = delta * scale, the input delta takes out of g
the parts that the mean and the deviation absorb:

    dC/dx = (g - mean(g) - n mean(g n)) / deviation

The cache is x, which is in memory anyway, its mean and 1 / deviation. n is recomputed in the
backward pass; that is cheaper than storing it. Statistics are computed in float32 (or wider),
whatever the dtype of x.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp import initializers
from fbp._arguments import checked
from fbp._kernels import at_least_float32
from fbp._observation import join_observed, split_observed
from fbp.errors import ShapeError
from fbp.layer import Array, Cache, Grads, Key, Layer, Params, Shape, Statistics, require_layer


def _wide(x: Array) -> Array:
    """Return x with at least float32's precision, for statistics."""
    return x.astype(at_least_float32(x))


class _Moments(NamedTuple):
    """The numbers that x is normalized with.

    Attributes:
        mean: broadcasts with x; None if it is not subtracted.
        inverse: 1 / deviation, broadcasts with x.
    """

    mean: Array | None
    inverse: Array

    def normalized(self, x: Array) -> Array:
        """Return n, in float32 or wider."""
        return (_wide(x) if self.mean is None else _wide(x) - self.mean) * self.inverse


def _measured(
    x: Array, axes: Sequence[int], epsilon: float | Array, *, centered: bool = True
) -> _Moments:
    """Return the moments of x over ``axes``."""
    wide = _wide(x)
    mean = wide.mean(axis=axes, keepdims=True) if centered else None
    deviations = wide if mean is None else wide - mean
    return _Moments(
        mean, jax.lax.rsqrt((deviations * deviations).mean(axis=axes, keepdims=True) + epsilon)
    )


def _require_axis(kind: str, shape: Shape) -> None:
    if not shape:
        raise ShapeError(
            f"{kind} expects an input with at least one axis besides the batch, got shape ()"
        )


def _check_width(kind: str, unit: str, params: Params, x: Array) -> None:
    """Raise ShapeError unless the last axis of x fits the parameters."""
    width = params["scale"].shape[0]
    if x.shape[-1] != width:
        raise ShapeError(f"{kind} expects {width} {unit}, got an input of shape {x.shape}")


def _sum_to_features(values: Array) -> Array:
    """Sum over all axes but the last."""
    return values.reshape(-1, values.shape[-1]).sum(axis=0)


def _over_features(kind: str, epsilon: float | Array, *, centered: bool) -> Layer:
    """Return the common form of layer norm and RMS norm: statistics over the last axis."""

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        _require_axis(kind, shape)
        params = _scale_and_offset(key, shape)
        return (params if centered else {"scale": params["scale"]}), shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        _check_width(kind, "features", params, x)
        measured = _measured(x, (-1,), epsilon, centered=centered)
        y = measured.normalized(x).astype(x.dtype) * params["scale"]
        return (y + params["offset"] if centered else y), (x, measured)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        x, measured = cache
        wide = _wide(delta * params["scale"])
        n = measured.normalized(x)
        inner = wide - n * (wide * n).mean(axis=-1, keepdims=True)
        grads = {"scale": _sum_to_features(delta * n.astype(x.dtype))}
        if centered:
            inner = inner - wide.mean(axis=-1, keepdims=True)
            grads["offset"] = _sum_to_features(delta)
        return (inner * measured.inverse).astype(delta.dtype), grads

    return Layer(init, forward, backward, kind=kind)


@checked
def layer_norm(epsilon: float | Array = 1e-5) -> Layer:
    """Return mean 0 and deviation 1 over the features of each position.

    Ba, Kiros and Hinton (2016).

    Args:
        epsilon: added to the variance.

    Returns:
        A layer with parameters ``{"scale": (F,), "offset": (F,)}``.

    Raises:
        ShapeError: if the input does not fit.
    """
    return _over_features("layer_norm", epsilon, centered=True)


@checked
def rms_norm(epsilon: float | Array = 1e-6) -> Layer:
    """Return a root mean square of 1 over the features of each position.

    Zhang and Sennrich (2019).

    Args:
        epsilon: added to the mean square.

    Returns:
        A layer with parameters ``{"scale": (F,)}``.

    Raises:
        ShapeError: if the input does not fit.
    """
    return _over_features("rms_norm", epsilon, centered=False)


@checked
def group_norm(groups: int, epsilon: float | Array = 1e-5) -> Layer:
    """Return mean 0 and deviation 1 over all positions and the channels of each group.

    Wu and He (2018).

    Args:
        groups: number of groups of channels.
        epsilon: added to the variance.

    Returns:
        A layer with parameters ``{"scale": (C,), "offset": (C,)}``.

    Raises:
        InputError: if ``groups`` is less than 1.
        ShapeError: if the channels are not a multiple of ``groups``, or the input does not fit.
    """
    name = f"group_norm({groups})"

    def check(shape: Shape) -> None:
        if not shape or shape[-1] % groups:
            raise ShapeError(
                f"{name} expects channels that are a multiple of {groups}, got shape {shape}"
            )

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        check(shape)
        return _scale_and_offset(key, shape), shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        check(x.shape[1:])
        _check_width(name, "channels", params, x)
        rows = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
        wide, positions = _wide(rows), rows.shape[1]
        mean = _group_means(wide.sum(axis=1), positions, groups)
        variance = _group_means(((wide - mean) ** 2).sum(axis=1), positions, groups)
        measured = _Moments(mean, jax.lax.rsqrt(variance + epsilon))
        n = measured.normalized(rows).astype(x.dtype)
        return (n * params["scale"] + params["offset"]).reshape(x.shape), (rows, measured)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        rows, measured = cache
        n, wide = measured.normalized(rows), _wide(delta.reshape(rows.shape))
        scale = _wide(params["scale"])
        # (B, C): the gradients before the sum over examples
        along, total = (wide * n).sum(axis=1), wide.sum(axis=1)
        mean_g, mean_gn = (
            _group_means(sums * scale, rows.shape[1], groups) for sums in (total, along)
        )
        inner = (wide * scale - mean_g - n * mean_gn) * measured.inverse
        grads = {
            "scale": along.sum(axis=0).astype(delta.dtype),
            "offset": total.sum(axis=0).astype(delta.dtype),
        }
        return inner.astype(delta.dtype).reshape(delta.shape), grads

    return Layer(init, forward, backward, kind="group_norm", name=name, incremental=None)


def _group_means(sums: Array, positions: int, groups: int) -> Array:
    """Return each group's mean (B, 1, C) from each channel's sum over positions (B, C)."""
    size = sums.shape[-1] // groups
    means = sums.reshape(sums.shape[0], groups, size).sum(axis=-1) / (positions * size)
    return jnp.repeat(means, size, axis=-1)[:, None]


def _scale_and_offset(key: Key, shape: Shape) -> dict[str, Array]:
    """Return a scale of 1 and an offset of 0 for each feature."""
    dtype = jnp.result_type(float)
    return {
        "scale": initializers.ones()(key, shape[-1:], dtype),
        "offset": initializers.zeros()(key, shape[-1:], dtype),
    }


@checked
def batch_norm(epsilon: float | Array = 1e-5) -> Layer:
    """Return mean 0 and deviation 1 over the batch and all positions, for each channel.

    Ioffe and Szegedy (2015). In training (a key is given) the statistics are the batch's. In
    evaluation (``key=None``) they are the population's, which are the parameters ``mean`` and
    ``variance``: the layer stays a pure function of its parameters, and no state is carried from
    step to step. They are constants: their gradient is 0, so no optimizer moves them. Fill them
    from data with :func:`fbp.training.make_fill_statistics`. That is also the better estimate: it
    belongs to the current parameters, while a moving average mixes in those of earlier steps (Wu
    and Johnson, 2021, *Rethinking "Batch" in BatchNorm*).

    Args:
        epsilon: added to the variance.

    Returns:
        A layer with parameters
        ``{"scale": (C,), "offset": (C,), "mean": (C,), "variance": (C,)}``.

    Raises:
        ShapeError: if the input does not fit.
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        _require_axis("batch_norm", shape)
        dtype = jnp.result_type(float)
        statistics = {"mean": jnp.zeros(shape[-1:], dtype), "variance": jnp.ones(shape[-1:], dtype)}
        return _scale_and_offset(key, shape) | statistics, shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        _check_width("batch_norm", "channels", params, x)
        if key is None:
            mean, variance = (jax.lax.stop_gradient(params[name]) for name in ("mean", "variance"))
            measured = _Moments(_wide(mean), jax.lax.rsqrt(_wide(variance) + epsilon))
        else:
            measured = _measured(x, tuple(range(x.ndim - 1)), epsilon)
        # An array without elements marks the batch's statistics: caches hold arrays only.
        mark: Any = () if key is None else jnp.zeros((0,), jnp.bool_)
        n = measured.normalized(x).astype(x.dtype)
        return n * params["scale"] + params["offset"], (x, measured, mark)

    return Layer(
        init,
        forward,
        _batch_norm_backward,
        kind="batch_norm",
        nontrainable=("mean", "variance"),
        statistics=Statistics(_measure, _combine),
    )


def _batch_norm_backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
    """Return the input delta and the gradients of :func:`batch_norm`."""
    x, measured, mark = cache
    n, wide = measured.normalized(x), _wide(delta)
    along, total = _sum_to_features(wide * n), _sum_to_features(wide)
    inner = wide
    if not isinstance(mark, tuple):  # else the statistics do not depend on x
        # The means of g and g n are the gradients, divided.
        count = delta.size // delta.shape[-1]
        inner = wide - (total / count + n * (along / count))
    grads = {
        "scale": along.astype(delta.dtype),
        "offset": total.astype(delta.dtype),
        "mean": jnp.zeros_like(params["mean"]),
        "variance": jnp.zeros_like(params["variance"]),
    }
    return (inner * (measured.inverse * params["scale"])).astype(delta.dtype), grads


def _measure(params: Params, x: Array) -> dict[str, Array]:
    """Return mean and variance of each channel over the batch and all positions."""
    axes = tuple(range(x.ndim - 1))
    wide = _wide(x)
    return {"mean": wide.mean(axis=axes), "variance": wide.var(axis=axes)}


def _combine(batches: dict[str, Array]) -> dict[str, Array]:
    """Return the population's statistics.

    Its variance is the mean of the batches' variances plus the variance of their means.
    """
    means, variances = batches["mean"], batches["variance"]
    return {"mean": means.mean(axis=0), "variance": variances.mean(axis=0) + means.var(axis=0)}


@checked
def weight_norm(layer: Layer) -> Layer:
    """Return the layer with its weight ``w`` written as ``g v / |v|``: length and direction apart.

    Salimans and Kingma (2016). The norm runs over all axes of v but the last, for each output unit.

    Args:
        layer: a layer with parameters ``w`` and ``b``: dense, or a convolution.

    Returns:
        A composite with parameters ``{"v": like w, "g": (outputs,), "b": (outputs,)}``. Its cache
        is w and the layer's cache.

    Raises:
        InputError: if ``layer`` is not a :class:`fbp.Layer`.
        ShapeError: if it has other parameters than ``w`` and ``b``.
    """
    require_layer("weight_norm", layer)

    def norms(v: Array) -> Array:
        squares = (v * v).sum(axis=tuple(range(v.ndim - 1)))
        # a column of zeros has no direction: a norm of 1 leaves it, and its gradient, finite
        return jnp.sqrt(jnp.where(squares == 0, 1, squares))

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        params, out_shape = layer.init(key, shape)
        if not isinstance(params, dict) or set(params) != {"w", "b"}:
            raise ShapeError(
                f"weight_norm expects a layer with parameters w and b, got {layer.name}"
            )
        return {"v": params["w"], "g": norms(params["w"]), "b": params["b"]}, out_shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        w = params["v"] * (params["g"] / norms(params["v"]))  # 0 if v is
        y, cache = layer.forward({"w": w, "b": params["b"]}, x, key=key)
        return y, (w, cache)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        w, layer_cache = cache
        input_delta, grads = layer.backward({"w": w, "b": params["b"]}, layer_cache, delta)
        grads, observed = split_observed(grads)
        length = norms(params["v"])
        direction = params["v"] / length
        along = (grads["w"] * direction).sum(axis=tuple(range(w.ndim - 1)))  # dC/dg
        across = (grads["w"] - direction * along) * (params["g"] / length)  # dC/dv: only turns v
        grads = {"v": across, "g": along, "b": grads["b"]}
        return input_delta, join_observed(grads, observed)

    return Layer(
        init,
        forward,
        backward,
        kind="weight_norm",
        name=f"weight_norm({layer.name})",
        parts={"": layer},
        rebuild=lambda parts: weight_norm(parts[""]),
        incremental="positionwise" if layer.incremental == "positionwise" else None,
    )
