"""MLflow's model registry: trained models by name."""

import contextlib
import io
import re
from typing import Any

from fbp.errors import InputError
from fbp.experiment.rundir.redact import redacted_first_line
from fbp.experiment.tracking import store
from fbp.experiment.tracking.mlflow_runs import MlflowRuns


def register(runs: MlflowRuns, run: str, name: str, alias: str | None) -> str:
    """Register a run's model under a name; return the address by which it is loaded.

    Args:
        runs: the store.
        run: the run's id or name.
        name: of the registered model; a new version is made if it exists already.
        alias: such as ``champion``; it moves to this version.

    Raises:
        InputError: if there is no such run, or if it has no model.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    for title, text in (("name", name), ("alias", alias or "a")):
        if not re.fullmatch(r"\w[\w.-]*", text):
            raise InputError(
                f"register: expected letters, digits and . - _ in the {title}, got {text!r}"
            )
    if re.fullmatch(r"latest|v\d+", alias or "", re.IGNORECASE):
        raise InputError(
            f"register: expected an alias that MLflow does not keep for itself, got {alias!r}"
        )
    recorded = runs.find(run)
    experiment = runs.client.get_run(recorded.run_id).info.experiment_id
    models = runs.client.search_logged_models(
        [experiment], f"source_run_id = '{recorded.run_id}'", max_results=1
    )
    variants = ", ".join(child.name for child in runs.children(recorded)) if not models else ""
    if variants:
        raise InputError(
            f"run {run!r}: it is a group and has no model of its own; name one of {variants}"
        )
    if not models:
        raise InputError(
            f"run {run!r}: it has no model (it is {recorded.status}); only finished runs have one"
        )
    try:
        with (
            store.global_tracking_uri(runs.uri),
            contextlib.redirect_stderr(io.StringIO()),
        ):  # MLflow's own words
            version = mlflow.register_model(f"models:/{models[0].model_id}", name).version
        if alias:
            runs.client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        raise InputError(f"register: {redacted_first_line(error, runs.uri)}") from None
    return f"models:/{name}@{alias}" if alias else f"models:/{name}/{version}"


def run_of(client: Any, address: str) -> str:
    """Return the id of the run that made a registered model.

    Args:
        client: MLflow's.
        address: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Raises:
        InputError: if there is no such model.
    """
    from mlflow.exceptions import MlflowException

    match = re.fullmatch(r"models:/([\w.-]+)(?:@([\w.-]+)|/(\d+))", address)
    if not match:
        raise InputError(f"{address!r}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, version = match.groups()
    try:
        version_entry = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, version)
        )
    except MlflowException as error:
        raise InputError(
            f"{address!r}: no such registered model ({redacted_first_line(error)})"
        ) from None
    return str(version_entry.run_id)
