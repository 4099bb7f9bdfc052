"""One table of everything public that has a backward pass. What is not in it fails test_gradients.py."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fbp
from fbp import layers, losses, models
from fbp.layer import Layer, Loss


def draw(layer: Layer, shape: tuple[int, ...], seed: int = 0):
    """Parameters of the right shapes from NumPy (jax.random would be compiled anew for each shape), and the output's shape."""
    random = np.random.default_rng(seed)
    out_shape = []

    def init(key):
        params, out = layer.init(key, shape)
        out_shape.append(out)
        return params

    params = jax.eval_shape(init, jax.random.key(0))
    scale = lambda leaf: 1 / np.sqrt(leaf.shape[-2]) if leaf.ndim > 1 else 0.1
    drawn = jax.tree.map(lambda p: (scale(p) * random.normal(size=p.shape)).astype(p.dtype), params)
    return drawn, out_shape[0]


def numbers(*shape: int, seed: int = 1):
    """Normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class LayerCase(NamedTuple):
    name: str  # in fbp.layers or fbp; what coverage is counted by
    make: Callable[[], Layer]
    shape: tuple[int, ...] = (6,)


LAYERS = [
    LayerCase("dense", lambda: layers.dense(4)),
    LayerCase("dense", lambda: layers.dense(4), (3, 6)),
    LayerCase("identity", layers.identity),
    LayerCase("sigmoid", layers.sigmoid),
    LayerCase("tanh", layers.tanh),
    LayerCase("relu", layers.relu),
    LayerCase("leaky_relu", lambda: layers.leaky_relu(0.2)),
    LayerCase("elu", lambda: layers.elu(0.7)),
    LayerCase("selu", layers.selu),
    LayerCase("softplus", layers.softplus),
    LayerCase("silu", layers.silu),
    LayerCase("gelu", layers.gelu),
    LayerCase("gelu", lambda: layers.gelu(approximate=True)),
    LayerCase("softmax", layers.softmax),
    LayerCase("log_softmax", layers.log_softmax),
    LayerCase("glu", layers.glu),
    LayerCase("maxout", lambda: layers.maxout(3)),
    LayerCase("flatten", layers.flatten, (2, 3, 2)),
    LayerCase("chain", lambda: fbp.chain(layers.dense(5), layers.tanh(), layers.dense(3))),
    LayerCase("residual", lambda: fbp.residual(layers.dense(6), layers.tanh())),
    LayerCase("residual", lambda: fbp.residual(layers.dense(4), layers.tanh(), shortcut=layers.dense(4))),
    LayerCase("parallel", lambda: fbp.parallel(layers.dense(4), fbp.chain(layers.dense(4), layers.tanh()))),
    LayerCase(
        "parallel",
        lambda: fbp.parallel(layers.dense(2), fbp.chain(layers.dense(3), layers.silu()), combine="concatenate"),
    ),
]


class LossCase(NamedTuple):
    name: str
    loss: Loss
    target: Callable[[Any, tuple[int, ...]], Any]  # (key, output shape) -> target
    output: Callable[[Any], Any] = lambda z: z  # from normal numbers to outputs the loss is defined on


def _numbers(key, shape):
    return jax.random.normal(key, shape)


def _labels(key, shape):
    return jax.random.randint(key, shape[:-1], 0, shape[-1])


def _distribution(key, shape):
    return jax.nn.softmax(jax.random.normal(key, shape))


def _bits(key, shape):
    return jax.random.bernoulli(key, shape=shape).astype(float)


def _signs(key, shape):
    return 2 * _bits(key, shape) - 1


def _counts(key, shape):
    return jax.random.poisson(key, 3.0, shape)


LOSSES = [
    LossCase("mean_squared_error", losses.mean_squared_error, _numbers),
    LossCase("quadratic", losses.quadratic, _numbers),
    LossCase("mean_absolute_error", losses.mean_absolute_error, _numbers),
    LossCase("huber", losses.huber(0.6), _numbers),
    LossCase("log_cosh", losses.log_cosh, _numbers),
    LossCase("softmax_cross_entropy", losses.softmax_cross_entropy, _labels),
    LossCase("softmax_cross_entropy", losses.softmax_cross_entropy, _distribution),
    LossCase("sigmoid_cross_entropy", losses.sigmoid_cross_entropy, _bits),
    LossCase("hinge", losses.hinge, _signs),
    LossCase("multiclass_hinge", losses.multiclass_hinge, _labels),
    LossCase("kl_divergence", losses.kl_divergence, _distribution),
    LossCase("cross_entropy", losses.cross_entropy, _labels, jax.nn.softmax),
    LossCase("cross_entropy", losses.cross_entropy, _distribution, jax.nn.softmax),
    LossCase("binary_cross_entropy", losses.binary_cross_entropy, _bits, jax.nn.sigmoid),
    LossCase("poisson", losses.poisson, _counts),
]


class ModelCase(NamedTuple):
    name: str
    model: Layer
    loss: Loss
    shape: tuple[int, ...]
    outputs: int
    labels: bool


_CE, _MSE = losses.softmax_cross_entropy, losses.mean_squared_error
_TEXTBOOK = models.mlp(10, (30,), layers.sigmoid, output_activation=layers.sigmoid)
_SOFTMAX_OUTPUT = models.mlp(10, (32, 32), layers.softplus, output_activation=layers.softmax)
_MODELS = [
    ModelCase("mlp", _TEXTBOOK, losses.quadratic, (784,), 10, False),
    ModelCase("mlp", models.mlp(10, (100,), layers.sigmoid), losses.sigmoid_cross_entropy, (784,), 10, False),
    ModelCase("mlp", models.mlp(10, (512, 512)), _CE, (28, 28, 1), 10, True),
    ModelCase("mlp", models.mlp(3, (64, 64, 64), residual_blocks=True), _MSE, (13,), 3, False),
    ModelCase("mlp", _SOFTMAX_OUTPUT, _MSE, (64,), 10, False),
]  # fmt: skip
# and every activation inside the same network
_ACTIVATIONS = [
    layers.identity, layers.sigmoid, layers.tanh, layers.relu, layers.leaky_relu, layers.elu, layers.selu, layers.softplus,
    layers.silu, layers.gelu, lambda: layers.gelu(approximate=True), layers.softmax, layers.log_softmax,
]  # fmt: skip
MODELS = _MODELS + [
    ModelCase("mlp", models.mlp(10, (128, 128), activation), _CE, (64,), 10, True) for activation in _ACTIVATIONS
]


def model_batch(case: ModelCase, batch: int, seed: int = 1):
    random = np.random.default_rng(seed)
    labels = random.integers(0, case.outputs, batch).astype(np.int32)
    x = random.normal(size=(batch, *case.shape)).astype(np.float32)
    return x, labels if case.labels else np.eye(case.outputs, dtype=np.float32)[labels]


def loss_point(case: LossCase, key, shape):
    z_key, y_key = jax.random.split(key)
    return case.output(2 * jax.random.normal(z_key, shape)), jnp.asarray(case.target(y_key, shape))
