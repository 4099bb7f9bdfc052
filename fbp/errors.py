"""The exceptions that a user can cause.

Each message is one line: where, what was expected, what came, what to do. What it quotes may come
from anybody, so it is neutral for a terminal.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from fbp import _neutral


class InputError(ValueError):
    """A value, a file or a configuration that fbp cannot use.

    Args:
        message: one line, or a line for each problem; characters that are not seen are escaped.
    """

    def __init__(self, message: str = ""):
        super().__init__(_neutral.text(message))


class UntrustedCode(InputError):
    """Code that a record names, and that its reader does not trust."""


class NewerFormat(InputError):
    """A file that a newer version of fbp wrote."""


class MissingDependency(InputError, ImportError):
    """A package that a part of fbp needs and that is not installed.

    Args:
        user: the function, module or command that needs it.
        packages: the missing distributions, as pip calls them; the extra ``run`` has all of them.
    """

    def __init__(self, user: str, packages: Sequence[str]):
        several = len(packages) > 1
        super().__init__(
            f"{user} needs {' and '.join(filter(None, (', '.join(packages[:-1]), packages[-1])))}, "
            f"which {'are' if several else 'is'} not installed; "
            f"install {'them' if several else 'it'} with: pip install 'fbp[run]'"
        )


class ArgumentError(InputError):
    """An argument that a function cannot use.

    Args:
        function: the name of the function.
        argument: the name of the argument.
        problem: what was expected, what came, what to do.
    """

    def __init__(self, function: str, argument: str, problem: str):
        self.argument, self.problem = argument, problem
        super().__init__(f"{function}: {argument}: {problem}")


class CallError(InputError, TypeError):
    """A call without a required argument, or with one that the function does not have."""


@contextlib.contextmanager
def as_keys_of(section: str, **keys: str) -> Iterator[None]:
    """Let an :class:`ArgumentError` inside the block name the key of a configuration instead.

    Args:
        section: the section of the configuration that holds the arguments.
        keys: the key for an argument that is called otherwise there.

    Raises:
        InputError: ``section.key: problem``, if an argument cannot be used.
    """
    try:
        yield
    except ArgumentError as error:
        key = keys.get(error.argument, error.argument)
        raise InputError(f"{section}.{key}: {error.problem}") from None


class ShapeError(InputError):
    """An array or a layer that does not fit the layer around it.

    Args:
        problem: what was expected and what came.
        where: path of the layer, outermost first; combinators prepend their part's name.
    """

    def __init__(self, problem: str, where: tuple[str, ...] = ()):
        self.problem = problem
        self.where = where
        super().__init__(f"layer {'/'.join(where)}: {problem}" if where else problem)

    def inside(self, part: str) -> "ShapeError":
        """Return the same error with `part` put before the path of the layer."""
        return type(self)(self.problem, (part, *self.where))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name if the message is empty.

    It may be a server's, so characters that are not seen are escaped.
    """
    return _neutral.line(str(error).strip().partition("\n")[0]) or type(error).__name__


@contextlib.contextmanager
def prefixed_by(source: object) -> Iterator[None]:
    """Prefix each line of an InputError raised inside the block with `source`, such as a file.

    A message that already starts with `source` stays as it is.
    """
    try:
        yield
    except InputError as error:
        if str(error).startswith(str(source)):
            raise
        lines = [f"{source}: {line}" for line in str(error).splitlines()]
        kind = NewerFormat if isinstance(error, NewerFormat) else InputError
        raise kind("\n".join(lines)) from None


@contextlib.contextmanager
def named_in_place_of(path: object, name: str) -> Iterator[None]:
    """Let an InputError inside the block name a thing that its user knows, not a temporary path."""
    try:
        yield
    except InputError as error:
        kind = NewerFormat if isinstance(error, NewerFormat) else InputError
        raise kind(str(error).replace(str(path), name)) from None


_MAX_LISTED = 12  # names in a message
_MAX_LETTERS = 60  # of each


def listed(names: Iterable[object], most: int = _MAX_LISTED) -> str:
    """Return ``a, b, c`` on one line; of many names the first ones and the number of the others."""
    texts = [str(name) for name in names]
    further = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(map(_shortened, texts[:most])) + further


def _shortened(text: str) -> str:
    """Return a text without control characters, cut if it is long."""
    short = text if len(text) <= _MAX_LETTERS else f"{text[:_MAX_LETTERS]}..."
    return short if short.isprintable() else ascii(short)[1:-1]


def did_you_mean(wrong: str, valid: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` with the nearest valid names, or names if none is near."""
    import difflib  # slow to import, and seldom needed

    names = list(valid)
    near = difflib.get_close_matches(wrong, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"expected one of {listed(names, 40)}"
