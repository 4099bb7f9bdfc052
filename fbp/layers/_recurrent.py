"""Recurrent layers over sequences (B, T, F), with back-propagation through time written out.

The scans over time, and their derivation, are in _recurrent_scan.py; the cells in _cells.py.

Shape letters: B batch, T time, F input features, H state features, G gates per state feature.

Sources: Werbos (1990), *Backpropagation through time*; Elman (1990); Hochreiter and Schmidhuber
(1997); Gers, Schmidhuber and Cummins (2000); Cho et al. (2014).
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fbp import initializers
from fbp._arguments import checked
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
from fbp.layers._cells import GRU, LSTM, RNN, Cell, State
from fbp.layers._recurrent_scan import (
    Scanned,
    input_delta_and_gradients,
    scan_backward,
    scan_forward,
    with_mask,
)

Output = Literal["sequence", "last"]


class _Options(NamedTuple):
    """Options that the recurrent layers share; :func:`rnn` describes them."""

    output: Output
    reverse: bool
    with_lengths: bool
    with_state: bool
    weights: Initializer | None
    recurrent_weights: Initializer | None


@checked
def rnn(
    features: int,
    *,
    output: Output = "sequence",
    reverse: bool = False,
    with_lengths: bool = False,
    with_state: bool = False,
    weights: Initializer | None = None,
    recurrent_weights: Initializer | None = None,
) -> Layer:
    """Return the simple recurrent layer ``h_t = tanh(x_t wx + h_{t-1} wh + b)``. Elman (1990).

    Args:
        features: width H of the state.
        output: ``"sequence"`` for the state at every position (B, T, H), ``"last"`` for the last
            one (B, H).
        reverse: run from the end to the beginning. :func:`fbp.bidirectional` puts two directions
            side by side.
        with_lengths: the input is ``(x, lengths)``, ``lengths`` (B,) integers. Positions from an
            example's length on are padding: they leave the state unchanged, give outputs of 0
            and add nothing to any gradient.
        with_state: the input is ``(x, state)`` and the output ``(y, state)``; with lengths too, the
            input is ``(x, lengths, state)``. This serves truncated back-propagation through time.
            ``state`` is a tuple of arrays (B, H), see :func:`zero_state`.
        weights: initializer of ``wx``; glorot_uniform by default. With gates, as in :func:`lstm`,
            one matrix is drawn for all of them, so that ``out`` in its variance counts each gate.
            Keras does the same; Flax draws a matrix for each gate, and PyTorch uniform numbers up
            to 1/sqrt(H).
        recurrent_weights: initializer of each (H, H) block of ``wh``; orthogonal by default (Saxe
            et al., 2014).

    Returns:
        A layer from (B, T, F) with parameters ``{"wx": (F, H), "wh": (H, H), "b": (H,)}``. Its
        cache is x, the state before each step and the last state.

    Raises:
        InputError: if ``features`` is less than 1 or ``output`` is neither of the two.
        ShapeError: if the input does not fit.
    """
    options = _Options(output, reverse, with_lengths, with_state, weights, recurrent_weights)
    return _recurrent(RNN, features, options)


@checked
def lstm(
    features: int,
    *,
    output: Output = "sequence",
    reverse: bool = False,
    with_lengths: bool = False,
    with_state: bool = False,
    weights: Initializer | None = None,
    recurrent_weights: Initializer | None = None,
    forget_bias: float = 1.0,
) -> Layer:
    """Return a long short-term memory: ``c_t = f c_{t-1} + i g``, ``h_t = o tanh(c_t)``.

    The gates i, f, o are the sigmoid, g is the tanh, of ``x_t wx + h_{t-1} wh + b``. Hochreiter and
    Schmidhuber (1997), with the forget gate of Gers et al. (2000).

    Args:
        features: width H of the state.
        output: as in :func:`rnn`.
        reverse: as in :func:`rnn`.
        with_lengths: as in :func:`rnn`.
        with_state: as in :func:`rnn`; the state is ``(h, c)``.
        weights: as in :func:`rnn`.
        recurrent_weights: as in :func:`rnn`.
        forget_bias: initial bias of the forget gate (Jozefowicz et al., 2015).

    Returns:
        A layer from (B, T, F) with parameters ``{"wx": (F, 4 H), "wh": (H, 4 H), "b": (4 H,)}``,
        the gates in the order i, f, g, o. Its cache is x, the gates, the state before each step and
        the last state.

    Raises:
        InputError: as :func:`rnn`.
        ShapeError: as :func:`rnn`.
    """
    options = _Options(output, reverse, with_lengths, with_state, weights, recurrent_weights)
    return _recurrent(LSTM._replace(gate_biases=(0.0, forget_bias, 0.0, 0.0)), features, options)


@checked
def gru(
    features: int,
    *,
    output: Output = "sequence",
    reverse: bool = False,
    with_lengths: bool = False,
    with_state: bool = False,
    weights: Initializer | None = None,
    recurrent_weights: Initializer | None = None,
) -> Layer:
    """Return gated recurrent units: ``h_t = (1 - u) n + u h_{t-1}``.

    Here ``n = tanh(x_t wx_n + b_n + r (h_{t-1} wh_n + bh))``, u and r are
    sigmoid gates. Cho et al. (2014), with the reset gate after the product as in cuDNN, PyTorch and
    Keras.

    Args:
        features: width H of the state.
        output: as in :func:`rnn`.
        reverse: as in :func:`rnn`.
        with_lengths: as in :func:`rnn`.
        with_state: as in :func:`rnn`.
        weights: as in :func:`rnn`.
        recurrent_weights: as in :func:`rnn`.

    Returns:
        A layer from (B, T, F) with parameters ``{"wx": (F, 3 H), "wh": (H, 3 H), "b": (3 H,), "bh":
        (H,)}``, the gates in the order u, r, n. Its cache is x, the gates, ``h wh_n + bh``, the
        state before each step and the last state.

    Raises:
        InputError: as :func:`rnn`.
        ShapeError: as :func:`rnn`.
    """
    options = _Options(output, reverse, with_lengths, with_state, weights, recurrent_weights)
    return _recurrent(GRU, features, options)


def zero_state(layer: Layer, params: Params, batch: int) -> State:
    """Return the state before the first step of a recurrent layer made with ``with_state=True``.

    Args:
        layer: the layer, under whatever name.
        params: its parameters; the number of gates in ``wh`` (H, G H) tells an LSTM, whose state is
            ``(h, c)``.
        batch: number of examples B.

    Returns:
        A tuple of one array of zeros (B, H), or two for an LSTM.

    Raises:
        ShapeError: if ``params`` are not those of a recurrent layer.
    """
    wh = params.get("wh") if isinstance(params, dict) else None
    if wh is None:
        raise ShapeError(
            f"zero_state expects the parameters of a recurrent layer, got those of {layer}"
        )
    features, width = wh.shape
    gates = width // features
    states = next(cell.states for cell in (RNN, LSTM, GRU) if len(cell.gate_biases) == gates)
    return (jnp.zeros((batch, features), wh.dtype),) * states


# --- the input, taken apart -----------------------------------------------------------------------


class _Inputs(NamedTuple):
    """A recurrent layer's input, taken apart.

    Attributes:
        x: (B, T, F), 0 at padding.
        inside: (T, B, 1), False at padding; None without lengths.
        state: the initial state.
    """

    x: Array
    inside: Array | None
    state: State


def _take_apart(cell: Cell, options: _Options, params: Params, inputs: Any) -> _Inputs:
    """Check a layer's input and normalize it."""
    names = ["x"]
    if options.with_lengths:
        names.append("lengths")
    if options.with_state:
        names.append("state")
    parts = inputs if len(names) > 1 else (inputs,)
    if not isinstance(parts, tuple | list) or len(parts) != len(names):
        count = f"{len(parts)} parts" if isinstance(parts, tuple | list) else "one array"
        raise ShapeError(f"{cell.kind} expects the input ({', '.join(names)}), got {count}")
    values = dict(zip(names, parts, strict=True))
    x, lengths = values["x"], values.get("lengths")
    wx, wh = params["wx"], params["wh"]
    if x.ndim != 3 or x.shape[-1] != wx.shape[0]:
        raise ShapeError(
            f"{cell.kind} expects sequences of shape (B, T, {wx.shape[0]}), got {x.shape}"
        )
    zeros = jnp.zeros((x.shape[0], wh.shape[0]), jnp.result_type(x, wx))
    state = (zeros,) * cell.states
    if options.with_state:
        state = _checked_state(cell, values["state"], zeros.shape)
    if lengths is None:
        return _Inputs(x, None, state)
    if lengths.shape != x.shape[:1]:
        raise ShapeError(
            f"{cell.kind} expects a length for each example, ({x.shape[0]},), got {lengths.shape}"
        )
    positions = jnp.arange(x.shape[1])
    x = jnp.where((positions < lengths[:, None])[..., None], x, 0)  # whatever padding holds
    return _Inputs(x, (positions[:, None] < lengths)[..., None], state)


def _checked_state(cell: Cell, state: Any, shape: Shape) -> State:
    shapes = [jnp.shape(part) for part in state] if isinstance(state, tuple | list) else None
    if shapes != [shape] * cell.states:
        received = f"one array of shape {jnp.shape(state)}" if shapes is None else f"{shapes}"
        raise ShapeError(
            f"{cell.kind} expects a state of {cell.states} array{'s' * (cell.states > 1)} of shape "
            f"{shape}, got {received}; see zero_state"
        )
    return tuple(state)


class _Cache(NamedTuple):
    """A recurrent layer's cache: x (T, B, F), the mask (T, B, 1) or None, the forward scan."""

    x: Array
    inside: Array | None
    scanned: Scanned


def _recurrent(cell: Cell, features: int, options: _Options) -> Layer:
    """Return the recurrent layer of a cell with the options' adapters."""
    if options.output not in ("sequence", "last"):
        raise InputError(
            f"{cell.kind}: output must be 'sequence' or 'last', got {options.output!r}"
        )
    reverse, is_sequence = options.reverse, options.output == "sequence"
    scanned_cell = with_mask(cell) if options.with_lengths else cell

    def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        sequence, inside, state = _take_apart(cell, options, params, x)
        by_time = sequence.swapaxes(0, 1)
        z = by_time @ params["wx"]  # one GEMM over all positions; the bias is added inside the scan
        inputs = z if inside is None else (z, inside)
        scanned = scan_forward(scanned_cell, params, inputs, state, reverse=reverse)
        y = scanned.last[0]
        if is_sequence:
            outputs = scanned.outputs(reverse=reverse)
            y = (outputs if inside is None else jnp.where(inside, outputs, 0)).swapaxes(0, 1)
        return (y, scanned.last) if options.with_state else y, _Cache(by_time, inside, scanned)

    def backward(params: Params, cache: _Cache, delta: Any) -> tuple[Any, Grads]:
        by_time, inside, scanned = cache
        delta, last_delta = (
            delta if options.with_state else (delta, jax.tree.map(jnp.zeros_like, scanned.last))
        )
        output_deltas = None
        if is_sequence:
            output_deltas = delta.swapaxes(0, 1)
            if inside is not None:
                output_deltas = jnp.where(inside, output_deltas, 0)
        else:
            last_delta = (last_delta[0] + delta, *last_delta[1:])
        if inside is not None:
            scanned = scanned._replace(saved=(scanned.saved, inside))
        ds, dz_n, state_delta = scan_backward(
            scanned_cell, params, scanned, output_deltas, last_delta, reverse=reverse
        )
        input_delta, grads = input_delta_and_gradients(
            cell, params, by_time, scanned.previous[0], ds, dz_n
        )
        deltas: list[Any] = [input_delta.swapaxes(0, 1)]
        if options.with_lengths:
            deltas.append(None)  # integers have no delta
        if options.with_state:
            deltas.append(state_delta)
        return deltas[0] if len(deltas) == 1 else tuple(deltas), grads

    is_incremental = not (reverse or options.with_lengths or options.with_state) and is_sequence
    return Layer(
        _initializer(cell, features, options),
        forward,
        backward,
        kind=cell.kind,
        name=f"{cell.kind}({features})",
        incremental=_incremental(cell, features) if is_incremental else None,
    )


def _initializer(cell: Cell, features: int, options: _Options) -> Any:
    """Return the ``init`` of a recurrent layer."""
    draw = options.weights or initializers.glorot_uniform()
    draw_recurrent = options.recurrent_weights or initializers.orthogonal()

    def init(key: Key, shape: Any) -> tuple[Params, Shape]:
        if options.with_lengths and len(shape) == 2 and isinstance(shape[0], tuple):
            shape = shape[0]  # inside fbp.graph, shape also holds the shape of `lengths`
        if len(shape) != 2 or not all(isinstance(size, int) for size in shape):
            raise ShapeError(f"{cell.kind} expects examples of shape (T, F), got {shape}")
        gates = len(cell.gate_biases)
        x_key, *h_keys = jax.random.split(key, 1 + gates)
        dtype = jnp.result_type(float)
        blocks = [draw_recurrent(h_key, (features, features), dtype) for h_key in h_keys]
        params = {
            "wx": draw(x_key, (shape[-1], gates * features), dtype),
            "wh": jnp.concatenate(blocks, axis=1),
            "b": jnp.repeat(jnp.asarray(cell.gate_biases, dtype), features),
            **cell.extra_params(features, dtype),
        }
        return params, (shape[0], features) if options.output == "sequence" else (features,)

    return init


def _incremental(cell: Cell, features: int) -> IncrementalForward:
    """Return the incremental form: one step of the cell for each position."""

    def start(batch: int, shape: Shape) -> State:
        return (jnp.zeros((batch, features)),) * cell.states

    def step(params: Params, x: Array, state: State) -> tuple[Array, State]:
        state, _ = cell.step(params, (x @ params["wx"])[:, 0], state)
        return state[0][:, None], state

    return IncrementalForward(start, step)
