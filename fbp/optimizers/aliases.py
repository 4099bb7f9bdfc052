"""The optimizers by their names; each is a chain of transforms.

Whether descent is per example, mini-batch or full-batch depends on the batch size, not on the
optimizer. Each factory returns an :class:`~fbp.layer.Optimizer`. The arguments that several share:

* ``learning_rate``: a number, a traced number, or a schedule of the update's count;
* ``epsilon``: a small number that keeps a divisor away from 0;
* ``mask``: ``params -> tree of booleans``, True for what decays; ``decay_mask(model)`` asks each
  layer, the default goes by the number of axes (see :mod:`fbp.optimizers.masks`).
"""

from fbp._arguments import checked
from fbp.layer import Array, Optimizer
from fbp.optimizers.base import Scalar, chain, scale_by_learning_rate
from fbp.optimizers.masks import Mask
from fbp.optimizers.rules import (
    accumulate_momentum,
    scale_by_adadelta,
    scale_by_adagrad,
    scale_by_adam,
    scale_by_amsgrad,
    scale_by_lion,
    scale_by_rms,
    scale_by_trust_ratio,
)
from fbp.optimizers.transforms import decoupled_weight_decay


@checked
def sgd(learning_rate: Scalar) -> Optimizer:
    """Return gradient descent, ``w = w - learning_rate g``.

    Args:
        learning_rate: a number or a schedule.

    >>> import jax.numpy as jnp
    >>> optimizer, params, grads = sgd(0.1), jnp.array(1.0), jnp.array(2.0)
    >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
    >>> print(updates)
    -0.2
    """
    return scale_by_learning_rate(learning_rate)


@checked
def momentum(learning_rate: Scalar, momentum: float | Array = 0.9) -> Optimizer:
    """Return momentum, ``v = momentum v + g``, ``w = w - learning_rate v``. Polyak (1964).

    The textbook's form ``v = momentum v - learning_rate g``, ``w = w + v`` is the same for a
    constant learning rate.

    Args:
        learning_rate: a number or a schedule.
        momentum: share of the velocity that each step keeps.
    """
    return chain(accumulate_momentum(momentum), scale_by_learning_rate(learning_rate))


@checked
def nesterov(learning_rate: Scalar, momentum: float | Array = 0.9) -> Optimizer:
    """Return Nesterov's momentum, ``v = momentum v + g``, ``w -= learning_rate (g + momentum v)``.

    Nesterov (1983), in the form of Sutskever et al. (2013).

    Args:
        learning_rate: a number or a schedule.
        momentum: share of the velocity that each step keeps.
    """
    return chain(
        accumulate_momentum(momentum, nesterov=True), scale_by_learning_rate(learning_rate)
    )


@checked
def adagrad(
    learning_rate: Scalar, initial: float | Array = 0.0, epsilon: float | Array = 1e-10
) -> Optimizer:
    """Return Adagrad, ``G = G + g^2``, ``w = w - learning_rate g / (sqrt(G) + epsilon)``.

    Duchi, Hazan and Singer (2011), in PyTorch's form. Optax and Keras start G at 0.1 and put
    epsilon under the root.

    Args:
        learning_rate: a number or a schedule.
        initial: G before the first step.
        epsilon: added to the root.
    """
    return chain(scale_by_adagrad(initial, epsilon), scale_by_learning_rate(learning_rate))


@checked
def adadelta(
    learning_rate: Scalar = 1.0, decay: float | Array = 0.9, epsilon: float | Array = 1e-6
) -> Optimizer:
    """Return Adadelta: steps in the units of the parameters, without a global rate. Zeiler (2012).

    Args:
        learning_rate: factor of the step, a number or a schedule; 1 in the paper.
        decay: of the running averages.
        epsilon: added under both roots.
    """
    return chain(scale_by_adadelta(decay, epsilon), scale_by_learning_rate(learning_rate))


@checked
def rmsprop(
    learning_rate: Scalar,
    decay: float | Array = 0.9,
    epsilon: float | Array = 1e-8,
    *,
    centered: bool = False,
    momentum: float | Array | None = None,
) -> Optimizer:
    """Return RMSprop, ``w = w - learning_rate g / (sqrt(v) + epsilon)``, v an average of ``g^2``.

    ``v = decay v + (1 - decay) g^2``. Tieleman and Hinton (2012). Epsilon is outside the root, as
    in PyTorch; Optax has it inside by default. The decay is 0.9 by default as in Optax and Keras;
    PyTorch's alpha is 0.99. With momentum, the velocity sums steps before the learning rate, as in
    PyTorch; Optax sums them after it, which is another rule if the rate follows a schedule.

    Args:
        learning_rate: a number or a schedule.
        decay: of the running average.
        epsilon: added to the root.
        centered: use the running variance in place of v (Graves, 2013).
        momentum: accumulate the scaled gradients in a velocity; None does not.
    """
    velocity = () if momentum is None else (accumulate_momentum(momentum),)
    return chain(
        scale_by_rms(decay, epsilon, centered=centered),
        *velocity,
        scale_by_learning_rate(learning_rate),
    )


@checked
def adam(
    learning_rate: Scalar,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.999,
    epsilon: float | Array = 1e-8,
) -> Optimizer:
    """Return Adam, ``w = w - learning_rate m^ / (sqrt(v^) + epsilon)``. Kingma and Ba (2015).

    Args:
        learning_rate: a number or a schedule.
        beta1: decay of the first moment; ``m^`` is corrected for its start at 0.
        beta2: decay of the second moment; ``v^`` is corrected for its start at 0.
        epsilon: added to the root.
    """
    return chain(scale_by_adam(beta1, beta2, epsilon), scale_by_learning_rate(learning_rate))


@checked
def amsgrad(
    learning_rate: Scalar,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.999,
    epsilon: float | Array = 1e-8,
) -> Optimizer:
    """Return AMSGrad: Adam with a second moment that never shrinks. Reddi, Kale and Kumar (2018).

    The maximum is taken over v and corrected for bias afterwards, as in PyTorch and Keras; the
    paper corrects nothing, and Optax takes the maximum of the corrected ``v^``.

    Args:
        learning_rate: a number or a schedule.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root.
    """
    return chain(scale_by_amsgrad(beta1, beta2, epsilon), scale_by_learning_rate(learning_rate))


@checked
def nadam(
    learning_rate: Scalar,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.999,
    epsilon: float | Array = 1e-8,
) -> Optimizer:
    """Return NAdam: Adam with Nesterov's look-ahead in the first moment. Dozat (2016).

    With a constant beta1, as in Optax; PyTorch and Keras warm beta1 up by the paper's schedule.

    Args:
        learning_rate: a number or a schedule.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root.
    """
    return chain(
        scale_by_adam(beta1, beta2, epsilon, nesterov=True), scale_by_learning_rate(learning_rate)
    )


@checked
def adamw(
    learning_rate: Scalar,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.999,
    epsilon: float | Array = 1e-8,
    *,
    weight_decay: float | Array = 0.01,
    mask: Mask = None,
) -> Optimizer:
    """Return Adam with decoupled decay, ``- learning_rate weight_decay w``.

    Loshchilov and Hutter (2019), *Decoupled weight decay regularization*. The decay is 0.01 by
    default and takes off weights only; in PyTorch it is 0.01, in Optax 0.0001, and both take it off
    all parameters unless they are told otherwise.

    Args:
        learning_rate: a number or a schedule.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root.
        weight_decay: strength of the decay, in units of the learning rate.
        mask: what decays; weights and not biases by default.
    """
    return chain(
        scale_by_adam(beta1, beta2, epsilon),
        decoupled_weight_decay(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@checked
def lion(
    learning_rate: Scalar,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.99,
    *,
    weight_decay: float | Array = 0.0,
    mask: Mask = None,
) -> Optimizer:
    """Return Lion: steps of constant size by the sign of an interpolated momentum.

    Chen et al. (2023), *Symbolic discovery of optimization algorithms*. Nothing decays by default;
    Optax's weight_decay is 0.001.

    Args:
        learning_rate: a number or a schedule.
        beta1: share of the momentum in the step.
        beta2: decay of the momentum.
        weight_decay: strength of the decay, in units of the learning rate.
        mask: what decays; weights and not biases by default.
    """
    return chain(
        scale_by_lion(beta1, beta2),
        decoupled_weight_decay(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@checked
def lamb(
    learning_rate: Scalar,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.999,
    epsilon: float | Array = 1e-6,
    *,
    weight_decay: float | Array = 0.0,
    mask: Mask = None,
) -> Optimizer:
    """Return LAMB: AdamW whose step is scaled, tensor by tensor, to the norm of the weights.

    For large batches. You et al. (2020), *Large batch optimization for deep learning*. As in Optax,
    the ratio of the norms is not clipped.

    Args:
        learning_rate: a number or a schedule.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root.
        weight_decay: strength of the decay, before the step is scaled.
        mask: what decays; weights and not biases by default.
    """
    return chain(
        scale_by_adam(beta1, beta2, epsilon),
        decoupled_weight_decay(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )
