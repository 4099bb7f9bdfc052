"""Commands that keep the store in order: ``fbp sync``, ``reap``, ``relocate``, ``register``."""

import math
import os
import sys

import click

from fbp.cli.base import main, uri_option
from fbp.errors import InputError


@main.command("sync", short_help="send to MLflow what did not reach it")
@uri_option
def sync(tracking_uri: str | None) -> None:
    """Send to MLflow what did not reach it when it was recorded, to where it was meant for or to --tracking-uri."""
    from fbp.experiment.rundir import journal, locks
    from fbp.experiment.rundir.redact import redact
    from fbp.experiment.tracking import shipper, store

    root = store.root()
    chosen = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    left = []
    for folder in store.run_folders(root):
        start = journal.read_start(folder)
        if start and not start["parent"] and not shipper.is_sent(folder):
            if locks.is_training(folder):
                click.echo(f"{start['name']} is still training; its own process sends it")
            else:
                left.append(folder)
    failed = 0
    for folder in left:
        uri = store.tracking_uri(root, chosen or shipper.destination(folder))
        click.echo(f"sending {folder.name} to {redact(uri)} ...")
        failed += shipper.launch(folder, uri).wait() != 0
    click.echo(f"{len(left) - failed} of {len(left)} runs sent" if left else "nothing to send")
    sys.exit(1 if failed else 0)


@main.command("reap", short_help="close runs that nobody trains any more")
@click.option(
    "--minutes",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0),
    help="How old the heartbeat of a run elsewhere may be.",
)
@uri_option
def reap(minutes: float, tracking_uri: str | None) -> None:
    """Close the runs that MLflow shows as running though nobody trains them."""
    from fbp.experiment.tracking import mlflow_runs
    from fbp.experiment.tracking.orphans import reap

    if math.isnan(minutes):
        raise InputError("--minutes: expected a number, got nan")
    with mlflow_runs.opened(tracking_uri) as runs:
        closed = reap(runs, minutes, click.echo)
    click.echo(f"{closed} runs closed")


@main.command("relocate", short_help="repair a moved or copied mlruns/")
def relocate() -> None:
    """Repair the store after the folder mlruns/ was moved or copied, so that MLflow finds its artifacts again."""
    from fbp.experiment.rundir import locks
    from fbp.experiment.tracking import store

    root = store.root()
    if not (root / "mlflow.db").exists():
        raise InputError(f"{root}: there is no store here")
    with locks.locked(root / ".init.lock"):
        old, changed = store.stale_artifact_roots(root), store.relocate(root)
    for place in old:
        click.echo(f"was in {place}")
    click.echo(
        f"{changed} records now point to {store.artifact_root(root)}"
        if old
        else "nothing was moved"
    )


@main.command("register", short_help="give a run's model a name")
@click.argument("run_name", metavar="RUN")
@click.argument("name")
@click.option("--alias", help="Such as champion.")
@uri_option
def register(run_name: str, name: str, alias: str | None, tracking_uri: str | None) -> None:
    """Give the model of RUN a NAME in MLflow's model registry."""
    from fbp.experiment.tracking import mlflow_runs, model_registry

    with mlflow_runs.opened(tracking_uri) as runs:
        address = model_registry.register(runs, run_name, name, alias)
    click.echo(f"load it with: fbp.load({address!r}) or mlflow.pyfunc.load_model({address!r})")
