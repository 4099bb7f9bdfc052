"""Sequences: text by characters, and tasks that ask for a memory."""

import os
from pathlib import Path
from typing import Literal

import numpy as np

from fbp.datasets.base import Dataset, Examples, classification, regression
from fbp.datasets.sklearn_data import digits
from fbp.errors import InputError


def text(path: str | None = None, context: int = 64, stride: int | None = None) -> Dataset:
    """Characters of a text, in pieces of ``context``; to each the character after it is the target.

    The last pieces are for validation and test: the text is cut, not shuffled.

    Args:
        path: a text file in UTF-8, here or in ``$FBP_DATA``; by default the language reference that comes with Python, about
            600,000 characters.
        context: characters in a piece.
        stride: from the beginning of a piece to that of the next, ``context`` by default: then no two pieces overlap.
    """
    name, content = _read(path)
    step = stride or context
    tokens = tuple(sorted(set(content)))
    if len(tokens) < 2:
        raise InputError(
            f"data.path: expected a text of different characters, got {len(content)} times the same in {name!r}"
        )
    if len(content) < 20 * context + 1:
        raise InputError(
            f"data.context: expected a text of at least 20 pieces of {context} characters, got {len(content)} "
            f"characters in {name!r}; make data.context smaller, or take a longer text"
        )
    known = {character: token for token, character in enumerate(tokens)}
    stream = np.array([known[character] for character in content], np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(stream, context + 1)[::step]
    return Dataset(
        name,
        Examples(windows[:, :-1].copy(), windows[:, 1:].copy()),
        None,
        tokens,
        tokens,
        ordered=True,
    )


def _read(path: str | None) -> tuple[str, str]:
    if path is None:
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise InputError(
                "data.path: this Python comes without its reference texts; name a text file"
            ) from None
        return "python_reference", "\n".join(topics[topic] for topic in sorted(topics))
    try:
        where = Path(path).expanduser()
        if not where.exists() and os.environ.get("FBP_DATA"):
            where = Path(os.environ["FBP_DATA"]).expanduser() / where
        return where.stem, where.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"data.path: expected a text file, got {path!r}, which does not exist; set data.path, or FBP_DATA to the folder "
            "that it is in"
        ) from None
    except IsADirectoryError:
        raise InputError(
            f"data.path: expected a text file, got {path!r}, which is a folder"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"data.path: expected a text in UTF-8, got other bytes in {path!r} ({error.reason})"
        ) from None
    except (OSError, RuntimeError) as error:
        raise InputError(f"data.path: {path!r} cannot be read ({error})") from None


def adding_problem(examples: int = 20000, length: int = 100, seed: int = 0) -> Dataset:
    """Pairs (number, mark) in a sequence; two are marked, one in each half, and their numbers' sum is the target.

    Numbers are uniform in [0, 1]: always answering 1 has a mean squared error of 1/6. Hochreiter and Schmidhuber (1997), in the
    form of Le, Jaitly and Hinton (2015).

    Args:
        examples: how many sequences.
        length: T, the positions of each: (T, 2).
        seed: of the numbers and places.
    """
    draw = np.random.default_rng(seed)
    values, marks = draw.uniform(size=(examples, length)), np.zeros((examples, length))
    half, rows = length // 2, np.arange(examples)
    places = draw.integers(0, half, examples), draw.integers(half, length, examples)
    for place in places:
        marks[rows, place] = 1
    return regression(
        "adding_problem", np.stack([values, marks], axis=-1), (values * marks).sum(axis=1)
    )


def copy_memory(
    examples: int = 10000, delay: int = 30, symbols: int = 8, length: int = 10, seed: int = 0
) -> Dataset:
    """Remember ``length`` symbols over a ``delay``, and say them again. Arjovsky et al. (2016).

    The input is the symbols, ``delay - 1`` blanks, a mark that asks for the answer, and blanks where it is given. Only the
    positions of the answer have a target. Without a memory the cross-entropy is log(symbols).

    Args:
        examples: how many sequences.
        delay: positions between the last symbol and the answer.
        symbols: how many different ones there are; blank and mark come on top.
        length: how many are to be remembered.
        seed: of the symbols.
    """
    draw = np.random.default_rng(seed)
    said = draw.integers(0, symbols, (examples, length))
    blank, mark = symbols, symbols + 1
    x = np.full((examples, 2 * length + delay), blank)
    x[:, :length], x[:, length + delay - 1] = said, mark
    y = np.full(x.shape, -1)
    y[:, -length:] = said
    tokens = (*map(str, range(symbols)), "_", "?")
    return Dataset(
        "copy_memory",
        Examples(x.astype(np.int32), y.astype(np.int32)),
        None,
        tokens[:symbols],
        tokens,
    )


def sequential_digits(by: Literal["rows", "pixels"] = "rows") -> Dataset:
    """The handwritten digits read as a sequence: 8 rows of 8 pixels, or 64 pixels one by one. After Le et al. (2015).

    Args:
        by: ``rows``, (8, 8), or ``pixels``, (64, 1).
    """
    if by not in ("rows", "pixels"):
        raise InputError(f"data.by: expected 'rows' or 'pixels', got {by!r}")
    x, y = digits().train
    shape = (8, 8) if by == "rows" else (64, 1)
    return classification(f"sequential_digits_{by}", x.reshape(-1, *shape), y, range(10))
