"""Commands for the store: ``fbp sync``, ``close-dead``, ``repair-store``, ``register``."""

import math
import sys

import click

from fbp.cli.base import main, say, uri_option
from fbp.errors import InputError, first_line


@main.command("sync", short_help="send to MLflow what has not reached it yet")
@uri_option
def sync(tracking_uri: str | None) -> None:
    """Send the remaining records of all runs to MLflow.

    Each run goes to the store that it was started with, or to --tracking-uri. A run that cannot be
    sent does not keep the others from theirs; the exit status is then 1.
    """
    from fbp.experiment.rundir import journal, layout, locks
    from fbp.experiment.runner.trained_model import PYFUNC_CODE
    from fbp.experiment.tracking import shipper, uri
    from fbp.experiment.tracking.shipment import is_sent

    root = layout.root()
    unsent = []
    for folder, start in journal.started_runs(root):
        if not start.parent and not is_sent(folder):
            if locks.is_training(folder):
                say(f"{start.name} is still training; its own process sends it")
            else:
                unsent.append(folder)
    failed = 0
    for folder in unsent:
        try:
            destination = uri.recorded_destination(folder, tracking_uri, override=True)
            say(f"sending {folder.name} to {uri.shown(destination)} ...")
            failed += shipper.launch(folder, destination, PYFUNC_CODE).wait() != 0
        except (InputError, OSError) as error:
            say(f"{folder.name}: not sent: {first_line(error)}", err=True)
            failed += 1
    say(f"{len(unsent) - failed} of {len(unsent)} runs sent" if unsent else "nothing to send")
    sys.exit(1 if failed else 0)


@main.command("close-dead", short_help="mark runs KILLED whose process has died")
@click.option(
    "--minutes",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Maximal age of the heartbeat of a run on another machine.",
)
@uri_option
def close_dead(minutes: float, tracking_uri: str | None) -> None:
    """Mark runs KILLED that MLflow shows as RUNNING although their process has died."""
    from fbp.experiment.runner.trained_model import PYFUNC_CODE
    from fbp.experiment.tracking import mlflow_runs, orphans

    if math.isnan(minutes):
        raise InputError("--minutes: expected a number, got nan")
    with mlflow_runs.opened(tracking_uri) as runs:
        closed = orphans.close_dead(runs, minutes, say, model_code=PYFUNC_CODE)
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
