"""The whole contract on one page: a layer, a loss and an optimizer are tuples of pure functions.

Everything else in fbp is one of these three or takes one of these three.

The notation is that of the four equations of backpropagation (Rumelhart, Hinton and Williams, 1986; Nielsen, 2015,
*Neural Networks and Deep Learning*, chapter 2). ``delta`` always means dC/d(output of this layer), with the shape of
that output, so at a pre-activation z it *is* the textbook's delta:

    (1) output error      delta^L = dC/da^L * sigma'(z^L)                  losses.py, and the activation's backward
    (2) hidden error      delta^l = ((W^{l+1})^T delta^{l+1}) * sigma'(z^l)   dense.backward, then the activation's
    (3) bias gradient     dC/db^l = delta^l                                 dense.backward
    (4) weight gradient   dC/dw^l_jk = a^{l-1}_k delta^l_j                  dense.backward
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeAlias, get_args

import jax
import jax.numpy as jnp

from fbp.errors import InputError

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
Shape: TypeAlias = tuple[int, ...]
Params: TypeAlias = Any  # a pytree of arrays
Cache: TypeAlias = Any  # a pytree of arrays
Grads: TypeAlias = Any  # a pytree with the structure of Params
Initializer: TypeAlias = Callable[..., Array]  # (key, shape, dtype) -> array


class Init(Protocol):
    def __call__(self, key: Key, shape: Shape) -> tuple[Params, Shape]:
        """Draw parameters for inputs of ``shape`` (one example's, no batch axis) and tell the output's shape."""


class Forward(Protocol):
    def __call__(self, params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        """Map a batch ``x (B, *shape)`` to ``(y, cache)``; ``key=None`` means evaluation (no dropout)."""


class Backward(Protocol):
    def __call__(self, params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        """Map ``delta = dC/dy`` to ``(dC/dx, dC/dparams)``; the first is None where x has no derivative (integers)."""


class _Functions(NamedTuple):
    init: Init
    forward: Forward
    backward: Backward


class Stream(NamedTuple):
    """How a layer over a sequence (B, T, F) is computed one position at a time, for generating.

    Attributes:
        start: ``(batch, shape) -> state``; shape is one example's, (T, F), T the most positions that will come.
        step: ``(params, x (B, 1, F), state) -> (y (B, 1, G), state)``
        limited: whether T is really a limit; a recurrence goes on for ever.
    """

    start: Callable[[int, Shape], Any]
    step: Callable[[Params, Array, Any], tuple[Array, Any]]
    limited: bool = False


class Wiring(NamedTuple):
    """How the parts of a composite are connected, for pictures and counts.

    Attributes:
        edges: pairs (from, to) of the parts' keys; ``IN`` and ``OUT`` are the composite's own input and output.
        join: what becomes of several edges that meet in OUT.
        repeats: number of times the parts follow each other.
    """

    edges: tuple[tuple[str, str], ...]
    join: str = "+"
    repeats: int = 1


IN, OUT = "<in>", "<out>"


class Layer(_Functions):
    """A layer: the three functions ``(init, forward, backward)``, and what can be told of it.

    The tuple has exactly three elements. What a layer is called and what it is made of are attributes beside them:

    Attributes:
        name: what tables and messages call it, such as ``dense(30)``.
        parts: for a composite, its layers by the keys under which their parameters stand (the key is empty where the
            parameters are the part's own, as in ``repeat``).
        rebuild: for a composite, the function that makes it again from other parts (see :func:`map_layers`).
        wiring: for a composite, how its parts are connected; one after another where it is not told.
        stream: for a layer that looks from one position of a sequence at others, how to compute it position by position;
            None for a layer that treats each position alone, or cannot.
    """

    name: str
    parts: Mapping[str, "Layer"]
    rebuild: Callable[[Mapping[str, "Layer"]], "Layer"] | None
    wiring: Wiring
    stream: Stream | None

    def __new__(
        cls,
        init: Init,
        forward: Forward,
        backward: Backward,
        *,
        name: str = "layer",
        parts: Mapping[str, "Layer"] | None = None,
        rebuild: Callable[[Mapping[str, "Layer"]], "Layer"] | None = None,
        wiring: Wiring | None = None,
        stream: Stream | None = None,
    ) -> Self:
        layer = super().__new__(cls, init, forward, backward)
        layer.name, layer.parts, layer.rebuild, layer.stream = name, parts or {}, rebuild, stream
        layer.wiring = wiring or Wiring(tuple(itertools.pairwise((IN, *layer.parts, OUT))))
        return layer

    def _replace(self, **functions: Any) -> Self:
        """The same layer with other functions: an opaque one, since its parts no longer tell what it does."""
        return type(self)(**{**self._asdict(), **functions}, name=self.name)

    def __repr__(self) -> str:
        return self.name


class _LossFunctions(NamedTuple):
    value: Callable[[Any, Any], Array]
    delta: Callable[[Any, Any], Any]


TargetKind: TypeAlias = Literal["labels", "one_hot", "signs", "shares", "counts", "numbers"]


def identity(output: Any) -> Any:
    """Return ``output`` itself: the inverse link of a loss whose outputs are readable."""
    return output


class Loss(_LossFunctions):
    """A cost and its derivative by the output, both per example and never reduced.

    The tuple has exactly two elements. What a runner must know of the loss stands in attributes
    beside them.

    Attributes:
        value: ``(output (B, ...), target) -> (B,)``, the cost C_i of each example.
        delta: ``(output (B, ...), target) -> (B, ...)``, dC_i/d(output_i): the output error of
            equation (1).
        name: the name in tables and messages.
        targets: the targets that the loss takes. ``labels``: integer classes (or rows over the
            classes); ``one_hot``: rows over the classes; ``signs``: rows of -1 and +1; ``shares``:
            numbers from 0 to 1, or one-hot rows; ``counts``: numbers of at least 0; ``numbers``:
            any numbers, or one-hot rows.
        takes_probabilities: whether outputs must lie between 0 and 1.
        inverse_link: the function that makes outputs readable: ``softmax`` and ``sigmoid`` turn
            logits into probabilities, ``exp`` turns log-rates into rates.
        coupled: whether the cost of an example depends on other examples of its batch; then
            ``delta`` is the derivative of the sum of all costs.
        summary: one line about the loss.
    """

    name: str
    targets: TargetKind
    takes_probabilities: bool
    inverse_link: Callable[[Any], Any]
    coupled: bool
    summary: str

    def __new__(
        cls,
        value: Callable[[Any, Any], Array],
        delta: Callable[[Any, Any], Any],
        *,
        name: str = "loss",
        targets: TargetKind = "numbers",
        takes_probabilities: bool = False,
        inverse_link: Callable[[Any], Any] = identity,
        coupled: bool = False,
        summary: str = "",
    ) -> Self:
        if targets not in get_args(TargetKind):
            raise InputError(
                f"loss {name!r}: targets must be one of {', '.join(get_args(TargetKind))}, "
                f"got {targets!r}"
            )
        loss = super().__new__(cls, value, delta)
        loss.name, loss.targets, loss.takes_probabilities = name, targets, takes_probabilities
        loss.inverse_link, loss.coupled, loss.summary = inverse_link, coupled, summary
        return loss

    def _replace(self, **changes: Any) -> Self:
        """Return the same loss with other functions or attributes."""
        return type(self)(**{**self._asdict(), **vars(self), **changes})


class Optimizer(NamedTuple):
    """A rule that turns gradients into updates; the (init, update) protocol people know from Optax.

    Attributes:
        init: ``params -> state``
        update: ``(grads, state, params) -> (updates, state)``; add the updates with ``apply_updates``.
    """

    init: Callable[[Params], Any]
    update: Callable[[Grads, Any, Params], tuple[Any, Any]]


class Tapped(NamedTuple):
    """What a tapped layer returns in place of its gradients: the gradients, and what was observed beside them."""

    grads: Grads
    observed: Any


def map_layers(f: Callable[[str, Layer], Layer], layer: Layer, path: str = "") -> Layer:
    """Rebuild a model with ``f(path, layer)`` in place of each layer that has no parts.

    This is how deltas are read and replaced, and how a backward pass is exchanged for another: the combinators
    derive the composite's backward from whatever its parts' backwards now are.

    >>> import fbp
    >>> model = fbp.chain(fbp.layers.dense(3), fbp.layers.relu())
    >>> map_layers(lambda path, layer: print(path, layer) or layer, model)
    0 dense(3)
    1 relu
    chain(dense(3), relu)
    """
    if layer.rebuild is None:
        return f(path or "model", layer)
    return layer.rebuild(
        {
            name: map_layers(f, part, "/".join(filter(None, (path, name))))
            for name, part in layer.parts.items()
        }
    )


STATISTICS = ("mean", "variance")
"""Names of parameters that are filled from data and not learned: constants to every derivative (see ``batch_norm``)."""


def shape_to_array(shape: Shape) -> Array:
    """An array with no elements whose shape carries ``shape`` through a cache (caches hold arrays only)."""
    return jnp.zeros((0, *shape), jnp.bool_)


def array_to_shape(token: Array) -> Shape:
    """The shape that :func:`shape_to_array` put away."""
    return token.shape[1:]
