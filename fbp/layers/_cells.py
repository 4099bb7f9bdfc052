"""The cells of the recurrent layers: one step forward, and one step back through time.

Sources: Elman (1990); Hochreiter and Schmidhuber (1997); Gers, Schmidhuber and Cummins (2000); Cho
et al. (2014).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from fbp.layer import Array, Params

State = tuple[Array, ...]
"""``(h,)``, for an LSTM ``(h, c)``; each (B, H)."""


class Cell(NamedTuple):
    """One step of a recurrence, forward and backward, on arrays (B, ...).

    Attributes:
        kind: name of the layer.
        gate_biases: initial bias of each of the G gates.
        states: number of arrays in the state.
        step: ``(params, z, state) -> (state, saved)`` with ``z = x_t wx`` and ``saved`` the values
            that ``backward_step`` needs.
        backward_step: ``(wh^T, saved, previous, current, dC/dcurrent) -> (dz, ds, dC/dprevious)``,
            from the states before and after the step. ``dz`` is the delta at the pre-activations.
            ``ds`` is the delta of the part of ``h wh`` that differs from it, or None.
        recurrent_delta: ``(dz, ds) -> `` the delta of ``h wh``, (..., G H).
        extra_params: ``(H, dtype) -> params`` beside wx, wh and b.
        extra_grads: ``recurrent_delta (B T, G H) -> grads`` of ``extra_params``.
    """

    kind: str
    gate_biases: tuple[float | Array, ...]
    states: int
    step: Callable[[Params, Any, State], tuple[State, Any]]
    backward_step: Callable[[Array, Any, State, State, State], tuple[Array, Array | None, State]]
    recurrent_delta: Callable[[Array, Any], Array] = lambda dz, ds: dz
    extra_params: Callable[[int, Any], dict[str, Array]] = lambda features, dtype: {}
    extra_grads: Callable[[Array], dict[str, Array]] = lambda recurrent_delta: {}


def _sigmoid(z: Array) -> Array:
    """Return ``(1 + tanh(z/2)) / 2``: ``1 / (1 + exp(-z))`` at half the time on a CPU."""
    return 0.5 * jnp.tanh(0.5 * z) + 0.5


def _rnn_step(params: Params, z: Array, state: State) -> tuple[State, Any]:
    h = jnp.tanh(z + state[0] @ params["wh"] + params["b"])
    return (h,), ()


def _rnn_backward_step(
    wh_t: Array, saved: Any, previous: State, current: State, delta: State
) -> tuple[Array, None, State]:
    dz = delta[0] * (1 - current[0] * current[0])
    return dz, None, (dz @ wh_t,)


def _lstm_step(params: Params, z: Array, state: State) -> tuple[State, Any]:
    h, c = state
    # One tanh serves all gates, because sigmoid is half of one.
    half = jnp.repeat(jnp.array([0.5, 0.5, 1.0, 0.5], z.dtype), h.shape[-1])
    gates = jnp.tanh(half * (z + h @ params["wh"] + params["b"])) * half + (1 - half)
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = f * c + i * g
    return (o * jnp.tanh(c), c), gates


def _lstm_backward_step(
    wh_t: Array, saved: Any, previous: State, current: State, delta: State
) -> tuple[Array, None, State]:
    i, f, g, o = jnp.split(saved, 4, axis=-1)
    (dh, dc), (h, c) = delta, current
    dc = dc + dh * (o - h * jnp.tanh(c))  # dh/dc = o (1 - tanh(c)^2)
    dz = jnp.concatenate(
        [
            dc * g * i * (1 - i),
            dc * previous[1] * f * (1 - f),
            dc * i * (1 - g * g),
            dh * h * (1 - o),
        ],
        axis=-1,
    )
    return dz, None, (dz @ wh_t, dc * f)


def _gru_step(params: Params, z: Array, state: State) -> tuple[State, Any]:
    (h,) = state
    z, from_state, two = z + params["b"], h @ params["wh"], 2 * h.shape[-1]
    gates = _sigmoid(z[:, :two] + from_state[:, :two])
    u, r = jnp.split(gates, 2, axis=-1)
    s_n = from_state[:, two:] + params["bh"]
    n = jnp.tanh(z[:, two:] + r * s_n)
    return (n + u * (h - n),), (gates, n, s_n)


def _gru_backward_step(
    wh_t: Array, saved: Any, previous: State, current: State, delta: State
) -> tuple[Array, Array, State]:
    gates, n, s_n = saved
    u, r = jnp.split(gates, 2, axis=-1)
    (dh,) = delta
    dz_n = dh * (1 - u) * (1 - n * n)
    dz_u = dh * (previous[0] - n) * u * (1 - u)
    dz_r = dz_n * s_n * r * (1 - r)
    ds_n = dz_n * r
    previous_delta = dh * u + jnp.concatenate([dz_u, dz_r, ds_n], axis=-1) @ wh_t
    return jnp.concatenate([dz_u, dz_r, dz_n], axis=-1), ds_n, (previous_delta,)


def _gru_recurrent_delta(dz: Array, ds_n: Array) -> Array:
    """Return the delta of ``h wh``: that of z but for the block of n, which r multiplies.

    The barrier makes XLA store it once for both its readers, the gradients of wh and bh. The order
    in which these are summed, and so their last bits, then do not depend on how it is put together.
    """
    return lax.optimization_barrier(jnp.concatenate([dz[..., : 2 * ds_n.shape[-1]], ds_n], axis=-1))


def _gru_extra_grads(recurrent_delta: Array) -> dict[str, Array]:
    features = recurrent_delta.shape[-1] // 3
    return {"bh": recurrent_delta[:, 2 * features :].sum(axis=0)}


RNN = Cell("rnn", (0.0,), 1, _rnn_step, _rnn_backward_step)
LSTM = Cell("lstm", (0.0, 1.0, 0.0, 0.0), 2, _lstm_step, _lstm_backward_step)
GRU = Cell(
    "gru",
    (0.0, 0.0, 0.0),
    1,
    _gru_step,
    _gru_backward_step,
    recurrent_delta=_gru_recurrent_delta,
    extra_params=lambda features, dtype: {"bh": jnp.zeros((features,), dtype)},
    extra_grads=_gru_extra_grads,
)
