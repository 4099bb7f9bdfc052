"""Does a hand-written backward pass tell the truth? Three independent answers, tensor by tensor.

1. *Layer by layer*: each layer's backward, at the inputs and the delta that it really gets inside the model, against
   ``jax.vjp`` of its own forward. This says which layer is wrong.
2. *End to end*: the gradient of the whole model against ``jax.grad`` of the whole forward and loss. This says that the
   layers are put together right.
3. *Finite differences* of the cost, along random directions: independent of any differentiation, so it also finds a
   forward and a derivative that are wrong together.

Each tensor is judged by its own norm, so a wrong bias cannot hide behind a large weight. All is computed in float64.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fbp.gradient import Tapped, path_of, untap, value_and_grad
from fbp.layer import Array, Cache, Grads, Key, Layer, Loss, Params, map_layers

TOLERANCE = 1e-10  # against jax.vjp, relative to the tensor's norm
DIFFERENCE_TOLERANCE = 1e-6  # against finite differences, relative to the tensor's norm


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
            cells.append((row.layer, row.tensor, row.against, shape, f"{row.norm:.2e}", f"{row.error:.1e}", verdict))
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
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
            examples is enough. At a kink (relu at exactly 0) finite differences have no meaning: take random points.
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
        rows = [*_check_loss(model, loss, params, x, y, key), *_check_layers(model, loss, params, x, y, key)]
        rows += _check_whole(model, loss, params, x, y, key)
        rows += _check_differences(model, loss, params, x, y, key, directions)
        return Report(tuple(rows))


def _to_float64(leaf: Any) -> Array:
    array = jnp.asarray(leaf)
    return array.astype(jnp.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _compare(layer: str, against: str, ours: Any, reference: Any, names: str = "") -> list[Row]:
    """One row for each tensor of two trees of the same structure."""
    ours_leaves, structure = jax.tree_util.tree_flatten_with_path(ours)
    reference_leaves, reference_structure = jax.tree.flatten(reference)
    if structure != reference_structure:
        return [Row(layer, names or "all", against, (), np.nan, np.nan, TOLERANCE)]
    rows = []
    for (keys, our), their in zip(ours_leaves, reference_leaves, strict=True):
        tensor = path_of(keys) if keys else names
        if our.shape != their.shape:
            rows.append(Row(layer, tensor, against, our.shape, np.nan, np.nan, TOLERANCE))
            continue
        norm = float(jnp.linalg.norm(jnp.ravel(their)))
        difference = float(jnp.linalg.norm(jnp.ravel(our - their)))
        rows.append(Row(layer, tensor, against, our.shape, norm, difference / norm if norm else difference, TOLERANCE))
    return rows


def _check_loss(model: Layer, loss: Loss, params: Params, x: Any, y: Array, key: Key | None) -> list[Row]:
    output, _ = model.forward(params, x, key=key)
    (reference,) = jax.vjp(lambda a: loss.value(a, y), output)[1](jnp.ones(output.shape[0], output.dtype))
    return _compare("loss", "vjp", loss.delta(output, y), reference, "output")


def _check_layers(model: Layer, loss: Loss, params: Params, x: Any, y: Array, key: Key | None) -> list[Row]:
    """Each layer's backward against jax.vjp of its own forward, where it stands in the model."""
    layers: dict[str, Layer] = {}

    def recording(path: str, layer: Layer) -> Layer:
        layers[path] = layer

        def forward(params: Params, x: Any, *, key: Key | None = None) -> tuple[Any, Cache]:
            output, cache = layer.forward(params, x, key=key)
            return output, (cache, x, key)

        def backward(params: Params, cache: Cache, delta: Any) -> tuple[Any, Grads]:
            layer_cache, x, key = cache
            input_delta, grads = layer.backward(params, layer_cache, delta)
            return input_delta, Tapped(grads, (params, x, key, delta, input_delta, grads))

        return layer._replace(forward=forward, backward=backward)

    recorded = map_layers(recording, model)
    _, observed = untap(value_and_grad(recorded, loss)(params, x, y, key)[1])
    rows = []
    for path, layer in layers.items():
        rows += _check_layer(f"{path} {layer.name}", layer, *observed[path])
    return rows


def _check_layer(
    name: str, layer: Layer, params: Params, x: Any, key: Key | None, delta: Any, input_delta: Any, grads: Grads
) -> list[Row]:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        _, pull_back = jax.vjp(lambda p, x: layer.forward(p, x, key=key)[0], params, x)
        reference_grads, reference_input = pull_back(delta)
        return [
            *_compare(name, "vjp", input_delta, reference_input, "input"),
            *_compare(name, "vjp", grads, reference_grads),
        ]
    (reference_grads,) = jax.vjp(lambda p: layer.forward(p, x, key=key)[0], params)[1](delta)
    return _compare(name, "vjp", grads, reference_grads)


def _cost(model: Layer, loss: Loss, params: Params, x: Any, y: Array, key: Key | None) -> Array:
    return loss.value(model.forward(params, x, key=key)[0], y).mean()


def _check_whole(model: Layer, loss: Loss, params: Params, x: Any, y: Array, key: Key | None) -> list[Row]:
    _, grads = value_and_grad(model, loss)(params, x, y, key)
    return _compare("model", "grad", grads, jax.grad(lambda p: _cost(model, loss, p, x, y, key))(params))


def _check_differences(
    model: Layer, loss: Loss, params: Params, x: Any, y: Array, key: Key | None, directions: int
) -> list[Row]:
    """Each tensor's slope along random directions, from central differences of the cost.

    A direction d has unit norm; ``(C(w + h d) - C(w - h d)) / 2h`` has an error from curvature of order h^2 and one from
    rounding of ``eps |C| / h``, which no gradient smaller than that can be resolved against.
    """
    cost = jax.jit(lambda p: _cost(model, loss, p, x, y, key))
    _, grads = value_and_grad(model, loss)(params, x, y, key)
    leaves, structure = jax.tree_util.tree_flatten_with_path(grads)
    points = jax.tree.leaves(params)
    if not points:
        return []
    draw = np.random.default_rng(0)
    here = float(jnp.abs(cost(params)))
    rows = []
    for i, (keys, gradient) in enumerate(leaves):
        step = 1e-5 * max(1.0, float(jnp.linalg.norm(points[i].ravel())) / np.sqrt(points[i].size))
        resolution = 16 * np.finfo(np.float64).eps * max(here, 1e-3) / step / DIFFERENCE_TOLERANCE
        norm, worst = float(jnp.linalg.norm(gradient.ravel())), 0.0
        for _ in range(directions):
            direction = draw.normal(size=gradient.shape)
            direction /= np.linalg.norm(direction)
            slope = (
                float(cost(_moved(structure, points, i, step * direction)))
                - float(cost(_moved(structure, points, i, -step * direction)))
            ) / (2 * step)
            ours = float(jnp.vdot(gradient, direction))
            worst = np.fmax(worst, abs(ours - slope)) if np.isfinite(slope + ours) else np.nan
        # a random direction catches 1/sqrt(size) of the gradient's norm on average
        scale = max(norm / np.sqrt(gradient.size), resolution)
        rows.append(
            Row("model", path_of(keys), "differences", gradient.shape, norm, worst / scale, DIFFERENCE_TOLERANCE)
        )
    return rows


def _moved(structure: Any, points: list[Array], i: int, by: np.ndarray) -> Params:
    return jax.tree.unflatten(structure, [p + by if j == i else p for j, p in enumerate(points)])
