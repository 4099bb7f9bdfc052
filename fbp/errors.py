"""The exceptions a user can cause. Each message is one line: where, what was expected, what came, what to do."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Something given to fbp (a value, a file, a configuration) cannot be used."""


class ShapeError(InputError):
    """An array or a layer does not fit where it was put.

    Args:
        problem: what was expected and what came.
        where: the path of the layer, outermost first; combinators prepend their part's name on the way out.
    """

    def __init__(self, problem: str, where: tuple[str, ...] = ()):
        self.problem = problem
        self.where = where
        super().__init__(f"layer {'/'.join(where)}: {problem}" if where else problem)

    def inside(self, part: str) -> "ShapeError":
        """The same error, seen from one combinator further out."""
        return type(self)(self.problem, (part, *self.where))


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
        raise InputError("\n".join(lines)) from None
