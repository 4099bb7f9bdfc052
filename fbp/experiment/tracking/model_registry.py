"""Trained models by name: MLflow's model registry."""

import contextlib
import io
import re
from typing import Any

from fbp.errors import InputError
from fbp.experiment.rundir.redact import redact, redact_secrets_of
from fbp.experiment.tracking import store
from fbp.experiment.tracking.mlflow_runs import MlflowRuns


def register(runs: MlflowRuns, run: str, name: str, alias: str | None) -> str:
    """Give a run's model a name, and perhaps an alias; returns the address by which it is loaded.

    Args:
        runs: the store.
        run: the run's id or name.
        name: of the registered model; a new version of it, where it exists already.
        alias: such as ``champion``; it moves to this version.

    Raises:
        InputError: where there is no such run, or it has no model.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    for what, text in (("name", name), ("alias", alias or "a")):
        if not re.fullmatch(r"\w[\w.-]*", text):
            raise InputError(
                f"register: expected letters, digits and . - _ in the {what}, got {text!r}"
            )
    if re.fullmatch(r"latest|v\d+", alias or "", re.IGNORECASE):
        raise InputError(
            f"register: expected an alias that MLflow does not keep for itself, got {alias!r}"
        )
    found = runs.find(run)
    experiment_id = runs.client.get_run(found.run_id).info.experiment_id
    models = runs.client.search_logged_models(
        [experiment_id], f"source_run_id = '{found.run_id}'", max_results=1
    )
    variants = ", ".join(child.name for child in runs.children(found)) if not models else ""
    if variants:
        raise InputError(
            f"run {run!r}: it is a group and has no model of its own; name one of {variants}"
        )
    if not models:
        raise InputError(
            f"run {run!r}: it has no model (it is {found.status}); only finished runs have one"
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
        raise InputError(
            f"register: {redact_secrets_of(str(error).partition(chr(10))[0], runs.uri)}"
        ) from None
    return f"models:/{name}@{alias}" if alias else f"models:/{name}/{version}"


def run_of(client: Any, address: str) -> str:
    """The id of the run that made a registered model.

    Args:
        client: MLflow's.
        address: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Raises:
        InputError: where there is no such model.
    """
    from mlflow.exceptions import MlflowException

    match = re.fullmatch(r"models:/([\w.-]+)(?:@([\w.-]+)|/(\d+))", address)
    if not match:
        raise InputError(f"{address!r}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, version = match.groups()
    try:
        found = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, version)
        )
    except MlflowException as error:
        raise InputError(f"{address!r}: no such registered model ({redact(str(error))})") from None
    return str(found.run_id)
