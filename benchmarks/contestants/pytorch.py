"""PyTorch as in its tutorials: modules, an optimizer, a loop over batches; eager or compiled."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.contestants import Contestant
from benchmarks.works import Work


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def _linear(params: Any, w: str = "w", b: str = "b") -> nn.Linear:
    layer = nn.Linear(*params[w].shape)
    layer.weight.data, layer.bias.data = (
        _tensor(np.ascontiguousarray(params[w].T)),
        _tensor(params[b]),
    )
    return layer


def sigmoids(params: Any) -> nn.Module:
    first, _, second, _ = params
    return nn.Sequential(_linear(first), nn.Sigmoid(), _linear(second), nn.Sigmoid())


def relus(params: Any) -> nn.Module:
    *hidden, last = (part for part in params if part)
    return nn.Sequential(
        *(layer for part in hidden for layer in (_linear(part), nn.ReLU())), _linear(last)
    )


class _Residual(nn.Module):
    def __init__(self, params: Any):
        super().__init__()
        self.linear = _linear(params)

    def forward(self, x: Any) -> Any:
        return x + F.relu(self.linear(x))


def residuals(params: Any) -> nn.Module:
    first, _, *blocks, last = params
    return nn.Sequential(
        _linear(first), nn.ReLU(), *(_Residual(part["body"][0]) for part in blocks), _linear(last)
    )


class _Convolutions(nn.Module):
    def __init__(self, params: Any):
        super().__init__()
        first, second, third, last = (part for part in params if part)
        self.first, self.second = self.convolution(first), self.convolution(second)
        self.third, self.last = _linear(third), _linear(last)

    @staticmethod
    def convolution(params: Any) -> nn.Conv2d:
        *window, inputs, outputs = params["w"].shape
        layer = nn.Conv2d(inputs, outputs, tuple(window), padding=1)
        layer.weight.data, layer.bias.data = (
            _tensor(params["w"].transpose(3, 2, 0, 1)),
            _tensor(params["b"]),
        )
        return layer

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.max_pool2d(F.relu(self.second(x)), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)  # so that the dense layer sees the same order
        return self.last(F.relu(self.third(x)))


convolutions = _Convolutions


class _Recurrent(nn.Module):
    kind: str

    def __init__(self, params: Any):
        super().__init__()
        table, cell, head = params
        features = cell["wh"].shape[0]
        self.table = nn.Embedding(*table["w"].shape)
        self.table.weight.data = _tensor(table["w"])
        self.cell = getattr(nn, self.kind)(cell["wx"].shape[0], features, batch_first=True)
        order, bias = slice(None), [cell["b"], np.zeros_like(cell["b"])]
        if self.kind == "GRU":  # PyTorch's gates stand in the order r, u, n
            order = np.r_[features : 2 * features, :features, 2 * features : 3 * features]
            bias[1] = np.concatenate([np.zeros(2 * features, np.float32), cell["bh"]])
        self.cell.weight_ih_l0.data = _tensor(cell["wx"][:, order].T)
        self.cell.weight_hh_l0.data = _tensor(cell["wh"][:, order].T)
        self.cell.bias_ih_l0.data, self.cell.bias_hh_l0.data = (
            _tensor(bias[0][order]),
            _tensor(bias[1]),
        )
        second = self.cell.bias_hh_l0  # everybody else has one bias for a gate
        if self.kind == "LSTM":
            second.requires_grad = False
        else:
            second.register_hook(
                lambda grad: torch.cat([torch.zeros(2 * features), grad[2 * features :]])
            )
        self.head = _linear(head)

    def forward(self, x: Any) -> Any:
        return self.head(self.cell(self.table(x))[0])


class lstm(_Recurrent):
    kind = "LSTM"


class gru(_Recurrent):
    kind = "GRU"


def _norm(params: Any) -> nn.LayerNorm:
    layer = nn.LayerNorm(len(params["scale"]), eps=1e-5)
    layer.weight.data, layer.bias.data = _tensor(params["scale"]), _tensor(params["offset"])
    return layer


class _Attention(nn.Module):
    def __init__(self, params: Any):
        super().__init__()
        self.into, self.out = _linear(params, "wqkv", "bqkv"), _linear(params, "wo", "bo")

    def forward(self, x: Any) -> Any:
        b, t, f = x.shape
        q, k, v = (a.view(b, t, 4, -1).transpose(1, 2) for a in self.into(x).split(f, dim=2))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(o.transpose(1, 2).reshape(b, t, f))


class _Block(nn.Module):
    def __init__(self, params: Any):
        super().__init__()
        (first, look), (second, up, _, down) = params[0]["body"], params[1]["body"]
        self.first, self.second, self.attend = _norm(first), _norm(second), _Attention(look)
        self.up, self.down = _linear(up), _linear(down)

    def forward(self, x: Any) -> Any:
        x = x + self.attend(self.first(x))
        return x + self.down(F.gelu(self.up(self.second(x))))


class gpt(nn.Module):
    def __init__(self, params: Any):
        super().__init__()
        table, places, *blocks, last, _ = params
        self.table = nn.Parameter(_tensor(table["w"]))
        self.places = nn.Parameter(_tensor(places["w"]))
        self.blocks = nn.Sequential(*(_Block(block) for block in blocks))
        self.last = _norm(last)

    def forward(self, x: Any) -> Any:
        return self.last(self.blocks(F.embedding(x, self.table) + self.places)) @ self.table.T


class attention(nn.Module):
    def __init__(self, params: Any):
        super().__init__()
        self.attend = _Attention(params["body"])

    def forward(self, x: Any) -> Any:
        return x + self.attend(x)


def _cost(work: Work, output: Any, y: Any) -> Any:
    if work.loss == "quadratic":
        return 0.5 * ((output - y) ** 2).sum(dim=-1).mean()
    if work.loss == "mean_squared":
        return F.mse_loss(output, y)
    return F.cross_entropy(output.flatten(0, -2), y.flatten())


def prepare(work: Work, compiled: bool = False) -> Contestant:
    torch._dynamo.config.cache_size_limit = 64
    x, y = (
        torch.from_numpy(a.astype(np.int64) if a.dtype == np.int32 else a) for a in work.examples()
    )
    if work.network == "convolutions":
        x = x.permute(0, 3, 1, 2).contiguous()
    initial = work.initial()
    model = globals()[work.network](initial)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    forward = torch.compile(model) if compiled else model

    def start() -> torch.optim.Optimizer:
        with torch.no_grad():  # in place, so that what is compiled stays
            model.load_state_dict(weights)
        kind = torch.optim.Adam if work.optimizer == "adam" else torch.optim.SGD
        return kind((p for p in model.parameters() if p.requires_grad), lr=work.rate)

    def train(optimizer: torch.optim.Optimizer) -> list[float]:
        costs = []
        for first in range(0, len(x), work.batch):
            rows = slice(first, first + work.batch)
            cost = _cost(work, forward(x[rows]), y[rows])
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
            costs.append(cost.detach())
        return torch.stack(costs).tolist()

    return Contestant(start, train)
