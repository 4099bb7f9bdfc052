"""Commands that inspect recorded runs: ``fbp runs``, ``show``, ``compare``, ``ui``."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click

from fbp._optional import require
from fbp.cli.base import (
    WIDTH_OF_FILES,
    main,
    print_table,
    say,
    shown,
    terminal_width,
    uri_option,
)
from fbp.errors import InputError, listed


@main.command("runs", short_help="list runs, filtered and sorted")
@click.argument("condition", default="", metavar="[FILTER]")
@click.option(
    "--sort",
    multiple=True,
    metavar="[-]KEY",
    help="Sort key, such as -metrics.validation_accuracy; '-' puts the largest first.",
)
@click.option(
    "--limit",
    default=30,
    show_default=True,
    type=click.IntRange(1, 10000),
    help="Maximal number of runs.",
)
@uri_option
def list_runs(condition: str, sort: tuple[str, ...], limit: int, tracking_uri: str | None) -> None:
    """List runs with their results and the parameters in which they differ.

    FILTER is written in MLflow's search language, for example
    "metrics.validation_accuracy > 0.97 and params.optimizer_name = 'adam'".
    """
    from fbp.experiment.commands import tables
    from fbp.experiment.rundir import journal, layout
    from fbp.experiment.tracking.readers import FOLDERS, count_in_other_trackers, open_runs
    from fbp.experiment.tracking.run_reader import require_known_names
    from fbp.experiment.tracking.supervised import refused_runs

    order = [f"{key.removeprefix('-')} {'DESC' if key.startswith('-') else 'ASC'}" for key in sort]
    with open_runs(tracking_uri) as reader:
        runs = reader.search(condition, order, limit)
        names = tables.names_in_filter(condition, sort)
        require_known_names(names, reader)
        if runs:
            print_table(tables.runs_table(runs, names, terminal_width()).rich())
        reached = ", the limit (see --limit)" if len(runs) == limit else ""
        say(f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}{reached}")
        others = count_in_other_trackers() if reader.uri and not tracking_uri else 0
    newer = journal.newer_runs(layout.root())
    if newer:
        folders = listed(folder.name for folder in newer)
        say(f"fbp: a newer fbp wrote {folders}; update fbp to read them", err=True)
    refused = refused_runs(layout.root())
    if refused:
        say(f"fbp: refused for good: {listed(refused)}; why, says: fbp sync", err=True)
    if others:
        say(f"{others} more in other trackers: fbp runs --tracking-uri {FOLDERS}", err=True)


@main.command("show", short_help="show one run")
@click.argument("run_name", metavar="RUN")
@uri_option
def show(run_name: str, tracking_uri: str | None) -> None:
    """Show configuration, data, metrics and digests of RUN."""
    from fbp.experiment.commands import missing, tables
    from fbp.experiment.tracking.readers import open_runs
    from fbp.experiment.tracking.supervised import tracking_problem

    with open_runs(tracking_uri, [run_name]) as reader:
        run = reader.find(run_name)
        for table in tables.run_tables(reader, run):
            print_table(table.rich())
        problem = tracking_problem(run)
        if problem:
            say(f"fbp: {problem}", err=True)
        absent = missing.missing_artifacts(reader, run)
        if absent:
            say(f"fbp: {missing.message(reader, run, absent)}", err=True)


@main.command("compare", short_help="compare runs, with plots and statistics")
@click.argument("run_names", metavar="RUN RUN ...", nargs=-1, required=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the report and its plots (default: a new one in mlruns/comparisons/).",
)
@uri_option
def compare(run_names: tuple[str, ...], output: Path | None, tracking_uri: str | None) -> None:
    """Compare runs: configurations, results, statistics over seeds, learning curves, delta norms.

    The run of a group stands for all of its variants.
    """
    from fbp.experiment.commands import compare
    from fbp.experiment.rundir import layout
    from fbp.experiment.tracking.readers import open_runs

    with open_runs(tracking_uri, run_names) as reader:
        folder = output or layout.new_comparison_folder(layout.root())
        comparison = compare.compare(reader, run_names, folder)
    for table in comparison.tables:
        print_table(table.fitted(terminal_width() or WIDTH_OF_FILES).rich())
    for note in comparison.notes:
        say(f"fbp: {note}", err=True)
    for path in comparison.files:
        say(shown(path))


@main.command("ui", short_help="start the MLflow dashboard on 127.0.0.1")
@click.option(
    "--port",
    default=5000,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Port to listen on.",
)
@uri_option
def ui(port: int, tracking_uri: str | None) -> None:
    """Start the MLflow dashboard for this project's runs; only this machine can reach it."""
    from fbp.experiment.rundir import layout
    from fbp.experiment.rundir.redact import redact
    from fbp.experiment.tracking import store
    from fbp.experiment.tracking import uri as uris

    require("fbp ui", "mlflow")
    root = layout.root()
    uri = tracking_uri or uris.default_uri(root)
    if uri.startswith("http"):
        raise InputError(
            f"--tracking-uri: {redact(uri)} is a server that has its own dashboard; "
            "open it in a browser"
        )
    if not tracking_uri and not layout.database(root).exists():
        raise InputError(f"there are no runs in {root} yet; start with: fbp run digits_mlp")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise InputError(f"--port: {port} is in use; choose another, such as --port {port + 1}")
    say(f"dashboard: http://127.0.0.1:{port}  (it answers after some seconds; Ctrl-C stops it)")
    if uri == uris.default_uri(root):
        store.check_not_moved(root)
    words = [sys.executable, "-P", "-m", "mlflow", "ui", "--workers", "1"]
    words += ["--default-artifact-root", store.artifact_root(root)]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    settings = {
        "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument: it may hold a password
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONSAFEPATH": "1",  # nothing is imported from the current folder
    }
    with subprocess.Popen(words, env=os.environ | settings) as server:
        # the server must not outlive this process
        signal.signal(signal.SIGTERM, lambda number, frame: server.terminate())
        try:
            sys.exit(server.wait())
        except KeyboardInterrupt:
            server.wait()
