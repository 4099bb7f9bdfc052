"""Normalization: numbers brought to mean 0 and deviation 1 (or to a root mean square of 1), then scaled and shifted.

With n = (x - mean) / deviation over some axes and g = delta * scale, the input delta takes out of g what the mean and the
deviation would absorb:

    dC/dx = (g - mean(g) - n mean(g n)) / deviation

The cache is n and 1 / deviation. Statistics are computed in float32 (or wider), whatever the dtype of x.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fbp import initializers
from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Cache, Grads, Key, Layer, Params, Shape


def _wide(x: Array) -> Array:
    """x with at least float32's precision, for statistics."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _normalize(x: Array, axes: Sequence[int], epsilon: float | Array, centered: bool = True) -> tuple[Array, Array]:
    """``(n, 1 / deviation)`` over ``axes``."""
    wide = _wide(x)
    if centered:
        wide = wide - wide.mean(axis=axes, keepdims=True)
    inverse = jax.lax.rsqrt((wide * wide).mean(axis=axes, keepdims=True) + epsilon)
    return (wide * inverse).astype(x.dtype), inverse


def _normalize_backward(g: Array, n: Array, inverse: Array, axes: Sequence[int], centered: bool = True) -> Array:
    """dC/dx from g = dC/dn."""
    wide_g, wide_n = _wide(g), _wide(n)
    g_along_n = (wide_g * wide_n).mean(axis=axes, keepdims=True)
    inner = wide_g - wide_n * g_along_n
    if centered:
        inner = inner - wide_g.mean(axis=axes, keepdims=True)
    return (inner * inverse).astype(g.dtype)


def _sum_to_features(values: Array) -> Array:
    return values.reshape(-1, values.shape[-1]).sum(axis=0)


def _over_features(name: str, epsilon: float | Array, centered: bool) -> Layer:
    """The common form of layer norm and RMS norm: statistics over the last axis, parameters for each feature."""

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if not shape:
            raise ShapeError(f"{name} expects an input with at least one axis besides the batch, got shape ()")
        dtype = jnp.result_type(float)
        params = {"scale": initializers.ones()(key, shape[-1:], dtype)}
        return (params | {"offset": initializers.zeros()(key, shape[-1:], dtype)} if centered else params), shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        if x.shape[-1] != params["scale"].shape[0]:
            raise ShapeError(f"{name} expects {params['scale'].shape[0]} features, got an input of shape {x.shape}")
        n, inverse = _normalize(x, (-1,), epsilon, centered)
        y = n * params["scale"]
        return (y + params["offset"] if centered else y), (n, inverse)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        n, inverse = cache
        grads = {"scale": _sum_to_features(delta * n)}
        if centered:
            grads["offset"] = _sum_to_features(delta)
        return _normalize_backward(delta * params["scale"], n, inverse, (-1,), centered), grads

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
            raise ShapeError(f"{name} expects channels that are a multiple of {groups}, got shape {shape}")

    def split(x: Array) -> Array:
        return x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        check(shape)
        return _scale_and_offset(key, shape), shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        check(x.shape[1:])
        n, inverse = _normalize(split(x), (1, 3), epsilon)
        return n.reshape(x.shape) * params["scale"] + params["offset"], (n, inverse)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        n, inverse = cache
        g = split(delta * params["scale"])
        grads = {"scale": _sum_to_features(delta * n.reshape(delta.shape)), "offset": _sum_to_features(delta)}
        return _normalize_backward(g, n, inverse, (1, 3)).reshape(delta.shape), grads

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
    from data when they are needed, with :func:`fbp.training.with_statistics`. That is also the better estimate: it belongs to
    the parameters as they are, while a moving average mixes in those of earlier steps (Wu and Johnson, 2021, *Rethinking
    "Batch" in BatchNorm*).

    Parameters ``{"scale": (C,), "offset": (C,), "mean": (C,), "variance": (C,)}``.
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if not shape:
            raise ShapeError("batch_norm expects an input with at least one axis besides the batch, got shape ()")
        dtype = jnp.result_type(float)
        statistics = {"mean": jnp.zeros(shape[-1:], dtype), "variance": jnp.ones(shape[-1:], dtype)}
        return _scale_and_offset(key, shape) | statistics, shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        if x.shape[-1] != params["scale"].shape[0]:
            raise ShapeError(f"batch_norm expects {params['scale'].shape[0]} channels, got an input of shape {x.shape}")
        if key is None:
            mean, variance = (jax.lax.stop_gradient(params[name]) for name in ("mean", "variance"))
            inverse = jax.lax.rsqrt(_wide(variance) + epsilon)
            n = ((_wide(x) - mean) * inverse).astype(x.dtype)
            return n * params["scale"] + params["offset"], (n, inverse, ())
        n, inverse = _normalize(x, tuple(range(x.ndim - 1)), epsilon)
        return n * params["scale"] + params["offset"], (n, inverse, _batch_statistics_mark())

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        n, inverse, training = cache
        g = delta * params["scale"]
        grads = {
            "scale": _sum_to_features(delta * n),
            "offset": _sum_to_features(delta),
            "mean": jnp.zeros_like(params["mean"]),
            "variance": jnp.zeros_like(params["variance"]),
        }
        if isinstance(training, tuple):  # evaluation: the statistics do not depend on x
            return (_wide(g) * inverse).astype(g.dtype), grads
        return _normalize_backward(g, n, inverse, tuple(range(delta.ndim - 1))), grads

    return Layer(init, forward, backward, name="batch_norm")


def _batch_statistics_mark() -> Array:
    """A mark in a cache, with no elements: statistics were the batch's."""
    return jnp.zeros((0,), jnp.bool_)


def statistics(x: Array) -> tuple[Array, Array]:
    """Mean and variance of each channel over the batch and all positions, in float32 or wider."""
    axes = tuple(range(x.ndim - 1))
    wide = _wide(x)
    return wide.mean(axis=axes), wide.var(axis=axes)


def weight_norm(layer: Layer) -> Layer:
    """A layer whose weight ``w`` is written as ``g v / |v|``, length and direction apart, for each output unit.

    Salimans and Kingma (2016). ``layer`` is one with parameters ``w`` and ``b`` (dense, a convolution); here they are ``v``
    (the shape of w), ``g`` (outputs,) and ``b``. The norm runs over all axes of v but the last.
    """

    def norms(v: Array) -> Array:
        return jnp.sqrt((v * v).sum(axis=tuple(range(v.ndim - 1))))

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        params, out_shape = layer.init(key, shape)
        if not isinstance(params, dict) or set(params) != {"w", "b"}:
            raise ShapeError(f"weight_norm expects a layer with parameters w and b, got {layer.name}")
        return {"v": params["w"], "g": norms(params["w"]), "b": params["b"]}, out_shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        w = params["v"] * (params["g"] / norms(params["v"]))
        y, cache = layer.forward({"w": w, "b": params["b"]}, x, key=key)
        return y, (w, cache)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        w, layer_cache = cache
        input_delta, grads = layer.backward({"w": w, "b": params["b"]}, layer_cache, delta)
        length = norms(params["v"])
        direction = params["v"] / length
        along = (grads["w"] * direction).sum(axis=tuple(range(w.ndim - 1)))  # dC/dg
        across = (grads["w"] - direction * along) * (params["g"] / length)  # dC/dv: only turns v
        return input_delta, {"v": across, "g": along, "b": grads["b"]}

    return Layer(init, forward, backward, name=f"weight_norm({layer.name})")
