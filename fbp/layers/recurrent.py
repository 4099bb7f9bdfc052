"""Recurrent layers over sequences (B, T, F), and back-propagation through time written out.

Forward, the input's share of every pre-activation is one GEMM over all positions; the scan over time holds only what
depends on the state before. Backward, a scan in the other direction emits the delta at every pre-activation, equation (2)
through time; the weight gradients, equations (3) and (4), are then one GEMM each over all positions and examples, outside
the scan. Autodiff instead adds a small product to each weight gradient at every step.

Every layer here takes

    features     the width of the state
    output       "sequence" for the state at every position (B, T, features), "last" for the last one (B, features)
    reverse      run from the end to the beginning; ``fbp.bidirectional`` puts two directions side by side
    lengths      the input is ``(x, lengths)``, lengths (B,) integers: positions from an example's length on are padding;
                 they leave the state as it is, give outputs of 0, and contribute nothing to any gradient
    carry        the input is ``(x, state)`` and the output ``(y, state)`` (with lengths, ``(x, lengths, state)``): for
                 truncated back-propagation through time and for generating step by step. ``state`` is a tuple of
                 (B, features), as :func:`zero_state` makes it

and has parameters ``{"wx": (F, gates * features), "wh": (features, gates * features), "b": (gates * features,)}``.
sigmoid is computed as ``(1 + tanh(z/2)) / 2``: the same function, at half the time on a CPU.

Sources: Werbos (1990), *Backpropagation through time*; Elman (1990); Hochreiter and Schmidhuber (1997); Gers, Schmidhuber and
Cummins (2000); Cho et al. (2014).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fbp import initializers
from fbp._kernels import RNN_UNROLL, scan_over_time
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

Output = Literal["sequence", "last"]

State = tuple[Array, ...]  # (h,) or (h, c)


class _Cell(NamedTuple):
    """One step of a recurrence. ``z`` is x_t wx, ``dz`` the delta at the pre-activations.

    Attributes:
        gates: pre-activations per feature.
        states: arrays in the state.
        step: ``(params, z, state) -> (state, kept)``
        back: ``(kept, state before, state after, dC/dstate after) -> (dz, what of it meets wh if that is another,
            dC/dstate before but for wh)``
    """

    gates: int
    states: int
    step: Callable[[Params, Array, State], tuple[State, Any]]
    back: Callable[[Any, State, State, State], tuple[Array, Array | None, State]]


def _sigmoid(z: Array) -> Array:
    return 0.5 * jnp.tanh(0.5 * z) + 0.5


def _rnn_step(params: Params, z: Array, state: State) -> tuple[State, Any]:
    h = jnp.tanh(z + state[0] @ params["wh"] + params["b"])
    return (h,), ()


def _rnn_back(kept: Any, before: State, after: State, d: State) -> tuple[Array, None, State]:
    return d[0] * (1 - after[0] * after[0]), None, (jnp.zeros_like(d[0]),)


def _lstm_step(params: Params, z: Array, state: State) -> tuple[State, Any]:
    h, c = state
    half = jnp.repeat(
        jnp.array([0.5, 0.5, 1.0, 0.5], z.dtype), h.shape[-1]
    )  # one tanh for all gates; sigmoid is half of one
    gates = jnp.tanh(half * (z + h @ params["wh"] + params["b"])) * half + (1 - half)
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = f * c + i * g
    squashed = jnp.tanh(c)
    h = o * squashed
    return (h, c), (i, f, g, o, o - h * squashed)


def _lstm_back(kept: Any, before: State, after: State, d: State) -> tuple[Array, None, State]:
    i, f, g, o, slope = kept
    dh, dc = d
    dc = dc + dh * slope
    dz = jnp.concatenate(
        [
            dc * g * i * (1 - i),
            dc * before[1] * f * (1 - f),
            dc * i * (1 - g * g),
            dh * after[0] * (1 - o),
        ],
        axis=-1,
    )
    return dz, None, (jnp.zeros_like(dh), dc * f)


def _gru_step(params: Params, z: Array, state: State) -> tuple[State, Any]:
    (h,) = state
    z, from_state, two = z + params["b"], h @ params["wh"], 2 * h.shape[-1]
    gates = _sigmoid(z[:, :two] + from_state[:, :two])
    u, r = jnp.split(gates, 2, axis=-1)
    s_n = from_state[:, two:] + params["bh"]
    n = jnp.tanh(z[:, two:] + r * s_n)
    return (n + u * (h - n),), (gates, n, s_n)


def _gru_back(kept: Any, before: State, after: State, d: State) -> tuple[Array, Array, State]:
    gates, n, s_n = kept
    u, r = jnp.split(gates, 2, axis=-1)
    (dh,) = d
    dz_n = dh * (1 - u) * (1 - n * n)
    dz_u = dh * (before[0] - n) * u * (1 - u)
    dz_r = dz_n * s_n * r * (1 - r)
    return (
        jnp.concatenate([dz_u, dz_r, dz_n], axis=-1),
        jnp.concatenate([dz_u, dz_r, dz_n * r], axis=-1),
        (dh * u,),
    )


_RNN = _Cell(1, 1, _rnn_step, _rnn_back)
_LSTM = _Cell(4, 2, _lstm_step, _lstm_back)
_GRU = _Cell(3, 1, _gru_step, _gru_back)


def rnn(
    features: int, *, output: Output = "sequence", reverse: bool = False, lengths: bool = False, carry: bool = False,
    weights: Initializer | None = None, recurrent_weights: Initializer | None = None,
) -> Layer:  # fmt: skip
    """``h_t = tanh(x_t wx + h_{t-1} wh + b)``. Elman (1990). The cache is x and every h; see the module for the arguments.

    Recurrent weights start orthogonal (Saxe et al., 2014), input weights glorot_uniform.
    """
    return _recurrent(
        "rnn", _RNN, features, output, reverse, lengths, carry, weights, recurrent_weights, 0.0
    )


def lstm(
    features: int, *, output: Output = "sequence", reverse: bool = False, lengths: bool = False, carry: bool = False,
    weights: Initializer | None = None, recurrent_weights: Initializer | None = None, forget_bias: float = 1.0,
) -> Layer:  # fmt: skip
    """``c_t = f c_{t-1} + i g``, ``h_t = o tanh(c_t)`` with gates i, f, o = sigmoid and g = tanh of x_t wx + h_{t-1} wh + b.

    Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000). The gates stand in the order i, f, g, o. The
    cache is x, the gates, every h, c and dh/dc. The forget gate's bias starts at ``forget_bias`` (Jozefowicz et al., 2015).
    """
    return _recurrent(
        "lstm",
        _LSTM,
        features,
        output,
        reverse,
        lengths,
        carry,
        weights,
        recurrent_weights,
        forget_bias,
    )


def gru(
    features: int, *, output: Output = "sequence", reverse: bool = False, lengths: bool = False, carry: bool = False,
    weights: Initializer | None = None, recurrent_weights: Initializer | None = None,
) -> Layer:  # fmt: skip
    """``h_t = (1 - u) n + u h_{t-1}``, ``n = tanh(x_t wx_n + b_n + r (h_{t-1} wh_n + bh))``, u and r sigmoid gates.

    Cho et al. (2014), with the reset gate after the product as in cuDNN, PyTorch and Keras. The gates stand in the order u, r,
    n; ``bh (features,)`` is one more parameter. The cache is x, the gates, every h and h wh_n + bh.
    """
    return _recurrent(
        "gru", _GRU, features, output, reverse, lengths, carry, weights, recurrent_weights, 0.0
    )


def zero_state(layer: Layer, params: Params, batch: int) -> State:
    """The state before the first step of a recurrent layer made with ``carry=True``."""
    wh = params["wh"]
    return (jnp.zeros((batch, wh.shape[0]), wh.dtype),) * (
        _LSTM.states if layer.name.startswith("lstm") else 1
    )


def _recurrent(
    kind: str,
    cell: _Cell,
    features: int,
    output: Output,
    reverse: bool,
    lengths: bool,
    carry: bool,
    weights: Initializer | None,
    recurrent_weights: Initializer | None,
    forget_bias: float,
) -> Layer:
    if features < 1:
        raise InputError(f"{kind}: features must be at least 1, got {features}")
    if output not in ("sequence", "last"):
        raise InputError(f"{kind}: output must be 'sequence' or 'last', got {output!r}")
    draw, draw_recurrent = (
        weights or initializers.glorot_uniform(),
        recurrent_weights or initializers.orthogonal(),
    )

    def init(key: Key, shape: Any) -> tuple[Params, Shape]:
        if (
            lengths and len(shape) == 2 and isinstance(shape[0], tuple)
        ):  # as a graph tells it, with that of lengths
            shape = shape[0]
        if len(shape) != 2 or not all(isinstance(size, int) for size in shape):
            raise ShapeError(f"{kind} expects examples of shape (T, F), got {shape}")
        x_key, *h_keys = jax.random.split(key, 1 + cell.gates)
        dtype = jnp.result_type(float)
        params = {
            "wx": draw(x_key, (shape[-1], cell.gates * features), dtype),
            "wh": jnp.concatenate(
                [draw_recurrent(h_key, (features, features), dtype) for h_key in h_keys], axis=1
            ),
            "b": jnp.zeros((cell.gates, features), dtype)
            .at[1 if cell.gates == 4 else 0]
            .add(forget_bias)
            .ravel(),
        }
        if cell is _GRU:
            params["bh"] = jnp.zeros((features,), dtype)
        return params, ((shape[0], features) if output == "sequence" else (features,))

    def unpacked(params: Params, given: Any) -> tuple[Array, Array | None, State]:
        parts = list(given) if lengths or carry else [given]
        if len(parts) != 1 + lengths + carry:
            wanted = ", ".join(["x", *["lengths"] * lengths, *["state"] * carry])
            raise ShapeError(f"{kind} expects the input ({wanted}), got {len(parts)} parts")
        x = parts.pop(0)
        if x.ndim != 3 or x.shape[-1] != params["wx"].shape[0]:
            raise ShapeError(
                f"{kind} expects sequences of shape (B, T, {params['wx'].shape[0]}), got {x.shape}"
            )
        until = parts.pop(0) if lengths else None
        if until is not None:
            if until.shape != x.shape[:1]:
                raise ShapeError(
                    f"{kind} expects a length for each example, ({x.shape[0]},), got {until.shape}"
                )
            x = jnp.where(
                (jnp.arange(x.shape[1]) < until[:, None])[..., None], x, 0
            )  # whatever padding holds
        zeros = jnp.zeros((x.shape[0], features), jnp.result_type(x, params["wx"]))
        return x, until, tuple(parts.pop()) if carry else (zeros,) * cell.states

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        x, until, initial = unpacked(params, x)
        along_time = x.swapaxes(0, 1)
        z = along_time @ params["wx"]  # one GEMM over all positions; the bias joins where z is read
        inside = (
            None if until is None else (jnp.arange(x.shape[1])[:, None] < until)[..., None]
        )  # (T, B, 1)

        def step(state: State, at: Any) -> tuple[State, Any]:
            z_t, inside_t = at
            new, kept = cell.step(params, z_t, state)
            if inside_t is not None:
                new = tuple(jnp.where(inside_t, n, s) for n, s in zip(new, state, strict=True))
            return new, (new, kept)

        last, (states, kept) = scan_over_time(
            step, initial, (z, inside), reverse=reverse, unroll=RNN_UNROLL
        )
        y = last[0]
        if output == "sequence":
            y = (states[0] if inside is None else jnp.where(inside, states[0], 0)).swapaxes(0, 1)
        return (y, last) if carry else y, (along_time, inside, initial, states, kept)

    def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        along_time, inside, initial, states, kept = cache
        delta, d_last = delta if carry else (delta, tuple(jnp.zeros_like(s) for s in initial))
        if output == "last":
            d_last, d_outputs = (d_last[0] + delta, *d_last[1:]), None
        else:
            d_outputs = delta.swapaxes(0, 1)
        before = tuple(
            jnp.concatenate([s[1:], s0[None]] if reverse else [s0[None], s[:-1]])
            for s, s0 in zip(states, initial, strict=True)
        )

        transposed = params["wh"].T

        def step(d: State, at: Any) -> tuple[State, Any]:
            kept_t, before_t, after_t, d_output, inside_t = at
            if d_output is not None:
                d = (
                    d[0] + (d_output if inside_t is None else jnp.where(inside_t, d_output, 0)),
                    *d[1:],
                )
            dz, dz_h, d_before = cell.back(kept_t, before_t, after_t, d)
            met = dz if dz_h is None else dz_h
            d_before = (
                d_before[0] + met @ transposed,
                *d_before[1:],
            )  # equation (2), one step back in time
            if inside_t is not None:
                dz, dz_h = jax.tree.map(lambda a: jnp.where(inside_t, a, 0), (dz, dz_h))
                d_before = tuple(
                    jnp.where(inside_t, n, s) for n, s in zip(d_before, d, strict=True)
                )
            return d_before, (dz, dz_h)

        d_initial, (dz, dz_h) = scan_over_time(
            step, d_last, (kept, before, states, d_outputs, inside), reverse=not reverse, unroll=1
        )
        rows = dz.reshape(-1, dz.shape[-1])
        rows_h = rows if dz_h is None else dz_h.reshape(-1, dz.shape[-1])
        grads = {
            "wx": along_time.reshape(-1, along_time.shape[-1]).T
            @ rows,  # equation (4), all steps at once
            "wh": before[0].reshape(-1, features).T @ rows_h,
            "b": rows.sum(axis=0),  # equation (3)
        }
        if cell is _GRU:
            grads["bh"] = rows_h[:, 2 * features :].sum(axis=0)
        parts = [(dz @ params["wx"].T).swapaxes(0, 1), *[None] * lengths, *[d_initial] * carry]
        return parts[0] if len(parts) == 1 else tuple(parts), grads

    def start(batch: int, shape: Shape) -> State:
        return (jnp.zeros((batch, features)),) * cell.states

    def one(params: Params, x: Array, state: State) -> tuple[Array, State]:
        state, _ = cell.step(params, (x @ params["wx"])[:, 0], state)
        return state[0][:, None], state

    incremental = (
        None if reverse or lengths or carry or output == "last" else IncrementalForward(start, one)
    )
    return Layer(
        init, forward, backward, name=f"{kind}({features})", incremental=incremental, kind=kind
    )
