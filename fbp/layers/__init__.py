"""The layers: factories of :class:`fbp.Layer`, one family per file."""

from fbp.layers.activation import elu as elu
from fbp.layers.activation import gelu as gelu
from fbp.layers.activation import glu as glu
from fbp.layers.activation import identity as identity
from fbp.layers.activation import leaky_relu as leaky_relu
from fbp.layers.activation import log_softmax as log_softmax
from fbp.layers.activation import maxout as maxout
from fbp.layers.activation import relu as relu
from fbp.layers.activation import selu as selu
from fbp.layers.activation import sigmoid as sigmoid
from fbp.layers.activation import silu as silu
from fbp.layers.activation import softmax as softmax
from fbp.layers.activation import softplus as softplus
from fbp.layers.activation import tanh as tanh
from fbp.layers.dense import dense as dense
from fbp.layers.shape import flatten as flatten
