"""Text from a trained language model: the output of ``fbp generate``."""

import jax
import jax.numpy as jnp

from fbp.errors import InputError
from fbp.experiment.runner.trained_model import Trained
from fbp.generation import sample


def generate(
    trained: Trained, prompt: str, *, count: int, temperature: float = 1.0, seed: int = 0
) -> str:
    """Return the text with which the model continues `prompt`.

    Args:
        trained: a character language model, as returned by ``fbp.load``.
        prompt: the text to continue. If it is empty, the model starts after a line break.
        count: number of characters to write.
        temperature: of the sampling, see :func:`fbp.generation.sample`; 0 always takes the most
            likely character. Default: 1.0.
        seed: of the sampling. Default: 0.

    Returns:
        `count` characters, without `prompt`.

    Raises:
        InputError: if the model is not a language model, or if `prompt` contains a character that
            its training text did not.
    """
    if not trained.tokens or trained.tokens != trained.classes or not trained.sequence:
        raise InputError(
            f"run {trained.config.name!r}: expected a language model (which predicts the next "
            f"token at each position), got a model of {trained.config.data.name!r}"
        )
    token_of = {character: token for token, character in enumerate(trained.tokens)}
    unknown = sorted(set(prompt) - set(token_of))
    if unknown:
        raise InputError(
            f"--prompt: the model has never seen {', '.join(map(repr, unknown))}; "
            f"it knows {' '.join(map(repr, token_of))}"
        )
    beginning = prompt or ("\n" if "\n" in token_of else trained.tokens[0])
    draw = sample(trained.model, trained.shape, count=count, temperature=temperature)
    encoded = jnp.array([token_of[character] for character in beginning])
    tokens = draw(trained.params, encoded, jax.random.key(seed))
    return "".join(trained.tokens[int(token)] for token in tokens)
