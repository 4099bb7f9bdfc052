"""Experiments on users' data, and the line with which they are refused."""

import pytest

from fbp.errors import InputError
from fbp.experiment.config import reading
from fbp.experiment.runner.build import build


def csv_file(folder, content, name="d.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def refusal(use):
    with pytest.raises(InputError) as caught:
        use()
    (line,) = str(caught.value).splitlines()
    assert len(line) < 700
    return line


def built(data, loss="softmax_cross_entropy", smoothing=0.0, **sections):
    table = {
        "name": "attack",
        "data": data,
        "model": {"name": "mlp", "hidden": [4]},
        "loss": {"name": loss, "label_smoothing": smoothing},
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "training": {"epochs": 1, "batch_size": 2},
    }
    return build(reading.parse(table | sections, "attack.toml"))
