"""The ``fbp`` command."""

from fbp.cli import models, records, training, upkeep, verification
from fbp.cli.base import main as main

__all__ = ["main", "models", "records", "training", "upkeep", "verification"]
