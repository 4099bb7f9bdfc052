"""Normalization: numbers brought to mean 0 and deviation 1 (or to a root mean square of 1), then scaled and shifted.

With n = (x - mean) / deviation over some axes and g = delta * scale, the input delta takes out of g what the mean and the
deviation would absorb:

    dC/dx = (g - mean(g) - n mean(g n)) / deviation

The cache is x, which is there anyway, its mean and 1 / deviation: n is made again where it is needed, which costs less than to
write it down. Statistics are computed in float32 (or wider), whatever the dtype of x.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp import initializers
from fbp._observation import join_observed, split_observed
from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Cache, Grads, Key, Layer, Params, Shape, Statistics, require_layer


def _wide(x: Array) -> Array:
    """x with at least float32's precision, for statistics."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class _Statistics(NamedTuple):
    """``mean`` (None: not taken out) and 1 / deviation, in the shape that x is normalized with."""

    mean: Array | None
    inverse: Array

    def normalized(self, x: Array) -> Array:
        """n, in float32 or wider."""
        return (_wide(x) if self.mean is None else _wide(x) - self.mean) * self.inverse


def _measured(
    x: Array, axes: Sequence[int], epsilon: float | Array, centered: bool = True
) -> _Statistics:
    """The statistics of x over ``axes``."""
    wide = _wide(x)
    mean = wide.mean(axis=axes, keepdims=True) if centered else None
    apart = wide if mean is None else wide - mean
    return _Statistics(
        mean, jax.lax.rsqrt((apart * apart).mean(axis=axes, keepdims=True) + epsilon)
    )


def _sum_to_features(values: Array) -> Array:
    return values.reshape(-1, values.shape[-1]).sum(axis=0)


def _over_features(name: str, epsilon: float | Array, centered: bool) -> Layer:
    """The common form of layer norm and RMS norm: statistics over the last axis, parameters for each feature."""

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if not shape:
            raise ShapeError(
                f"{name} expects an input with at least one axis besides the batch, got shape ()"
            )
        dtype = jnp.result_type(float)
        params = {"scale": initializers.ones()(key, shape[-1:], dtype)}
        return (
            params | {"offset": initializers.zeros()(key, shape[-1:], dtype)}
            if centered
            else params
        ), shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        if x.shape[-1] != params["scale"].shape[0]:
            raise ShapeError(
                f"{name} expects {params['scale'].shape[0]} features, got an input of shape {x.shape}"
            )
        measured = _measured(x, (-1,), epsilon, centered)
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

    return Layer(init, forward, backward, name=name)


def layer_norm(epsilon: float | Array = 1e-5) -> Layer:
    """Mean 0 and deviation 1 over the features of each position. Ba, Kiros and Hinton (2016).

    Parameters ``{"scale": (F,), "offset": (F,)}``.
    """
    return _over_features("layer_norm", epsilon, centered=True)


def rms_norm(epsilon: float | Array = 1e-6) -> Layer:
    """A root mean square of 1 over the features of each position. Zhang and Sennrich (2019). Parameters ``{"scale": (F,)}``."""
    return _over_features("rms_norm", epsilon, centered=False)


def group_norm(groups: int, epsilon: float | Array = 1e-5) -> Layer:
    """Mean 0 and deviation 1 over all positions and the channels of each group. Wu and He (2018).

    Parameters ``{"scale": (C,), "offset": (C,)}``. The channels must be a multiple of ``groups``.
    """
    if groups < 1:
        raise InputError(f"group_norm: groups must be at least 1, got {groups}")
    name = f"group_norm({groups})"

    def check(shape: Shape) -> None:
        if not shape or shape[-1] % groups:
            raise ShapeError(
                f"{name} expects channels that are a multiple of {groups}, got shape {shape}"
            )

    def over_groups(sums: Array, positions: int) -> Array:
        """The mean over each group from sums over the positions of each channel, ``(B, C) -> (B, 1, C)``."""
        size = sums.shape[-1] // groups
        means = sums.reshape(-1, groups, size).sum(axis=-1) / (positions * size)
        return jnp.repeat(means, size, axis=-1)[:, None]

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        check(shape)
        return _scale_and_offset(key, shape), shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        check(x.shape[1:])
        if x.shape[-1] != params["scale"].shape[0]:
            raise ShapeError(
                f"{name} expects {params['scale'].shape[0]} channels, got an input of shape {x.shape}"
            )
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        wide, positions = _wide(rows), rows.shape[1]
        mean = over_groups(wide.sum(axis=1), positions)
        variance = over_groups(((wide - mean) ** 2).sum(axis=1), positions)
        measured = _Statistics(mean, jax.lax.rsqrt(variance + epsilon))
        n = measured.normalized(rows).astype(x.dtype)
        return (n * params["scale"] + params["offset"]).reshape(x.shape), (rows, measured)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        rows, measured = cache
        n, wide, scale = (
            measured.normalized(rows),
            _wide(delta.reshape(rows.shape)),
            _wide(params["scale"]),
        )
        along, total = (
            (wide * n).sum(axis=1),
            wide.sum(axis=1),
        )  # (B, C): the gradients before the sum over examples
        mean_g, mean_gn = (over_groups(sums * scale, rows.shape[1]) for sums in (total, along))
        inner = (wide * scale - mean_g - n * mean_gn) * measured.inverse
        grads = {
            "scale": along.sum(axis=0).astype(delta.dtype),
            "offset": total.sum(axis=0).astype(delta.dtype),
        }
        return inner.astype(delta.dtype).reshape(delta.shape), grads

    return Layer(init, forward, backward, name=name)


def _scale_and_offset(key: Key, shape: Shape) -> Params:
    dtype = jnp.result_type(float)
    return {
        "scale": initializers.ones()(key, shape[-1:], dtype),
        "offset": initializers.zeros()(key, shape[-1:], dtype),
    }


def batch_norm(epsilon: float | Array = 1e-5) -> Layer:
    """Mean 0 and deviation 1 over the batch and all positions, channel by channel. Ioffe and Szegedy (2015).

    In training (a key is given) the statistics are the batch's. In evaluation (``key=None``) they are the population's, which
    stand among the parameters as ``mean`` and ``variance``: a layer stays a pure function of its parameters, and nothing has
    to be carried from step to step. They are taken as constants: their gradient is 0, so no optimizer moves them. Fill them
    from data when they are needed, with :func:`fbp.training.make_fill_statistics`. That is also the better estimate: it belongs to
    the parameters as they are, while a moving average mixes in those of earlier steps (Wu and Johnson, 2021, *Rethinking
    "Batch" in BatchNorm*).

    Parameters ``{"scale": (C,), "offset": (C,), "mean": (C,), "variance": (C,)}``.
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if not shape:
            raise ShapeError(
                "batch_norm expects an input with at least one axis besides the batch, got shape ()"
            )
        dtype = jnp.result_type(float)
        statistics = {"mean": jnp.zeros(shape[-1:], dtype), "variance": jnp.ones(shape[-1:], dtype)}
        return _scale_and_offset(key, shape) | statistics, shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        if x.shape[-1] != params["scale"].shape[0]:
            raise ShapeError(
                f"batch_norm expects {params['scale'].shape[0]} channels, got an input of shape {x.shape}"
            )
        if key is None:
            mean, variance = (jax.lax.stop_gradient(params[name]) for name in ("mean", "variance"))
            mark: Any = ()
            measured = _Statistics(_wide(mean), jax.lax.rsqrt(_wide(variance) + epsilon))
        else:
            measured, mark = (
                _measured(x, tuple(range(x.ndim - 1)), epsilon),
                _batch_statistics_mark(),
            )
        n = measured.normalized(x).astype(x.dtype)
        return n * params["scale"] + params["offset"], (x, measured, mark)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        x, measured, training = cache
        n, wide = measured.normalized(x), _wide(delta)
        along, total = _sum_to_features(wide * n), _sum_to_features(wide)
        inner = wide
        if not isinstance(training, tuple):  # else evaluation: the statistics do not depend on x
            count = delta.size // delta.shape[-1]
            inner = wide - (
                total / count + n * (along / count)
            )  # the means of g and g n are the gradients, divided
        grads = {
            "scale": along.astype(delta.dtype),
            "offset": total.astype(delta.dtype),
            "mean": jnp.zeros_like(params["mean"]),
            "variance": jnp.zeros_like(params["variance"]),
        }
        return (inner * (measured.inverse * params["scale"])).astype(delta.dtype), grads

    return Layer(
        init,
        forward,
        backward,
        kind="batch_norm",
        nontrainable=("mean", "variance"),
        statistics=Statistics(_measure, _combine),
    )


def _batch_statistics_mark() -> Array:
    """A mark in a cache, with no elements: statistics were the batch's."""
    return jnp.zeros((0,), jnp.bool_)


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


def weight_norm(layer: Layer) -> Layer:
    """A layer whose weight ``w`` is written as ``g v / |v|``, length and direction apart, for each output unit.

    Salimans and Kingma (2016). ``layer`` is one with parameters ``w`` and ``b`` (dense, a convolution); here they are ``v``
    (the shape of w), ``g`` (outputs,) and ``b``. The norm runs over all axes of v but the last.
    """

    require_layer("weight_norm", layer)

    def norms(v: Array) -> Array:
        return jnp.sqrt((v * v).sum(axis=tuple(range(v.ndim - 1))))

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        params, out_shape = layer.init(key, shape)
        if not isinstance(params, dict) or set(params) != {"w", "b"}:
            raise ShapeError(
                f"weight_norm expects a layer with parameters w and b, got {layer.name}"
            )
        return {"v": params["w"], "g": norms(params["w"]), "b": params["b"]}, out_shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        w = params["v"] * (params["g"] / norms(params["v"]))
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
