"""The programs that measure the norms of each layer's deltas, gradients and updates.

XLA compiles each reduction of an array to a number by itself, and a model has several for each of
its parameters: for a chain of 100 dense layers they take ten times as long to compile as the
backward pass. So for a model of many parameters one program returns the arrays, and one small
program for each shape reduces them.
"""

from collections.abc import Callable
from typing import Any

import jax

from fbp import diagnostics
from fbp._kernels import MIN_TENSORS_TO_REDUCE_APART
from fbp._observation import leaf_paths
from fbp.experiment.runner.compilation import Compiler
from fbp.layer import Array, Layer, Loss, Optimizer
from fbp.optimizers.norms import plain_norm
from fbp.training import TrainState

_TITLE = "the program for norms of layers"


def make_layer_norms(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    state: TrainState,
    batch: tuple[Array, Array],
    compiler: Compiler,
) -> Callable[[TrainState], dict[str, Any]]:
    """Return a function from a state to the norms by name, see :func:`diagnostics.as_metrics`.

    It compiles at its first call.

    Args:
        model: any layer.
        loss: its loss.
        optimizer: whose updates are measured.
        state: a state, for the number of its parameters.
        batch: training examples and their targets.
        compiler: compiles, and is left if a signal comes.
    """
    parts = model, loss, optimizer
    if len(jax.tree.leaves(state.params)) < MIN_TENSORS_TO_REDUCE_APART:
        together = compiler.program(_TITLE, diagnostics.layer_norms(*parts))
        return lambda state: diagnostics.as_metrics(
            jax.device_get(together(state.params, state.opt_state, *batch))
        )
    arrays = compiler.program(_TITLE, diagnostics.layer_tensors(*parts))
    paths = leaf_paths(model)
    norm, ratio = jax.jit(plain_norm), jax.jit(diagnostics.update_ratio)

    def layer_norms(state: TrainState) -> dict[str, Any]:
        tensors = arrays(state.params, state.opt_state, *batch)
        with compiler.stop.obeyed_at_once("while norms of layers were measured"):
            norms = diagnostics.norms_of(tensors, state.params, paths, norm, ratio)
            return diagnostics.as_metrics(jax.device_get(norms))

    return layer_norms
