"""Named tuples that an exported program may have among its inputs and outputs."""

from typing import TypeVar

import jax.export

T = TypeVar("T")


def serializable(cls: type[T]) -> type[T]:
    """Register a NamedTuple class so that ``jax.export`` can serialize programs that use it.

    Use it as a decorator, for states of training and of optimizers:

    >>> from typing import NamedTuple
    >>> import jax
    >>> @serializable
    ... class CountState(NamedTuple):
    ...     step: jax.Array

    Args:
        cls: a subclass of NamedTuple; its module and name must be unique.

    Returns:
        The class itself.
    """
    name = f"{cls.__module__}.{cls.__qualname__}"
    jax.export.register_namedtuple_serialization(cls, serialized_name=name)
    return cls
