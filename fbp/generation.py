"""Run a sequence model one position at a time, with the state of its layers, and sample from it.

Recurrent layers carry their state, causal attention the keys and values so far, positions a count
(``Layer.incremental``). Every other layer must act on each position alone; this is checked by
comparing three steps with the full forward pass.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fbp._observation import initial_shapes, positions
from fbp.combinators._parts import as_incremental
from fbp.errors import InputError, ShapeError, first_line
from fbp.layer import Array, IncrementalForward, Key, Layer, Params, Shape, require_layer


class IncrementalModel(NamedTuple):
    """A model run one position at a time.

    Attributes:
        start: ``() -> state`` before the first position; jit it, or call it inside jit.
        step: ``(params, x (B, 1, ...), state) -> (y (B, 1, ...), state)``
    """

    start: Callable[[], Any]
    step: Callable[[Params, Array, Any], tuple[Array, Any]]


def incremental(model: Layer, shape: Shape, *, batch: int = 1) -> IncrementalModel:
    """Return the model as a function of one position and a state.

    Args:
        model: from (B, T) tokens, or (B, T, F), to (B, T, K).
        shape: one example's; its first axis is the largest number of positions that will follow.
        batch: B.

    Raises:
        InputError: if a layer mixes positions in a way that has no incremental form.
    """
    stepped = _incremental(require_layer("incremental", model), shape, batch)
    _check_matches_full_forward(model, stepped, shape, batch)
    return stepped


def _incremental(model: Layer, shape: Shape, batch: int) -> IncrementalModel:
    if model.incremental is None:
        culprits = [p for p in positions(model) if not p.layer.parts and not p.layer.incremental]
        where = f"layer {culprits[0].path} ({culprits[0].layer})" if culprits else f"{model}"
        raise InputError(
            f"this model cannot be run position by position: {where} mixes positions and has no "
            "incremental form"
        )
    form: IncrementalForward = as_incremental(model)
    return IncrementalModel(lambda: form.start(batch, shape), form.step)


def _check_matches_full_forward(
    model: Layer, stepped: IncrementalModel, shape: Shape, batch: int
) -> None:
    """Raise InputError unless three positions give the same at once and one by one."""
    count = min(shape[0], 3)

    def both() -> tuple[Array, Array]:
        params, _ = model.init(jax.random.key(0), shape)
        if len(shape) == 1:
            x = jnp.arange(batch * count).reshape(batch, count) % 2
        else:
            x = jax.random.normal(jax.random.key(1), (batch, count, *shape[1:]))

        def step(state: Any, x: Array) -> tuple[Any, Array]:
            y, state = stepped.step(params, x[:, None], state)
            return state, y[:, 0]

        _, outputs = jax.lax.scan(step, stepped.start(), x.swapaxes(0, 1))
        return outputs.swapaxes(0, 1), model.forward(params, x)[0]

    try:  # compiled to run once, so without optimization
        options = {"xla_backend_optimization_level": 0}
        outputs, full = jax.jit(both, compiler_options=options)()
    except ShapeError as error:
        raise InputError(f"this model cannot be run position by position: {error}") from None
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(
            "this model cannot be run position by position: one position alone raised "
            f"{type(error).__name__}: {first_line(error)}"
        ) from None
    if outputs.shape != full.shape or not jnp.allclose(outputs, full, 1e-3, 1e-4):
        raise InputError(
            "this model cannot be run position by position: a layer mixes positions, or depends on "
            "later ones"
        )


def sample(
    model: Layer, shape: Shape, *, count: int, temperature: float = 1.0
) -> Callable[[Params, Any, Key], Array]:
    """Return a function that draws tokens one after another from the model's predictions.

    Args:
        model: from (B, T) tokens to (B, T, V) logits.
        shape: ``(context,)``, the largest number of positions that a model with attention or
            learned positions looks back on. When they are full, sampling goes on from the last half
            of them. A recurrent model has no such limit.
        count: the number of tokens to draw.
        temperature: the divisor of the logits: below 1 for likelier tokens, above 1 for more varied
            ones; 0 always takes the likeliest.

    Returns:
        ``(params, prompt (T,) of at least one token, key) -> tokens (count,)``.

    Raises:
        InputError: if an argument is out of range, or the model cannot be run position by position.
        ShapeError: when called, if the parameters are not this model's.
    """
    require_layer("sample", model)
    if count < 1:
        raise InputError(f"sample: expected at least 1 token, got {count}")
    if not temperature >= 0:
        raise InputError(f"sample: expected a temperature of at least 0, got {temperature}")
    if shape[0] < 2:
        raise InputError(f"sample: expected a context of at least 2 positions, got {shape[0]}")
    incremental(model, shape)  # raises if it cannot be done
    run = _make_run(model, temperature)

    def draw(params: Params, prompt: Any, key: Key) -> Array:
        _check_params(model, shape, params)
        tokens = [int(token) for token in prompt]
        if not tokens:
            raise InputError("sample: expected a prompt of at least one token, got none")
        prompt_length, length = len(tokens), len(tokens) + count
        context = shape[0] if as_incremental(model).limited else length
        half = max(context // 2, 1)
        for window in range(length):  # each adds at least one token
            if len(tokens) >= length:
                break
            visible = tokens[-half:] if len(tokens) >= context else tokens
            padded = jnp.zeros(context, jnp.int32)
            padded = padded.at[: len(visible)].set(jnp.asarray(visible, jnp.int32))
            filled = run(context, params, padded, len(visible), jax.random.fold_in(key, window))
            tokens += [int(token) for token in filled[len(visible) :]]
        sampled = jnp.asarray(tokens[prompt_length:length], jnp.int32)
        if (sampled < 0).any():
            raise InputError(
                "sample: the model's answer is not a number; is there a token in the prompt that "
                "it lacks?"
            )
        return sampled

    return draw


def _make_run(model: Layer, temperature: float) -> Callable[..., Array]:
    """Return the compiled function that fills a window of ``context`` tokens up to its end."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(context: int, params: Params, tokens: Array, length: Array, key: Key) -> Array:
        stepped = _incremental(model, (context,), 1)

        def step(carry: Any, i: Array) -> tuple[Any, Array]:
            token, state = carry
            token = jnp.where(i < length, tokens[i], token)
            logits, state = stepped.step(params, token[None, None], state)
            following = _draw_token(jax.random.fold_in(key, i), logits[0, 0], temperature)
            return (following, state), token

        carry = tokens[0], stepped.start()
        return jax.lax.scan(step, carry, jnp.arange(context))[1]

    return run


def _check_params(model: Layer, shape: Shape, params: Params) -> None:
    expected, _ = initial_shapes(model, shape)
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (params, expected)]
    if shapes[0] != shapes[1]:
        raise ShapeError(
            f"sample: the parameters are not those of this model for a context of {shape[0]}"
        )


def _draw_token(key: Key, logits: Array, temperature: float) -> Array:
    """Draw a token; -1 if the logits are not numbers."""
    if temperature == 0:
        token = logits.argmax()
    else:
        token = jax.random.categorical(key, logits / temperature)
    return jnp.where(jnp.isnan(logits).any(), -1, token).astype(jnp.int32)
