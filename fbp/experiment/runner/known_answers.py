"""Small programs whose exact answers are known integers, run to see whether the backend is right.

Started as a script of its own, by the file's path: a backend that is wrong may also crash, and
then takes its process with it. It therefore imports jax and numpy only.

The programs fuse reductions with products at sizes beyond 16,384 rows, where jaxlib 0.10.2
returns the values of other rows (jax-ml/jax#39103). They also reduce arrays of rank 7 and 8, where
0.10.2 and 0.11.0 end with a segmentation fault (jax-ml/jax#40412, jax-ml/jax#39257).

All factors of products are integers up to 256, which bfloat16 and TF32 hold exactly. All sums are
below 2^24, which float32 holds exactly, in whichever order they are added. So the answers are exact
on accelerators too.
"""

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Program = Callable[[np.dtype], tuple[jax.Array, np.ndarray]]

_ROWS: dict[np.dtype, int] = {np.dtype(np.float32): 32_769, np.dtype(np.float64): 16_385}


def _rows(dtype: np.dtype, features: int) -> np.ndarray:
    """Return integers from 0 to 6, (rows, features); no row equals its neighbours."""
    count = _ROWS[dtype]
    return (np.arange(count)[:, None] * 3 + np.arange(features)) % 7


def _squared_length_of_each_row(dtype: np.dtype) -> tuple[jax.Array, np.ndarray]:
    x = np.stack([np.arange(_ROWS[dtype]) % 251, *np.zeros((2, _ROWS[dtype]), int)], axis=1)
    rotate = jnp.eye(3, dtype=dtype)
    answer = jax.jit(jax.vmap(lambda row: jnp.sum((rotate @ row) ** 2)))(x.astype(dtype))
    return answer, (x**2).sum(1)


def _squared_error(dtype: np.dtype) -> tuple[jax.Array, np.ndarray]:
    x, w = _rows(dtype, 4), np.arange(12).reshape(4, 3) % 3
    cost = lambda x, w: jnp.sum((x @ w - 1) ** 2, axis=1)
    return jax.jit(cost)(x.astype(dtype), w.astype(dtype)), ((x @ w - 1) ** 2).sum(1)


def _weight_gradient(dtype: np.dtype) -> tuple[jax.Array, np.ndarray]:
    x, delta = _rows(dtype, 4), _rows(dtype, 3)[::-1] % 2
    gradient = lambda x, d: jnp.concatenate([x.T @ (d * (d > 0)), jnp.sum(d, axis=0)[None]])
    exact = np.concatenate([x.T @ delta, delta.sum(0)[None]])
    return jax.jit(gradient)(x.astype(dtype), delta.astype(dtype)), exact


def _normalized_rows(dtype: np.dtype) -> tuple[jax.Array, np.ndarray]:
    x = _rows(dtype, 8)
    centered = lambda x: jnp.sum((8 * x - jnp.sum(x, axis=1, keepdims=True)) ** 2, axis=1)
    return jax.jit(centered)(x.astype(dtype)), ((8 * x - x.sum(1, keepdims=True)) ** 2).sum(1)


def _rank_7(dtype: np.dtype) -> tuple[jax.Array, np.ndarray]:
    shape = (3, 1, 2, 2, 8, 8, 8)
    x = np.arange(np.prod(shape)).reshape(shape) % 7
    product = jax.jit(lambda x, y: jnp.sum(x * y, axis=3))
    return product(x.astype(dtype), (x + 1).astype(dtype)), (x * (x + 1)).sum(3)


def _rank_8(dtype: np.dtype) -> tuple[jax.Array, np.ndarray]:
    small = np.arange(12).reshape(3, 2, 2, 1, 1, 1, 1, 1) % 5
    large = np.arange(12 * 648).reshape(3, 2, 2, 2, 2, 2, 9, 9) % 7
    product = jax.jit(lambda x, y: jnp.sum(x * y, axis=2) + 1)
    return product(small.astype(dtype), large.astype(dtype)), (small * large).sum(2) + 1


SUMS: dict[str, Program] = {
    "squared length of each row": _squared_length_of_each_row,
    "squared error": _squared_error,
    "gradient of weights": _weight_gradient,
    "normalized rows": _normalized_rows,
}
CRASHES: dict[str, Program] = {
    "sum over an axis of rank 7": _rank_7,
    "sum over an axis of a broadcast product of rank 8": _rank_8,
}


def wrong_answers(programs: dict[str, Program]) -> list[str]:
    """Run the programs in float32 and float64 and return the names of those that are wrong."""
    wrong = []
    with jax.enable_x64(True):
        for name, program in programs.items():
            for dtype in _ROWS:
                answer, exact = program(dtype)
                if not np.array_equal(np.asarray(answer), exact):
                    wrong.append(f"{name} in {dtype.name}")
    return wrong


def main() -> None:
    """Print the kind of device and the wrong programs as JSON, once before those that may crash."""
    device = jax.devices()[0].device_kind
    wrong = wrong_answers(SUMS)
    print(json.dumps({"device": device, "wrong": wrong}), flush=True)
    wrong += wrong_answers(CRASHES)
    print(json.dumps({"device": device, "wrong": wrong, "complete": True}), flush=True)


if __name__ == "__main__":
    main()
