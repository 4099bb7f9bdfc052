"""A model of sequences run one position at a time, with the state that its layers carry, and sampling from it.

Recurrent layers carry their state, causal attention the keys and values so far, positions a count (``Layer.stream``). Every
other layer must treat each position alone; whether one does is tried out, not assumed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp.errors import InputError, ShapeError
from fbp.layer import Array, Cache, Key, Layer, Params, Shape, map_layers


class _With(NamedTuple):
    """A layer's parameters, and the state that it carries."""

    params: Params
    state: Any


class _Carried(NamedTuple):
    """In place of a layer's cache: the state for the next position."""

    state: Any


class Streaming(NamedTuple):
    """A model run position by position.

    Attributes:
        start: ``() -> state``, before the first position; jit it, or call it where the steps are compiled.
        step: ``(params, x (B, 1, ...), state) -> (y (B, 1, ...), state)``
    """

    start: Callable[[], Any]
    step: Callable[[Params, Array, Any], tuple[Array, Any]]


def streaming(model: Layer, shape: Shape, *, batch: int = 1) -> Streaming:
    """The model as a function of one position and a state.

    Args:
        model: from (B, T) tokens, or (B, T, F), to (B, T, K).
        shape: one example's; its first axis is the most positions that will come.
        batch: B.

    Raises:
        InputError: where a layer looks at other positions in a way that cannot be followed step by step.
    """
    streamed = _streaming(model, shape, batch)
    _try_out(model, streamed, shape, batch)
    return streamed


def _streaming(model: Layer, shape: Shape, batch: int) -> Streaming:
    stateful = map_layers(lambda path, layer: _carrying(layer, batch), _without_recompute(model))
    template = jax.eval_shape(lambda key: stateful.init(key, shape)[0], jax.random.key(0))
    is_state = lambda node: isinstance(node, _With)
    nodes, structure = jax.tree.flatten(template, is_leaf=is_state)

    def start() -> Any:
        drawn, _ = stateful.init(jax.random.key(0), shape)  # of which only the states are kept
        return tuple(
            node.state for node in jax.tree.leaves(drawn, is_leaf=is_state) if is_state(node)
        )

    def step(params: Params, x: Array, state: Any) -> tuple[Array, Any]:
        states = iter(state)
        given = structure.flatten_up_to(params)  # type: ignore[attr-defined]
        joined = [
            _With(p, next(states)) if is_state(node) else p
            for p, node in zip(given, nodes, strict=True)
        ]
        y, cache = stateful.forward(jax.tree.unflatten(structure, joined), x)
        is_carried = lambda node: isinstance(node, _Carried)
        return y, tuple(
            node.state for node in jax.tree.leaves(cache, is_leaf=is_carried) if is_carried(node)
        )

    return Streaming(start, step)


def _without_recompute(layer: Layer) -> Layer:
    """The same model, keeping every cache: a recomputed part would lose the states in them."""
    if layer.rebuild is None:
        return layer
    parts = {key: _without_recompute(part) for key, part in layer.parts.items()}
    return parts[""] if layer.name.startswith("recompute(") else layer.rebuild(parts)


def _carrying(layer: Layer, batch: int) -> Layer:
    stream = layer.stream
    if stream is None:
        return layer

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        params, out_shape = layer.init(key, shape)
        return _With(params, stream.start(batch, shape)), out_shape

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        y, state = stream.step(params.params, x, params.state)
        return y, _Carried(state)

    return layer._replace(init=init, forward=forward)


def _try_out(model: Layer, streamed: Streaming, shape: Shape, batch: int) -> None:
    """Few positions at once and one by one must give the same."""
    positions = min(shape[0], 3)

    def both() -> tuple[Array, Array]:
        params, _ = model.init(jax.random.key(0), shape)
        if len(shape) == 1:
            x = jnp.arange(batch * positions).reshape(batch, positions) % 2
        else:
            x = jax.random.normal(jax.random.key(1), (batch, positions, *shape[1:]))

        def step(state: Any, x: Array) -> tuple[Any, Array]:
            y, state = streamed.step(params, x[:, None], state)
            return state, y[:, 0]

        _, outputs = jax.lax.scan(step, streamed.start(), x.swapaxes(0, 1))
        return outputs.swapaxes(0, 1), model.forward(params, x)[0]

    try:  # compiled to run once
        outputs, whole = jax.jit(both, compiler_options={"xla_backend_optimization_level": 0})()
    except (ShapeError, TypeError, ValueError, IndexError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"this model cannot be run position by position: {first}") from None
    if outputs.shape != whole.shape or not jnp.allclose(outputs, whole, 1e-3, 1e-4):
        raise InputError(
            "this model cannot be run position by position: some layer looks at later positions, or mixes them"
        )


def sample(
    model: Layer, shape: Shape, *, count: int, temperature: float = 1.0
) -> Callable[..., Array]:
    """Draw tokens one after another from what the model says comes next.

    Args:
        model: from (B, T) tokens to (B, T, V) logits.
        shape: ``(context,)``, the most positions that a model with attention or learned positions looks back on. When they
            are full, it goes on from the last half of them. A recurrent model simply goes on.
        count: how many tokens to draw.
        temperature: what logits are divided by: below 1 bolder, above 1 wilder; 0 always takes the likeliest.

    Returns:
        A function ``(params, prompt (T,) of at least one token, key) -> tokens (count,)``.
    """
    if count < 1:
        raise InputError(f"sample: expected at least 1 token, got {count}")
    if not temperature >= 0:
        raise InputError(f"sample: expected a temperature of at least 0, got {temperature}")
    if shape[0] < 2:
        raise InputError(f"sample: expected a context of at least 2 positions, got {shape[0]}")
    streaming(model, shape)  # raises where it cannot be done

    @functools.partial(jax.jit, static_argnums=0)
    def run(context: int, params: Params, given: Array, length: Array, key: Key) -> Array:
        """``given (context,)``, of which ``length`` are known, filled up to the end."""

        streamed = _streaming(model, (context,), 1)

        def step(carry: Any, i: Array) -> tuple[Any, Array]:
            token, state = carry
            token = jnp.where(i < length, given[i], token)
            logits, state = streamed.step(params, token[None, None], state)
            following = _draw(jax.random.fold_in(key, i), logits[0, 0], temperature)
            return (following, state), token

        _, tokens = jax.lax.scan(step, (given[0], streamed.start()), jnp.arange(context))
        return tokens

    def draw(params: Params, prompt: Array, key: Key) -> Array:
        _check_params(model, shape, params)
        known = [int(token) for token in prompt]
        if not known:
            raise InputError("sample: expected a prompt of at least one token, got none")
        target = len(known) + count
        context = shape[0] if _is_limited(model) else target
        keep = max(context // 2, 1)
        for window in range(target):  # each adds at least one token
            if len(known) >= target:
                break
            seen = known[-keep:] if len(known) >= context else known
            given = jnp.zeros(context, jnp.int32).at[: len(seen)].set(jnp.asarray(seen, jnp.int32))
            tokens = run(context, params, given, len(seen), jax.random.fold_in(key, window))
            known += [int(token) for token in tokens[len(seen) :]]
        drawn = jnp.asarray(known[len(prompt) : target], jnp.int32)
        if (drawn < 0).any():
            raise InputError(
                "sample: the model's answer is not a number; is there a token in the prompt that it lacks?"
            )
        return drawn

    return draw


def _check_params(model: Layer, shape: Shape, params: Params) -> None:
    expected = jax.eval_shape(lambda key: model.init(key, shape)[0], jax.random.key(0))
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (params, expected)]
    if shapes[0] != shapes[1]:
        raise ShapeError(
            f"sample: the parameters are not those of this model for a context of {shape[0]}"
        )


def _is_limited(model: Layer) -> bool:
    found: list[bool] = []

    def look(path: str, layer: Layer) -> Layer:
        found.append(layer.stream is not None and layer.stream.limited)
        return layer

    map_layers(look, model)
    return any(found)


def _draw(key: Key, logits: Array, temperature: float) -> Array:
    """A token, -1 where the logits are not numbers."""
    chosen = (
        logits.argmax() if temperature == 0 else jax.random.categorical(key, logits / temperature)
    )
    return jnp.where(jnp.isnan(logits).any(), -1, chosen).astype(jnp.int32)
