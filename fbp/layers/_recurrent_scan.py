"""The two scans of a recurrent layer, on arrays (T, B, ...).

Forward, the input's share of every pre-activation is one GEMM over all positions. The scan over
time holds only the work that depends on the previous state. It stores the state before each step;
the state after a step is the next one's.

Backward, a scan in the opposite direction emits the delta dz at every pre-activation, equation (2)
through time:

    dC/dh_{t-1} = dC/dh_t dh_t/dh_{t-1} + dz_t wh^T

The weight gradients, equations (3) and (4), are then one GEMM each over all positions and examples,
outside the scan:

    dC/dwx = x^T dz      dC/dwh = h_previous^T dz      dC/db = sum of dz

Autodiff instead adds a small product to each weight gradient at every step.

Shape letters: B batch, T time, F input features, H state features, G gates per state feature.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fbp._kernels import RNN_UNROLL, scan_over_time
from fbp.layer import Array, Grads, Params
from fbp.layers._cells import Cell, State


class Scanned(NamedTuple):
    """Result of the forward scan.

    Attributes:
        previous: the state before each step, (T, B, H) each.
        last: the state after the last step, (B, H) each.
        saved: what the cell saved at each step, (T, B, ...).
    """

    previous: State
    last: State
    saved: Any

    def outputs(self, *, reverse: bool) -> Array:
        """Return h after each step (T, B, H): that before the next step."""
        previous, last = self.previous[0], self.last[0][None]
        return jnp.concatenate([last, previous[:-1]] if reverse else [previous[1:], last])


def scan_forward(
    cell: Cell, params: Params, inputs: Any, initial: State, *, reverse: bool
) -> Scanned:
    """Run the cell over ``inputs`` (T, B, ...), ``z`` of each step."""

    def step(state: State, inputs: Any) -> tuple[State, Any]:
        current, saved = cell.step(params, inputs, state)
        return current, (state, saved)

    last, (previous, saved) = scan_over_time(
        step, initial, inputs, reverse=reverse, unroll=RNN_UNROLL
    )
    return Scanned(previous, last, saved)


def scan_backward(
    cell: Cell,
    params: Params,
    scanned: Scanned,
    output_deltas: Array | None,
    last_delta: State,
    *,
    reverse: bool,
) -> tuple[Array, Array | None, State]:
    """Return ds (T, B, G H), dz_n or None, and the initial state's delta.

    This is equation (2) through time; :class:`Cell` says what ds and dz_n are.

    ``output_deltas`` (T, B, H) is None if only the last state is an output.
    """
    wh_t = params["wh"].T

    def step(carry: tuple[State, State], inputs: Any) -> tuple[tuple[State, State], Any]:
        delta, current = carry
        saved, previous, output_delta = inputs
        if output_delta is not None:
            delta = (delta[0] + output_delta, *delta[1:])
        ds, dz_n, previous_delta = cell.backward_step(wh_t, saved, previous, current, delta)
        return (previous_delta, previous), (ds, dz_n)

    (initial_delta, _), (ds, dz_n) = scan_over_time(
        step,
        (last_delta, scanned.last),
        (scanned.saved, scanned.previous, output_deltas),
        reverse=not reverse,
        unroll=1,
    )
    return ds, dz_n, initial_delta


def input_delta_and_gradients(
    cell: Cell, params: Params, x: Array, h_previous: Array, ds: Array, dz_n: Array | None
) -> tuple[Array, Grads]:
    """Return equations (2), (3) and (4), all steps at once; x is (T, B, F)."""

    def rows(steps: Array) -> Array:
        return steps.reshape(-1, steps.shape[-1])

    b = rows(ds).sum(axis=0)  # equation (3), but for the last block
    dz = rows(ds)
    state_grads = {"wh": rows(h_previous).T @ dz, **cell.extra_grads(dz)}  # equation (4)
    if dz_n is not None:
        block = dz_n.shape[-1]
        b = jnp.concatenate([b[:-block], rows(dz_n).sum(axis=0)])
        # all reads of ds come before the barrier, so that its last block is changed in place
        dz, b, state_grads = lax.optimization_barrier((dz, b, state_grads))
        dz = dz.at[:, -block:].set(rows(dz_n))
    input_delta = (dz @ params["wx"].T).reshape(x.shape)  # equation (2)
    return input_delta, {"wx": rows(x).T @ dz, "b": b, **state_grads}  # equation (4)


def _where(condition: Array, ours: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), ours, other)


def with_mask(cell: Cell) -> Cell:
    """Return the cell that leaves its state as it is at padding.

    In place of ``z`` it takes ``(z, inside)``, and in place of ``saved`` ``(saved, inside)``,
    ``inside`` (B, 1) booleans.
    """

    def step(params: Params, inputs: Any, state: State) -> tuple[State, Any]:
        z, inside = inputs
        current, saved = cell.step(params, z, state)
        return _where(inside, current, state), saved

    def backward_step(
        wh_t: Array, saved: Any, previous: State, current: State, delta: State
    ) -> tuple[Array, Array | None, State]:
        saved, inside = saved
        ds, dz_n, previous_delta = cell.backward_step(wh_t, saved, previous, current, delta)
        ds, dz_n = jax.tree.map(lambda d: jnp.where(inside, d, 0), (ds, dz_n))
        return ds, dz_n, _where(inside, previous_delta, delta)

    return cell._replace(step=step, backward_step=backward_step)
