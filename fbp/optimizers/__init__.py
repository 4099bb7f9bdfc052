"""Optimizers: pairs ``(init, update)`` with NamedTuple states.

They can be jitted, and their hyper-parameters may be traced. An optimizer by name (:func:`adam`) is
a :func:`chain` of transforms. Clip before it, average after it:

>>> optimizer = chain(clip_by_global_norm(1.0), adam(1e-3), average_parameters(0.999))
"""

from fbp.optimizers.aliases import adadelta as adadelta
from fbp.optimizers.aliases import adagrad as adagrad
from fbp.optimizers.aliases import adam as adam
from fbp.optimizers.aliases import adamw as adamw
from fbp.optimizers.aliases import amsgrad as amsgrad
from fbp.optimizers.aliases import lamb as lamb
from fbp.optimizers.aliases import lion as lion
from fbp.optimizers.aliases import momentum as momentum
from fbp.optimizers.aliases import nadam as nadam
from fbp.optimizers.aliases import nesterov as nesterov
from fbp.optimizers.aliases import rmsprop as rmsprop
from fbp.optimizers.aliases import sgd as sgd
from fbp.optimizers.base import apply_updates as apply_updates
from fbp.optimizers.base import chain as chain
from fbp.optimizers.base import scale as scale
from fbp.optimizers.base import scale_by_learning_rate as scale_by_learning_rate
from fbp.optimizers.masks import decay_mask as decay_mask
from fbp.optimizers.masks import weights_only as weights_only
from fbp.optimizers.norms import global_norm as global_norm
from fbp.optimizers.transforms import accumulate as accumulate
from fbp.optimizers.transforms import adaptive_grad_clip as adaptive_grad_clip
from fbp.optimizers.transforms import average_parameters as average_parameters
from fbp.optimizers.transforms import averaged as averaged
from fbp.optimizers.transforms import clip_by_global_norm as clip_by_global_norm
from fbp.optimizers.transforms import clip_by_norm as clip_by_norm
from fbp.optimizers.transforms import clip_by_value as clip_by_value
from fbp.optimizers.transforms import decoupled_weight_decay as decoupled_weight_decay
from fbp.optimizers.transforms import l1 as l1
from fbp.optimizers.transforms import l2 as l2
