"""Activations: a = sigma(z), and the factor sigma'(z) of equations (1) and (2).

What is cached is chosen so that the backward pass moves the least memory. Where sigma' can be written in the
activation a (sigmoid, tanh, elu, selu, softplus), the cache is a, which the next layer keeps anyway. Where it has two
values (relu, leaky_relu), the cache is which of them, one byte. Elsewhere (silu, gelu) the forward pass, which has the
exponential at hand, computes sigma'(z) itself and caches that: one array, and one multiplication going backward.

At a kink the derivative is the one from the left: relu'(0) = 0, leaky_relu'(0) = slope.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Cache, Grads, Key, Layer, Params, Shape


def _elementwise(
    name: str,
    forward_and_cache: Callable[[Array], tuple[Array, Array]],
    pull: Callable[[Array, Array], Array],
) -> Layer:
    """A layer without parameters from ``z -> (a, cache)`` and ``(delta, cache) -> delta * sigma'(z)``."""

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        return forward_and_cache(x)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        return pull(delta, cache), ()  # the factor sigma'(z) of equations (1) and (2)

    return Layer(init, forward, backward, name=name)


def _from_activation(
    name: str, f: Callable[[Array], Array], pull: Callable[[Array, Array], Array]
) -> Layer:
    """An activation whose backward is a function of its value, ``(delta, a) -> delta * sigma'(z)``."""

    def forward_and_cache(z: Array) -> tuple[Array, Array]:
        a = f(z)
        return a, a

    return _elementwise(name, forward_and_cache, pull)


def _from_derivative(name: str, f: Callable[[Array], tuple[Array, Array]]) -> Layer:
    """An activation whose forward pass gives ``(a, sigma'(z))`` at once."""
    return _elementwise(name, f, lambda delta, slope: delta * slope)


def identity() -> Layer:
    """``a = z``. Caches nothing."""

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        return x, ()

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        return delta, ()

    return Layer(init, forward, backward, kind="identity")


def sigmoid() -> Layer:
    """``a = 1 / (1 + exp(-z))``; sigma'(z) = a (1 - a), at most 1/4: the cause of vanishing deltas in deep stacks."""
    return _from_activation("sigmoid", jax.nn.sigmoid, lambda delta, a: delta * (a * (1 - a)))


def tanh() -> Layer:
    """``a = tanh(z)``; sigma'(z) = 1 - a^2."""
    return _from_activation("tanh", jnp.tanh, lambda delta, a: delta * (1 - a * a))


def relu() -> Layer:
    """``a = max(z, 0)``; sigma'(z) = 1 where z > 0, else 0 (also at 0). Nair and Hinton (2010). The cache is where z <= 0.

    NaN stays NaN, so that a run that breaks down is noticed.
    """
    return _elementwise(
        "relu",
        lambda z: (jnp.where(z <= 0, 0, z), z <= 0),
        lambda delta, off: jnp.where(off, 0, delta),
    )


def leaky_relu(slope: float | Array = 0.01) -> Layer:
    """``a = z`` where z > 0, else ``slope * z``. Maas, Hannun and Ng (2013). The cache is where z > 0."""
    return _elementwise(
        "leaky_relu",
        lambda z: (jnp.where(z > 0, z, slope * z), z > 0),
        lambda delta, on: jnp.where(on, delta, slope * delta),
    )


def elu(alpha: float | Array = 1.0) -> Layer:
    """``a = z`` where z > 0, else ``alpha (exp(z) - 1)``, whose derivative is a + alpha. Clevert et al. (2016)."""
    return _from_activation(
        "elu",
        lambda z: jnp.where(z > 0, z, alpha * jnp.expm1(jnp.where(z > 0, 0, z))),
        lambda delta, a: jnp.where(a > 0, delta, delta * (a + alpha)),
    )


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def selu() -> Layer:
    """``scale * elu(z, alpha)`` with the fixed point's constants. Klambauer et al. (2017), use lecun_normal weights."""
    return _from_activation(
        "selu",
        lambda z: (
            _SELU_SCALE * jnp.where(z > 0, z, _SELU_ALPHA * jnp.expm1(jnp.where(z > 0, 0, z)))
        ),
        lambda delta, a: delta * jnp.where(a > 0, _SELU_SCALE, a + _SELU_SCALE * _SELU_ALPHA),
    )


def softplus() -> Layer:
    """``a = log(1 + exp(z))``; sigma'(z) = sigmoid(z) = 1 - exp(-a)."""
    return _from_activation("softplus", jax.nn.softplus, lambda delta, a: delta * -jnp.expm1(-a))


def silu() -> Layer:
    """``a = z sigmoid(z)``, also called swish. Elfwing et al. (2018), Ramachandran et al. (2017)."""

    def f(z: Array) -> tuple[Array, Array]:
        s = jax.nn.sigmoid(z)
        a = z * s
        return a, s + a * (1 - s)

    return _from_derivative("silu", f)


_SQRT_HALF = 0.7071067811865476
_INV_SQRT_2PI = 0.3989422804014327
_SQRT_2_OVER_PI = 0.7978845608028654


def gelu(approximate: bool = False) -> Layer:
    """``a = z Phi(z)`` with Phi the standard normal's distribution function; Hendrycks and Gimpel (2016).

    Args:
        approximate: use the tanh form, ``z/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3)))``.
    """

    def exact(z: Array) -> tuple[Array, Array]:
        distribution = 0.5 + 0.5 * jax.lax.erf(z * _SQRT_HALF)
        return z * distribution, distribution + z * _INV_SQRT_2PI * jnp.exp(-0.5 * z * z)

    def tanh_form(z: Array) -> tuple[Array, Array]:
        full, z = (
            z,
            jnp.clip(z, -30, 30),
        )  # beyond, tanh is 1 to the last bit and the cube might overflow
        square = z * z
        t = jnp.tanh(_SQRT_2_OVER_PI * z * (1 + 0.044715 * square))
        half = 0.5 * (1 + t)
        slope = _SQRT_2_OVER_PI * (1 + 3 * 0.044715 * square)
        return full * half, half + z * 0.5 * (1 - t * t) * slope

    return _from_derivative(
        "gelu(tanh)" if approximate else "gelu", tanh_form if approximate else exact
    )


def softmax() -> Layer:
    """``a_k = exp(z_k) / sum_j exp(z_j)`` over the last axis, a layer of its own.

    Its Jacobian is not diagonal: dC/dz = a * (delta - sum_k delta_k a_k). Before a cross-entropy, leave this layer out
    and use ``losses.softmax_cross_entropy`` on the logits: stable, and the Jacobian cancels.
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        a = jax.nn.softmax(x, axis=-1)
        return a, a

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        a = cache
        return a * (delta - (delta * a).sum(axis=-1, keepdims=True)), ()

    return Layer(init, forward, backward, name="softmax")


def log_softmax() -> Layer:
    """``a_k = z_k - log(sum_j exp(z_j))`` over the last axis; dC/dz = delta - softmax(z) sum_k delta_k.

    The cache is the softmax's numerators and their sum, which the forward pass has at hand.
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        shifted = x - x.max(axis=-1, keepdims=True)
        exponentials = jnp.exp(shifted)
        total = exponentials.sum(axis=-1, keepdims=True)
        return shifted - jnp.log(total), (exponentials, total)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        exponentials, total = cache
        return delta - exponentials * (delta.sum(axis=-1, keepdims=True) / total), ()

    return Layer(init, forward, backward, name="log_softmax")


def glu() -> Layer:
    """``a = u sigmoid(v)`` where the last axis is the halves (u, v). Dauphin et al. (2017).

    The cache is (u, sigmoid(v)). The last axis must be even.
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if not shape or shape[-1] % 2:
            raise ShapeError(f"glu expects an even last axis, got shape {shape}")
        return (), (*shape[:-1], shape[-1] // 2)

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        u, v = jnp.split(x, 2, axis=-1)
        gate = jax.nn.sigmoid(v)
        return u * gate, (u, gate)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        u, gate = cache
        return jnp.concatenate([delta * gate, delta * u * gate * (1 - gate)], axis=-1), ()

    return Layer(init, forward, backward, name="glu")


def maxout(pieces: int = 2) -> Layer:
    """The largest of each ``pieces`` neighbours on the last axis; the first of equals wins. Goodfellow et al. (2013).

    The cache is the winner's index. The last axis must be a multiple of ``pieces``.
    """
    if pieces < 1:
        raise InputError(f"maxout: pieces must be at least 1, got {pieces}")

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if not shape or shape[-1] % pieces:
            raise ShapeError(
                f"maxout({pieces}) expects a last axis that is a multiple of {pieces}, got shape {shape}"
            )
        return (), (*shape[:-1], shape[-1] // pieces)

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        groups = x.reshape(*x.shape[:-1], -1, pieces)
        winner = groups.argmax(axis=-1, keepdims=True)
        return jnp.take_along_axis(groups, winner, axis=-1)[..., 0], winner

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        mask = cache == jnp.arange(pieces)
        return jnp.where(mask, delta[..., None], 0).reshape(*delta.shape[:-1], -1), ()

    return Layer(init, forward, backward, name=f"maxout({pieces})")
