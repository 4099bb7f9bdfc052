"""The contestants: a file each, which defines ``prepare(work) -> Contestant``.

Each file writes its networks and training loop as the library's own documentation does.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple


class Contestant(NamedTuple):
    """A contestant that is ready to train.

    Attributes:
        start: returns a state with the initial weights and a fresh optimizer; it is not timed.
        train: takes all steps from that state and returns their costs, on the host.
    """

    start: Callable[[], Any]
    train: Callable[[Any], list[float]]


class Entry(NamedTuple):
    """The name of a contestant, its module and its requirements."""

    label: str
    module: str
    packages: tuple[str, ...]  # imported by it, not needed by fbp
    distributions: tuple[str, ...]  # whose versions matter
    arguments: dict[str, Any] = {}  # noqa: RUF012

    def missing(self) -> list[str]:
        """Return the packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def prepare(self, work: Any) -> Contestant:
        return importlib.import_module(f"benchmarks.contestants.{self.module}").prepare(
            work, **self.arguments
        )


ENTRIES = {
    "fbp": Entry("fbp", "ours", (), ("jax", "jaxlib")),
    "jax": Entry("jax.grad + scan", "plain_jax", (), ("jax", "jaxlib")),
    "flax": Entry("Flax NNX + Optax", "flax_nnx", ("flax", "optax"), ("flax", "optax", "jax")),
    "equinox": Entry(
        "Equinox + Optax", "equinox_optax", ("equinox", "optax"), ("equinox", "optax", "jax")
    ),
    "torch": Entry("PyTorch eager", "pytorch", ("torch",), ("torch",)),
    "compile": Entry("torch.compile", "pytorch", ("torch",), ("torch",), {"compiled": True}),
    "keras": Entry("Keras 3 on JAX", "keras_jax", ("keras",), ("keras", "jax")),
}
