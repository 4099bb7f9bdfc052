"""The optimizers by their names; each is only a chain of transforms. A learning rate may be a number or a schedule.

Whether descent is per example, mini-batch or full-batch is the batch size's affair, not the optimizer's.
"""

from fbp.layer import Array, Optimizer
from fbp.optimizers.base import Mask, Scalar, chain, scale_by_learning_rate
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


def sgd(learning_rate: Scalar) -> Optimizer:
    """Gradient descent, ``w = w - learning_rate g``.

    >>> import jax.numpy as jnp
    >>> optimizer = sgd(0.1)
    >>> updates, _ = optimizer.update(jnp.array(2.0), optimizer.init(jnp.array(1.0)), jnp.array(1.0))
    >>> print(updates)
    -0.2
    """
    return scale_by_learning_rate(learning_rate)


def momentum(learning_rate: Scalar, momentum: float | Array = 0.9) -> Optimizer:
    """``v = momentum v + g``, ``w = w - learning_rate v``. Polyak (1964).

    The textbook's form ``v = momentum v - learning_rate g``, ``w = w + v`` is the same for a constant learning rate.
    """
    return chain(accumulate_momentum(momentum), scale_by_learning_rate(learning_rate))


def nesterov(learning_rate: Scalar, momentum: float | Array = 0.9) -> Optimizer:
    """``v = momentum v + g``, ``w = w - learning_rate (g + momentum v)``. Nesterov (1983), as in Sutskever et al. (2013)."""
    return chain(
        accumulate_momentum(momentum, nesterov=True), scale_by_learning_rate(learning_rate)
    )


def adagrad(
    learning_rate: Scalar, initial: float | Array = 0.0, epsilon: float | Array = 1e-10
) -> Optimizer:
    """``G = G + g^2``, ``w = w - learning_rate g / (sqrt(G) + epsilon)``. Duchi, Hazan and Singer (2011).

    As in PyTorch. Optax and Keras start G at 0.1 and put epsilon under the root.
    """
    return chain(scale_by_adagrad(initial, epsilon), scale_by_learning_rate(learning_rate))


def adadelta(
    learning_rate: Scalar = 1.0, decay: float | Array = 0.9, epsilon: float | Array = 1e-6
) -> Optimizer:
    """Steps in the units of the parameters, without a global rate. Zeiler (2012)."""
    return chain(scale_by_adadelta(decay, epsilon), scale_by_learning_rate(learning_rate))


def rmsprop(
    learning_rate: Scalar,
    decay: float | Array = 0.9,
    epsilon: float | Array = 1e-8,
    centered: bool = False,
    momentum: float | Array | None = None,
) -> Optimizer:
    """``v = decay v + (1 - decay) g^2``, ``w = w - learning_rate g / (sqrt(v) + epsilon)``. Tieleman and Hinton (2012).

    Centered, v is the running variance (Graves, 2013). With ``momentum`` the scaled gradients gather in a velocity.
    Epsilon is outside the root, as in PyTorch; Optax has it inside by default.
    """
    gather = () if momentum is None else (accumulate_momentum(momentum),)
    return chain(
        scale_by_rms(decay, epsilon, centered), *gather, scale_by_learning_rate(learning_rate)
    )


def adam(
    learning_rate: Scalar,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.999,
    epsilon: float | Array = 1e-8,
) -> Optimizer:
    """``w = w - learning_rate m^ / (sqrt(v^) + epsilon)`` with bias-corrected moments m^, v^. Kingma and Ba (2015)."""
    return chain(scale_by_adam(beta1, beta2, epsilon), scale_by_learning_rate(learning_rate))


def amsgrad(
    learning_rate: Scalar,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.999,
    epsilon: float | Array = 1e-8,
) -> Optimizer:
    """Adam with a second moment that never shrinks. Reddi, Kale and Kumar (2018).

    The maximum is taken over v and corrected for bias afterwards, as in PyTorch and Keras; the paper corrects nothing, and
    Optax takes the maximum of the corrected v^.
    """
    return chain(scale_by_amsgrad(beta1, beta2, epsilon), scale_by_learning_rate(learning_rate))


def nadam(
    learning_rate: Scalar,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.999,
    epsilon: float | Array = 1e-8,
) -> Optimizer:
    """Adam with Nesterov's look-ahead in the first moment. Dozat (2016).

    With a constant beta1, as in Optax; PyTorch and Keras warm beta1 up by the paper's schedule.
    """
    return chain(
        scale_by_adam(beta1, beta2, epsilon, nesterov=True), scale_by_learning_rate(learning_rate)
    )


def adamw(
    learning_rate: Scalar,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.999,
    epsilon: float | Array = 1e-8,
    weight_decay: float | Array = 0.01,
    mask: Mask = None,
) -> Optimizer:
    """Adam with decoupled decay, ``- learning_rate weight_decay w``. Loshchilov and Hutter (2019).

    ``mask: params -> tree of booleans`` says what decays: weights, not biases, by default.
    """
    return chain(
        scale_by_adam(beta1, beta2, epsilon),
        decoupled_weight_decay(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def lion(
    learning_rate: Scalar,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.99,
    weight_decay: float | Array = 0.0,
    mask: Mask = None,
) -> Optimizer:
    """Steps of constant size by the sign of an interpolated momentum. Chen et al. (2023)."""
    return chain(
        scale_by_lion(beta1, beta2),
        decoupled_weight_decay(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def lamb(
    learning_rate: Scalar,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.999,
    epsilon: float | Array = 1e-6,
    weight_decay: float | Array = 0.0,
    mask: Mask = None,
) -> Optimizer:
    """AdamW whose step is scaled, tensor by tensor, to the norm of the weights; for large batches. You et al. (2020)."""
    return chain(
        scale_by_adam(beta1, beta2, epsilon),
        decoupled_weight_decay(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )
