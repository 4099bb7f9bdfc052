"""Layers that only move numbers: flatten."""

import math

from fbp.layer import Array, Cache, Grads, Key, Layer, Params, Shape, shape_token, token_shape


def flatten() -> Layer:
    """``(B, ...) -> (B, F)``. The cache carries only the input's shape."""

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), (math.prod(shape),)

    def forward(params: Params, x: Array, *, key: Key | None = None) -> tuple[Array, Cache]:
        return x.reshape(x.shape[0], -1), shape_token(x.shape[1:])

    def backward(params: Params, cache: Cache, delta: Array) -> tuple[Array, Grads]:
        return delta.reshape(delta.shape[0], *token_shape(cache)), ()

    return Layer(init, forward, backward, name="flatten")
