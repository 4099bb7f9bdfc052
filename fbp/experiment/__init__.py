"""The runner: experiments from TOML files, tracked in MLflow. Importing this does not import mlflow."""

from fbp.experiment.arrays import params_digest as params_digest
from fbp.experiment.launch import launch as launch
from fbp.experiment.loading import load as load
from fbp.experiment.saving import Trained as Trained
from fbp.experiment.track import track as track
