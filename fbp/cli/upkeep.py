"""Commands for the store: ``fbp sync``, ``close-dead``, ``repair-store``, ``register``."""

import math
import sys

import click

from fbp.cli.base import main, say, uri_option
from fbp.errors import InputError


@main.command("sync", short_help="send to MLflow what has not reached it yet")
@click.option(
    "--seconds",
    default=900.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Longest time for one run; what was sent by then stays sent.",
)
@uri_option
def sync(seconds: float, tracking_uri: str | None) -> None:
    """Send the remaining records of all runs to MLflow.

    Each run goes to the store that it was started with, or to --tracking-uri. A run that did not
    begin on this machine goes to --tracking-uri, MLFLOW_TRACKING_URI or the store of this project,
    whatever its folder says. A run that cannot be sent does not keep the others from theirs.

    The exit status is 0 if all is sent, 1 if some run is not sent yet and another try may help, and
    3 if a tracker refuses some run for good: then the line of that run says what to do.
    """
    from fbp.experiment.commands.sync import sync
    from fbp.experiment.rundir import layout

    if math.isnan(seconds):
        raise InputError("--seconds: expected a number, got nan")
    result = sync(layout.root(), tracking_uri, seconds, say, lambda line: say(line, err=True))
    say(result.summary)
    sys.exit(result.status)


@main.command("close-dead", short_help="mark runs KILLED whose process has died")
@click.option(
    "--minutes",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Maximal age of the heartbeat of a run on another machine.",
)
@click.option(
    "--without-folder",
    is_flag=True,
    help="Let the heartbeat decide of runs whose folder is gone, too.",
)
@uri_option
def close_dead(minutes: float, without_folder: bool, tracking_uri: str | None) -> None:  # noqa: FBT001
    """Mark runs KILLED that MLflow shows as RUNNING although their process has died.

    The lock in a run's folder says whether it is alive, from whichever folder this is called. For
    a run on another machine the age of its heartbeat does. If it is closed in error, because that
    machine was cut off, its next heartbeat opens it again.
    """
    from fbp.experiment.runner.trained_model import PYFUNC_CODE
    from fbp.experiment.tracking import mlflow_runs, orphans

    if math.isnan(minutes):
        raise InputError("--minutes: expected a number, got nan")
    with mlflow_runs.opened(tracking_uri) as runs:
        closed = orphans.close_dead(
            runs, minutes, say, model_code=PYFUNC_CODE, without_folder=without_folder
        )
    say(f"{closed} run{'s' * (closed != 1)} closed")


@main.command("repair-store", short_help="correct the artifact paths of a moved mlruns/")
def repair_store() -> None:
    """Rewrite the artifact paths of the store after mlruns/ was moved or copied."""
    from fbp.experiment.rundir import layout, locks
    from fbp.experiment.tracking import store

    root = layout.root()
    if not layout.database(root).exists():
        raise InputError(f"{root}: there is no store in this folder")
    with locks.locked(layout.store_lock(root)):
        stale, changed = store.stale_artifact_roots(root), store.repair(root)
    for folder in stale:
        say(f"was in {folder}")
    say(
        f"{changed} records now point to {store.artifact_root(root)}"
        if stale
        else "nothing was moved"
    )


@main.command("register", short_help="name a run's model in the model registry")
@click.argument("run_name", metavar="RUN")
@click.argument("name")
@click.option("--alias", help="Alias of the new version, such as champion.")
@uri_option
def register(run_name: str, name: str, alias: str | None, tracking_uri: str | None) -> None:
    """Register the model of RUN as a new version of NAME in MLflow's model registry."""
    from fbp.experiment.tracking import mlflow_runs, model_registry

    with mlflow_runs.opened(tracking_uri) as runs:
        address = model_registry.register(runs, run_name, name, alias)
    say(f"load it with: fbp.load({address!r}) or mlflow.pyfunc.load_model({address!r})")
