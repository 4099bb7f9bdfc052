"""Losses as pairs of value and delta.

``value(output, target) -> (B,)`` is C_i, the cost of each example. ``delta(output, target)`` is
dC_i/d(output_i), with the output's shape: the first factor of equation (1), the output error.
Neither is reduced over the batch. The mean, a mask or weights per example enter through the
``cost_weights`` by which :func:`fbp.value_and_grad` multiplies both, and label smoothing enters
through the target (:func:`smooth_labels`).

If sigma' of the output layer would cancel against the loss, the two are one loss on logits z,
whose delta *is* delta^L: ``softmax(z) - y`` and ``sigmoid(z) - y``. These stay finite at any
finite logits.

Over the last axis of an example the classification losses sum over classes; the positions of a
sequence, ``(B, T, K)``, are averaged. ``target`` has the output's shape, except for integer class
labels, which lack its last axis. A negative label counts as no target: its cost and delta are 0,
and the average over positions leaves it out.
"""

from fbp.losses._composition import from_function as from_function
from fbp.losses._composition import smooth_labels as smooth_labels
from fbp.losses._composition import weighted as weighted
from fbp.losses._logits import hinge as hinge
from fbp.losses._logits import kl_divergence as kl_divergence
from fbp.losses._logits import multiclass_hinge as multiclass_hinge
from fbp.losses._logits import sigmoid_cross_entropy as sigmoid_cross_entropy
from fbp.losses._logits import softmax_cross_entropy as softmax_cross_entropy
from fbp.losses._probabilities import binary_cross_entropy as binary_cross_entropy
from fbp.losses._probabilities import cross_entropy as cross_entropy
from fbp.losses._regression import huber as huber
from fbp.losses._regression import log_cosh as log_cosh
from fbp.losses._regression import mean_absolute_error as mean_absolute_error
from fbp.losses._regression import mean_squared_error as mean_squared_error
from fbp.losses._regression import poisson as poisson
from fbp.losses._regression import quadratic as quadratic
