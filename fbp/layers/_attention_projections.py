"""The dense layers from an attention layer's inputs to queries, keys and values.

Their deltas are equations (2) to (4) of ``dense``. Products that share an input are one.

Shape letters: B batch, T positions, F features, N heads, D = F / N head size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from fbp.errors import ShapeError
from fbp.layer import Array, Initializer, Key, Params


class Projections(NamedTuple):
    """Dense layers from the sources to queries, keys and values.

    Attributes:
        counts: for each source, the suffix of its parameters' names and the number of arrays among
            q, k, v that come from it.
    """

    counts: tuple[tuple[str, int], ...]

    def init(
        self, draw: Initializer, keys: Sequence[Key], widths: Sequence[int], features: int
    ) -> dict[str, Array]:
        """Draw the parameters, one key for each of q, k, v, for sources of the given widths."""
        params: dict[str, Array] = {}
        remaining, dtype = iter(keys), jnp.result_type(float)
        for (suffix, count), width in zip(self.counts, widths, strict=True):
            blocks = [draw(next(remaining), (width, features), dtype) for _ in range(count)]
            params[f"w{suffix}"] = jnp.concatenate(blocks, axis=1)
            params[f"b{suffix}"] = jnp.zeros(count * features, dtype)
        return params

    def project(self, params: Params, sources: Sequence[Array], heads: int) -> list[Array]:
        """Return q, k and v, (B, N, T, D) each."""
        projected: list[Array] = []
        for source, (suffix, count) in zip(sources, self.counts, strict=True):
            w = params[f"w{suffix}"]
            if source.shape[-1] != w.shape[0]:
                raise ShapeError(
                    f"attention expects {w.shape[0]} features, got an input of shape {source.shape}"
                )
            projected += split_heads(source @ w + params[f"b{suffix}"], heads, count)
        return projected

    def unproject(
        self, params: Params, sources: Sequence[Array], deltas: Sequence[Array]
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """Map the deltas of q, k and v to those of the sources and the gradients."""
        input_deltas: list[Array | None] = []
        grads: dict[str, Array] = {}
        start = 0
        for source, (suffix, count) in zip(sources, self.counts, strict=True):
            rows = join_heads(deltas[start : start + count])
            start += count
            grads[f"w{suffix}"] = source.reshape(-1, source.shape[-1]).T @ rows  # equation (4)
            grads[f"b{suffix}"] = rows.sum(axis=0)  # equation (3)
            delta = rows @ params[f"w{suffix}"].T  # equation (2)
            input_deltas.append(delta.reshape(source.shape))
        return input_deltas, grads


SELF = Projections((("qkv", 3),))
CROSS = Projections((("q", 1), ("kv", 2)))


def split_heads(x: Array, heads: int, count: int) -> list[Array]:
    """Map ``(B, T, count F)`` to ``count`` arrays (B, N, T, D)."""
    by_head = x.reshape(*x.shape[:2], count, heads, x.shape[2] // (count * heads)).transpose(
        2, 0, 3, 1, 4
    )
    return [by_head[i] for i in range(count)]


def join_heads(arrays: Sequence[Array]) -> Array:
    """Invert :func:`split_heads`, and return rows ``(B T, count F)``."""
    batch, heads, positions, size = arrays[0].shape
    joined = jnp.stack(arrays).transpose(1, 3, 0, 2, 4)
    return joined.reshape(batch * positions, len(arrays) * heads * size)
