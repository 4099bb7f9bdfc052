r"""The dense (fully connected) layer, which holds three of the four equations.

The textbook writes one example as a column, z^l = W^l a^{l-1} + b^l, where w^l_jk leads from
neuron k in layer l-1 to neuron j in layer l. A batch is written here with one example per row, so
``w`` is the transpose of W^l (``w[k, j]`` is w^l_jk). Summed over the batch where the textbook sums
over examples, the equations read

    =====================  ===================================  ==========================
    equation               textbook, one example                here, the whole batch
    =====================  ===================================  ==========================
    (2) hidden error       (W^l)^T delta^l                      delta @ w.T
    (3) bias gradient      dC/db^l_j = delta^l_j                sum of delta over the batch
    (4) weight gradient    dC/dw^l_jk = a^{l-1}_k delta^l_j     x.T @ delta
    =====================  ===================================  ==========================

The factor sigma'(z^{l-1}) that completes (2) is the backward pass of the activation between the two
layers.

Source: Rumelhart, Hinton and Williams (1986), *Learning representations by back-propagating
errors*.
"""

import jax
import jax.numpy as jnp

from fbp import initializers
from fbp._arguments import checked
from fbp.errors import ShapeError
from fbp.layer import Array, Cache, Grads, Initializer, Key, Layer, Params, Shape


@checked
def dense(
    features: int, *, weights: Initializer | None = None, bias: Initializer | None = None
) -> Layer:
    """Return the dense layer ``y = x @ w + b`` over the last axis of ``x``.

    Args:
        features: width of the output.
        weights: initializer of ``w``, ``(in, features)``; glorot_uniform by default.
        bias: initializer of ``b``, ``(features,)``; zeros by default.

    Returns:
        A layer from ``(B, ..., in)`` to ``(B, ..., features)`` with parameters
        ``{"w": (in, features), "b": (features,)}``. Its cache is its input x, the activation
        a^{l-1}.

    Raises:
        InputError: if ``features`` is less than 1.
        ShapeError: if the input has no axis, or its last axis does not fit ``w``.

    >>> import jax
    >>> params, shape = dense(3).init(jax.random.key(0), (2,))
    >>> shape, params["w"].shape, params["b"].shape
    ((3,), (2, 3), (3,))
    """
    draw_weights = weights or initializers.glorot_uniform()
    draw_bias = bias or initializers.zeros()

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if not shape:
            raise ShapeError(
                "expected an input with at least one axis besides the batch, got shape ()"
            )
        w_key, b_key = jax.random.split(key)
        dtype = jnp.result_type(float)  # float32, or float64 if jax_enable_x64 is set
        params = {
            "w": draw_weights(w_key, (shape[-1], features), dtype),
            "b": draw_bias(b_key, (features,), dtype),
        }
        return params, (*shape[:-1], features)

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        if x.shape[-1] != params["w"].shape[0]:
            raise ShapeError(
                f"expected an input whose last axis is {params['w'].shape[0]} (the rows of w), "
                f"got shape {x.shape}"
            )
        return x @ params["w"] + params["b"], x

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        x = cache
        rows, row_deltas = x.reshape(-1, x.shape[-1]), delta.reshape(-1, features)
        grads = {
            "w": rows.T @ row_deltas,  # equation (4)
            "b": row_deltas.sum(axis=0),  # equation (3)
        }
        return delta @ params["w"].T, grads  # equation (2)

    return Layer(init, forward, backward, kind="dense", name=f"dense({features})")
