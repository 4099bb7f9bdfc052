"""The cells of the recurrent layers: one step forward, and one step back through time.

Sources: Elman (1990); Hochreiter and Schmidhuber (1997); Gers, Schmidhuber and Cummins (2000); Cho
et al. (2014).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

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
        backward_step: ``(wh^T, saved, previous, current, dC/dcurrent) -> (ds, dz_n, dC/dprevious)``
            from the states before and after the step. ``ds`` (B, G H) is the delta of ``h wh``. The
            delta dz of the pre-activations is the same but for its last block ``dz_n`` (B, H);
            None if that is the same too.
        extra_params: ``(H, dtype) -> params`` beside wx, wh and b.
        extra_grads: ``ds (B T, G H) -> grads`` of ``extra_params``.
    """

    kind: str
    gate_biases: tuple[float | Array, ...]
    states: int
    step: Callable[[Params, Any, State], tuple[State, Any]]
    backward_step: Callable[[Array, Any, State, State, State], tuple[Array, Array | None, State]]
    extra_params: Callable[[int, Any], dict[str, Array]] = lambda features, dtype: {}
    extra_grads: Callable[[Array], dict[str, Array]] = lambda ds: {}


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
    squashed = jnp.tanh(c)
    h = o * squashed
    return (h, c), (gates, o - h * squashed)  # dh/dc = o (1 - tanh(c)^2)


def _lstm_backward_step(
    wh_t: Array, saved: Any, previous: State, current: State, delta: State
) -> tuple[Array, None, State]:
    gates, slope = saved
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    (dh, dc), (h, _) = delta, current
    dc = dc + dh * slope
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
    return (n + u * (h - n),), (u, r, n, s_n)


def _gru_backward_step(
    wh_t: Array, saved: Any, previous: State, current: State, delta: State
) -> tuple[Array, Array, State]:
    u, r, n, s_n = saved
    (dh,) = delta
    dz_n = dh * (1 - u) * (1 - n * n)
    dz_u = dh * (previous[0] - n) * u * (1 - u)
    dz_r = dz_n * s_n * r * (1 - r)
    ds = jnp.concatenate([dz_u, dz_r, dz_n * r], axis=-1)
    return ds, dz_n, (dh * u + ds @ wh_t,)


def _gru_extra_grads(ds: Array) -> dict[str, Array]:
    features = ds.shape[-1] // 3
    return {"bh": ds[:, 2 * features :].sum(axis=0)}


RNN = Cell("rnn", (0.0,), 1, _rnn_step, _rnn_backward_step)
LSTM = Cell("lstm", (0.0, 1.0, 0.0, 0.0), 2, _lstm_step, _lstm_backward_step)
GRU = Cell(
    "gru",
    (0.0, 0.0, 0.0),
    1,
    _gru_step,
    _gru_backward_step,
    extra_params=lambda features, dtype: {"bh": jnp.zeros((features,), dtype)},
    extra_grads=_gru_extra_grads,
)
