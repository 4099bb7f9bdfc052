"""A module of a user's own functions, right and wrong ones, and how a configuration names them."""

import pytest

from fbp.errors import InputError
from fbp.experiment.config import reading
from fbp.experiment.runner import build

OWN = """
import jax, jax.numpy as jnp, numpy as np, fbp
from fbp.datasets import Dataset, Examples

class Thing:
    pass

def raises(*_, **__):
    raise KeyError("oh no")

def nothing():
    return None

def net(outputs: int, width: int = 4, act: fbp.blocks.Activation = fbp.layers.relu):
    return fbp.chain(fbp.layers.dense(width), act(), fbp.layers.dense(outputs))
def net_raises(outputs: int):
    return {}["x"]
def net_nothing(outputs: int):
    return None
def net_thing(outputs: int, thing: Thing):
    return net(outputs)
def net_optional_thing(outputs: int, thing: Thing = Thing()):
    return net(outputs)
def net_without():
    return net(3)
def net_with_text_in_cache(outputs: int):
    layer = fbp.Layer(lambda key, shape: ((), shape),
                      lambda params, x, *, key=None: (x, "cache"),
                      lambda params, cache, delta: (delta, ()), name="odd")
    return fbp.chain(fbp.layers.dense(4), fbp.residual(layer), fbp.layers.dense(outputs))

def swish(beta: float = 1.0):
    init = lambda key, shape: ((), shape)
    return fbp.from_function(lambda params, x: x * jax.nn.sigmoid(beta * x), init)

def draw(key, shape, dtype, scale: float = 1.0):
    return scale * jax.random.normal(key, shape, dtype)
def draw_factory(scale: float = 1.0):
    return lambda key, shape, dtype=jnp.float32: jnp.full(shape, scale, dtype)
def draw_wrong(key, shape, dtype):
    return jnp.zeros((7,), dtype)
def draw_raises(key, shape, dtype):
    raise KeyError("oh no")

def cost(power: int = 4):
    return fbp.losses.from_function(
        lambda output, target: (abs(jax.nn.softmax(output) - target) ** power).sum(axis=1),
        targets="one_hot", inverse_link=jax.nn.softmax)
instance = fbp.losses.hinge
def cost_wrong():
    return fbp.Loss(lambda output, target: output - target, lambda output, target: output)
def cost_raises():
    return fbp.Loss(raises, raises)

def rule(learning_rate: float, strength: float = 2.0):
    return fbp.optimizers.sgd(learning_rate)
def rule_pair(learning_rate):
    return (lambda params: (), lambda grads, state, params: (grads, state))
def rule_wrong(learning_rate):
    return fbp.Optimizer(lambda params: (), lambda grads, state, params: ((), state))
def rule_state(learning_rate):
    return fbp.Optimizer(lambda params: (), lambda grads, state, params: (grads, (1.0,)))
def rule_raises(learning_rate):
    return fbp.Optimizer(raises, raises)

def halving(value, steps: int, every: int = 5):
    return lambda step: value * 0.5 ** (step // every)
def rows(value):
    return lambda step: jnp.ones((2,)) * value
def rows_raises(value):
    return raises

def points(examples: int = 40):
    x = np.random.default_rng(0).normal(size=(examples, 2)).astype(np.float32)
    return Dataset("points", Examples(x, (x[:, 0] > 0).astype(np.int32)), classes=("a", "b"))
def points_wrong():
    return Dataset("points", Examples([1, 2], [3, 4]))

def top(output, target, k: int = 2):
    return (jnp.argsort(output, axis=1)[:, -k:] == target[:, None]).any(axis=1).astype(float)
@fbp.metrics.metric(higher_is_better=True, format=".1%")
def decorated_top(output, target, k: int = 2):
    return top(output, target, k)

def top_factory(k: int):
    return lambda output, target: top(output, target, k)
def top_other_names(y_pred, y_true):
    return top(y_pred, y_true)
margin = fbp.metrics.Metric(lambda output, target: output.max(axis=1), name="margin",
                            higher_is_better=True)
def top_wrong(output, target):
    return output
def top_raises(output, target):
    raise KeyError("oh no")

def noise(key, x, scale: float = 0.1):
    return x + scale * jax.random.normal(key, x.shape)
def noise_factory(scale: float = 0.1):
    return lambda key, x: x + scale
def noise_wrong(key, x):
    return x[:, :1]
def noise_raises(key, x):
    raise KeyError("oh no")

class Tracker:
    def __init__(self, run): ...

constant = 3
"""


# Where each kind is named, in a configuration that is otherwise right.
KEYS = {
    "data": "data={{name='{}'{}}}",
    "model": "model={{name='{}'{}}}",
    "activation": "model.activation={{name='{}'{}}}",
    "initializer": "model.weights={{name='{}'{}}}",
    "loss": "loss={{name='{}'{}}}",
    "optimizer": "optimizer={{name='{}', learning_rate=0.1{}}}",
    "schedule": "schedule={{name='{}'{}}}",
    "metric": "metrics.names=['accuracy', {{name='{}'{}}}]",
    "augmentation": "augmentation.names=[{{name='{}'{}}}]",
}


def override(kind, reference, more=""):
    return KEYS[kind].format(reference, more)


def refusal(minimal, *overrides):
    with pytest.raises(InputError) as caught:
        build.build(reading.read(minimal, overrides))
    (line,) = str(caught.value).splitlines()
    return line
