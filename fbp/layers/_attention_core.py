"""The core of attention on arrays (B, N, T, D), with the backward pass of its softmax written out.

With scores ``s = q k^T / sqrt(D)``, weights ``p = softmax(s)`` and outputs ``o = p v``, a delta do
goes back as

    dv = p^T do
    dp = do v^T
    ds = p (dp - d)      d = sum over keys of dp p = sum over features of do o: T numbers, not T x T
    dq = ds k / sqrt(D),  dk = ds^T q / sqrt(D)

Two forms compute the same. For short sequences p (B, N, T, S) is kept from forward to backward.
From ``BLOCKWISE_MIN_KEYS`` keys on, pairs of a query block and a key block are processed one at a
time. Forward keeps a running maximum and sum for each query (the online softmax of Milakov and
Gimelshein, 2018) and returns their logarithm; backward recomputes each block of p from it. No T x S
matrix exists at any time. With ``causal``, pairs of blocks that are masked whole are never
computed. Rabe and Staats (2021), *Self-attention does not need O(n^2) memory*; Dao et al. (2022),
*FlashAttention*.

Shape letters: B batch, T queries, S keys, N heads, D head size.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from fbp._kernels import BLOCKWISE_MIN_KEYS, MAX_BLOCK, at_least_float32
from fbp.layer import Array, Cache


class Mask(NamedTuple):
    """The keys that a query sees: those not after it, those before its example's length."""

    causal: bool
    lengths: Array | None

    def visible(self, queries: Array, keys: Array) -> Array | None:
        """Return the mask (B or 1, 1, T, S) of query and key positions; None if all see all."""
        visible = None
        if self.causal:
            visible = (queries[:, None] >= keys)[None, None]
        if self.lengths is not None:
            inside = keys < self.lengths[:, None, None, None]
            visible = inside if visible is None else visible & inside
        return visible


def select_real(x: Array, lengths: Array | None) -> Array:
    """Return ``x (B, S, ...)`` with zeros from each example's length on, whatever it holds there.

    A zero weight would not do: zero times NaN is NaN.
    """
    if lengths is None:
        return x
    real = jnp.arange(x.shape[1]) < lengths[:, None]
    return jnp.where(real.reshape(*real.shape, *[1] * (x.ndim - 2)), x, 0)


# --- whole ----------------------------------------------------------------------------------------


def _whole_forward(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, Array]:
    """Return the output and the attention weights (B, N, T, S)."""
    wide = at_least_float32(q)
    scores = jnp.einsum("bntd,bnsd->bnts", q, k, preferred_element_type=wide) * scale(q)
    return weighted_values(scores, v, mask.visible(jnp.arange(q.shape[2]), jnp.arange(k.shape[2])))


def weighted_values(scores: Array, v: Array, visible: Array | None) -> tuple[Array, Array]:
    """Return ``(p v, p)``, the softmax in float32 or wider; a query that sees no key gets 0."""
    wide = scores.astype(at_least_float32(scores))
    if visible is not None:
        wide = jnp.where(visible, wide, -jnp.inf)
    maximum = wide.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(wide - jnp.where(jnp.isneginf(maximum), 0, maximum))
    total = exponentials.sum(axis=-1, keepdims=True)
    p = (exponentials / jnp.where(total == 0, 1, total)).astype(v.dtype)
    return jnp.einsum("bnts,bnsd->bntd", p, v), p


def _whole_backward(
    q: Array, k: Array, v: Array, o: Array, p: Array, delta: Array
) -> tuple[Array, Array, Array]:
    """Return dq, dk and dv."""
    wide = at_least_float32(q)
    dp = jnp.einsum("bntd,bnsd->bnts", delta, v, preferred_element_type=wide)
    is_rounded = q.dtype != wide  # then o is too coarse for d
    d = (p * dp if is_rounded else delta * o).sum(axis=-1, keepdims=True)
    ds = (p * (dp - d)).astype(q.dtype)
    dq = jnp.einsum("bnts,bnsd->bntd", ds, k) * scale(q)
    dk = jnp.einsum("bnts,bntd->bnsd", ds, q * scale(q))
    return dq, dk, jnp.einsum("bnts,bntd->bnsd", p, delta)


def scale(q: Array) -> Array:
    """Return ``1 / sqrt(D)`` in the dtype of the queries."""
    return jnp.asarray(q.shape[-1] ** -0.5, q.dtype)


# --- blockwise ------------------------------------------------------------------------------------


class _Blocks(NamedTuple):
    """Positions cut into blocks of one size.

    The last block is filled up with zeros, which the mask and slices leave out.
    """

    size: int
    blocks: int
    length: int

    def split(self, x: Array) -> Array:
        """Map ``(B, N, T, ...) -> (blocks, B, N, size, ...)``."""
        short = self.size * self.blocks - self.length
        filled = jnp.pad(x, [(0, 0), (0, 0), (0, short), *[(0, 0)] * (x.ndim - 3)])
        return jnp.moveaxis(
            filled.reshape(*x.shape[:2], self.blocks, self.size, *x.shape[3:]), 2, 0
        )

    def join(self, blocks: Array) -> Array:
        """Invert :meth:`split`."""
        whole = jnp.moveaxis(blocks, 0, 2)
        return whole.reshape(*whole.shape[:2], -1, *whole.shape[4:])[:, :, : self.length]

    def positions(self, block: Array | int) -> Array:
        """Return the positions of a block, ``(size,)``."""
        return block * self.size + jnp.arange(self.size)


def _blocks(length: int) -> _Blocks:
    """Cut positions into the fewest blocks of at most ``MAX_BLOCK``."""
    blocks = -(-length // MAX_BLOCK)
    return _Blocks(-(-length // blocks), blocks, length)


def _block_pairs(rows: _Blocks, columns: _Blocks, mask: Mask) -> Array:
    """Return the index pairs (query block, key block) to compute, ``(pairs, 2)``.

    Blocks above the causal diagonal are skipped.
    """
    pairs = [
        (i, j)
        for i in range(rows.blocks)
        for j in range(columns.blocks)
        if not mask.causal or (i + 1) * rows.size > j * columns.size
    ]
    return jnp.array(pairs, jnp.int32)


def _visible(i: Array, j: Array, rows: _Blocks, columns: _Blocks, mask: Mask) -> Array | None:
    """Return the mask (B or 1, 1, T, S) of query block i and key block j; None if all see all."""
    keys = columns.positions(j)
    visible = mask.visible(rows.positions(i), keys)
    if columns.size * columns.blocks != columns.length:
        real = (keys < columns.length)[None, None, None]
        visible = real if visible is None else visible & real
    return visible


def _blockwise_forward(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, Array]:
    """Return the output and each query's logsumexp of scores (B, N, T)."""
    rows, columns = _blocks(q.shape[2]), _blocks(k.shape[2])
    q_blocks, k_blocks, v_blocks = rows.split(q * scale(q)), columns.split(k), columns.split(v)
    wide = at_least_float32(q)

    def process_pair(state: tuple[Array, ...], pair: Array) -> tuple[tuple[Array, ...], None]:
        i, j = pair
        running_max, total, o = (part[i] for part in state)
        scores = jnp.einsum(
            "bntd,bnsd->bnts", q_blocks[i], k_blocks[j], preferred_element_type=wide
        )
        visible = _visible(i, j, rows, columns, mask)
        if visible is not None:
            scores = jnp.where(visible, scores, -jnp.inf)
        new_max = jnp.maximum(running_max, scores.max(axis=-1))
        base = jnp.where(jnp.isneginf(new_max), 0, new_max)
        p = jnp.exp(scores - base[..., None])
        shrink = jnp.exp(running_max - base)
        o = o * shrink[..., None] + jnp.einsum(
            "bnts,bnsd->bntd", p.astype(v.dtype), v_blocks[j], preferred_element_type=wide
        )
        new = new_max, total * shrink + p.sum(axis=-1), o
        return tuple(part.at[i].set(n) for part, n in zip(state, new, strict=True)), None

    each = q_blocks.shape[:-1]
    start: tuple[Array, ...] = (
        jnp.full(each, -jnp.inf, wide),
        jnp.zeros(each, wide),
        jnp.zeros(q_blocks.shape, wide),
    )
    (running_max, total, o), _ = lax.scan(process_pair, start, _block_pairs(rows, columns, mask))
    no_visible_key = total == 0
    total = jnp.where(no_visible_key, 1, total)
    logsumexp = jnp.where(no_visible_key, 0, running_max) + jnp.log(total)
    return rows.join((o / total[..., None]).astype(q.dtype)), rows.join(logsumexp)


def _blockwise_backward(
    q: Array, k: Array, v: Array, o: Array, logsumexp: Array, delta: Array, mask: Mask
) -> tuple[Array, Array, Array]:
    """Return dq, dk and dv.

    Scores have keys before queries, (B, N, S, T): then the products for dk, dv and dq^T need no
    transposed operand.
    """
    rows, columns = _blocks(q.shape[2]), _blocks(k.shape[2])
    wide = at_least_float32(q)
    d = (delta.astype(wide) * o.astype(wide)) @ jnp.ones(
        o.shape[-1], wide
    )  # a product with ones is a faster sum
    q_blocks, delta_blocks = rows.split(q * scale(q)), rows.split(delta)
    d_blocks, log_blocks = rows.split(d), rows.split(logsumexp)
    k_blocks, v_blocks = columns.split(k), columns.split(v)

    def process_pair(sums: tuple[Array, ...], pair: Array) -> tuple[tuple[Array, ...], None]:
        i, j = pair
        q_i, delta_i, k_j, v_j = q_blocks[i], delta_blocks[i], k_blocks[j], v_blocks[j]
        scores = jnp.einsum("bnsd,bntd->bnst", k_j, q_i, preferred_element_type=wide)
        visible = _visible(i, j, rows, columns, mask)
        p = jnp.exp(scores - log_blocks[i][..., None, :])
        if visible is not None:
            p = jnp.where(visible.swapaxes(-1, -2), p, 0)
        dp = jnp.einsum("bnsd,bntd->bnst", v_j, delta_i, preferred_element_type=wide)
        ds = (p * (dp - d_blocks[i][..., None, :])).astype(q.dtype)
        dv = jnp.einsum("bnst,bntd->bnsd", p.astype(v.dtype), delta_i, preferred_element_type=wide)
        dk = jnp.einsum("bnst,bntd->bnsd", ds, q_i, preferred_element_type=wide)
        dq = jnp.einsum("bnds,bnst->bndt", k_j.swapaxes(-1, -2), ds, preferred_element_type=wide)
        return (sums[0].at[i].add(dq), sums[1].at[j].add(dk), sums[2].at[j].add(dv)), None

    zeros = tuple(jnp.zeros_like(a, wide) for a in (q_blocks.swapaxes(-1, -2), k_blocks, v_blocks))
    (dq, dk, dv), _ = lax.scan(process_pair, zeros, _block_pairs(rows, columns, mask))
    dq = rows.join(dq.swapaxes(-1, -2)) * scale(q)
    return dq.astype(q.dtype), columns.join(dk).astype(k.dtype), columns.join(dv).astype(v.dtype)


# --- both -----------------------------------------------------------------------------------------


def attend(q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, Cache]:
    """Return the output and the weights, blockwise from ``BLOCKWISE_MIN_KEYS`` keys on.

    The blockwise form returns each query's logsumexp (B, N, T) in place of the weights.
    """
    return (_blockwise_forward if k.shape[2] >= BLOCKWISE_MIN_KEYS else _whole_forward)(
        q, k, v, mask
    )


def attend_backward(
    q: Array, k: Array, v: Array, o: Array, weights_or_logsumexp: Array, delta: Array, mask: Mask
) -> tuple[Array, Array, Array]:
    if k.shape[2] >= BLOCKWISE_MIN_KEYS:
        return _blockwise_backward(q, k, v, o, weights_or_logsumexp, delta, mask)
    return _whole_backward(q, k, v, o, weights_or_logsumexp, delta)
