"""Sequences: text by characters, and tasks that need a memory."""

import os
from pathlib import Path
from typing import Literal

import numpy as np

from fbp._optional import require
from fbp.datasets.base import Dataset, Examples, classification, regression
from fbp.datasets.sklearn_data import digits
from fbp.errors import ArgumentError


def text(path: str | None = None, context: int = 64, stride: int | None = None) -> Dataset:
    """Return the characters of a text in pieces of ``context``; each target is the next character.

    The last pieces are for validation and test: the text is cut, not shuffled.

    Args:
        path: a text file in UTF-8, in the working folder or in ``$FBP_DATA``; by default the
            language reference that comes with Python, about 600,000 characters.
        context: T, characters in a piece; inputs and targets are tokens ``(N, T)``.
        stride: distance between the beginnings of two pieces, ``context`` by default: then no two
            pieces overlap.

    Raises:
        InputError: the file cannot be read, or the text is too short.
    """
    name, content = _read(path)
    step = stride or context
    tokens = tuple(sorted(set(content)))
    if len(tokens) < 2:
        raise _bad_text(
            f"expected a text of different characters, got {len(content)} times the same in "
            f"{name!r}"
        )
    if len(content) < 20 * context + 1:
        raise _bad_text(
            f"expected a text of at least 20 pieces of {context} characters, got {len(content)} "
            f"characters in {name!r}; make context smaller, or take a longer text",
            "context",
        )
    token_of = {character: token for token, character in enumerate(tokens)}
    encoded = np.array([token_of[character] for character in content], np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(encoded, context + 1)[::step]
    return Dataset(
        name,
        Examples(windows[:, :-1].copy(), windows[:, 1:].copy()),
        None,
        tokens,
        tokens,
        ordered=True,
    )


def _bad_text(problem: str, argument: str = "path") -> ArgumentError:
    return ArgumentError("text", argument, problem)


def _read(path: str | None) -> tuple[str, str]:
    """Return the name and the content of a text file, or of Python's language reference."""
    if path is None:
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise _bad_text(
                "this Python comes without its reference texts; name a text file"
            ) from None
        return "python_reference", "\n".join(topics[topic] for topic in sorted(topics))
    try:
        location = Path(path).expanduser()
        if not location.exists() and os.environ.get("FBP_DATA"):
            location = Path(os.environ["FBP_DATA"]).expanduser() / location
        return location.stem, location.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _bad_text(
            f"expected a text file, got {path!r}, which does not exist; set path, or FBP_DATA to "
            "the folder that it is in"
        ) from None
    except IsADirectoryError:
        raise _bad_text(f"expected a text file, got {path!r}, which is a folder") from None
    except UnicodeDecodeError as error:
        raise _bad_text(
            f"expected a text in UTF-8, got other bytes in {path!r} ({error.reason})"
        ) from None
    except (OSError, RuntimeError) as error:
        raise _bad_text(f"{path!r} cannot be read ({error})") from None


def adding_problem(examples: int = 20000, length: int = 100, seed: int = 0) -> Dataset:
    """Return sequences of pairs (number, mark); the sum of the two marked numbers is the target.

    One position in each half is marked. Numbers are uniform in [0, 1]: always answering 1 has a
    mean squared error of 1/6. Hochreiter and Schmidhuber (1997), in the form of Le, Jaitly and
    Hinton (2015).

    Args:
        examples: N; targets are ``(N, 1)``.
        length: T, number of positions; inputs are ``(N, T, 2)``.
        seed: of the numbers and positions.
    """
    random = np.random.default_rng(seed)
    values, marks = random.uniform(size=(examples, length)), np.zeros((examples, length))
    half, rows = length // 2, np.arange(examples)
    marked = random.integers(0, half, examples), random.integers(half, length, examples)
    for positions in marked:
        marks[rows, positions] = 1
    return regression(
        "adding_problem", np.stack([values, marks], axis=-1), (values * marks).sum(axis=1)
    )


def copy_memory(
    examples: int = 10000, delay: int = 30, symbols: int = 8, length: int = 10, seed: int = 0
) -> Dataset:
    """Return sequences of symbols to be remembered over a delay and repeated.

    The input is the symbols, ``delay - 1`` blanks, a mark that asks for the answer, and blanks in
    the answer's place. Only the positions of the answer have a target. Without a memory the
    cross-entropy is log(symbols). Arjovsky, Shah and Bengio (2016).

    Args:
        examples: N; inputs and targets are ``(N, 2 length + delay)``.
        delay: number of positions between the last symbol and the answer.
        symbols: number of different symbols; blank and mark are two tokens more.
        length: number of symbols to remember.
        seed: of the symbols.
    """
    random = np.random.default_rng(seed)
    sequence = random.integers(0, symbols, (examples, length))
    blank, mark = symbols, symbols + 1
    x = np.full((examples, 2 * length + delay), blank)
    x[:, :length], x[:, length + delay - 1] = sequence, mark
    y = np.full(x.shape, -1)
    y[:, -length:] = sequence
    tokens = (*map(str, range(symbols)), "_", "?")
    return Dataset(
        "copy_memory",
        Examples(x.astype(np.int32), y.astype(np.int32)),
        None,
        tokens[:symbols],
        tokens,
    )


def sequential_digits(by: Literal["rows", "pixels"] = "rows") -> Dataset:
    """Return the handwritten digits as sequences of rows or pixels. After Le et al. (2015).

    Args:
        by: ``rows``, inputs ``(N, 8, 8)``, or ``pixels``, inputs ``(N, 64, 1)``.

    Raises:
        InputError: ``by`` is neither.
    """
    if by not in ("rows", "pixels"):
        raise ArgumentError("sequential_digits", "by", f"expected 'rows' or 'pixels', got {by!r}")
    require("fbp.datasets.sequential_digits", "sklearn")
    x, y = digits().train
    shape = (8, 8) if by == "rows" else (64, 1)
    return classification(f"sequential_digits_{by}", x.reshape(-1, *shape), y, range(10))
