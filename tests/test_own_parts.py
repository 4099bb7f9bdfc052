"""A user's own layers in a run: trained, checked, described, resumed, loaded, sampled from."""

import sys

import jax
import numpy as np
import pytest

from fbp.experiment.config import reading
from fbp.experiment.rundir import layout
from fbp.experiment.runner.run import run
from fbp.experiment.runner.run_start import RunIdentity
from fbp.experiment.runner.trained_model import read
from tests.projects import Silent, said

OWN = '''
import jax.numpy as jnp
import fbp
from fbp.layers import batch_norm, dense, embedding, flatten, lstm, relu


def scale(factor):
    """Scale by a number: the layer of the README."""
    return fbp.Layer(
        init=lambda key, shape: ((), shape),
        forward=lambda params, x, *, key=None: (factor * x, ()),
        backward=lambda params, cache, delta: (factor * delta, ()),
    )


def shift():
    """Subtract a learnable ``mean``, a name that batch norm uses for something else."""

    def backward(params, cache, delta):
        return delta, {"mean": -delta.reshape(-1, delta.shape[-1]).sum(axis=0)}

    return fbp.Layer(
        init=lambda key, shape: ({"mean": jnp.zeros(shape[-1:])}, shape),
        forward=lambda params, x, *, key=None: (x - params["mean"], ()),
        backward=backward,
    )


def net(outputs):
    """A classifier with both, beside and inside composites."""
    block = fbp.residual(dense(8), scale(0.5), batch_norm(), shift())
    return fbp.chain(
        flatten(),
        dense(8),
        fbp.repeat(fbp.recompute(block), 2),
        fbp.precision(fbp.chain(scale(2.0), relu()), jnp.float32),
        dense(outputs),
    )


def speaker(outputs, vocabulary=0, sequence=True):
    """A language model with both."""
    return fbp.chain(embedding(vocabulary, 8), scale(2.0), lstm(8), shift(), dense(outputs))
'''

CONFIG = """
[data]
name = "iris"
standardize = true
[model]
name = "own:net"
[loss]
name = "softmax_cross_entropy"
[optimizer]
name = "adamw"
learning_rate = 0.01
[training]
epochs = 2
[checkpoint]
every_steps = 2
"""


@pytest.fixture
def own(project, monkeypatch):
    """A project with a module of the user's own, and an experiment that names it."""
    (project / "own.py").write_text(OWN)
    (project / "mine.toml").write_text(CONFIG)
    monkeypatch.syspath_prepend(project)
    yield project
    sys.modules.pop("own", None)


def train(project, *overrides, stop_at=None, folder=None):
    config = reading.read(project / "mine.toml", overrides)
    folder = folder or layout.new_run_folder(project / "mlruns", "mine")
    identity = RunIdentity(project / "mine.toml", "mine")
    return folder, run(config, identity, folder, Silent(), stop_at=stop_at)


def test_own_layers_train_resume_and_load(own):
    whole, outcome = train(own)
    assert outcome.status == "FINISHED", outcome.message
    params = read(layout.model(whole)).params
    assert np.abs(params[2]["body"][3]["mean"]).max() > 0  # the learnable mean has moved
    assert np.abs(params[2]["body"][2]["mean"]).max() > 0  # the population's mean was filled
    broken, outcome = train(own, stop_at=3)
    assert outcome.status == "KILLED"
    _, outcome = train(own, folder=broken)
    assert outcome.status == "FINISHED"
    resumed = read(layout.model(broken)).params
    for ours, other in zip(jax.tree.leaves(params), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(ours, other)
    assert read(layout.model(whole)).predict(np.ones((2, 4))).shape == (2, 3)


def test_own_layers_are_checked_and_described(own):
    assert "all right" in said("check", "mine.toml")
    table = said("describe", "mine.toml", "--picture", "own.svg")
    assert "2/body/3" in table
    assert (own / "own.svg").exists()


def test_own_layers_speak(own):
    text = "data={name='text', context=8, limit=2000}"
    overrides = ["model.name=own:speaker", text, "training.steps=4", "training.evaluate_every=2"]
    folder, outcome = train(own, *overrides)
    assert outcome.status == "FINISHED", outcome.message
    assert said("generate", str(folder), "--prompt", "the ", "--tokens", "5").startswith("the ")
