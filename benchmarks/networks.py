"""Training steps of a convolutional network, an LSTM, a GRU and a GPT, beside jax.grad and PyTorch."""

from typing import Any

import numpy as np

import fbp
from benchmarks.contest import Work, contest
from benchmarks.data import pictures
from fbp import models


def _tokens(count: int, positions: int, vocabulary: int = 65) -> tuple[np.ndarray, np.ndarray]:
    """Sequences in which each token follows from the one before, but for a tenth of them."""
    random = np.random.default_rng(0)
    following = random.permutation(vocabulary)
    stream = [0]
    for noise in random.integers(0, 10 * vocabulary, count * (positions + 1)):
        stream.append(int(following[stream[-1]]) if noise >= vocabulary else int(noise))
    rows = np.array(stream[1:], np.int32).reshape(count, positions + 1)
    return rows[:, :-1].copy(), rows[:, 1:].copy()


def _tensor(array: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(array, np.float32))


def _linear(params: Any, w: str = "w", b: str = "b") -> Any:
    import torch

    layer = torch.nn.Linear(*params[w].shape)
    layer.weight.data, layer.bias.data = _tensor(params[w].T), _tensor(params[b])
    return layer


# --- a convolutional network -----------------------------------------------------------------------------------------


def _torch_cnn(params: Any) -> Any:
    import torch

    def convolution(params: Any) -> Any:
        *window, inputs, outputs = params["w"].shape
        layer = torch.nn.Conv2d(inputs, outputs, window, padding=1)
        layer.weight.data, layer.bias.data = _tensor(params["w"].transpose(3, 2, 0, 1)), _tensor(params["b"])
        return layer

    class ChannelsFirst(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.permute(0, 3, 1, 2)

    class ChannelsLast(torch.nn.Module):  # so that the dense layer sees the same order
        def forward(self, x: Any) -> Any:
            return x.permute(0, 2, 3, 1)

    relu, pool = torch.nn.ReLU, torch.nn.MaxPool2d
    return torch.nn.Sequential(
        ChannelsFirst(), convolution(params[0]), relu(), pool(2), convolution(params[3]), relu(), pool(2), ChannelsLast(),
        torch.nn.Flatten(), _linear(params[7]), relu(), _linear(params[9]),
    )  # fmt: skip


def cnn() -> None:
    """Two 3 x 3 convolutions (32, 64) with max pooling, dense 128; 28 x 28 pictures, batch 64, 40 steps."""
    x, y = pictures(2560)
    contest(Work(models.cnn(10), fbp.losses.softmax_cross_entropy, x.reshape(-1, 28, 28, 1), y, 64, _torch_cnn))


# --- recurrent ---------------------------------------------------------------------------------------------------------


def _torch_recurrent(kind: str) -> Any:
    import torch

    class Network(torch.nn.Module):
        def __init__(self, params: Any):
            super().__init__()
            table, cell, head = params
            features = cell["wh"].shape[0]
            self.table = torch.nn.Embedding(*table["w"].shape)
            self.table.weight.data = _tensor(table["w"])
            self.cell = getattr(torch.nn, kind)(cell["wx"].shape[0], features, batch_first=True)
            order = slice(None)
            bias = [cell["b"], np.zeros_like(cell["b"])]
            if kind == "GRU":  # PyTorch's gates stand in the order r, u, n
                order = np.r_[features : 2 * features, :features, 2 * features : 3 * features]
                bias[1] = np.concatenate([np.zeros(2 * features, np.float32), cell["bh"]])
            self.cell.weight_ih_l0.data = _tensor(cell["wx"][:, order].T)
            self.cell.weight_hh_l0.data = _tensor(cell["wh"][:, order].T)
            self.cell.bias_ih_l0.data, self.cell.bias_hh_l0.data = (
                _tensor(bias[0][order]),
                _tensor(bias[1][: len(bias[0])]),
            )
            if kind == "LSTM":
                self.cell.bias_hh_l0.requires_grad = False  # fbp has one bias
            self.head = _linear(head)

        def forward(self, x: Any) -> Any:
            return self.head(self.cell(self.table(x))[0])

    return Network


def _recurrent(model: fbp.Layer, kind: str) -> None:
    x, y = _tokens(640, 64)
    contest(Work(model, fbp.losses.softmax_cross_entropy, x, y, 32, lambda params: _torch_recurrent(kind)(params)))


def lstm() -> None:
    """A character model: embedding 64, LSTM 256, T 64, batch 32, 20 steps."""
    _recurrent(models.lstm(65, (256,), vocabulary=65, sequence=True), "LSTM")


def gru() -> None:
    """The same with a GRU."""
    _recurrent(models.gru(65, (256,), vocabulary=65, sequence=True), "GRU")


# --- attention ---------------------------------------------------------------------------------------------------------


def _torch_gpt(params: Any) -> Any:
    import torch
    from torch.nn.functional import gelu, scaled_dot_product_attention

    def norm(params: Any) -> Any:
        layer = torch.nn.LayerNorm(len(params["scale"]), eps=1e-5)
        layer.weight.data, layer.bias.data = _tensor(params["scale"]), _tensor(params["offset"])
        return layer

    class Block(torch.nn.Module):
        def __init__(self, params: Any):
            super().__init__()
            (first, look), (second, up, _, down) = params[0]["body"], params[1]["body"]
            self.first, self.second = norm(first), norm(second)
            self.into, self.out = _linear(look, "wqkv", "bqkv"), _linear(look, "wo", "bo")
            self.up, self.down = _linear(up), _linear(down)

        def forward(self, x: Any) -> Any:
            b, t, f = x.shape
            q, k, v = (a.view(b, t, 4, -1).transpose(1, 2) for a in self.into(self.first(x)).split(f, dim=2))
            o = scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(o.transpose(1, 2).reshape(b, t, f))
            return x + self.down(gelu(self.up(self.second(x))))

    class Network(torch.nn.Module):
        def __init__(self, params: Any):
            super().__init__()
            table, places, *blocks, last, _ = params
            self.table = torch.nn.Parameter(_tensor(table["w"]))
            self.places = torch.nn.Parameter(_tensor(places["w"]))
            self.blocks = torch.nn.Sequential(*(Block(block) for block in blocks))
            self.last = norm(last)

        def forward(self, x: Any) -> Any:
            vectors = torch.nn.functional.embedding(x, self.table) + self.places
            return self.last(self.blocks(vectors)) @ self.table.T

    return Network(params)


def gpt() -> None:
    """4 layers, width 128, 4 heads, T 64, batch 16, 20 steps; tied weights."""
    x, y = _tokens(320, 64)
    contest(Work(models.gpt(65), fbp.losses.softmax_cross_entropy, x, y, 16, _torch_gpt))


ITEMS = {"cnn": cnn, "lstm": lstm, "gru": gru, "gpt": gpt}
