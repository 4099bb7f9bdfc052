"""How a run looks in MLflow: names, data sets, and the model."""

import hashlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np

import fbp
from fbp.experiment.config import bounded
from fbp.experiment.config.trust import is_module_reference
from fbp.experiment.rundir import layout, model_facts, tags, trust_store
from fbp.experiment.tracking import store

POINTS = 2500  # per metric: the dashboard reads no more at once
LONGEST_PARAM = 6000
LONGEST_TAG = 8000
_LONGEST_KEY = 250
_LONGEST_FOLDER = 120
_LONGEST_DATASET = 500
_DIGEST_LENGTH = 12
_DIGEST_AT_END = re.compile(f"_[0-9a-f]{{{_DIGEST_LENGTH}}}$")
_NEEDED_BY_MODEL = ("jax", "numpy", "pydantic", "tomli-w")


def key_of(name: str) -> str:
    """Return the key of a metric, param or tag in MLflow; different names get different keys.

    MLflow takes letters, digits, blanks and ``_ - . /``, no empty or dotted part, and at most 250
    characters. A name that it refuses gets ``_`` for what is refused, and a digest of the name at
    its end. So does a name that ends as if it had one.
    """
    parts = [re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/")]
    key = "/".join("_" if not part.strip(".") else part for part in parts)
    if key == name and len(name) <= _LONGEST_KEY and not _DIGEST_AT_END.search(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_LENGTH]
    return f"{key[: _LONGEST_KEY - _DIGEST_LENGTH - 1]}_{digest}"


def folder_of(experiment: str) -> str:
    """Return the name of the folder for the artifacts of an experiment of the embedded store.

    MLflow decodes and splits what it takes for a URI, and a file system takes 255 bytes.
    """
    name = re.sub(r"[^A-Za-z0-9_.\- ]|^\.+", "_", experiment)
    if len(name) <= _LONGEST_FOLDER:
        return name
    digest = hashlib.sha256(experiment.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{name[:_LONGEST_FOLDER]}_{digest[:_DIGEST_LENGTH]}"


def dataset_input(entry: Mapping[str, Any]) -> Any:
    """Return a description of a data set as MLflow's DatasetInput.

    Its digest is over the whole content; MLflow's own covers the first 10,000 numbers.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    schema = {
        "mlflow_tensorspec": {
            "features": _tensor_spec(*entry["x"]),
            "targets": _tensor_spec(*entry["y"]),
        }
    }
    profile = {
        "features_shape": entry["x"][0],
        "targets_shape": entry["y"][0],
        "num_rows": entry["x"][0][0],
    }
    dataset = Dataset(
        entry["name"][:_LONGEST_DATASET],
        entry["digest"],
        "code",
        json.dumps({"tags": {tags.SOURCE_NAME: "fbp.datasets"}}),
        schema=json.dumps(schema),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", entry["context"])])


def _tensor_spec(shape: list[int], dtype: str) -> str:
    spec = {"dtype": dtype, "shape": [-1, *shape[1:]]}
    return json.dumps([{"type": "tensor", "tensor-spec": spec}])


def log_model(folder: Path, code: Path, run_id: str, uri: str) -> None:
    """Log a trained model to MLflow: code and arrays, no pickle, a signature, requirements.

    Args:
        folder: the model's files.
        code: the Python file that loads them; MLflow runs it.
        run_id: the run's.
        uri: the store's.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    facts = model_facts.read(folder)
    positions = facts.shape[:1] if facts.sequence else ()
    dtype = np.dtype("int32" if facts.tokens else "float32")
    signature = ModelSignature(
        inputs=Schema([TensorSpec(dtype, (-1, *facts.shape))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, *positions, facts.outputs))]),
    )
    with store.global_tracking_uri(uri), mlflow.start_run(run_id=run_id):
        mlflow.pyfunc.log_model(
            name=layout.MODEL,
            python_model=str(code),
            artifacts={layout.MODEL: folder.resolve().as_uri()},  # MLflow takes it for a URI
            signature=signature,
            pip_requirements=[
                f"{name}=={importlib.metadata.version(name)}" for name in _NEEDED_BY_MODEL
            ],
            code_paths=[str(Path(fbp.__file__).parent), *_user_code(folder)],
        )


def _user_code(folder: Path) -> list[str]:
    """Return the file or package of a user's own model, which the configuration names.

    It is only that of a run which was begun here: a record must not choose what is sent.
    """
    name = bounded.read_toml(folder / layout.CONFIG)["model"]["name"]
    if ":" not in name:
        return []
    trust = trust_store.lookup_model(folder)
    if name not in trust.references or not is_module_reference(name):
        return []
    path = [*sys.path, *map(str, trust.folders)]
    spec = PathFinder.find_spec(name.partition(":")[0].partition(".")[0], path)
    if spec is None or spec.origin is None:
        return []
    origin = Path(spec.origin)
    return [str(origin.parent if origin.name == "__init__.py" else origin)]
