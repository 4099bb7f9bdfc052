"""Run layers, losses and training steps on many rows, for comparison between XLA's flags.

    python -m tests.fusions OUTPUT.npz DTYPE

There is a program for each entry of the tables. The batch has 16,385 rows, or 32,769 if an example
is small. Leaves with a row for each example are written as one number a row: NumPy's product with
fixed weights. A value in a wrong row changes it.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fbp import optimizers, training
from fbp.layer import Layer
from tests.tables import LAYERS, LOSSES, MODELS, draw, loss_point, model_batch, numbers

MANY, VERY_MANY = 16_385, 32_769
_SMALL = 24  # numbers in a row of which VERY_MANY are taken
_LARGE = 200  # numbers in a row that are left out: pictures of a size that other entries cover


def cast(tree: Any, dtype: Any) -> Any:
    """Return the tree with floating-point leaves in another dtype."""
    convert = lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf
    return jax.tree.map(lambda leaf: convert(np.asarray(leaf)), tree)


def rows_for(x: Any) -> int:
    """Return the size of the batch, from inputs for one example."""
    size = sum(part.size for part in jax.tree.leaves(x))
    return VERY_MANY if size <= _SMALL else MANY


def layer_program(layer: Layer, key: Any) -> Callable[..., Any]:
    """Return forward and backward pass in one program."""

    def run(params: Any, x: Any, delta: Any) -> Any:
        y, cache = layer.forward(params, x, key=key)
        return y, layer.backward(params, cache, delta)

    return run


def once(cases: list[Any]) -> list[Any]:
    """Return the first case of each name."""
    return list({case.name: case for case in reversed(cases)}.values())


def programs(dtype: Any) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """Yield name, function and arguments of each program."""
    cases = once([case for case in LAYERS if not case.training])
    if dtype == np.float64:  # in other dtypes JAX draws other random numbers
        cases += [case for case in LAYERS if case.training]
    for i, case in enumerate(cases):
        layer = case.make()
        params, shape = draw(layer, case.shape)
        rows = rows_for(case.input())
        delta = numbers(rows, *shape, seed=2)
        arguments = cast((params, case.input(rows), delta), dtype)
        yield f"layer {case.name} {i}", layer_program(layer, case.key), arguments
    for i, loss_case in enumerate(LOSSES):  # some stand there twice, with other targets
        with jax.enable_x64(True):  # rounded alike with all flags and dtypes
            point = loss_point(loss_case, jax.random.key(3), (VERY_MANY, 4))
        arguments = cast(cast(point, np.float32), dtype)  # the same numbers in all dtypes
        run = lambda a, y, loss=loss_case.loss: (loss.value(a, y), loss.delta(a, y))
        yield f"loss {loss_case.name} {i}", run, arguments
    small = [case for case in MODELS if np.prod(case.shape) <= _LARGE and " " not in case.name]
    for model_case in once(small):
        params, _ = draw(model_case.model, model_case.shape)
        x, y = model_batch(model_case, MANY)
        params, x, y = cast((params, x, y), dtype)
        optimizer = optimizers.momentum(0.1)
        step = training.make_step(model_case.model, model_case.loss, optimizer)
        state = training.TrainState(
            params, optimizer.init(params), jnp.zeros((), jnp.int32), jax.random.key(3)
        )
        run = lambda state, x, y, step=step: (lambda new, info: (new.params, info))(
            *step(state, x, y)
        )
        yield f"training step of {model_case.name}", run, (state, x, y)


def condensed(leaf: Any) -> np.ndarray:
    """Return a leaf in float64, one number a row if it has very many rows."""
    array = np.asarray(leaf).astype(np.float64)
    if array.ndim < 2 or len(array) < MANY:
        return array
    rows = array.reshape(len(array), -1)
    return rows @ np.random.default_rng(0).uniform(0.5, 1.5, rows.shape[1])


def differences(
    results: dict[str, np.ndarray],
    exact: dict[str, np.ndarray],
    of_leaf: float,
    of_largest: float,
) -> list[str]:
    """Return a line for each leaf of `results` that is further from the exact one than allowed.

    Args:
        results: what was computed, by program and path.
        exact: the known answers.
        of_leaf: the tolerance as a share of the leaf's root mean square.
        of_largest: the share of that of the program's largest leaf, which is allowed in addition.
    """
    sizes = {name: float(np.sqrt(np.mean(leaf**2))) for name, leaf in exact.items() if leaf.size}
    largest: dict[str, float] = {}
    for name, size in sizes.items():
        program = name.partition("[")[0]
        largest[program] = max(largest.get(program, 0.0), size)
    lines = []
    for name, leaf in results.items():
        if not leaf.size:
            continue
        gap = np.abs(leaf - exact[name]).max()
        allowed = of_leaf * sizes[name] + of_largest * largest[name.partition("[")[0]]
        if not gap <= allowed:
            lines.append(f"{name}: differs by {gap:.3g}, allowed are {allowed:.3g}")
    return lines


def main() -> None:
    """Run all programs and write their results."""
    dtype = np.dtype(sys.argv[2])
    results = {}
    with jax.enable_x64(dtype == np.float64):
        for name, function, arguments in programs(dtype):
            answer = jax.jit(function)(*arguments)
            for path, leaf in jax.tree_util.tree_leaves_with_path(answer):
                results[f"{name}{jax.tree_util.keystr(path)}"] = condensed(leaf)
    np.savez(sys.argv[1], **results)


if __name__ == "__main__":
    main()
