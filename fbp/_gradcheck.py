"""Does a hand-written backward pass tell the truth? Three independent answers, tensor by tensor.

1. *Layer by layer*: each layer's backward, at the inputs that it really gets inside the model and a random delta, against
   ``jax.vjp`` of its own forward. This says which layer is wrong.
2. *End to end*: the gradient of the whole model, by its parameters and its input, against ``jax.grad`` of the whole
   forward and loss. This says that the layers are put together right.
3. *Finite differences* of the cost, along random directions: independent of any differentiation, so it also finds a
   forward and a derivative that are wrong together.

Each tensor is judged by its own norm, so a wrong bias cannot hide behind a large weight. All is computed in float64.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fbp._backprop import backpropagate, path_of, untap, value_and_grad
from fbp.layer import STATISTICS, Array, Cache, Grads, Key, Layer, Loss, Params, Tapped, map_layers

TOLERANCE = 1e-10  # against jax.vjp, relative to the tensor's norm
DIFFERENCE_TOLERANCE = 1e-6  # against finite differences, relative to the tensor's norm

_KINK = 0.01  # slopes on two sides that differ by more than this share have a kink between them
_ROUNDING = (
    4 * np.finfo(np.float64).eps
)  # differences below this share of the largest norm are rounding

_QUICK = {
    "xla_backend_optimization_level": 0
}  # a check runs once: compiling takes longer than computing


class Row(NamedTuple):
    """One tensor, one comparison.

    Attributes:
        layer: path and name of the layer, ``model`` for the end-to-end comparison, ``loss`` for the loss.
        tensor: which derivative: ``input`` (dC/dx), ``output`` (dC/doutput) or the path of a parameter.
        against: ``vjp``, ``grad`` or ``differences``.
        shape: the tensor's.
        norm: the reference's Euclidean norm.
        error: ``|ours - reference|`` relative to ``norm`` (or to the resolution of the method, where that is more).
        tolerance: what ``error`` may be.
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
        return self.error <= self.tolerance  # False for NaN


class Report(NamedTuple):
    """All comparisons. Print it for a table."""

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether every tensor is within its tolerance."""
        return all(row.ok for row in self.rows)

    @property
    def worst(self) -> Row:
        """The row whose error is largest in units of its tolerance (a NaN is larger than any number)."""
        return max(self.rows, key=lambda row: np.nan_to_num(row.error / row.tolerance, nan=np.inf))

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that are not ok."""
        return tuple(row for row in self.rows if not row.ok)

    def __str__(self) -> str:
        cells = [("layer", "tensor", "against", "shape", "norm", "error", "")]
        for row in self.rows:
            shape = "x".join(map(str, row.shape)) or "scalar"
            verdict = "ok" if row.ok else "WRONG"
            cells.append(
                (
                    row.layer,
                    row.tensor,
                    row.against,
                    shape,
                    f"{row.norm:.2e}",
                    f"{row.error:.1e}",
                    verdict,
                )
            )
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            for line in cells
        ]
        count = len(self.failures)
        verdict = "all right" if self.ok else f"{count} of {len(self.rows)} WRONG"
        return "\n".join([*(line.rstrip() for line in lines), verdict])


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
    """Compare the hand-written backward pass of ``model`` and ``loss`` with ``jax.vjp`` and with finite differences.

    Args:
        params, x, y: a point to check at, as ``value_and_grad`` takes them; floats are converted to float64. A handful of
            examples is enough. Across a kink (relu at exactly 0) finite differences have no meaning: directions in which the
            cost has different slopes on its two sides are left out, and a tensor with no other directions has no such row.
        key: for layers that draw random numbers; the same key is used throughout.
        directions: how many random directions to take finite differences in, per tensor.

    Returns:
        A :class:`Report`: ``.ok``, ``.worst``, ``.failures``, and a table when printed.

    >>> import jax, fbp
    >>> model = fbp.chain(fbp.layers.dense(3), fbp.layers.tanh())
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> check_gradients(model, fbp.losses.quadratic, params, jax.numpy.ones((4, 2)), jax.numpy.zeros((4, 3))).ok
    True
    """
    with jax.enable_x64(True):
        params, x, y = jax.tree.map(_to_float64, (params, x, y))
        names: list[tuple[str, str, str]] = []

        @functools.partial(jax.jit, compiler_options=_QUICK)
        def both(*point: Any) -> list[tuple[Any, Any]]:
            found = _ours_and_reference(model, loss, *point)
            names.extend(found)  # beside the arrays: a dictionary's order does not survive jit
            return list(found.values())

        pairs = jax.tree.map(np.asarray, both(params, x, y, key))
        found = dict(zip(names, pairs, strict=True))
        scales = (found["loss", "vjp", "output"][1], found["model", "grad", ""][1])
        largest = max(float(np.linalg.norm(leaf)) for leaf in jax.tree.leaves(scales))
        rows = [
            row
            for (layer, against, tensor), (ours, reference) in found.items()
            for row in _compare(
                layer, against, ours, reference, tensor, _ROUNDING * largest / TOLERANCE
            )
        ]
        grads, _ = found["model", "grad", ""]
        return Report(
            (*rows, *_check_differences(model, loss, params, x, y, key, grads, directions))
        )


def _to_float64(leaf: Any) -> Any:
    array = np.asarray(leaf)
    return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _compare(
    layer: str, against: str, ours: Any, reference: Any, name: str, floor: float
) -> list[Row]:
    """One row for each tensor of two trees of the same structure."""
    ours_leaves, structure = jax.tree_util.tree_flatten_with_path(ours)
    reference_leaves, reference_structure = jax.tree.flatten(reference)
    if structure != reference_structure:  # type: ignore[operator]
        return [Row(layer, name or "all parameters", against, (), np.nan, np.nan, TOLERANCE)]
    rows = []
    for (keys, our), their in zip(ours_leaves, reference_leaves, strict=True):
        tensor, norm, error = (
            "/".join(filter(None, (name, path_of(keys)))),
            float(np.linalg.norm(their)),
            np.nan,
        )
        if our.shape == their.shape:
            error = float(np.linalg.norm(our - their))
            error = error / max(norm, floor) if norm or floor else error
        rows.append(Row(layer, tensor, against, our.shape, norm, error, TOLERANCE))
    return rows


def _ours_and_reference(
    model: Layer, loss: Loss, params: Params, x: Any, y: Array, key: Key | None
) -> dict[tuple[str, str, str], tuple[Any, Any]]:
    """What the hand-written passes give, beside what autodiff gives, by (layer, against, tensor)."""
    names: dict[str, str] = {}

    def comparing(path: str, layer: Layer) -> Layer:
        names[path] = f"{path} {layer.name}"

        def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
            output, cache = layer.forward(params, x, key=key)
            return output, (cache, x, key)

        def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
            layer_cache, x, key = cache
            input_delta, grads = layer.backward(params, layer_cache, delta)
            other = _random_like(
                delta
            )  # the delta that arrives may be 0, behind a dead relu for example
            other_input, other_grads = layer.backward(params, layer_cache, other)
            reference = _layer_reference(layer, params, x, key, other)
            return input_delta, Tapped(
                grads, ((jax.tree.leaves(other_input), other_grads), reference)
            )

        return layer._replace(forward=forward, backward=backward)

    output, _ = model.forward(params, x, key=key)
    costs, pull_back = jax.vjp(lambda a: loss.value(a, y), output)
    (loss_reference,) = pull_back(jnp.ones_like(costs))
    found: dict[tuple[str, str, str], tuple[Any, Any]] = {
        ("loss", "vjp", "output"): (loss.delta(output, y), loss_reference)
    }
    _, observed = untap(value_and_grad(map_layers(comparing, model), loss)(params, x, y, key)[1])
    for path, name in names.items():
        if path not in observed:
            continue  # before a layer whose input has no derivative
        (inputs, grads), (input_references, references) = observed[path]
        found[name, "vjp", "input"] = _as_one(inputs), _as_one(input_references)
        found[name, "vjp", ""] = grads, references
    whole = backpropagate(model, loss)(params, x, y, key)  # the model's own backward, as it is
    points, with_points = _floating(x)
    references, x_references = jax.grad(
        lambda p, points: _cost(model, loss, p, with_points(points), y, key), argnums=(0, 1)
    )(params, points)
    if points:
        found["model", "grad", "input"] = (
            _as_one(jax.tree.leaves(whole.input_delta)),
            _as_one(x_references),
        )
    found["model", "grad", ""] = whole.grads, references
    return found


def _floating(x: Any) -> tuple[list[Array], Callable[[list[Array]], Any]]:
    """The parts of an input that have a derivative, and how to put others in their place (integers have none)."""
    leaves, structure = jax.tree.flatten(x)
    places = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def put(parts: list[Array]) -> Any:
        given = list(leaves)
        for i, part in zip(places, parts, strict=True):
            given[i] = part
        return jax.tree.unflatten(structure, given)

    return [leaves[i] for i in places], put


def _as_one(leaves: list[Array]) -> Any:
    """A single input as it is, so that its row has a name; several in a list."""
    return leaves[0] if len(leaves) == 1 else leaves


def _random_like(delta: Any) -> Any:
    """Normal numbers in place of a delta's."""
    return jax.tree.map(lambda d: jax.random.normal(jax.random.key(0), d.shape, d.dtype), delta)


def _layer_reference(
    layer: Layer, params: Params, x: Any, key: Key | None, delta: Any
) -> tuple[list[Array], Grads]:
    """``(dC/dx, dC/dparams)`` of one layer by jax.vjp, for the parts of x that have a derivative (integers have none)."""
    points, with_points = _floating(x)

    def output(params: Params, points: list[Array]) -> Any:
        return layer.forward(params, with_points(points), key=key)[0]

    grads, inputs = jax.vjp(output, params, points)[1](delta)
    return inputs, grads


def _cost(model: Layer, loss: Loss, params: Params, x: Any, y: Array, key: Key | None) -> Array:
    return loss.value(model.forward(params, x, key=key)[0], y).mean()


def _check_differences(
    model: Layer,
    loss: Loss,
    params: Params,
    x: Any,
    y: Array,
    key: Key | None,
    grads: Grads,
    directions: int,
) -> list[Row]:
    """Each tensor's slope along random directions, from central differences of the cost.

    A direction d has unit norm; ``(C(w + h d) - C(w - h d)) / 2h`` has an error from curvature of order h^2 and one from
    rounding of ``eps |C| / h``, which no gradient smaller than that can be resolved against.
    """
    if jax.tree.structure(grads) != jax.tree.structure(params):  # type: ignore[operator]
        return []  # there are other rows that say so

    @functools.partial(jax.jit, compiler_options=_QUICK)
    def slopes(direction: Params, step: Array) -> tuple[Array, Array, Array]:
        """The cost, and its slope ahead and behind: they differ at a kink."""

        def moved(sign: int) -> Array:
            there = jax.tree.map(lambda p, d: p + sign * step * d, params, direction)
            return _cost(model, loss, there, x, y, key)

        behind, here, ahead = moved(-1), moved(0), moved(1)
        return jnp.abs(here), (ahead - here) / step, (here - behind) / step

    draw = np.random.default_rng(0)
    points, structure = jax.tree.flatten(params)
    zeros = [np.zeros(point.shape) for point in points]
    rows = []
    for i, (keys, gradient) in enumerate(jax.tree_util.tree_leaves_with_path(grads)):
        if path_of(keys).split("/")[-1] in STATISTICS:
            continue  # constants by definition, though the cost depends on them
        step = 3e-6 * max(1.0, float(np.linalg.norm(points[i])) / np.sqrt(gradient.size))
        worst, cost, smooth = 0.0, 0.0, 0
        for _ in range(directions if gradient.shape == points[i].shape else 0):
            direction = draw.normal(size=gradient.shape)
            direction /= np.linalg.norm(direction)
            along = jax.tree.unflatten(structure, [*zeros[:i], direction, *zeros[i + 1 :]])
            cost, ahead, behind = map(float, slopes(along, step))
            if abs(ahead - behind) > _KINK * max(abs(ahead), abs(behind), 1e-6 * cost):
                continue  # a slope that is not the same on both sides is no slope
            smooth += 1
            worst = float(
                np.maximum(worst, abs((gradient * direction).sum() - (ahead + behind) / 2))
            )  # NaN stays NaN
        if not smooth:
            continue
        norm = float(np.linalg.norm(gradient))
        resolution = 16 * np.finfo(np.float64).eps * max(cost, 1e-3) / step / DIFFERENCE_TOLERANCE
        # a random direction catches 1/sqrt(size) of the gradient's norm on average
        error = worst / max(norm / np.sqrt(gradient.size), resolution)
        rows.append(
            Row(
                "model",
                path_of(keys),
                "differences",
                gradient.shape,
                norm,
                error,
                DIFFERENCE_TOLERANCE,
            )
        )
    return rows
