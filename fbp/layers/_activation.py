"""Activations: a = sigma(z), and the factor sigma'(z) of equations (1) and (2).

The cache is chosen so that the backward pass moves the least memory. If sigma' can be written in
the activation a (sigmoid, tanh, elu, selu, softplus), the cache is a, which the next layer keeps
anyway. If it has two values (relu, leaky_relu), the cache says which of them, one byte. Otherwise
(silu, gelu) the forward pass, which has the exponential at hand, computes sigma'(z) itself and
caches that: one array, and one multiplication going backward.

At a kink the derivative is the one from the left: relu'(0) = 0, leaky_relu'(0) = slope.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fbp._arguments import checked
from fbp.errors import ShapeError
from fbp.layer import Array, Cache, Layer, Shape, parameterless


def _from_activation(
    kind: str, f: Callable[[Array], Array], pull_back: Callable[[Array, Array], Array]
) -> Layer:
    """Return an activation whose backward is a function of its value.

    ``pull_back`` maps ``(a, delta)`` to ``delta * sigma'(z)``.
    """

    def forward(z: Array) -> tuple[Array, Array]:
        a = f(z)
        return a, a

    return parameterless(kind, forward, pull_back)


def _from_derivative(
    kind: str, f: Callable[[Array], tuple[Array, Array]], *, name: str | None = None
) -> Layer:
    """Return an activation whose forward pass gives ``(a, sigma'(z))`` at once."""
    return parameterless(kind, f, lambda slope, delta: delta * slope, name=name)


def identity() -> Layer:
    """Return the layer ``a = z``. It caches nothing."""
    return parameterless("identity", lambda x: (x, ()), lambda cache, delta: delta)


def sigmoid() -> Layer:
    """Return the layer ``a = 1 / (1 + exp(-z))``; sigma'(z) = a (1 - a).

    That is at most 1/4: the cause of vanishing deltas in deep stacks.
    """
    return _from_activation("sigmoid", jax.nn.sigmoid, lambda a, delta: delta * (a * (1 - a)))


def tanh() -> Layer:
    """Return the layer ``a = tanh(z)``; sigma'(z) = 1 - a^2."""
    return _from_activation("tanh", jnp.tanh, lambda a, delta: delta * (1 - a * a))


def relu() -> Layer:
    """Return the layer ``a = max(z, 0)``; sigma'(z) = 1 if z > 0, else 0 (also at 0).

    Nair and Hinton (2010). The cache is the mask of z <= 0. NaN stays NaN, so that a diverging run
    is noticed.
    """
    return parameterless(
        "relu",
        lambda z: (jnp.where(z <= 0, 0, z), z <= 0),
        lambda is_off, delta: jnp.where(is_off, 0, delta),
    )


@checked
def leaky_relu(slope: float | Array = 0.01) -> Layer:
    """Return the layer ``a = z`` if z > 0, else ``slope * z``. Maas, Hannun and Ng (2013).

    The cache is the mask of z > 0.

    Args:
        slope: the derivative at and below 0.
    """
    return parameterless(
        "leaky_relu",
        lambda z: (jnp.where(z > 0, z, slope * z), z > 0),
        lambda is_on, delta: jnp.where(is_on, delta, slope * delta),
    )


@checked
def elu(alpha: float | Array = 1.0) -> Layer:
    """Return the layer ``a = z`` if z > 0, else ``alpha (exp(z) - 1)``. Clevert et al. (2016).

    Below 0 the derivative is a + alpha.

    Args:
        alpha: the limit -alpha for z far below 0.
    """
    return _from_activation(
        "elu",
        lambda z: jnp.where(z > 0, z, alpha * jnp.expm1(jnp.where(z > 0, 0, z))),
        lambda a, delta: jnp.where(a > 0, delta, delta * (a + alpha)),
    )


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def selu() -> Layer:
    """Return ``scale * elu(z, alpha)`` with the fixed point's constants. Klambauer et al. (2017).

    Use lecun_normal weights with it.
    """
    return _from_activation(
        "selu",
        # the scale stands in both branches so that XLA makes one kernel of forward and backward
        lambda z: jnp.where(
            z > 0,
            _SELU_SCALE * z,
            _SELU_SCALE * (_SELU_ALPHA * jnp.expm1(jnp.where(z > 0, 0, z))),
        ),
        lambda a, delta: delta * jnp.where(a > 0, _SELU_SCALE, a + _SELU_SCALE * _SELU_ALPHA),
    )


def softplus() -> Layer:
    """Return the layer ``a = log(1 + exp(z))``; sigma'(z) = sigmoid(z) = 1 - exp(-a)."""
    return _from_activation("softplus", jax.nn.softplus, lambda a, delta: delta * -jnp.expm1(-a))


def silu() -> Layer:
    """Return the layer ``a = z sigmoid(z)``, also called swish.

    Elfwing et al. (2018), Ramachandran et al. (2017). The cache is sigma'(z).
    """

    def f(z: Array) -> tuple[Array, Array]:
        s = jax.nn.sigmoid(z)
        a = z * s
        return a, s + a * (1 - s)

    return _from_derivative("silu", f)


_SQRT_HALF = 0.7071067811865476
_INV_SQRT_2PI = 0.3989422804014327
_SQRT_2_OVER_PI = 0.7978845608028654


@checked
def gelu(*, approximate: bool = False) -> Layer:
    """Return the layer ``a = z Phi(z)``, Phi the standard normal's distribution function.

    Hendrycks and Gimpel (2016). The cache is sigma'(z).

    Args:
        approximate: use the tanh form, ``z/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3)))``.
    """

    def exact(z: Array) -> tuple[Array, Array]:
        distribution = 0.5 + 0.5 * jax.lax.erf(z * _SQRT_HALF)
        return z * distribution, distribution + z * _INV_SQRT_2PI * jnp.exp(-0.5 * z * z)

    def tanh_form(z: Array) -> tuple[Array, Array]:
        # Beyond 30, tanh is 1 to the last bit and the cube might overflow.
        full, z = z, jnp.clip(z, -30, 30)
        square = z * z
        t = jnp.tanh(_SQRT_2_OVER_PI * z * (1 + 0.044715 * square))
        half = 0.5 * (1 + t)
        slope = _SQRT_2_OVER_PI * (1 + 3 * 0.044715 * square)
        return full * half, half + z * 0.5 * (1 - t * t) * slope

    if approximate:
        return _from_derivative("gelu", tanh_form, name="gelu(tanh)")
    return _from_derivative("gelu", exact)


def softmax() -> Layer:
    """Return the layer ``a_k = exp(z_k) / sum_j exp(z_j)`` over the last axis. The cache is a.

    Its Jacobian is not diagonal: dC/dz = a * (delta - sum_k delta_k a_k). Before a cross-entropy,
    leave this layer out and use ``losses.softmax_cross_entropy`` on the logits: it is stable, and
    the Jacobian cancels.
    """

    def forward(x: Array) -> tuple[Array, Cache]:
        a = jax.nn.softmax(x, axis=-1)
        return a, a

    def backward(cache: Cache, delta: Array) -> Array:
        a = cache
        return a * (delta - (delta * a).sum(axis=-1, keepdims=True))

    return parameterless("softmax", forward, backward)


def log_softmax() -> Layer:
    """Return the layer ``a_k = z_k - log(sum_j exp(z_j))`` over the last axis.

    dC/dz = delta - softmax(z) sum_k delta_k. The cache is the softmax's numerators and their sum,
    which the forward pass has at hand.
    """

    def forward(x: Array) -> tuple[Array, Cache]:
        shifted = x - x.max(axis=-1, keepdims=True)
        exponentials = jnp.exp(shifted)
        total = exponentials.sum(axis=-1, keepdims=True)
        return shifted - jnp.log(total), (exponentials, total)

    def backward(cache: Cache, delta: Array) -> Array:
        exponentials, total = cache
        return delta - exponentials * (delta.sum(axis=-1, keepdims=True) / total)

    return parameterless("log_softmax", forward, backward)


def glu() -> Layer:
    """Return the layer ``a = u sigmoid(v)`` of the halves (u, v) of the last axis.

    Dauphin et al. (2017). The cache is (u, sigmoid(v)).

    Raises:
        ShapeError: if the last axis is odd.
    """

    def out_shape(shape: Shape) -> Shape:
        if not shape or shape[-1] % 2:
            raise ShapeError(f"glu expects an even last axis, got shape {shape}")
        return (*shape[:-1], shape[-1] // 2)

    def forward(x: Array) -> tuple[Array, Cache]:
        u, v = jnp.split(x, 2, axis=-1)
        gate = jax.nn.sigmoid(v)
        return u * gate, (u, gate)

    def backward(cache: Cache, delta: Array) -> Array:
        u, gate = cache
        return jnp.concatenate([delta * gate, delta * u * gate * (1 - gate)], axis=-1)

    return parameterless("glu", forward, backward, out_shape)


@checked
def maxout(pieces: int = 2) -> Layer:
    """Return the largest of each ``pieces`` neighbours on the last axis. Goodfellow et al. (2013).

    The first of equals wins. The cache is the winner's index.

    Args:
        pieces: number of neighbours that compete.

    Raises:
        InputError: if ``pieces`` is less than 1.
        ShapeError: if the last axis is not a multiple of ``pieces``.
    """

    def out_shape(shape: Shape) -> Shape:
        if not shape or shape[-1] % pieces:
            raise ShapeError(
                f"maxout({pieces}) expects a last axis that is a multiple of {pieces}, "
                f"got shape {shape}"
            )
        return (*shape[:-1], shape[-1] // pieces)

    def forward(x: Array) -> tuple[Array, Cache]:
        groups = x.reshape(*x.shape[:-1], x.shape[-1] // pieces, pieces)
        winner = groups.argmax(axis=-1, keepdims=True)
        return jnp.take_along_axis(groups, winner, axis=-1)[..., 0], winner

    def backward(cache: Cache, delta: Array) -> Array:
        mask = cache == jnp.arange(pieces)
        whole = jnp.where(mask, delta[..., None], 0)
        return whole.reshape(*delta.shape[:-1], delta.shape[-1] * pieces)

    return parameterless("maxout", forward, backward, out_shape, name=f"maxout({pieces})")
