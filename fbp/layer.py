"""The whole contract on one page: a layer, a loss and an optimizer are tuples of pure functions.

Everything else in fbp is one of these three or takes one of these three.

The notation is that of the four equations of backpropagation (Rumelhart, Hinton and Williams, 1986;
Nielsen, 2015, *Neural Networks and Deep Learning*, chapter 2). ``delta`` always means
dC/d(output of this layer), with the shape of that output. At a pre-activation z it *is* the
textbook's delta:

    (1) output error     delta^L = dC/da^L * sigma'(z^L)                     losses, activation
    (2) hidden error     delta^l = ((W^{l+1})^T delta^{l+1}) * sigma'(z^l)   dense, activation
    (3) bias gradient    dC/db^l = delta^l                                   dense
    (4) weight gradient  dC/dw^l_jk = a^{l-1}_k delta^l_j                    dense
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
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
    def __call__(self, key: Key, shape: Shape, /) -> tuple[Params, Shape]:
        """Draw parameters for inputs of ``shape``; return them and the output's shape.

        Both shapes are one example's, without the batch axis.
        """


class Forward(Protocol):
    def __call__(self, params: Params, x: Any, /, *, key: Key | None = None) -> tuple[Any, Cache]:
        """Map a batch ``x (B, *shape)`` to ``(y, cache)``; ``key=None`` means evaluation."""


class Backward(Protocol):
    def __call__(self, params: Params, cache: Cache, delta: Any, /) -> tuple[Any, Grads]:
        """Map ``delta = dC/dy`` to ``(dC/dx, dC/dparams)``.

        The first is None if x has no derivative: if it is integers.
        """


class _Functions(NamedTuple):
    init: Init
    forward: Forward
    backward: Backward


class IncrementalForward(NamedTuple):
    """The incremental form of a layer over (B, T, F): one position at a time, with a state.

    Attributes:
        start: ``(batch, shape) -> state`` before the first position; ``shape`` is one example's,
            (T, F), and T the largest number of positions that will follow.
        step: ``(params, x (B, 1, F), state) -> (y (B, 1, G), state)``
        limited: whether T limits the number of positions; a recurrence runs forever.
    """

    start: Callable[[int, Shape], Any]
    step: Callable[[Params, Array, Any], tuple[Array, Any]]
    limited: bool = False


Incremental: TypeAlias = IncrementalForward | Literal["positionwise"] | None


class Statistics(NamedTuple):
    """How the nontrainable parameters of a layer are filled from data.

    Attributes:
        measure: ``(params, x (B, ...)) -> {name: value}``, the statistics of one batch.
        combine: ``{name: (batches, ...)} -> {name: value}``, those of the population.
    """

    measure: Callable[[Params, Any], dict[str, Array]]
    combine: Callable[[dict[str, Array]], dict[str, Array]]


class Wiring(NamedTuple):
    """How the parts of a composite are connected, for pictures and counts.

    Attributes:
        edges: pairs (from, to) of the parts' keys; ``IN`` and ``OUT`` are the composite's own
            input and output.
        join: how several edges that end in OUT are combined.
        repeats: number of times the part is repeated in sequence.
        delta_scale: the factor by which deltas inside are larger than outside.
    """

    edges: tuple[tuple[str, str], ...]
    join: str = "+"
    repeats: int = 1
    delta_scale: float | Array = 1


IN, OUT = "<in>", "<out>"


class Layer(_Functions):
    """A layer: the three functions ``(init, forward, backward)``, and a description of them.

    The tuple has exactly three elements. The description is attributes beside them:

    Attributes:
        kind: a word that code may compare, such as ``dense``; ``layer`` by default.
        name: the text that tables and messages print, such as ``dense(30)``; ``kind`` by default.
        nontrainable: names of parameters that are filled from data and not learned. They are
            constants to every derivative, and no optimizer moves them.
        not_decayed: names of the parameters that weight decay leaves out; None stands for those
            with fewer than two axes.
        statistics: how the nontrainable parameters are filled.
        parts: for a composite, its layers by the keys of their parameters. The key is empty if the
            part's parameters are the composite's own, as in ``repeat``.
        rebuild: for a composite, the function that makes it again from other parts.
        wiring: for a composite, how its parts are connected; in sequence by default.
        incremental: how the layer runs one position at a time. ``"positionwise"`` says that it acts
            on each position alone; None that it mixes positions and has no incremental form.
    """

    kind: str
    name: str
    nontrainable: tuple[str, ...]
    not_decayed: tuple[str, ...] | None
    statistics: Statistics | None
    parts: Mapping[str, "Layer"]
    rebuild: Callable[[Mapping[str, "Layer"]], "Layer"] | None
    wiring: Wiring
    incremental: Incremental

    def __new__(
        cls,
        init: Init,
        forward: Forward,
        backward: Backward,
        *,
        kind: str = "layer",
        name: str | None = None,
        nontrainable: Sequence[str] = (),
        not_decayed: Sequence[str] | None = None,
        statistics: Statistics | None = None,
        parts: Mapping[str, "Layer"] | None = None,
        rebuild: Callable[[Mapping[str, "Layer"]], "Layer"] | None = None,
        wiring: Wiring | None = None,
        incremental: Incremental = "positionwise",
    ) -> Self:
        layer = super().__new__(cls, init, forward, backward)
        layer.kind, layer.name = kind, kind if name is None else name
        layer.nontrainable = tuple(nontrainable)
        layer.not_decayed = None if not_decayed is None else tuple(not_decayed)
        layer.statistics = statistics
        layer.parts, layer.rebuild = parts or {}, rebuild
        layer.wiring = wiring or Wiring(tuple(itertools.pairwise((IN, *layer.parts, OUT))))
        layer.incremental = incremental
        return layer

    def _replace(self, **changes: Any) -> Self:
        """Return the layer with other functions, or another description.

        An exchanged ``backward`` or ``init`` keeps the whole description, and a composite keeps the
        exchange when it is rebuilt from other parts. An exchanged ``forward`` makes an opaque
        layer: kind, parts, wiring and incremental form described the old one.
        """
        functions = {name: changes.pop(name) for name in self._fields if name in changes}
        if "forward" in functions:
            about_parameters = {name: vars(self)[name] for name in _ABOUT_PARAMETERS}
            return type(self)(**(self._asdict() | functions), **(about_parameters | changes))
        changed = exchange(self, lambda layer: functions) if functions else self
        return type(self)(*changed, **(vars(changed) | changes))

    def __repr__(self) -> str:
        return self.name


_ABOUT_PARAMETERS = ("name", "nontrainable", "not_decayed", "statistics")


def exchange(layer: Layer, functions: Callable[[Layer], Mapping[str, Any]]) -> Layer:
    """Return the layer with some of its functions made anew from itself; its description stays.

    A composite applies the exchange again whenever it is rebuilt from other parts.

    Args:
        layer: a leaf or a composite.
        functions: from a layer to its new functions by name (``init``, ``forward``, ``backward``).
            A new ``forward`` must give the same output.
    """
    rebuild = layer.rebuild
    again = None if rebuild is None else lambda parts: exchange(rebuild(parts), functions)
    description = vars(layer) | {"rebuild": again}
    return Layer(**(layer._asdict() | dict(functions(layer))), **description)


class _LossFunctions(NamedTuple):
    value: Callable[[Any, Any], Array]
    delta: Callable[[Any, Any], Any]


TargetKind: TypeAlias = Literal["labels", "one_hot", "signs", "shares", "counts", "numbers"]


def identity(value: Any) -> Any:
    """Return ``value`` itself."""
    return value


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
        update: ``(grads, state, params) -> (updates, state)``; ``apply_updates`` adds them. The
            library's own need ``params`` only if the rule does, and take further keyword arguments.
    """

    init: Callable[[Params], Any]
    update: Callable[..., tuple[Any, Any]]


def require_layer(where: str, layer: Any) -> Layer:
    """Return ``layer``, or raise InputError if it is not a :class:`Layer`.

    Args:
        where: the beginning of the message, such as ``chain: place 0``.
        layer: what the caller was given.
    """
    if isinstance(layer, Layer):
        return layer
    hint = "; call it" if callable(layer) and not isinstance(layer, tuple) else ""
    raise InputError(f"{where}: expected a Layer, got {getattr(layer, '__name__', layer)!r}{hint}")


def require_loss(where: str, loss: Any) -> Loss:
    """Return ``loss``, or raise InputError if it is not a :class:`Loss`.

    Args:
        where: the beginning of the message, such as ``value_and_grad``.
        loss: what the caller was given.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, tuple) and len(loss) == 2 and all(map(callable, loss)):
        hint = "; write fbp.Loss(value, delta)"
    else:
        hint = "; call it, or use losses.from_function" if callable(loss) else ""
    raise InputError(f"{where}: expected a Loss, got {getattr(loss, '__name__', loss)!r}{hint}")


def parameterless(
    kind: str,
    forward: Callable[[Any], tuple[Any, Cache]],
    backward: Callable[[Cache, Any], Any],
    out_shape: Callable[[Any], Shape] = identity,
    *,
    name: str | None = None,
    incremental: Incremental = "positionwise",
) -> Layer:
    """Return a layer without parameters, which computes the same in training and evaluation.

    Args:
        kind: the layer's kind.
        forward: ``x (B, ...) -> (y, cache)``.
        backward: ``(cache, delta) -> input_delta``.
        out_shape: from one example's shape to its output's; raises ShapeError if it does not fit.
            The same shape by default.
        name: the name to print; ``kind`` by default.
        incremental: as in :class:`fbp.Layer`.
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), out_shape(shape)

    def layer_forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
        return forward(x)

    def layer_backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
        return backward(cache, delta), ()

    return Layer(init, layer_forward, layer_backward, kind=kind, name=name, incremental=incremental)


def map_layers(f: Callable[[str, Layer], Layer], layer: Layer, path: str = "") -> Layer:
    """Rebuild a model with ``f(path, layer)`` in place of each layer that has no parts.

    This is how a backward pass is exchanged for another: the combinators derive the composite's
    backward from its parts' backwards.

    >>> import fbp
    >>> model = fbp.chain(fbp.layers.dense(3), fbp.layers.relu())
    >>> map_layers(lambda path, layer: print(path, layer) or layer, model)
    0 dense(3)
    1 relu
    chain(dense(3), relu)
    """
    require_layer("map_layers", layer)
    if layer.rebuild is None:
        return f(path or "model", layer)
    parts = layer.parts.items()
    return layer.rebuild({key: map_layers(f, part, join_path(path, key)) for key, part in parts})


def join_path(*keys: str) -> str:
    """Return the keys joined by ``/``, empty ones left out."""
    return "/".join(filter(None, keys))


def shape_to_array(shape: Shape) -> Array:
    """Return an array with no elements whose shape carries ``shape``: caches hold arrays only."""
    return jnp.zeros((0, *shape), jnp.bool_)


def array_to_shape(array: Array) -> Shape:
    """Recover the shape stored by :func:`shape_to_array`."""
    return array.shape[1:]
