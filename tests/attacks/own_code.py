"""A user's own code in records: its source, traps, and reading and resuming with it."""

import os
from pathlib import Path

from fbp.experiment.commands import launch
from fbp.experiment.commands.launch import RunRequest
from fbp.experiment.config import reading, references
from fbp.experiment.config.trust import NOTHING
from fbp.experiment.runner import build
from tests.projects import Silent

OWN = """
import functools
import os
from subprocess import run as imported

import fbp
import helpers
import tests.projects


def net(outputs: int, width: int = 4):
    hidden = fbp.layers.dense(helpers.half(width))
    return fbp.chain(hidden, fbp.layers.{}(), fbp.layers.dense(outputs))


partial = functools.partial(net, width=6)
borrowed = tests.projects.BORROWED
"""
HELPERS = "def half(width):\n    return width // 2\n"
TRAP = "from pathlib import Path\nPath({!r}).touch()\n"

# Each place of a configuration that can hold a name, by the kind of what it names.
PLACES = {
    "model": {"model": {"name": "{}"}},
    "activation": {"model": {"name": "mlp", "activation": "{}"}},
    "activation with arguments": {"model": {"name": "mlp", "activation": {"name": "{}"}}},
    "initializer": {"model": {"name": "mlp", "weights": {"name": "{}"}}},
    "loss": {"loss": {"name": "{}"}},
    "loss in a list": {"loss": {"name": "weighted", "parts": [["{}", 0.5]]}},
    "optimizer": {"optimizer": {"name": "{}", "learning_rate": 0.1}},
    "schedule": {"schedule": {"name": "{}"}},
    "data": {"data": {"name": "{}"}},
    "metric": {"metrics": {"names": ["{}"]}},
    "metric with arguments": {"metrics": {"names": [{"name": "{}", "label": "mine"}]}},
    "augmentation": {"augmentation": {"names": ["{}"]}},
    "tracker": {"tracking": {"sink": "{}"}},
    "variant": {"variant": [{"name": "a", "set": {"model.name": "{}"}}]},
    "variant's table": {"variant": [{"name": "a", "set": {"loss": {"name": "{}"}}}]},
}


def filled(template, name):
    if isinstance(template, dict):
        return {key: filled(value, name) for key, value in template.items()}
    if isinstance(template, list):
        return [filled(value, name) for value in template]
    return name if template == "{}" else template


def table_with(place, name):
    base = {
        "name": "x",
        "data": {"name": "iris"},
        "model": {"name": "mlp", "hidden": [4]},
        "loss": {"name": "softmax_cross_entropy"},
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "training": {"epochs": 1},
    }
    part = filled(PLACES[place], name)
    return {**base, **part}


def read_record(place, name, trust=NOTHING):
    """Read a record's configuration as all commands do: checked, parsed, and built."""
    with references.reading_record(trust):
        config = reading.parse(table_with(place, name), "record")
        for each in reading.variants(config, "record").values() or [config]:
            build.build(each)
    return config


def resumed(folder, **more):
    notes = []
    reporter = Silent()
    reporter.note = notes.append
    launch.continue_run(folder, RunRequest(lambda _: reporter, **more))
    return notes


def entry_of(folder):
    return Path(os.environ["XDG_STATE_HOME"]) / "fbp" / "trust" / f"{folder.name}.json"
