"""Models; each is a composition of layers, and its first argument is the number of outputs."""

from fbp.models._dense import autoencoder as autoencoder
from fbp.models._dense import mlp as mlp
from fbp.models._images import cnn as cnn
from fbp.models._images import inception as inception
from fbp.models._images import lenet5 as lenet5
from fbp.models._images import resnet as resnet
from fbp.models._images import vit as vit
from fbp.models._sequences import gpt as gpt
from fbp.models._sequences import gru as gru
from fbp.models._sequences import lstm as lstm
from fbp.models._sequences import rnn as rnn
