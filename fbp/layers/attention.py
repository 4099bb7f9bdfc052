"""Attention over sequences, with the backward pass of the softmax in the middle written out.

With scores ``s = q k^T / sqrt(D)``, weights ``p = softmax(s)`` and outputs ``o = p v``, a delta do goes back as

    dv = p^T do
    dp = do v^T
    ds = p (dp - d)      d = sum over keys of dp p, which is sum over features of do o: T numbers, not T x T
    dq = ds k / sqrt(D),  dk = ds^T q / sqrt(D)

Two forms compute the same. For short sequences p (B, N, T, S) is kept from forward to backward. From ``BLOCKWISE_MIN_KEYS`` keys
on, blocks of queries meet blocks of keys one pair at a time: forward keeps a running maximum and sum for each query (the online
softmax of Milakov and Gimelshein, 2018) and in the end their logarithm; backward forms each block of p again from it. No T x S
matrix exists at any time, and with ``causal`` pairs of blocks that are masked whole are never computed. Rabe and Staats (2021),
*Self-attention does not need O(n^2) memory*; Dao et al. (2022), *FlashAttention*.

Shape letters: B batch, T queries, S keys, F features, N heads, D = F / N head size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fbp import initializers
from fbp._kernels import BLOCKWISE_MIN_KEYS, MAX_BLOCK
from fbp.errors import InputError, ShapeError
from fbp.layer import (
    Array,
    Cache,
    Grads,
    IncrementalForward,
    Initializer,
    Key,
    Layer,
    Params,
    Shape,
)
from fbp.layers.embedding import angles


class _Mask(NamedTuple):
    """Which keys a query sees: those not after it, those before its example's length."""

    causal: bool
    lengths: Array | None

    def visible(self, queries: Array, keys: Array) -> Array | None:
        """``(B or 1, 1, T, S)`` for positions of queries (T,) and keys (S,); None where all see all."""
        seen = None
        if self.causal:
            seen = (queries[:, None] >= keys)[None, None]
        if self.lengths is not None:
            inside = keys < self.lengths[:, None, None, None]
            seen = inside if seen is None else seen & inside
        return seen


# --- on (B, N, T, D): whole --------------------------------------------------------------------------------------------


def _whole_forward(q: Array, k: Array, v: Array, mask: _Mask) -> tuple[Array, Array]:
    """``(o, p)``."""
    scores = jnp.einsum("bntd,bnsd->bnts", q, k, preferred_element_type=_wide(q)) * _scale(q)
    return _weighted(scores, v, mask.visible(jnp.arange(q.shape[2]), jnp.arange(k.shape[2])))


def _weighted(scores: Array, v: Array, seen: Array | None) -> tuple[Array, Array]:
    """``(p v, p)``, the softmax in float32 or wider; a query that sees no key gets 0."""
    wide = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if seen is not None:
        wide = jnp.where(seen, wide, -jnp.inf)
    top = wide.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(wide - jnp.where(jnp.isneginf(top), 0, top))
    total = exponentials.sum(axis=-1, keepdims=True)
    p = (exponentials / jnp.where(total == 0, 1, total)).astype(v.dtype)
    return jnp.einsum("bnts,bnsd->bntd", p, v), p


def _whole_backward(
    q: Array, k: Array, v: Array, o: Array, p: Array, delta: Array
) -> tuple[Array, Array, Array]:
    dp = jnp.einsum("bntd,bnsd->bnts", delta, v, preferred_element_type=_wide(q))
    rounded = q.dtype != _wide(q)  # then o is too coarse to tell d
    d = (p * dp if rounded else delta * o).sum(axis=-1, keepdims=True)
    ds = (p * (dp - d)).astype(q.dtype)
    dq = jnp.einsum("bnts,bnsd->bntd", ds, k) * _scale(q)
    dk = jnp.einsum("bnts,bntd->bnsd", ds, q * _scale(q))
    return dq, dk, jnp.einsum("bnts,bntd->bnsd", p, delta)


def _wide(q: Array) -> Any:
    """The dtype of scores and sums: float32 or wider."""
    return jnp.promote_types(q.dtype, jnp.float32)


def _scale(q: Array) -> Array:
    return jnp.asarray(q.shape[-1] ** -0.5, q.dtype)


# --- on (B, N, T, D): blockwise ----------------------------------------------------------------------------------------


class _Blocks(NamedTuple):
    """Positions cut into blocks of one size; the last is filled up with zeros, which ``mask`` and slices leave out."""

    size: int
    blocks: int
    length: int

    def split(self, x: Array) -> Array:
        """``(B, N, T, ...) -> (blocks, B, N, size, ...)``."""
        short = self.size * self.blocks - self.length
        filled = jnp.pad(x, [(0, 0), (0, 0), (0, short), *[(0, 0)] * (x.ndim - 3)])
        return jnp.moveaxis(
            filled.reshape(*x.shape[:2], self.blocks, self.size, *x.shape[3:]), 2, 0
        )

    def join(self, blocks: Array) -> Array:
        """The inverse of :meth:`split`."""
        whole = jnp.moveaxis(blocks, 0, 2)
        return whole.reshape(*whole.shape[:2], -1, *whole.shape[4:])[:, :, : self.length]

    def positions(self, block: Array | int) -> Array:
        return block * self.size + jnp.arange(self.size)


def _blocks(length: int) -> _Blocks:
    blocks = -(-length // MAX_BLOCK)
    return _Blocks(-(-length // blocks), blocks, length)


def _pairs(rows: _Blocks, columns: _Blocks, mask: _Mask) -> Array:
    """``(pairs, 2)``: which blocks of queries and keys meet, those behind the causal diagonal left out."""
    met = [
        (i, j)
        for i in range(rows.blocks)
        for j in range(columns.blocks)
        if not mask.causal or (i + 1) * rows.size > j * columns.size
    ]
    return jnp.array(met, jnp.int32)


def _seen(i: Array, j: Array, rows: _Blocks, columns: _Blocks, mask: _Mask) -> Array | None:
    """Which keys of block j the queries of block i see, ``(B or 1, 1, T, S)``; None where all see all."""
    keys = columns.positions(j)
    seen = mask.visible(rows.positions(i), keys)
    if columns.size * columns.blocks != columns.length:
        real = (keys < columns.length)[None, None, None]
        seen = real if seen is None else seen & real
    return seen


def _blockwise_forward(q: Array, k: Array, v: Array, mask: _Mask) -> tuple[Array, Array]:
    """``(o, logarithm of each query's sum of exponentials (B, N, T))``."""
    rows, columns = _blocks(q.shape[2]), _blocks(k.shape[2])
    q_blocks, k_blocks, v_blocks = rows.split(q * _scale(q)), columns.split(k), columns.split(v)
    wide = _wide(q)

    def meet(state: tuple[Array, ...], pair: Array) -> tuple[tuple[Array, ...], None]:
        i, j = pair
        top, total, o = (part[i] for part in state)
        scores = jnp.einsum(
            "bntd,bnsd->bnts", q_blocks[i], k_blocks[j], preferred_element_type=wide
        )
        seen = _seen(i, j, rows, columns, mask)
        if seen is not None:
            scores = jnp.where(seen, scores, -jnp.inf)
        new_top = jnp.maximum(top, scores.max(axis=-1))
        base = jnp.where(jnp.isneginf(new_top), 0, new_top)
        p = jnp.exp(scores - base[..., None])
        shrink = jnp.exp(top - base)
        o = o * shrink[..., None] + jnp.einsum(
            "bnts,bnsd->bntd", p.astype(v.dtype), v_blocks[j], preferred_element_type=wide
        )
        new = new_top, total * shrink + p.sum(axis=-1), o
        return tuple(part.at[i].set(n) for part, n in zip(state, new, strict=True)), None

    each = q_blocks.shape[:-1]
    start: tuple[Array, ...] = (
        jnp.full(each, -jnp.inf, wide),
        jnp.zeros(each, wide),
        jnp.zeros(q_blocks.shape, wide),
    )
    (top, total, o), _ = lax.scan(meet, start, _pairs(rows, columns, mask))
    nothing = total == 0
    total = jnp.where(nothing, 1, total)
    log_total = jnp.where(nothing, 0, top) + jnp.log(total)
    return rows.join((o / total[..., None]).astype(q.dtype)), rows.join(log_total)


def _blockwise_backward(
    q: Array, k: Array, v: Array, o: Array, log_total: Array, delta: Array, mask: _Mask
) -> tuple[Array, Array, Array]:
    """Keys stand before queries, (B, N, S, T): so the products for dk and dv, and that for dq^T, are plain ones."""
    rows, columns = _blocks(q.shape[2]), _blocks(k.shape[2])
    wide = _wide(q)
    d = (delta.astype(wide) * o.astype(wide)) @ jnp.ones(
        o.shape[-1], wide
    )  # a product with ones is a faster sum
    q_blocks, delta_blocks = rows.split(q * _scale(q)), rows.split(delta)
    d_blocks, log_blocks = rows.split(d), rows.split(log_total)
    k_blocks, v_blocks = columns.split(k), columns.split(v)

    def meet(sums: tuple[Array, ...], pair: Array) -> tuple[tuple[Array, ...], None]:
        i, j = pair
        q_i, delta_i, k_j, v_j = q_blocks[i], delta_blocks[i], k_blocks[j], v_blocks[j]
        scores = jnp.einsum("bnsd,bntd->bnst", k_j, q_i, preferred_element_type=wide)
        seen = _seen(i, j, rows, columns, mask)
        p = jnp.exp(scores - log_blocks[i][..., None, :])
        if seen is not None:
            p = jnp.where(seen.swapaxes(-1, -2), p, 0)
        dp = jnp.einsum("bnsd,bntd->bnst", v_j, delta_i, preferred_element_type=wide)
        ds = (p * (dp - d_blocks[i][..., None, :])).astype(q.dtype)
        dv = jnp.einsum("bnst,bntd->bnsd", p.astype(v.dtype), delta_i, preferred_element_type=wide)
        dk = jnp.einsum("bnst,bntd->bnsd", ds, q_i, preferred_element_type=wide)
        dq = jnp.einsum("bnds,bnst->bndt", k_j.swapaxes(-1, -2), ds, preferred_element_type=wide)
        return (sums[0].at[i].add(dq), sums[1].at[j].add(dk), sums[2].at[j].add(dv)), None

    zeros = tuple(jnp.zeros_like(a, wide) for a in (q_blocks.swapaxes(-1, -2), k_blocks, v_blocks))
    (dq, dk, dv), _ = lax.scan(meet, zeros, _pairs(rows, columns, mask))
    dq = rows.join(dq.swapaxes(-1, -2)) * _scale(q)
    return dq.astype(q.dtype), columns.join(dk).astype(k.dtype), columns.join(dv).astype(v.dtype)


# --- both -------------------------------------------------------------------------------------------------------------


def _attend(q: Array, k: Array, v: Array, mask: _Mask) -> tuple[Array, Cache]:
    """``(o, what backward needs beside q, k, v, o)`` by the form that the number of keys asks for."""
    return (_blockwise_forward if k.shape[2] >= BLOCKWISE_MIN_KEYS else _whole_forward)(
        q, k, v, mask
    )


def _attend_backward(
    q: Array, k: Array, v: Array, o: Array, kept: Array, delta: Array, mask: _Mask
) -> tuple[Array, Array, Array]:
    if k.shape[2] >= BLOCKWISE_MIN_KEYS:
        return _blockwise_backward(q, k, v, o, kept, delta, mask)
    return _whole_backward(q, k, v, o, kept, delta)


def dot_product_attention(*, causal: bool = False, lengths: bool = False) -> Layer:
    """Scaled dot-product attention ``softmax(q k^T / sqrt(D)) v``, nothing more. Vaswani et al. (2017).

    The input is ``(q (B, T, N, D), k (B, S, N, D), v (B, S, N, D))``, the output (B, T, N, D): the layout of
    ``jax.nn.dot_product_attention``. With ``lengths`` there is a fourth input (B,), how many keys each example has: those
    behind are padding. ``causal`` lets a query see the keys up to its own position. No parameters. The cache is the input, the
    output, and for each query the weights or, blockwise, one number.

    Raises:
        ShapeError: where the three do not fit each other.
    """

    def unpacked(x: Any) -> tuple[Array, Array, Array, _Mask]:
        _check_parts("dot_product_attention", x, 3 + lengths, "q, k, v" + ", lengths" * lengths)
        q, k, v = x[:3]
        alike = k.shape == v.shape and (q.shape[0], *q.shape[2:]) == (k.shape[0], *k.shape[2:])
        if not q.ndim == k.ndim == 4 or not alike:
            raise ShapeError(
                "dot_product_attention expects q (B, T, N, D) with k and v (B, S, N, D), "
                f"got {q.shape}, {k.shape} and {v.shape}"
            )
        _check_causal("dot_product_attention", causal, q.shape[1], k.shape[1])
        return *(a.swapaxes(1, 2) for a in (q, k, v)), _Mask(causal, x[3] if lengths else None)

    def init(key: Key, shape: Any) -> tuple[Params, Shape]:
        return (), shape[0]

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Array, Cache]:
        q, k, v, mask = unpacked(x)
        o, kept = _attend(q, k, v, mask)
        return o.swapaxes(1, 2), (q, k, v, o, kept, mask.lengths)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Any, Grads]:
        q, k, v, o, kept, until = cache
        deltas = _attend_backward(q, k, v, o, kept, delta.swapaxes(1, 2), _Mask(causal, until))
        return (*(a.swapaxes(1, 2) for a in deltas), *[None] * lengths), ()

    return Layer(init, forward, backward, name="dot_product_attention")


def _check_parts(kind: str, x: Any, count: int, wanted: str) -> None:
    if not isinstance(x, tuple | list) or len(x) != count:
        given = f"{len(x)} parts" if isinstance(x, tuple | list) else "one array"
        raise ShapeError(f"{kind} expects the input ({wanted}), got {given}")


def _check_causal(kind: str, causal: bool, queries: int, keys: int) -> None:
    if causal and queries != keys:
        raise ShapeError(
            f"{kind}: causal expects as many queries as keys, got {queries} and {keys}"
        )


def attention(
    heads: int,
    *,
    causal: bool = False,
    cross: bool = False,
    lengths: bool = False,
    rotary: bool = False,
    weights: Initializer | None = None,
    output_weights: Initializer | None = None,
) -> Layer:
    """Multi-head attention ``(B, T, F) -> (B, T, F)``: queries, keys and values from x, a dense layer over what all heads say.

    Vaswani et al. (2017), *Attention is all you need*.

    Args:
        heads: how many; they share the F features among them.
        causal: a position sees itself and what is before it.
        cross: the input is ``(x, memory)``, memory (B, S, G): queries come from x, keys and values from memory.
        lengths: one more input (B,) at the end, how many of the keys' positions are real in each example; those behind are
            padding, are seen by nobody, and their delta is 0.
        rotary: turn queries and keys by an angle that grows with their position, so that a score depends on the distance.
            Su et al. (2021), *RoFormer*. Features i and i + D/2 of a head turn together.
        weights: initializer of the weights into queries, keys and values; glorot_uniform by default.
        output_weights: of those behind the heads; ``weights`` by default.

    Returns:
        A layer with parameters ``{"wqkv": (F, 3 F), "bqkv": (3 F,), "wo": (F, F), "bo": (F,)}``; with ``cross``, ``wq (F, F)``,
        ``bq``, ``wkv (G, 2 F)`` and ``bkv`` in place of the first two. Three products become one where they share an input.
        The cache is the input, q, k, v, o, and for each query the weights or, blockwise, one number.

    Raises:
        ShapeError: where ``heads`` does not divide F, or inputs do not fit.
    """
    if heads < 1:
        raise InputError(f"attention: heads must be at least 1, got {heads}")
    draw = weights or initializers.glorot_uniform()
    draw_output = output_weights or draw
    parts = ["x", *["memory"] * cross, *["lengths"] * lengths]
    into = {"q": 1, "kv": 2} if cross else {"qkv": 3}

    def check(shape: Any) -> tuple[Shape, Shape]:
        """The shapes of one example's x and memory."""
        x_shape, memory = shape if cross else (shape, shape)
        for given in (x_shape, memory):
            if len(given) != 2:
                raise ShapeError(f"attention expects examples of shape (T, F), got {given}")
        size = x_shape[-1] // heads
        if x_shape[-1] % heads:
            raise ShapeError(
                f"attention of {heads} heads expects features that are a multiple of {heads}, got {x_shape[-1]}"
            )
        if rotary and size % 2:
            raise ShapeError(
                f"attention with rotary positions expects an even head size, got {size}"
            )
        _check_causal("attention", causal, x_shape[0], memory[0])
        return x_shape, memory

    def init(key: Key, shape: Any) -> tuple[Params, Shape]:
        if (
            lengths and len(shape) == len(parts) and isinstance(shape[0], tuple)
        ):  # as a graph tells it, with that of lengths
            shape = shape[:-1] if cross else shape[0]
        if cross and not (len(shape) == 2 and all(isinstance(part, tuple) for part in shape)):
            raise ShapeError(
                f"attention with cross expects the shapes of x and memory, got {shape}"
            )
        x_shape, memory = check(shape)
        features, dtype = x_shape[-1], jnp.result_type(float)
        *keys, output_key = jax.random.split(key, 4)
        params: dict[str, Array] = {}
        drawn = 0
        for (name, count), inputs in zip(into.items(), (features, memory[-1]), strict=False):
            matrices = [draw(k, (inputs, features), dtype) for k in keys[drawn : drawn + count]]
            params |= {
                f"w{name}": jnp.concatenate(matrices, axis=1),
                f"b{name}": jnp.zeros(count * features, dtype),
            }
            drawn += count
        wo = draw_output(output_key, (features, features), dtype)
        return params | {"wo": wo, "bo": jnp.zeros(features, dtype)}, x_shape

    def split(x: Array, count: int) -> list[Array]:
        """``(B, T, count F) -> count arrays (B, N, T, D)``."""
        by_head = x.reshape(*x.shape[:2], count, heads, -1).transpose(2, 0, 3, 1, 4)
        return [by_head[i] for i in range(count)]

    def joined(arrays: list[Array]) -> Array:
        """The inverse of :func:`split`, and rows: ``(B T, count F)``."""
        batch, _, positions, _ = arrays[0].shape
        return jnp.stack(arrays).transpose(1, 3, 0, 2, 4).reshape(batch * positions, -1)

    def sources(x: Any) -> tuple[list[Array], Array | None]:
        if len(parts) > 1:
            _check_parts("attention", x, len(parts), ", ".join(parts))
        given = list(x) if len(parts) > 1 else [x]
        until = given.pop() if lengths else None
        if until is not None and until.shape != given[0].shape[:1]:
            raise ShapeError(
                f"attention expects a length for each example, ({given[0].shape[0]},), got {until.shape}"
            )
        if any(source.shape[0] != given[0].shape[0] for source in given):
            raise ShapeError(
                f"attention expects x and memory of one batch, got {given[0].shape} and {given[1].shape}"
            )
        check(tuple(a.shape[1:] for a in given) if cross else given[0].shape[1:])
        return given, until

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Array, Cache]:
        given, until = sources(x)
        projected: list[Array] = []
        for source, (name, count) in zip(given, into.items(), strict=True):
            w = params[f"w{name}"]
            if source.shape[-1] != w.shape[0]:
                raise ShapeError(
                    f"attention expects {w.shape[0]} features, got an input of shape {source.shape}"
                )
            projected += split(source @ w + params[f"b{name}"], count)
        q, k, v = projected
        if rotary:
            q, k = rotate(q), rotate(k)
        o, kept = _attend(q, k, v, _Mask(causal, until))
        y = joined([o]) @ params["wo"] + params["bo"]
        return y.reshape(given[0].shape), (tuple(given), until, q, k, v, o, kept)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Any, Grads]:
        given, until, q, k, v, o, kept = cache
        rows = delta.reshape(-1, delta.shape[-1])
        grads = {"wo": joined([o]).T @ rows, "bo": rows.sum(axis=0)}
        (do,) = split((rows @ params["wo"].T).reshape(delta.shape), 1)
        dq, dk, dv = _attend_backward(q, k, v, o, kept, do, _Mask(causal, until))
        if rotary:
            dq, dk = rotate(dq, -1), rotate(dk, -1)
        deltas: list[Array | None] = []
        for source, name, found in zip(
            given, into, [[dq], [dk, dv]] if cross else [[dq, dk, dv]], strict=True
        ):
            rows = joined(found)
            grads |= {
                f"w{name}": source.reshape(-1, source.shape[-1]).T @ rows,
                f"b{name}": rows.sum(axis=0),
            }
            deltas.append((rows @ params[f"w{name}"].T).reshape(source.shape))
        deltas += [None] * lengths
        return deltas[0] if len(deltas) == 1 else tuple(deltas), grads

    def start(batch: int, shape: Shape) -> Any:
        size = (batch, heads, shape[0], shape[-1] // heads)
        return jnp.zeros(size), jnp.zeros(size), jnp.zeros((), jnp.int32)

    def step(params: Params, x: Array, state: Any) -> tuple[Array, Any]:
        """One position more: its key and value join those before it."""
        keys, values, at = state
        q, k, v = split(x @ params["wqkv"] + params["bqkv"], 3)
        if rotary:
            q, k = rotate(q, 1, at), rotate(k, 1, at)
        keys, values = (
            lax.dynamic_update_slice_in_dim(a, new.astype(a.dtype), at, 2)
            for a, new in ((keys, k), (values, v))
        )
        scores = jnp.einsum("bntd,bnsd->bnts", q * _scale(q), keys)
        o, _ = _weighted(scores, values, jnp.arange(keys.shape[2]) <= at)
        y = (joined([o]) @ params["wo"] + params["bo"]).reshape(x.shape)
        return y.astype(x.dtype), (keys, values, at + 1)

    incremental = (
        IncrementalForward(start, step, limited=True) if causal and not (cross or lengths) else None
    )
    return Layer(
        init,
        forward,
        backward,
        name=f"attention({heads})",
        incremental=incremental,
        kind="attention",
    )


def rotate(x: Array, sign: int = 1, first: Array | int = 0) -> Array:
    """``(B, N, T, D)`` turned by each position's angles, counted from ``first``; ``sign=-1`` turns back, as deltas go."""
    turn = angles(x.shape[2], x.shape[-1] // 2, first)
    cos, sin = jnp.cos(turn).astype(x.dtype), (sign * jnp.sin(turn)).astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
