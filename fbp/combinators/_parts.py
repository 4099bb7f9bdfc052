"""What the combinators share: calling a part, keys for parts, sums of deltas, incremental forms."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from fbp.errors import ShapeError
from fbp.layer import Incremental, IncrementalForward, Key, Layer, Params

T = TypeVar("T")


def call_part(part: str, layer: Layer, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call ``function``; prefix a ShapeError that it raises with the part's key and name."""
    try:
        return function(*args, **kwargs)
    except ShapeError as error:
        raise error.inside(part if layer.parts else f"{part} ({layer.name})") from None


def split_keys(key: Key | None, count: int) -> list[Key | None]:
    """Split a key into ``count`` keys; ``[None] * count`` if ``key`` is None."""
    return [None if key is None else jax.random.fold_in(key, i) for i in range(count)]


def check_count(params: Params, count: int, kind: str) -> None:
    """Raise ShapeError unless there are parameters for ``count`` parts."""
    if len(params) != count:
        raise ShapeError(
            f"{kind} of {count} layers expects parameters for {count}, got {len(params)}"
        )


def add_deltas(deltas: Iterable[Any]) -> Any:
    """Return the sum of the deltas that several consumers send back to one value.

    None stands for no derivative. Deltas of several outputs are tuples and are added one by one.
    """
    present = [delta for delta in deltas if delta is not None]
    if present and isinstance(present[0], tuple):
        return tuple(add_deltas(parts) for parts in zip(*present, strict=True))
    return functools.reduce(jnp.add, present) if present else None


def is_floating(leaf: Any) -> bool:
    """Return whether an array holds real numbers."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def as_incremental(layer: Layer) -> IncrementalForward:
    """Return the incremental form of a layer that has one, or acts on each position alone."""
    if isinstance(layer.incremental, IncrementalForward):
        return layer.incremental

    def step(params: Params, x: Any, state: Any) -> tuple[Any, Any]:
        return layer.forward(params, x)[0], state

    return IncrementalForward(lambda batch, shape: (), step)


def combine_incremental(
    layers: Sequence[Layer], combine: Callable[[Sequence[IncrementalForward]], IncrementalForward]
) -> Incremental:
    """Return the incremental form of a composite of ``layers``.

    Args:
        layers: its parts.
        combine: from the parts' incremental forms to the composite's; its ``limited`` is set here.

    Returns:
        None if a part has no incremental form, ``"positionwise"`` if all parts act on each position
        alone.
    """
    if any(layer.incremental is None for layer in layers):
        return None
    if all(layer.incremental == "positionwise" for layer in layers):
        return "positionwise"
    forms = [as_incremental(layer) for layer in layers]
    return combine(forms)._replace(limited=any(form.limited for form in forms))
