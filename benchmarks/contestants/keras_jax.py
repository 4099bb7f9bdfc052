"""Keras 3 on JAX as its tutorials train: a functional model, ``compile`` and ``fit``."""

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np
from keras import layers

from benchmarks.contestants import Contestant
from benchmarks.works import Work


def _dense(
    x: Any, weights: list, params: Any, activation: str | None = None, w: str = "w", b: str = "b"
) -> Any:
    layer = layers.Dense(params[w].shape[1], activation=activation)
    x = layer(x)
    weights.append((layer, [params[w], params[b]]))
    return x


def sigmoids(params: Any, x: Any, weights: list) -> Any:
    first, _, second, _ = params
    return _dense(_dense(x, weights, first, "sigmoid"), weights, second, "sigmoid")


def relus(params: Any, x: Any, weights: list) -> Any:
    *hidden, last = (part for part in params if part)
    for part in hidden:
        x = _dense(x, weights, part, "relu")
    return _dense(x, weights, last)


def residuals(params: Any, x: Any, weights: list) -> Any:
    first, _, *blocks, last = params
    x = _dense(x, weights, first, "relu")
    for part in blocks:
        x = layers.Add()([x, _dense(x, weights, part["body"][0], "relu")])
    return _dense(x, weights, last)


def convolutions(params: Any, x: Any, weights: list) -> Any:
    first, second, third, last = (part for part in params if part)
    for part in (first, second):
        layer = layers.Conv2D(part["w"].shape[-1], 3, padding="same", activation="relu")
        x = layers.MaxPooling2D(2)(layer(x))
        weights.append((layer, [part["w"], part["b"]]))
    return _dense(_dense(layers.Flatten()(x), weights, third, "relu"), weights, last)


def _embed(x: Any, weights: list, table: Any) -> Any:
    layer = layers.Embedding(*table["w"].shape)
    x = layer(x)
    weights.append((layer, [table["w"]]))
    return x


def lstm(params: Any, x: Any, weights: list) -> Any:
    table, cell, head = params
    layer = layers.LSTM(cell["wh"].shape[0], return_sequences=True)  # gates i, f, g, o, too
    x = layer(_embed(x, weights, table))
    weights.append((layer, [cell["wx"], cell["wh"], cell["b"]]))
    return _dense(x, weights, head)


def _norm(x: Any, weights: list, params: Any) -> Any:
    layer = layers.LayerNormalization(epsilon=1e-5)
    x = layer(x)
    weights.append((layer, [params["scale"], params["offset"]]))
    return x


def _attend(x: Any, weights: list, params: Any) -> Any:
    features = params["wo"].shape[0]
    layer = layers.MultiHeadAttention(4, features // 4)
    x = layer(x, x, use_causal_mask=True)
    values: list[np.ndarray] = []
    for w, b in zip(np.split(params["wqkv"], 3, axis=1), np.split(params["bqkv"], 3), strict=True):
        values += [w.reshape(features, 4, -1), b.reshape(4, -1)]
    weights.append((layer, [*values, params["wo"].reshape(4, -1, features), params["bo"]]))
    return x


class _Places(layers.Layer):
    def build(self, shape: Any) -> None:
        self.places = self.add_weight(shape=shape[1:], name="places")

    def call(self, x: Any) -> Any:
        return x + self.places


class _Tied(layers.Layer):
    """Logits from the embedding's own table."""

    def __init__(self, tokens: layers.Embedding):
        super().__init__()
        self.tokens = tokens

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, keras.ops.transpose(self.tokens.embeddings))


def gpt(params: Any, x: Any, weights: list) -> Any:
    table, places, *blocks, last, _ = params
    tokens = layers.Embedding(*table["w"].shape)
    into = _Places()
    x = into(tokens(x))
    weights += [(tokens, [table["w"]]), (into, [places["w"]])]
    for first, second in blocks:
        norm, look = first["body"]
        x = layers.Add()([x, _attend(_norm(x, weights, norm), weights, look)])
        norm, up, _, down = second["body"]
        x = layers.Add()(
            [x, _dense(_dense(_norm(x, weights, norm), weights, up, "gelu"), weights, down)]
        )
    return _Tied(tokens)(_norm(x, weights, last))


def attention(params: Any, x: Any, weights: list) -> Any:
    return layers.Add()([x, _attend(x, weights, params["body"])])


def _loss(work: Work) -> Any:
    if work.loss == "quadratic":
        return lambda y, output: 0.5 * keras.ops.sum(keras.ops.square(output - y), axis=-1)
    if work.loss == "mean_squared":
        return keras.losses.MeanSquaredError()
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class _Costs(keras.callbacks.Callback):
    """fit reports the running mean of an epoch's costs."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.costs: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.costs.append(logs["loss"] * (batch + 1) - sum(self.costs))


def prepare(work: Work) -> Contestant:
    if work.network not in globals():
        raise NotImplementedError("its GRU has two biases for a gate")
    x, y = work.examples()
    weights: list[tuple[Any, list]] = []
    given = keras.Input(x.shape[1:], dtype=str(x.dtype))
    model = keras.Model(given, globals()[work.network](work.initial(), given, weights))
    kind = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[work.optimizer]
    options = (
        {"epsilon": 1e-9} if work.optimizer == "adam" else {}
    )  # it adds epsilon to a root that is not corrected yet
    optimizer = kind(learning_rate=work.rate, **options)
    model.compile(optimizer=optimizer, loss=_loss(work))
    optimizer.build(model.trainable_variables)
    fresh = [np.array(variable) for variable in optimizer.variables]
    told = [_Costs()]  # the first time

    def start() -> None:
        for layer, values in weights:
            layer.set_weights(values)
        for variable, value in zip(optimizer.variables, fresh, strict=True):
            variable.assign(value)

    def train(state: None) -> list[float]:
        callbacks = [told.pop()] if told else []
        history = model.fit(
            x, y, batch_size=work.batch, epochs=1, shuffle=False, verbose=0, callbacks=callbacks
        )
        return callbacks[0].costs if callbacks else [history.history["loss"][0]]

    return Contestant(start, train)
