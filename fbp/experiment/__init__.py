"""The runner: experiments from TOML files, tracked in MLflow; it never imports mlflow."""

from fbp import _optional

_optional.require("fbp.experiment", *_optional.RUNNER)

from fbp.experiment.commands.launch import launch as launch
from fbp.experiment.commands.load import load as load
from fbp.experiment.commands.track import track as track
from fbp.experiment.rundir.npz import params_digest as params_digest
from fbp.experiment.runner.trained_model import Trained as Trained

__all__ = ["Trained", "launch", "load", "params_digest", "track"]
