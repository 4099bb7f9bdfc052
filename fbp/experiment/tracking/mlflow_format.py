"""What a run looks like in MLflow: names, data sets, the history among its artifacts, and the model."""

import csv
import importlib.util
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fbp.experiment.rundir import journal, layout
from fbp.experiment.rundir.journal import MetricsLine, StepsLine
from fbp.experiment.rundir.series import read_series
from fbp.experiment.tracking import store

POINTS = 2500  # per metric key: what the dashboard reads at once


def key_of(name: str) -> str:
    """A name as MLflow allows it: letters, digits and ``_ - . / `` and blanks, no empty or dotted part, 250 characters."""
    parts = [re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/")]
    return "/".join("_" if not part.strip(".") else part for part in parts)[:250]


def dataset_input(entry: Mapping[str, Any]) -> Any:
    """An MLflow dataset from its description; the digest is over all its content, unlike MLflow's own."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    def spec(shape: list[int], dtype: str) -> str:
        return json.dumps(
            [{"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1, *shape[1:]]}}]
        )

    schema = {"mlflow_tensorspec": {"features": spec(*entry["x"]), "targets": spec(*entry["y"])}}
    profile = {
        "features_shape": entry["x"][0],
        "targets_shape": entry["y"][0],
        "num_rows": entry["x"][0][0],
    }
    dataset = Dataset(
        entry["name"],
        entry["digest"],
        "code",
        json.dumps({"tags": {"mlflow.source.name": "fbp.datasets"}}),
        schema=json.dumps(schema),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", entry["context"])])


def write_history(folder: Path) -> None:
    """Every point of every metric as CSV: ``history/steps.csv`` for what is per step, ``history/metrics.csv`` for the rest; and
    the digests of the parameters at each checkpoint, ``history/checkpoints.json``."""
    import numpy as np

    per_step, series = read_series(folder, [StepsLine]), read_series(folder, [MetricsLine])
    target = layout.history(layout.artifacts(folder))
    target.mkdir(exist_ok=True)
    start = journal.read_start(folder)
    if start and start.layers:
        text = json.dumps(start.layers, indent=1)
        (target / layout.LAYER_NAMES).write_text(text, encoding="utf-8")
    saved = {
        step: {"params": line.params_digest, "tensors": line.tensors}
        for step, line in sorted(journal.read_checkpoints(folder).items())
    }
    if saved:
        (target / layout.CHECKPOINT_DIGESTS).write_text(
            json.dumps(saved, indent=1), encoding="utf-8"
        )
    if per_step:
        first = next(iter(per_step.values()))
        table = np.column_stack([first.steps, *(points.values for points in per_step.values())])
        header = ",".join(["step", *per_step])
        np.savetxt(target / layout.STEPS_CSV, table, "%.9g", ",", header=header, comments="")
    with open(target / layout.METRICS_CSV, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("key", "step", "time", "value"))
        for key in sorted(series):
            for step, value, when in zip(*series[key], strict=True):
                rows.writerow((key, step, when, repr(float(value))))


def log_model(folder: Path, run_id: str, uri: str) -> None:
    """The trained model as an MLflow model: code and arrays, no pickle, explicit requirements and a signature."""
    import importlib.metadata

    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    import fbp

    saved = layout.model(folder)
    facts = json.loads((saved / layout.MODEL_FACTS).read_text())
    positions = facts["shape"][:1] if facts["sequence"] else []
    signature = ModelSignature(
        inputs=Schema(
            [TensorSpec(np.dtype("int32" if facts["tokens"] else "float32"), (-1, *facts["shape"]))]
        ),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, *positions, facts["outputs"]))]),
    )
    needed = ("jax", "numpy", "pydantic", "tomli-w")
    with store.global_tracking_uri(uri), mlflow.start_run(run_id=run_id):
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(
                Path(fbp.__file__).parent / "experiment" / "runner" / "pyfunc_model.py"
            ),
            artifacts={"model": str(saved)},
            signature=signature,
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in needed],
            code_paths=[str(Path(fbp.__file__).parent), *_user_code(saved)],
        )


def _user_code(saved: Path) -> list[str]:
    """The file or package of a model of the user's own, named as ``package.module:function`` in the configuration."""
    with open(saved / layout.CONFIG, "rb") as file:
        name = tomllib.load(file)["model"]["name"]
    if ":" not in name:
        return []
    spec = importlib.util.find_spec(name.partition(":")[0].partition(".")[0])
    if spec is None or spec.origin is None:
        return []
    origin = Path(spec.origin)
    return [str(origin.parent if origin.name == "__init__.py" else origin)]
