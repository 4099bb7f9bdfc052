"""The code of a logged model: MLflow runs this file to load it, so that nothing is unpickled."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from fbp.experiment.runner import trained_model


class FbpModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A model whose `predict` is :meth:`fbp.experiment.runner.trained_model.Trained.predict`."""

    def load_context(self, context: Any) -> None:
        """Read configuration and parameters from the model's artifacts."""
        self.trained = trained_model.read(Path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # hints would be a schema
        """Return predictions `(N, K)` for inputs `(N, *shape)` in the data set's own units."""
        return self.trained.predict(np.asarray(model_input))


mlflow.models.set_model(FbpModel())
