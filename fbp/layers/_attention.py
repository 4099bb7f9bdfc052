"""Attention layers over sequences: projections into queries, keys and values around the core.

The core and its backward pass are derived in :mod:`fbp.layers._attention_core`. The dense
layers in front of it are in :mod:`fbp.layers._attention_projections`; the one behind it is here.

Shape letters: B batch, T queries, S keys, F features, G features of memory, N heads, D = F / N head
size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fbp import initializers
from fbp._arguments import checked
from fbp.errors import ShapeError
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
from fbp.layers._attention_core import (
    Mask,
    attend,
    attend_backward,
    scale,
    select_real,
    weighted_values,
)
from fbp.layers._attention_projections import CROSS, SELF, join_heads, split_heads
from fbp.layers._embedding import angles


@checked
def dot_product_attention(*, causal: bool = False, with_lengths: bool = False) -> Layer:
    """Return scaled dot-product attention ``softmax(q k^T / sqrt(D)) v``. Vaswani et al. (2017).

    The layout is that of ``jax.nn.dot_product_attention``.

    Args:
        causal: a query sees the keys up to its own position.
        with_lengths: the input has a fourth part, lengths (B,): the number of keys that each
            example has. Those behind are padding.

    Returns:
        A layer from ``(q (B, T, N, D), k (B, S, N, D), v (B, S, N, D))`` to (B, T, N, D), without
        parameters. The cache is the input, the output, and for each query the weights (S,) or,
        blockwise, one number.

    Raises:
        ShapeError: if q, k and v do not fit each other.
    """
    names = ("q", "k", "v", "lengths") if with_lengths else ("q", "k", "v")

    def take_apart(x: Any) -> tuple[Array, Array, Array, Mask]:
        _check_parts("dot_product_attention", x, names)
        q, k, v = x[:3]
        alike = k.shape == v.shape and (q.shape[0], *q.shape[2:]) == (k.shape[0], *k.shape[2:])
        if not q.ndim == k.ndim == 4 or not alike:
            raise ShapeError(
                "dot_product_attention expects q (B, T, N, D) with k and v (B, S, N, D), "
                f"got {q.shape}, {k.shape} and {v.shape}"
            )
        _check_causal("dot_product_attention", q.shape[1], k.shape[1], causal=causal)
        if with_lengths and jnp.shape(x[3]) != q.shape[:1]:
            raise ShapeError(
                f"dot_product_attention expects a length for each example, ({q.shape[0]},), "
                f"got {jnp.shape(x[3])}"
            )
        lengths = x[3] if with_lengths else None
        k, v = select_real(k, lengths), select_real(v, lengths)
        q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
        return q, k, v, Mask(causal, lengths)

    def init(key: Key, shape: Any) -> tuple[Params, Shape]:
        return (), shape[0]

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Array, Cache]:
        q, k, v, mask = take_apart(x)
        o, weights_or_logsumexp = attend(q, k, v, mask)
        return o.swapaxes(1, 2), (q, k, v, o, weights_or_logsumexp, mask.lengths)

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Any, Grads]:
        q, k, v, o, weights_or_logsumexp, lengths = cache
        delta, mask = delta.swapaxes(1, 2), Mask(causal, lengths)
        deltas = attend_backward(q, k, v, o, weights_or_logsumexp, delta, mask)
        dq, dk, dv = (a.swapaxes(1, 2) for a in deltas)
        input_deltas = dq, select_real(dk, lengths), select_real(dv, lengths)
        return (*input_deltas, None) if with_lengths else input_deltas, ()

    return Layer(init, forward, backward, kind="dot_product_attention", incremental=None)


def _check_parts(kind: str, x: Any, names: Sequence[str]) -> None:
    if not isinstance(x, tuple | list) or len(x) != len(names):
        actual = f"{len(x)} parts" if isinstance(x, tuple | list) else "one array"
        raise ShapeError(f"{kind} expects the input ({', '.join(names)}), got {actual}")


def _check_causal(kind: str, queries: int, keys: int, *, causal: bool) -> None:
    if causal and queries != keys:
        raise ShapeError(
            f"{kind}: causal expects as many queries as keys, got {queries} and {keys}"
        )


@checked
def attention(
    heads: int,
    *,
    causal: bool = False,
    cross: bool = False,
    with_lengths: bool = False,
    rotary: bool = False,
    weights: Initializer | None = None,
    output_weights: Initializer | None = None,
) -> Layer:
    """Return multi-head attention ``(B, T, F) -> (B, T, F)``.

    Queries, keys and values are dense layers of the input; a dense layer joins the heads' outputs.
    Vaswani et al. (2017), *Attention is all you need*.

    Args:
        heads: number N of heads, which share the F features.
        causal: a position sees itself and the positions before it.
        cross: the input is ``(x, memory)``, memory (B, S, G): queries come from x, keys and values
            from memory.
        with_lengths: the input has one more part at the end, lengths (B,): the number of real keys
            of each example. Those behind are padding: no query sees them, and their delta is 0.
        rotary: turn queries and keys by an angle that grows with their position, so that a score
            depends on the distance. Su et al. (2021), *RoFormer*. Features i and i + D/2 of a head
            turn together.
        weights: initializer of the weights into queries, keys and values; glorot_uniform by
            default.
        output_weights: initializer of the weights behind the heads; ``weights`` by default.

    Returns:
        A layer with parameters ``{"wqkv": (F, 3 F), "bqkv": (3 F,), "wo": (F, F), "bo": (F,)}``;
        with ``cross``, ``wq (F, F)``, ``bq``, ``wkv (G, 2 F)`` and ``bkv`` in place of the first
        two. Products that share an input are one. The cache is the input, q, k, v, o, and for each
        query the weights (S,) or, blockwise, one number.

    Raises:
        InputError: if ``heads`` is less than 1.
        ShapeError: if ``heads`` does not divide F, or inputs do not fit.
    """
    options = _Options(heads, causal, cross, with_lengths, rotary)
    return _attention(options, weights, output_weights)


class _Options(NamedTuple):
    """Options of :func:`attention`."""

    heads: int
    causal: bool
    cross: bool
    with_lengths: bool
    rotary: bool


class _Inputs(NamedTuple):
    """An attention layer's input, taken apart.

    Attributes:
        x: (B, T, F).
        memory: (B, S, G) with ``cross``, else None.
        lengths: (B,) with ``with_lengths``, else None.
    """

    x: Array
    memory: Array | None
    lengths: Array | None

    def without_padding(self) -> "_Inputs":
        """Return the same with zeros for the keys from each example's length on."""
        if self.memory is None:
            return self._replace(x=select_real(self.x, self.lengths))
        return self._replace(memory=select_real(self.memory, self.lengths))

    @property
    def sources(self) -> list[Array]:
        """The arrays that queries, keys and values are projected from."""
        return [self.x] if self.memory is None else [self.x, self.memory]


class _Cache(NamedTuple):
    """An attention layer's cache; arrays (B, N, T, D) but for the inputs and the last.

    The last is the weights (B, N, T, S) or, blockwise, each query's logsumexp (B, N, T).
    """

    inputs: _Inputs
    q: Array
    k: Array
    v: Array
    o: Array
    weights_or_logsumexp: Array


def _take_apart(options: _Options, x: Any) -> _Inputs:
    """Check an attention layer's input and normalize it."""
    names = ["x"]
    if options.cross:
        names.append("memory")
    if options.with_lengths:
        names.append("lengths")
    if len(names) > 1:
        _check_parts("attention", x, names)
    parts = dict(zip(names, x if len(names) > 1 else [x], strict=True))
    inputs = _Inputs(parts["x"], parts.get("memory"), parts.get("lengths"))
    batch = inputs.x.shape[0]
    if inputs.lengths is not None and inputs.lengths.shape != (batch,):
        raise ShapeError(
            f"attention expects a length for each example, ({batch},), got {inputs.lengths.shape}"
        )
    if inputs.memory is not None and inputs.memory.shape[0] != batch:
        raise ShapeError(
            "attention expects x and memory of one batch, "
            f"got {inputs.x.shape} and {inputs.memory.shape}"
        )
    memory = inputs.x if inputs.memory is None else inputs.memory
    _check_shapes(options, inputs.x.shape[1:], memory.shape[1:])
    return inputs.without_padding()


def _check_shapes(options: _Options, x: Shape, memory: Shape) -> None:
    """Raise ShapeError unless one example's x and memory fit the options."""
    heads = options.heads
    for shape in (x, memory):
        if len(shape) != 2:
            raise ShapeError(f"attention expects examples of shape (T, F), got {shape}")
    if x[-1] % heads:
        raise ShapeError(
            f"attention of {heads} heads expects features that are a multiple of {heads}, "
            f"got {x[-1]}"
        )
    if options.rotary and x[-1] // heads % 2:
        raise ShapeError(
            f"attention with rotary positions expects an even head size, got {x[-1] // heads}"
        )
    _check_causal("attention", x[0], memory[0], causal=options.causal)


def _attention(
    options: _Options, weights: Initializer | None, output_weights: Initializer | None
) -> Layer:
    """Return the attention layer of some options."""
    heads, causal = options.heads, options.causal
    projections = CROSS if options.cross else SELF

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Array, Cache]:
        inputs = _take_apart(options, x)
        q, k, v = projections.project(params, inputs.sources, heads)
        if options.rotary:
            q, k = rotate(q), rotate(k)
        o, weights_or_logsumexp = attend(q, k, v, Mask(causal, inputs.lengths))
        y = _output(params, o).reshape(inputs.x.shape)
        return y, _Cache(inputs, q, k, v, o, weights_or_logsumexp)

    def backward(params: Params, cache: _Cache, delta: Array) -> tuple[Any, Grads]:
        inputs, q, k, v, o, weights_or_logsumexp = cache
        rows = delta.reshape(-1, delta.shape[-1])
        grads = {"wo": join_heads([o]).T @ rows, "bo": rows.sum(axis=0)}  # equations (4), (3)
        (do,) = split_heads((rows @ params["wo"].T).reshape(delta.shape), heads, 1)
        mask = Mask(causal, inputs.lengths)
        dq, dk, dv = attend_backward(q, k, v, o, weights_or_logsumexp, do, mask)
        if options.rotary:
            dq, dk = rotate(dq, -1), rotate(dk, -1)
        deltas, projection_grads = projections.unproject(params, inputs.sources, [dq, dk, dv])
        if options.with_lengths:
            deltas[-1] = select_real(jnp.asarray(deltas[-1]), inputs.lengths)
            deltas.append(None)  # integers have no delta
        return deltas[0] if len(deltas) == 1 else tuple(deltas), grads | projection_grads

    is_incremental = causal and not (options.cross or options.with_lengths)
    return Layer(
        _initializer(options, weights, output_weights),
        forward,
        backward,
        kind="attention",
        name=f"attention({heads})",
        incremental=_incremental(options) if is_incremental else None,
    )


def _initializer(
    options: _Options, weights: Initializer | None, output_weights: Initializer | None
) -> Any:
    """Return the ``init`` of an attention layer."""
    draw = weights or initializers.glorot_uniform()
    draw_output = output_weights or draw
    inputs = 1 + options.cross + options.with_lengths

    def init(key: Key, shape: Any) -> tuple[Params, Shape]:
        if options.with_lengths and len(shape) == inputs and isinstance(shape[0], tuple):
            # inside fbp.graph, shape also holds the shape of `lengths`
            shape = shape[:-1] if options.cross else shape[0]
        if options.cross and not (
            len(shape) == 2 and all(isinstance(part, tuple) for part in shape)
        ):
            raise ShapeError(
                f"attention with cross expects the shapes of x and memory, got {shape}"
            )
        x, memory = shape if options.cross else (shape, shape)
        _check_shapes(options, x, memory)
        features, dtype = x[-1], jnp.result_type(float)
        *keys, output_key = jax.random.split(key, 4)
        widths = (features, memory[-1]) if options.cross else (features,)
        projections = CROSS if options.cross else SELF
        params = projections.init(draw, keys, widths, features)
        wo = draw_output(output_key, (features, features), dtype)
        return params | {"wo": wo, "bo": jnp.zeros(features, dtype)}, x

    return init


def _output(params: Params, o: Array) -> Array:
    """Apply the dense layer behind the heads, ``(B, N, T, D) -> (B T, F)``."""
    return join_heads([o]) @ params["wo"] + params["bo"]


class _KeysAndValues(NamedTuple):
    """The state of incremental attention: keys and values (B, N, T, D), and the next position."""

    keys: Array
    values: Array
    position: Array


def _incremental(options: _Options) -> IncrementalForward:
    """Return the incremental form of causal self-attention."""

    def start(batch: int, shape: Shape) -> _KeysAndValues:
        size = (batch, options.heads, shape[0], shape[-1] // options.heads)
        return _KeysAndValues(jnp.zeros(size), jnp.zeros(size), jnp.zeros((), jnp.int32))

    def step(params: Params, x: Array, state: _KeysAndValues) -> tuple[Array, _KeysAndValues]:
        return _next_position(options, params, x, state)

    return IncrementalForward(start, step, limited=True)


def _next_position(
    options: _Options, params: Params, x: Array, state: _KeysAndValues
) -> tuple[Array, _KeysAndValues]:
    """Attend from the next position ``x (B, 1, F)``, whose key and value join those before it."""
    position = state.position
    q, k, v = SELF.project(params, [x], options.heads)
    if options.rotary:
        q, k = rotate(q, 1, position), rotate(k, 1, position)
    keys, values = (
        lax.dynamic_update_slice_in_dim(a, new.astype(a.dtype), position, 2)
        for a, new in ((state.keys, k), (state.values, v))
    )
    scores = jnp.einsum("bntd,bnsd->bnts", q * scale(q), keys)
    o, _ = weighted_values(scores, values, jnp.arange(keys.shape[2]) <= position)
    y = _output(params, o).reshape(x.shape).astype(x.dtype)
    return y, _KeysAndValues(keys, values, position + 1)


def rotate(x: Array, sign: int = 1, start: Array | int = 0) -> Array:
    """Turn ``(B, N, T, D)`` by each position's angles.

    Args:
        x: queries or keys, or their deltas.
        sign: 1 turns forward, -1 back, as deltas go.
        start: number of the first position.

    Returns:
        An array like ``x``.
    """
    turn = angles(x.shape[2], x.shape[-1] // 2, start)
    cos, sin = jnp.cos(turn).astype(x.dtype), (sign * jnp.sin(turn)).astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
