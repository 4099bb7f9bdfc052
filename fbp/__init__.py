"""fbp: neural networks from pure JAX functions, with a backward pass written by hand.

``import fbp`` needs jax and numpy only. ``fbp.experiment`` (the runner and MLflow) and ``fbp.load``
need the packages of ``pip install 'fbp[run]'``; so do some of ``fbp.datasets``.
"""

from typing import TYPE_CHECKING

from fbp import _jaxlib
from fbp import augmentation as augmentation
from fbp import blocks as blocks
from fbp import diagnostics as diagnostics
from fbp import generation as generation
from fbp import initializers as initializers
from fbp import layers as layers
from fbp import losses as losses
from fbp import metrics as metrics
from fbp import models as models
from fbp import optimizers as optimizers
from fbp import schedules as schedules
from fbp import training as training
from fbp._backprop import as_function as as_function
from fbp._backprop import backpropagate as backpropagate
from fbp._backprop import count_parameters as count_parameters
from fbp._backprop import deltas as deltas
from fbp._backprop import from_function as from_function
from fbp._backprop import replace_deltas as replace_deltas
from fbp._backprop import tap as tap
from fbp._backprop import untap as untap
from fbp._backprop import value_and_grad as value_and_grad
from fbp._gradcheck import check_gradients as check_gradients
from fbp._summary import summarize as summarize
from fbp.combinators import bidirectional as bidirectional
from fbp.combinators import chain as chain
from fbp.combinators import graph as graph
from fbp.combinators import parallel as parallel
from fbp.combinators import precision as precision
from fbp.combinators import recompute as recompute
from fbp.combinators import repeat as repeat
from fbp.combinators import residual as residual
from fbp.combinators import tie as tie
from fbp.errors import InputError as InputError
from fbp.errors import MissingDependency as MissingDependency
from fbp.errors import ShapeError as ShapeError
from fbp.layer import Layer as Layer
from fbp.layer import Loss as Loss
from fbp.layer import Optimizer as Optimizer
from fbp.layer import map_layers as map_layers

if TYPE_CHECKING:  # the names that __getattr__ imports
    from fbp import datasets as datasets
    from fbp import experiment as experiment
    from fbp.experiment import load as load

__version__ = "0.1.0"

_jaxlib.warn_if_wrong()

_IMPORTED_WHEN_USED = ("datasets", "experiment", "load")


def __dir__() -> list[str]:
    """Return the public names, those that are imported when first used among them."""
    return sorted({*globals(), *_IMPORTED_WHEN_USED})


def __getattr__(name: str) -> object:
    """Import ``fbp.datasets``, ``fbp.experiment`` or ``fbp.load`` when it is first used."""
    import importlib

    if name in ("datasets", "experiment"):
        return importlib.import_module(f"fbp.{name}")
    if name == "load":
        return importlib.import_module("fbp.experiment").load
    raise AttributeError(f"module 'fbp' has no attribute {name!r}")
