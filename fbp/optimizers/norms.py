"""Euclidean norms that neither overflow nor underflow, and their derivatives at 0.

Squares leave the range of a dtype long before the numbers do: in float32 that of 1e20 is infinite,
and that of 1e-23 is 0. So a sum of squares that left the range is computed again from numbers that
are multiplied by a power of 2, which rounds nothing. Sums are at least float32.

The second sum runs only if the first left the range: on a GPU, too, where the condition costs some
25 microseconds, and sums in all units at once would take twice as long for large models.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp.layer import Array


def widen(array: Any) -> Array:
    """Return an array in the dtype in which optimizers compute: at least float32."""
    return jnp.asarray(array, jnp.promote_types(jnp.result_type(array), jnp.float32))


@jax.custom_jvp
def root(x: Array) -> Array:
    """Return ``sqrt(x)``, whose derivative at 0 is 0.

    An optimizer takes the root of an average of squares: a norm. At gradient 0 its derivative by
    the gradient is 0, where autodiff through ``sqrt`` multiplies 0 by an infinite slope.
    """
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = root(primals[0])
    is_zero = y == 0
    return y, jnp.where(is_zero, 0, 0.5 / jnp.where(is_zero, 1, y)) * tangents[0]


class Norm(NamedTuple):
    """A norm as a quotient, because it may leave the range of its dtype.

    Attributes:
        scaled: the norm of the numbers times ``unit``.
        unit: a power of 2; 1 unless squares left the range.
    """

    scaled: Array
    unit: Array

    @property
    def value(self) -> Array:
        """The norm itself; infinite if the dtype has no place for it."""
        return self.scaled / self.unit


def global_norm(tree: Any) -> Array:
    """Return the Euclidean norm of all the numbers of a tree, or of one array.

    Args:
        tree: arrays of any shapes.

    Returns:
        A scalar of at least float32. It is right wherever the norm itself has a place in the dtype,
        also if the squares have none. Its derivative at 0 is 0.

    >>> import jax.numpy as jnp
    >>> print(global_norm({"w": jnp.array([3e20, -4e20])}))
    5e+20
    """
    return norm_of_all(jax.tree.leaves(tree)).value


def plain_norm(tree: Any) -> Array:
    """Return :func:`global_norm`, but infinite or 0 if the squares left the range.

    It is for diagnostics, which measure each of hundreds of parameters: this compiles faster.

    Args:
        tree: arrays of any shapes.
    """
    return jnp.sqrt(sum(map(_square, jax.tree.leaves(tree)), start=jnp.zeros(())))


def norm_of_all(arrays: Sequence[Array]) -> Norm:
    """Return the common norm of several arrays."""
    if not arrays:
        return Norm(jnp.zeros(()), jnp.ones(()))
    return _norm(lambda *scaled: sum(map(_square, scaled), start=jnp.zeros(())), arrays)


def norms_of_each(arrays: Sequence[Array]) -> list[Norm]:
    """Return the norm of each of several arrays."""
    if not arrays:
        return []
    norms = _norm(lambda *scaled: jnp.stack([_square(x) for x in scaled]), arrays, each=True)
    return [Norm(*parts) for parts in zip(*norms, strict=True)]


def norms_of_units(array: Array) -> Norm:
    """Return the norms of an array's units, over all axes but the last; of a whole vector.

    Args:
        array: a weight ``(..., in, out)`` or a bias.

    Returns:
        Norms of shape ``(1, ..., 1, out)``, or a scalar.
    """
    axes = tuple(range(array.ndim - 1)) if array.ndim >= 2 else None
    return _norm(lambda x: (x * x).sum(axis=axes, keepdims=array.ndim >= 2), [array])


def _square(array: Any) -> Array:
    wide = widen(array)
    return jnp.vdot(wide, wide).real


def _norm(squares: Callable[..., Array], arrays: Sequence[Array], *, each: bool = False) -> Norm:
    """Return norms in units in which their squares have a place in their dtype.

    Args:
        squares: from wide arrays to sums of squares.
        arrays: what is summed.
        each: whether there is a sum for each array.
    """
    wide = [widen(array) for array in arrays]
    info = min((jnp.finfo(array.dtype) for array in wide), key=lambda info: info.bits)
    count = max(sum(array.size for array in wide), 1)
    lowest = count * float(info.tiny) / float(info.eps)  # below, squares that are 0 would count
    down, up = 2.0 ** (-3 * info.maxexp // 4), 2.0 ** (5 * info.maxexp // 8)

    def again(unit: Array, arrays: Sequence[Array]) -> Array:
        units = list(unit) if each else [unit] * len(arrays)
        scaled = [array * u.astype(array.dtype) for array, u in zip(arrays, units, strict=True)]
        return squares(*scaled)

    def unit_of(sums: Array) -> Array:
        unit = jnp.where(jnp.isinf(sums), down, jnp.where(sums < lowest, up, 1.0))
        return jax.lax.stop_gradient(unit.astype(sums.dtype))

    sums = squares(*wide)
    unit = unit_of(sums)
    sums = jax.lax.cond((unit == 1).all(), lambda: sums, lambda: again(unit, wide))
    return Norm(root(sums), unit)
