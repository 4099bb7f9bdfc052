"""One table of everything public that has a backward pass; test_gradients.py refuses gaps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import blocks, layers, losses, models
from fbp._gradcheck import quick_options
from fbp.layer import Layer, Loss


def quick_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a compiled function that compiles quickly, because it runs once."""
    return jax.jit(function, compiler_options=quick_options())


def compile_as_shipped(lowered: Any) -> Any:
    """Return a program compiled as for users, where the tests compile more quickly.

    See `_compile_quickly` in conftest.py.
    """
    slow = {"xla_cpu_use_fusion_emitters": True}
    return lowered.compile(compiler_options=slow if len(quick_options()) > 1 else None)


def draw(layer: Layer, shape, seed: int = 0):
    """Return parameters from NumPy, and the output's shape.

    jax.random would be compiled anew for each shape.
    """
    random = np.random.default_rng(seed)
    out_shape = []

    def init(key):
        params, out = layer.init(key, shape)
        out_shape.append(out)
        return params

    params = jax.eval_shape(init, jax.random.key(0))

    def drawn(path, leaf):
        values = random.normal(size=leaf.shape)
        name = getattr(path[-1], "key", "")
        if name in ("scale", "g", "variance"):
            return (1 + 0.1 * np.abs(values)).astype(leaf.dtype)
        return ((1 / np.sqrt(leaf.shape[-2]) if leaf.ndim > 1 else 0.1) * values).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(drawn, params), out_shape[0]


def numbers(*shape: int, seed: int = 1):
    """Normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class LayerCase(NamedTuple):
    name: str  # in fbp.layers or fbp; what coverage is counted by
    make: Callable[[], Layer]
    shape: tuple = (6,)  # several inputs: one shape each
    training: bool = False  # with a key
    tokens: int = 0  # inputs are whole numbers below this
    lengths: bool = False  # one more input: how many positions are real

    @property
    def key(self):
        return jax.random.key(3) if self.training else None

    def input(self, *batch: int):
        if self.tokens:
            return (
                np.random.default_rng(1)
                .integers(0, self.tokens, (*batch, *self.shape))
                .astype(np.int32)
            )
        several = isinstance(self.shape[0], tuple)
        parts = [
            numbers(*batch, *shape, seed=1 + i)
            for i, shape in enumerate(self.shape if several else [self.shape])
        ]
        if self.lengths:
            positions = parts[-1].shape[len(batch)]
            parts.append(
                np.random.default_rng(1).integers(1, positions + 1, batch).astype(np.int32)
            )
        return tuple(parts) if len(parts) > 1 else parts[0]


def repeated_slowly(cases):
    """The cases as pytest's parameters, those whose name was there before marked as slow."""
    names, parameters = set(), []
    for i, case in enumerate(cases):
        marks = [pytest.mark.slow] if case.name in names else []
        parameters.append(pytest.param(case, id=f"{case.name}-{i}", marks=marks))
        names.add(case.name)
    return parameters


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
    LayerCase("conv1d", lambda: layers.conv1d(5, 3, stride=2, dilation=2), (11, 3)),
    LayerCase("conv2d", lambda: layers.conv2d(5, 3), (6, 5, 2)),
    LayerCase(
        "conv2d", lambda: layers.conv2d(5, (3, 2), stride=(2, 1), padding="VALID"), (6, 5, 3)
    ),
    LayerCase(
        "conv2d",
        lambda: layers.conv2d(3, 3, padding=[(2, 1), (0, 3)], dilation=(1, 2), stride=2),
        (7, 6, 2),
    ),
    LayerCase("conv2d", lambda: layers.conv2d(3, 3, padding=1), (4, 4, 20)),
    LayerCase("conv2d", lambda: layers.conv2d(6, 3, groups=2, stride=2), (6, 5, 4)),
    LayerCase("conv2d", lambda: layers.conv2d(8, 3, groups=4), (5, 5, 4)),  # depthwise
    LayerCase("conv_transpose1d", lambda: layers.conv_transpose1d(4, 4, stride=3), (4, 2)),
    LayerCase("conv_transpose2d", lambda: layers.conv_transpose2d(3, 3, stride=2), (3, 4, 2)),
    LayerCase(
        "conv_transpose2d",
        lambda: layers.conv_transpose2d(3, (3, 2), stride=2, padding="VALID"),
        (3, 4, 5),
    ),
    LayerCase("max_pool", lambda: layers.max_pool(2), (6, 4, 3)),
    LayerCase("max_pool", lambda: layers.max_pool((3, 2), stride=2, padding="SAME"), (5, 6, 3)),
    LayerCase("max_pool", lambda: layers.max_pool(3, stride=1, padding=1), (9, 2)),
    LayerCase("avg_pool", lambda: layers.avg_pool(2), (6, 4, 3)),
    LayerCase("avg_pool", lambda: layers.avg_pool(3, stride=2, padding="SAME"), (5, 6, 3)),
    LayerCase("global_avg_pool", layers.global_avg_pool, (4, 3, 2)),
    LayerCase("global_max_pool", layers.global_max_pool, (4, 3, 2)),
    LayerCase("layer_norm", layers.layer_norm, (3, 6)),
    LayerCase("rms_norm", layers.rms_norm, (3, 6)),
    LayerCase("group_norm", lambda: layers.group_norm(2), (3, 2, 6)),
    LayerCase("batch_norm", layers.batch_norm, (3, 2, 6)),
    LayerCase("batch_norm", layers.batch_norm, (3, 2, 6), training=True),
    LayerCase("weight_norm", lambda: layers.weight_norm(layers.dense(4))),
    LayerCase("weight_norm", lambda: layers.weight_norm(layers.conv2d(4, 3)), (4, 4, 2)),
    LayerCase("dropout", lambda: layers.dropout(0.4)),
    LayerCase("dropout", lambda: layers.dropout(0.4), training=True),
    LayerCase("stochastic_depth", lambda: layers.stochastic_depth(0.5)),
    LayerCase(
        "stochastic_depth",
        lambda: fbp.residual(layers.dense(6), layers.stochastic_depth(0.5)),
        training=True,
    ),
    LayerCase("embedding", lambda: layers.embedding(7, 4), (5,), tokens=7),
    LayerCase("learned_positions", lambda: layers.learned_positions(8), (5, 4)),
    LayerCase("sinusoidal_positions", layers.sinusoidal_positions, (5, 3)),
    LayerCase("rnn", lambda: layers.rnn(4), (5, 3)),
    LayerCase("rnn", lambda: layers.rnn(4, output="last", reverse=True), (5, 3)),
    LayerCase("lstm", lambda: layers.lstm(4), (5, 3)),
    LayerCase("lstm", lambda: layers.lstm(4, output="last"), (5, 3)),
    LayerCase("gru", lambda: layers.gru(4, reverse=True), (5, 3)),
    LayerCase("gru", lambda: layers.gru(4, output="last"), (5, 3)),
    LayerCase("bidirectional", lambda: fbp.bidirectional(layers.lstm, 3), (5, 2)),
    LayerCase("repeat", lambda: fbp.repeat(fbp.residual(layers.dense(6), layers.tanh()), 3)),
    LayerCase(
        "repeat",
        lambda: fbp.repeat(fbp.chain(layers.dropout(0.3), layers.dense(6)), 3),
        training=True,
    ),
    LayerCase(
        "recompute",
        lambda: fbp.recompute(fbp.chain(layers.dense(5), layers.gelu(), layers.dropout(0.3))),
        training=True,
    ),
    LayerCase(
        "recompute",
        lambda: fbp.repeat(fbp.recompute(fbp.residual(layers.dense(6), layers.silu())), 3),
    ),
    LayerCase(
        "dot_product_attention", layers.dot_product_attention, ((4, 2, 3), (5, 2, 3), (5, 2, 3))
    ),
    LayerCase(
        "dot_product_attention",
        lambda: layers.dot_product_attention(causal=True, with_lengths=True),
        ((5, 2, 3), (5, 2, 3), (5, 2, 3)),
        lengths=True,
    ),
    LayerCase("attention", lambda: layers.attention(2), (5, 6)),
    LayerCase("attention", lambda: layers.attention(3, causal=True, rotary=True), (5, 6)),
    LayerCase("attention", lambda: layers.attention(2, with_lengths=True), (5, 6), lengths=True),
    LayerCase("attention", lambda: layers.attention(2, cross=True), ((4, 6), (5, 3))),
    LayerCase(
        "attention",
        lambda: layers.attention(2, cross=True, with_lengths=True),
        ((4, 6), (5, 3)),
        lengths=True,
    ),
    LayerCase("unembedding", lambda: layers.unembedding(7), (5, 4)),
    LayerCase("learned_positions", layers.learned_positions, (5, 4)),
    LayerCase("add", layers.add, ((4, 3), (4, 3))),
    LayerCase("multiply", layers.multiply, ((4, 3), (4, 3), (4, 3))),
    LayerCase("concatenate", layers.concatenate, ((4, 3), (4, 2))),
    LayerCase("flatten", layers.flatten, (2, 3, 2)),
    LayerCase("reshape", lambda: layers.reshape((3, -1)), (2, 6)),
    LayerCase("transpose", lambda: layers.transpose((2, 0, 1)), (2, 3, 4)),
    LayerCase("pad", lambda: layers.pad([(1, 2), (0, 1)]), (3, 2, 2)),
    LayerCase("crop", lambda: layers.crop([(1, 0), (0, 2)]), (3, 4, 2)),
    LayerCase("upsample", lambda: layers.upsample(2), (2, 3, 2)),
    LayerCase("chain", lambda: fbp.chain(layers.dense(5), layers.tanh(), layers.dense(3))),
    LayerCase("residual", lambda: fbp.residual(layers.dense(6), layers.tanh())),
    LayerCase(
        "residual", lambda: fbp.residual(layers.dense(4), layers.tanh(), shortcut=layers.dense(4))
    ),
    LayerCase(
        "parallel", lambda: fbp.parallel(layers.dense(4), fbp.chain(layers.dense(4), layers.tanh()))
    ),
    LayerCase(
        "parallel",
        lambda: fbp.parallel(
            layers.dense(2), fbp.chain(layers.dense(3), layers.silu()), combine="concatenate"
        ),
    ),
]


def _tied():
    return fbp.chain(
        layers.embedding(7, 4), layers.layer_norm(), layers.dense(4), layers.unembedding(7)
    )


LAYERS += [
    LayerCase("tie", lambda: fbp.tie(_tied(), {"3": "0"}), (5,), tokens=7),
    LayerCase(
        "tie",
        lambda: fbp.tie(fbp.chain(layers.dense(6), layers.tanh(), layers.dense(6)), {"2": "0"}),
    ),
    LayerCase(
        "graph",
        lambda: fbp.graph(
            {
                "joined": (layers.concatenate(), "left", "right", "stem"),  # in any order
                "stem": (fbp.chain(layers.dense(5), layers.tanh()), "x"),
                "left": (layers.dense(2), "stem"),
                "right": (fbp.residual(layers.dense(5)), "stem"),
                "gate": (layers.multiply(), "stem", "stem"),  # one node read twice
                "end": (layers.concatenate(), "joined", "gate"),
            }
        ),
    ),
    LayerCase(
        "graph",
        lambda: fbp.graph(
            {
                "a": (layers.dense(4), "u"),
                "b": (layers.dense(4), "v"),
                "sum": (layers.add(), "a", "b"),
            },
            inputs=("u", "v"),
        ),
        ((6,), (3,)),
    ),
]


LAYERS += [
    LayerCase(
        "transformer_block",
        lambda: blocks.transformer_block(6, 2, causal=True, rotary=False),
        (4, 6),
    ),
    LayerCase(
        "transformer_block",
        lambda: blocks.transformer_block(4, 2, dropout_rate=0.2),
        (4, 4),
        training=True,
    ),
    LayerCase("mixer_block", lambda: blocks.mixer_block(4, 3), (4, 3)),
    LayerCase(
        "residual_block",
        lambda: blocks.residual_block(4, stride=2, project=True),
        (4, 4, 2),
        training=True,
    ),
]

_CONVOLUTION = (
    "GEMMs over patches move more bytes and take a fraction of the time: benchmarks, cnn and layers"
)
_RECOMPUTED = "computes a second time on purpose: it saves memory"
# layers whose compiled FLOPs, bytes or scratch memory are more than autodiff's, and why
COSTS_MORE = {
    "conv1d": _CONVOLUTION,
    "conv2d": _CONVOLUTION,
    "conv_transpose1d": _CONVOLUTION,
    "conv_transpose2d": _CONVOLUTION,
    "residual_block": _CONVOLUTION,
    "weight_norm": "around a convolution",
    "max_pool": "comparisons in place of select-and-scatter, which is no faster: benchmarks",
    "rms_norm": "one division a row, and its normalized input kept once: benchmarks, layers",
    "rnn": "XLA counts a loop's body once, and autodiff has its weight gradients there: "
    "test_recurrent_layers_cost_less",
    "gru": "as rnn",
    "recompute": _RECOMPUTED,
    "repeat": "one random key per copy is counted; bytes and scratch see TestRepeat",
}


# more scratch memory than autodiff with one version of jaxlib: at most by which factor, and why
MORE_SCRATCH = {
    ("gpt", "0.10.1"): (
        1.02,
        "the order its CPU compiler picks; 1.19 at 64 features; 0.12 needs 0.9",
    ),
}


class LossCase(NamedTuple):
    name: str
    loss: Loss
    target: Callable[[Any, tuple[int, ...]], Any]  # (key, output shape) -> target
    output: Callable[[Any], Any] = lambda z: (
        z
    )  # from normal numbers to outputs the loss is defined on


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
    tokens: int = 0  # inputs are whole numbers below this
    sequence: bool = False  # a target at each position
    costly: bool = False  # holds layers of COSTS_MORE


_CE, _MSE = losses.softmax_cross_entropy, losses.mean_squared_error
_TEXTBOOK = models.mlp(10, (30,), layers.sigmoid, output_activation=layers.sigmoid)
_SOFTMAX_OUTPUT = models.mlp(10, (32, 32), layers.softplus, output_activation=layers.softmax)
_MODELS = [
    ModelCase("mlp", _TEXTBOOK, losses.quadratic, (784,), 10, False),
    ModelCase(
        "mlp",
        models.mlp(10, (100,), layers.sigmoid),
        losses.sigmoid_cross_entropy,
        (784,),
        10,
        False,
    ),
    ModelCase("mlp", models.mlp(10, (512, 512)), _CE, (28, 28, 1), 10, True),
    ModelCase("mlp", models.mlp(3, (64, 64, 64), residual_blocks=True), _MSE, (13,), 3, False),
    ModelCase("mlp", _SOFTMAX_OUTPUT, _MSE, (64,), 10, False),
]
# and every activation inside the same network
_ACTIVATIONS = [
    layers.identity,
    layers.sigmoid,
    layers.tanh,
    layers.relu,
    layers.leaky_relu,
    layers.elu,
    layers.selu,
    layers.softplus,
    layers.silu,
    layers.gelu,
    lambda: layers.gelu(approximate=True),
    layers.softmax,
    layers.log_softmax,
]
MODELS = _MODELS + [
    ModelCase(
        f"mlp {activation().name}", models.mlp(10, (128, 128), activation), _CE, (64,), 10, True
    )
    for activation in _ACTIVATIONS
]


_SEQUENCE = {"labels": True, "tokens": 7, "sequence": True}
_PICTURE = {"labels": True, "costly": True}
MODELS += [
    ModelCase(
        "autoencoder",
        models.autoencoder(64, output_activation=layers.sigmoid),
        _MSE,
        (8, 8, 1),
        64,
        False,
    ),
    ModelCase("rnn", models.rnn(3, (8, 8), bidirectional=True), _CE, (5, 4), 3, True, costly=True),
    ModelCase(
        "gru",
        models.gru(7, (8,), embedding_width=6, vocabulary=7, sequence=True),
        _CE,
        (5,),
        7,
        **_SEQUENCE,
    ),
    ModelCase("lstm", models.lstm(3, (8,)), _MSE, (5, 4), 3, False),
    ModelCase("gpt", models.gpt(7, 2, 2, 8), _CE, (5,), 7, **_SEQUENCE),
    ModelCase(
        "gpt", models.gpt(7, 1, 2, 8, positions="rotary", tied=False), _CE, (5,), 7, **_SEQUENCE
    ),
    ModelCase("lenet5", models.lenet5(10), _CE, (28, 28, 1), 10, **_PICTURE),
    ModelCase(
        "cnn", models.cnn(10, (4, 6), hidden=(8,), norm=True), _CE, (8, 8, 1), 10, **_PICTURE
    ),
    ModelCase("resnet", models.resnet(10, 8, 4), _CE, (8, 8, 3), 10, **_PICTURE),
    ModelCase("inception", models.inception(10, 3), _CE, (8, 8, 1), 10, **_PICTURE),
    ModelCase("vit", models.vit(10, 4, 1, 2, 8), _CE, (8, 8, 1), 10, **_PICTURE),
]


def model_batch(case: ModelCase, batch: int, seed: int = 1):
    random = np.random.default_rng(seed)
    positions = case.shape[:1] if case.sequence else ()
    labels = random.integers(0, case.outputs, (batch, *positions)).astype(np.int32)
    if case.tokens:
        x = random.integers(0, case.tokens, (batch, *case.shape)).astype(np.int32)
    else:
        x = random.normal(size=(batch, *case.shape)).astype(np.float32)
    return x, labels if case.labels else np.eye(case.outputs, dtype=np.float32)[labels]


def loss_point(case: LossCase, key, shape):
    z_key, y_key = jax.random.split(key)
    return case.output(2 * jax.random.normal(z_key, shape)), jnp.asarray(case.target(y_key, shape))


def activations_slowly(cases):
    """Return pytest's parameters; mlps that only differ in their activation are slow."""
    marks = lambda case: [pytest.mark.slow] if " " in case.name else []
    return [
        pytest.param(case, id=f"{case.name}-{i}", marks=marks(case)) for i, case in enumerate(cases)
    ]
