"""Text from a trained language model: what ``fbp generate`` does."""

import jax
import jax.numpy as jnp

from fbp.errors import InputError
from fbp.experiment.runner.trained_model import Trained
from fbp.generation import sample


def generate(
    trained: Trained, prompt: str, *, count: int, temperature: float = 1.0, seed: int = 0
) -> str:
    """What the model writes after ``prompt``.

    Args:
        trained: a model of characters, such as ``fbp.load`` gives.
        prompt: how the text begins; empty for a beginning of the model's own.
        count: how many characters to write.
        temperature: see :func:`fbp.generation.sample`.
        seed: of the random choices.

    Raises:
        InputError: where the model is no language model, or does not know a character of the prompt.
    """
    if not trained.tokens or trained.tokens != trained.classes or not trained.sequence:
        raise InputError(
            f"run {trained.config.name!r}: expected a language model (tokens in, the next token out at each position), "
            f"got a model of {trained.config.data.name!r}"
        )
    known = {character: token for token, character in enumerate(trained.tokens)}
    unknown = sorted(set(prompt) - set(known))
    if unknown:
        raise InputError(
            f"--prompt: the model has never seen {', '.join(map(repr, unknown))}; it knows {' '.join(map(repr, known))}"
        )
    first = prompt or ("\n" if "\n" in known else trained.tokens[0])
    draw = sample(trained.model, trained.shape, count=count, temperature=temperature)
    tokens = draw(
        trained.params, jnp.array([known[character] for character in first]), jax.random.key(seed)
    )
    return "".join(trained.tokens[int(token)] for token in tokens)
