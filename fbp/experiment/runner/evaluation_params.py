"""The parameters by which a model is evaluated, and which are kept."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from fbp import optimizers, training
from fbp._interruptible import call_apart
from fbp.experiment.runner.compilation import Compiler
from fbp.layer import Layer, Params
from fbp.training import TrainState

_GRACE = 1.0  # seconds for statistics if a signal has stopped the run


class EvaluationParams:
    """Returns, from a state, the parameters that are evaluated and kept.

    These are the average if the optimizer keeps one, and statistics of training examples are
    filled in.

    Args:
        model: what is trained.
        x: the training examples of which statistics are taken.
        batch_size: that of training.
        compiler: compiles the program that measures the statistics, if the model has some.
    """

    def __init__(self, model: Layer, x: np.ndarray, batch_size: int, compiler: Compiler):
        self._fill = None
        if training.has_statistics(model):
            self._fill = compiler.program(
                "the program for statistics of normalization layers",
                training.make_fill_statistics(model, batch_size=batch_size),
            )
            self._x = jnp.asarray(x)

    def compile(self, state: TrainState) -> None:
        """Compile for states of these shapes."""
        if self._fill is not None:
            self._fill.compile(_averaged(state), self._x, state.key)

    def __call__(self, state: TrainState) -> Params:
        """Return the parameters; compiles at the first call."""
        params = _averaged(state)
        return params if self._fill is None else self._fill(params, self._x, state.key)

    def at_once(self, state: TrainState) -> Params | None:
        """Return the parameters; None if that takes compilation, or more than a second."""
        params = _averaged(state)
        if self._fill is None:
            return params
        if not self._fill.is_compiled:
            return None
        fill, x, end = self._fill.compile(), self._x, time.monotonic() + _GRACE

        def check() -> None:
            if time.monotonic() > end:
                raise TimeoutError

        try:
            return call_apart(lambda: jax.block_until_ready(fill(params, x, state.key)), check)
        except TimeoutError:
            return None


def _averaged(state: TrainState) -> Params:
    return optimizers.averaged(state.opt_state, state.params)
