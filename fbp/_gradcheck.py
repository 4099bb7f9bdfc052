"""Check a hand-written backward pass against three independent answers, tensor by tensor.

1. *Layer by layer*: each layer's backward, at the inputs that it gets inside the model and a random
   delta, against ``jax.vjp`` of its own forward. This tells which layer is wrong.
2. *End to end*: the gradient of the whole model, by its parameters and its input, against
   ``jax.grad`` of the whole forward and loss. This tells whether the layers are composed right.
3. *Finite differences* of the cost, along random directions of each parameter and of the input:
   independent of any differentiation, so it also finds a forward and a derivative that are wrong
   together, such as a term that the forward hides from autodiff.
4. *In its own dtypes*: the gradient as training computes it, in float32 or narrower, against the
   one in float64. It may be no worse than a few times autodiff's in those dtypes.

Each tensor is judged by its own norm, so a wrong bias cannot hide behind a large weight. All but
the last are computed in float64; a part inside :func:`fbp.precision` too.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fbp._backprop import backpropagate, path_of
from fbp._observation import (
    Position,
    leaf_paths,
    nontrainable_paths,
    observe_forward,
    positions,
    without,
)
from fbp.layer import (
    Array,
    Cache,
    Grads,
    Key,
    Layer,
    Loss,
    Params,
    join_path,
    require_layer,
    require_loss,
)
from fbp.losses._targets import labelled_examples, mean_over_labelled

TOLERANCE = 1e-10  # against jax.vjp, relative to the tensor's norm
DIFFERENCE_TOLERANCE = 1e-6  # against finite differences, relative to the tensor's norm

_WORSE_THAN_AUTODIFF = 8  # times: how much worse a gradient in its own dtype may be
_OWN_ROUNDING = 32  # times the dtype's eps: an error that any gradient may have

_KINK = 0.01  # slopes on two sides that differ by more than this share have a kink between them
_ROUNDING = 4 * np.finfo(np.float64).eps  # below this share of the largest norm lies rounding


@functools.cache
def quick_options() -> dict[str, bool | int]:
    """Return compiler options for programs that run once, where compiling takes longest.

    Without its fusion emitters, which newer versions of XLA cannot switch off, it compiles such a
    program in half the time.
    """
    options: dict[str, bool | int] = {"xla_backend_optimization_level": 0}
    quickest = options | {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=quickest).lower().compile()
    except jax.errors.JaxRuntimeError:  # no such option
        return options
    return quickest


class Row(NamedTuple):
    """One tensor, one comparison.

    Attributes:
        layer: path and name of the layer, ``model`` for the end-to-end comparison, ``loss`` for the
            loss.
        tensor: which derivative: ``input`` (dC/dx), ``output`` (dC/doutput) or a parameter's path.
        against: ``vjp``, ``grad``, ``differences``, or ``float64`` in the dtypes of its own.
        shape: the tensor's.
        norm: the reference's Euclidean norm.
        error: ``|ours - reference|`` relative to ``norm``, or to the method's resolution if that is
            larger.
        tolerance: the largest ``error`` that passes.
    """

    layer: str
    tensor: str
    against: str
    shape: tuple[int, ...]
    norm: float
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; False for NaN."""
        return self.error <= self.tolerance


class Report(NamedTuple):
    """All comparisons; prints as a table."""

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether every tensor is within its tolerance."""
        return all(row.ok for row in self.rows)

    @property
    def worst(self) -> Row:
        """The row with the largest error in units of its tolerance; NaN counts as the largest."""
        return max(self.rows, key=lambda row: np.nan_to_num(row.error / row.tolerance, nan=np.inf))

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that are not ok."""
        return tuple(row for row in self.rows if not row.ok)

    def __str__(self) -> str:
        cells = [("layer", "tensor", "against", "shape", "norm", "error", "")]
        for row in self.rows:
            shape = "x".join(map(str, row.shape)) or "scalar"
            numbers = f"{row.norm:.2e}", f"{row.error:.1e}"
            verdict = "ok" if row.ok else "WRONG"
            cells.append((row.layer, row.tensor, row.against, shape, *numbers, verdict))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        count = len(self.failures)
        verdict = "all right" if self.ok else f"{count} of {len(self.rows)} WRONG"
        return "\n".join([*lines, verdict])


def check_gradients(
    model: Layer,
    loss: Loss,
    params: Params,
    x: Any,
    y: Any,
    *,
    key: Key | None = None,
    directions: int = 3,
) -> Report:
    """Compare a hand-written backward pass with ``jax.vjp`` and with finite differences.

    Args:
        model: any layer.
        loss: its loss; its delta is checked, too.
        params: the parameters to check at. Floats are converted to float64, but for the comparison
            in their own dtypes, which float64 parameters do not have.
        x: the inputs, as ``value_and_grad`` takes them; floats are converted likewise.
        y: the targets, likewise. A handful of examples is enough. Across a kink (relu at exactly 0)
            finite differences have no meaning: directions in which the cost has different slopes on
            its two sides are left out, and a tensor with no other directions has no such row.
        key: for layers that draw random numbers; the same key is used throughout.
        directions: the number of random directions of finite differences, per tensor.

    A check sees only the branches that are taken. So pass inputs that take all of them: two or more
    examples, of which one has length 0 and one the full length; tokens that repeat; labels of which
    one is negative; a number exactly at the kink; sizes that a stride does not divide; and a key as
    well as none, if a layer draws random numbers.

    Returns:
        A :class:`Report`: ``.ok``, ``.worst``, ``.failures``, and a table when printed.

    >>> import jax, fbp
    >>> model = fbp.chain(fbp.layers.dense(3), fbp.layers.tanh())
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> x, y = jax.numpy.ones((4, 2)), jax.numpy.zeros((4, 3))
    >>> check_gradients(model, fbp.losses.quadratic, params, x, y).ok
    True
    """
    require_loss("check_gradients", loss)
    narrow = _gradients_in_own_dtypes(
        require_layer("check_gradients", model), loss, params, x, y, key
    )
    model = without(model, "precision")
    with jax.enable_x64(True):
        params, x, y = jax.tree.map(_to_float64, (params, x, y))
        compute = jax.jit(functools.partial(_both, model, loss), compiler_options=quick_options())
        pairs: _Pairs = jax.tree.map(np.asarray, compute(params, x, y, key))
        scales = pairs.loss[1], pairs.grads[1]
        largest = max(float(np.linalg.norm(leaf)) for leaf in jax.tree.leaves(scales))
        rows = _rows(model, pairs, _ROUNDING * largest / TOLERANCE)
        constants = nontrainable_paths(model, params)
        rows += _check_differences(model, loss, (params, x, y, key), pairs, constants, directions)
        rows += _own_dtype_rows(narrow, pairs.grads[1])
        return Report(tuple(rows))


class _Narrow(NamedTuple):
    """Gradients as training computes them, in their own dtypes, converted to float64 afterwards.

    Attributes:
        ours: by backpropagation.
        autodiff: by ``jax.grad``.
        eps: of each parameter's dtype; None for whole numbers and float64.
    """

    ours: Grads
    autodiff: Grads
    eps: list[float | None]


def _gradients_in_own_dtypes(
    model: Layer, loss: Loss, params: Params, x: Any, y: Any, key: Key | None
) -> _Narrow | None:
    """Return the gradients in their own dtypes; None if none is narrower than float64."""
    dtypes = [np.asarray(leaf).dtype for leaf in jax.tree.leaves(params)]
    eps = [
        float(jnp.finfo(dtype).eps) if _is_floating(dtype) and dtype.itemsize < 8 else None
        for dtype in dtypes
    ]
    if not any(eps):
        return None

    def both(params: Params, x: Any, y: Any, key: Key | None) -> tuple[Grads, Grads]:
        cost = lambda params: _cost(model, loss, params, x, y, key)
        return backpropagate(model, loss)(params, x, y, key).grads, jax.grad(cost)(params)

    compute = jax.jit(both, compiler_options=quick_options())
    ours, autodiff = jax.tree.map(_to_float64, compute(params, x, y, key))
    return _Narrow(ours, autodiff, eps)


def _own_dtype_rows(narrow: _Narrow | None, reference: Grads) -> list[Row]:
    """Return a row for each parameter whose gradient has a dtype narrower than float64."""
    if narrow is None:
        return []
    structure = jax.tree.structure(reference)
    if any(jax.tree.structure(tree) != structure for tree in narrow[:2]):  # type: ignore[operator]
        return []  # other rows report it
    named = jax.tree_util.tree_leaves_with_path(narrow.ours)
    others, exacts = jax.tree.leaves(narrow.autodiff), jax.tree.leaves(reference)
    largest = max((float(np.linalg.norm(leaf)) for leaf in exacts), default=0.0)
    rows = []
    for (keys, ours), autodiff, exact, eps in zip(named, others, exacts, narrow.eps, strict=True):
        if eps is None or ours.shape != exact.shape:
            continue
        norm = float(np.linalg.norm(exact))
        resolution = max(norm, eps * largest) or 1.0
        error, of_autodiff = (
            float(np.linalg.norm(gradient - exact)) / resolution for gradient in (ours, autodiff)
        )
        tolerance = max(_WORSE_THAN_AUTODIFF * of_autodiff, _OWN_ROUNDING * eps)
        rows.append(Row("model", path_of(keys), "float64", ours.shape, norm, error, tolerance))
    return rows


def _is_floating(dtype: np.dtype) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))


def _to_float64(leaf: Any) -> Any:
    array = np.asarray(leaf)
    return array.astype(np.float64) if _is_floating(array.dtype) else array


class _Pairs(NamedTuple):
    """Derivatives of the hand-written passes, each beside autodiff's.

    Attributes:
        loss: by the output.
        layers: by path: inputs, then parameters, of each layer alone.
        inputs: of the whole model, by the parts of its input that have a derivative.
        grads: of the whole model, by its parameters.
    """

    loss: tuple[Any, Any]
    layers: dict[str, tuple[Any, Any]]
    inputs: tuple[Any, Any]
    grads: tuple[Any, Any]


def _both(model: Layer, loss: Loss, params: Params, x: Any, y: Any, key: Key | None) -> _Pairs:
    """Compute every derivative by the hand-written passes and by autodiff."""
    run = observe_forward(model, _seen_by_layer, leaf_paths(model))
    output, seen = run(params, x, key=key)
    costs, pull_back = jax.vjp(lambda a: loss.value(a, y), output)
    (loss_reference,) = pull_back(jnp.ones_like(costs))
    layers = {
        place.path: _layer_pair(place, *seen[place.path][:3])
        for place in positions(model)
        if place.path in seen and _has_derivative(seen[place.path][3])
    }
    result = backpropagate(model, loss)(params, x, y, key)  # the model's own backward, as it is
    floats, with_floats = _floating(x)
    cost = lambda params, floats: _cost(model, loss, params, with_floats(floats), y, key)
    references, x_references = jax.grad(cost, argnums=(0, 1))(params, floats)
    ours = jax.tree.leaves(result.input_delta) if floats else []
    return _Pairs(
        (loss.delta(output, y), loss_reference),
        layers,
        (ours, x_references),
        (result.grads, references),
    )


def _seen_by_layer(
    place: Position, params: Params, x: Any, y: Any, cache: Cache, key: Key | None
) -> tuple[Params, Any, Key | None, Any]:
    return params, x, key, y


def _has_derivative(y: Any) -> bool:
    return any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(y))


def _layer_pair(place: Position, params: Params, x: Any, key: Key | None) -> tuple[Any, Any]:
    """Return ``(dC/dx, dC/dparams)`` of one layer, by its backward and by ``jax.vjp``."""
    layer = place.layer

    def pair(params: Params, x: Any, key: Key | None) -> tuple[Any, Any]:
        y, cache = layer.forward(params, x, key=key)
        # not the delta that arrives: behind a dead relu, for example, it may be 0
        delta = _random_like(y)
        input_delta, grads = layer.backward(params, cache, delta)
        ours = jax.tree.leaves(input_delta), grads
        return ours, _layer_reference(layer, params, x, key, delta)

    for _ in place.repeats:
        pair = jax.vmap(pair)
    return pair(params, x, key)


def _layer_reference(
    layer: Layer, params: Params, x: Any, key: Key | None, delta: Any
) -> tuple[list[Array], Grads]:
    """Return ``(dC/dx, dC/dparams)`` by jax.vjp, for the parts of x that have a derivative."""
    floats, with_floats = _floating(x)

    def output(params: Params, floats: list[Array]) -> Any:
        return layer.forward(params, with_floats(floats), key=key)[0]

    grads, inputs = jax.vjp(output, params, floats)[1](delta)
    return inputs, grads


def _random_like(y: Any) -> Any:
    """Return normal numbers of the shapes and dtypes of an output."""
    return jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype), y
    )


def _floating(x: Any) -> tuple[list[Array], Callable[[list[Array]], Any]]:
    """Return the parts of an input that have a derivative, and a function that replaces them."""
    leaves, structure = jax.tree.flatten(x)
    places = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def put(parts: list[Array]) -> Any:
        replaced = list(leaves)
        for i, part in zip(places, parts, strict=True):
            replaced[i] = part
        return jax.tree.unflatten(structure, replaced)

    return [leaves[i] for i in places], put


def _cost(model: Layer, loss: Loss, params: Params, x: Any, y: Array, key: Key | None) -> Array:
    costs = loss.value(model.forward(params, x, key=key)[0], y)
    return mean_over_labelled(costs, labelled_examples(loss, y))


def _rows(model: Layer, pairs: _Pairs, floor: float) -> list[Row]:
    rows = _compare("loss", "output", "vjp", *pairs.loss, floor)
    for place in positions(model):
        if place.path in pairs.layers:
            name = f"{place.path} {place.layer.name}"
            (inputs, grads), (input_references, references) = pairs.layers[place.path]
            rows += _compare(
                name, "input", "vjp", _single(inputs), _single(input_references), floor
            )
            rows += _compare(name, "", "vjp", grads, references, floor)
    inputs, input_references = pairs.inputs
    if input_references:
        rows += _compare(
            "model", "input", "grad", _single(inputs), _single(input_references), floor
        )
    return rows + _compare("model", "", "grad", *pairs.grads, floor)


def _single(leaves: list[Array]) -> Any:
    """Return a single input itself, so that its row has a plain name; several as a list."""
    return leaves[0] if len(leaves) == 1 else leaves


def _compare(
    layer: str, name: str, against: str, ours: Any, reference: Any, floor: float
) -> list[Row]:
    """Return one row for each tensor of two trees of the same structure."""
    ours_leaves, structure = jax.tree_util.tree_flatten_with_path(ours)
    reference_leaves, reference_structure = jax.tree.flatten(reference)
    if structure != reference_structure:  # type: ignore[operator]
        return [Row(layer, name or "all parameters", against, (), np.nan, np.nan, TOLERANCE)]
    rows = []
    for (keys, our), their in zip(ours_leaves, reference_leaves, strict=True):
        tensor, norm = join_path(name, path_of(keys)), float(np.linalg.norm(their))
        error = np.nan
        if our.shape == their.shape:
            error = float(np.linalg.norm(our - their))
            error = error / max(norm, floor) if norm or floor else error
        rows.append(Row(layer, tensor, against, our.shape, norm, error, TOLERANCE))
    return rows


def _check_differences(
    model: Layer,
    loss: Loss,
    point: tuple[Params, Any, Any, Key | None],
    pairs: _Pairs,
    constants: list[str],
    directions: int,
) -> list[Row]:
    """Return the slope along random directions of each parameter, and of each part of the input.

    They come from central differences. A direction d has unit norm. ``(C(w + h d) - C(w - h d)) /
    2h`` has an error of order h^2 from curvature, and one of ``eps |C| / h`` from rounding; smaller
    gradients cannot be resolved.
    """
    params, x, y, key = point
    floats, with_floats = _floating(x)
    moved = {"params": params, "input": floats}
    slopes = {"params": pairs.grads[0], "input": list(pairs.inputs[0])}
    if jax.tree.structure(slopes) != jax.tree.structure(moved):  # type: ignore[operator]
        return []  # other rows report it

    @functools.partial(jax.jit, compiler_options=quick_options())
    def costs(direction: Any, step: Array) -> tuple[Array, Array, Array]:
        """Compute the cost behind, at and ahead of the point."""

        def cost(sign: int) -> Array:
            new = jax.tree.map(lambda p, d: p + sign * step * d, moved, direction)
            return _cost(model, loss, new["params"], with_floats(new["input"]), y, key)

        return cost(-1), cost(0), cost(1)

    random = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(moved)
    zeros = [np.zeros(leaf.shape) for leaf in leaves]
    rows = []
    for i, (keys, gradient) in enumerate(jax.tree_util.tree_leaves_with_path(slopes)):
        path = path_of(keys if keys[0].key == "input" else keys[1:])
        path = "input" if len(floats) == 1 and path == "input/0" else path
        if path in constants or gradient.shape != leaves[i].shape or not gradient.size:
            continue

        def along(direction: np.ndarray, step: float, i: int = i) -> tuple[Array, Array, Array]:
            return costs(
                jax.tree.unflatten(structure, [*zeros[:i], direction, *zeros[i + 1 :]]), step
            )

        row = _difference_row(path, leaves[i], gradient, along, random, directions)
        rows += [row] if row else []
    return rows


def _difference_row(
    path: str,
    values: np.ndarray,
    gradient: np.ndarray,
    along: Callable[[np.ndarray, float], tuple[Array, Array, Array]],
    random: np.random.Generator,
    directions: int,
) -> Row | None:
    """Compare one gradient with finite differences; None if every direction crosses a kink."""
    step = 3e-6 * max(1.0, float(np.linalg.norm(values)) / np.sqrt(gradient.size))
    worst, cost, smooth = 0.0, 0.0, 0
    for _ in range(directions):
        direction = random.normal(size=gradient.shape)
        direction /= np.linalg.norm(direction)
        behind, middle, ahead = map(float, along(direction, step))
        cost, slope_ahead, slope_behind = (
            abs(middle),
            (ahead - middle) / step,
            (middle - behind) / step,
        )
        steepest = max(abs(slope_ahead), abs(slope_behind), 1e-6 * cost)
        if abs(slope_ahead - slope_behind) > _KINK * steepest:
            continue  # different slopes on both sides: a kink has no derivative
        smooth += 1
        error = abs((gradient * direction).sum() - (slope_ahead + slope_behind) / 2)
        worst = float(np.maximum(worst, error))  # NaN stays NaN
    if not smooth:
        return None
    norm = float(np.linalg.norm(gradient))
    resolution = 16 * np.finfo(np.float64).eps * max(cost, 1e-3) / step / DIFFERENCE_TOLERANCE
    # a random direction catches 1/sqrt(size) of the gradient's norm on average
    error = worst / max(norm / np.sqrt(gradient.size), resolution)
    return Row("model", path, "differences", gradient.shape, norm, error, DIFFERENCE_TOLERANCE)
