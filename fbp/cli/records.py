"""Commands about runs that were made: ``fbp runs``, ``show``, ``compare``, ``ui``."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click

from fbp.cli.base import console, main, shown, uri_option
from fbp.errors import InputError


@main.command("runs", short_help="a table of runs, filtered and sorted")
@click.argument("condition", default="", metavar="[FILTER]")
@click.option(
    "--sort",
    multiple=True,
    metavar="[-]KEY",
    help="Such as -metrics.validation_accuracy; - for the largest first.",
)
@click.option("--limit", default=30, show_default=True, type=click.IntRange(1, 10000))
@uri_option
def list_runs(condition: str, sort: tuple[str, ...], limit: int, tracking_uri: str | None) -> None:
    """A table of runs.

    FILTER is in MLflow's language: "metrics.validation_accuracy > 0.97 and params.optimizer_name = 'adam'".
    """
    from fbp.experiment.commands import tables
    from fbp.experiment.tracking import mlflow_runs

    order = [f"{key.removeprefix('-')} {'DESC' if key.startswith('-') else 'ASC'}" for key in sort]
    with mlflow_runs.opened(tracking_uri) as runs:
        found = runs.search(condition, order or None, limit)
        asked = tables.asked_for(condition, sort)
        runs.check_names(asked)
        if found:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            console().print(tables.list_of_runs(found, runs.experiments, asked, width).rich())
        click.echo(
            f"{len(found)} runs" + (", the most that --limit allows" if len(found) == limit else "")
        )


@main.command("show", short_help="all that matters of one run")
@click.argument("run_name", metavar="RUN")
@uri_option
def show(run_name: str, tracking_uri: str | None) -> None:
    """All that matters of RUN: configuration, data, metrics, digests."""
    from fbp.experiment.commands import tables
    from fbp.experiment.tracking import mlflow_runs

    with mlflow_runs.opened(tracking_uri) as runs:
        found = runs.find(run_name)
        for table in tables.of_run(runs, found, runs.read(found)):
            console().print(table.rich())


@main.command("compare", short_help="runs side by side, with pictures and statistics")
@click.argument("run_names", metavar="RUN RUN ...", nargs=-1, required=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder for the report and its pictures.",
)
@uri_option
def compare(run_names: tuple[str, ...], output: Path | None, tracking_uri: str | None) -> None:
    """Runs side by side: configuration, results, statistics over seeds, learning curves, norms of delta."""
    from fbp.experiment.commands import compare
    from fbp.experiment.tracking import mlflow_runs, store

    with mlflow_runs.opened(tracking_uri) as runs:
        folder = output or store.new_comparison_folder(store.root())
        found = compare.compare(runs, run_names, folder)
    for table in found.tables:
        console().print(table.rich())
    for path in found.files:
        click.echo(shown(path))


@main.command("ui", short_help="start the MLflow dashboard on 127.0.0.1")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@uri_option
def ui(port: int, tracking_uri: str | None) -> None:
    """Start the MLflow dashboard on this project's runs, on this machine only."""
    from fbp.experiment.rundir.redact import redact
    from fbp.experiment.tracking import store

    root = store.root()
    uri = tracking_uri or store.default_uri(root)
    if uri.startswith("http"):
        raise InputError(
            f"--tracking-uri: {redact(uri)} is a server with a dashboard of its own; open it in a browser"
        )
    if not tracking_uri and not (root / "mlflow.db").exists():
        raise InputError(f"there are no runs in {root} yet; start with: fbp run digits_mlp")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise InputError(
                f"--port: {port} is in use on this machine; choose another, such as --port {port + 1}"
            )
    click.echo(
        f"dashboard: http://127.0.0.1:{port}  (some seconds until it answers; Ctrl-C stops it)"
    )
    if uri == store.default_uri(root):
        store.check_not_moved(root)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--workers",
        "1",
        "--default-artifact-root",
        store.artifact_root(root),
    ]
    settings = {
        "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument: it may hold a password
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], env=os.environ | settings
    ) as server:
        signal.signal(
            signal.SIGTERM, lambda number, frame: server.terminate()
        )  # it must not outlive this process
        try:
            sys.exit(server.wait())
        except KeyboardInterrupt:
            server.wait()
