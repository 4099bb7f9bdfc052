"""Combinators: layers made of layers. Each derives its backward from its parts' backwards alone.

A composite's parameters, caches and gradients are its parts', under the parts' keys: a tuple for
:func:`chain`, a dictionary for :func:`residual`. A path such as ``3/body/0`` names a part in
messages, in :func:`fbp.deltas` and in the charts of a run.
"""

from fbp.combinators._branches import bidirectional as bidirectional
from fbp.combinators._branches import parallel as parallel
from fbp.combinators._branches import residual as residual
from fbp.combinators._chain import chain as chain
from fbp.combinators._graph import graph as graph
from fbp.combinators._repeat import repeat as repeat
from fbp.combinators._tie import tie as tie
from fbp.combinators._wrappers import precision as precision
from fbp.combinators._wrappers import recompute as recompute
