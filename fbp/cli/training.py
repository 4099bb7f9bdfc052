"""Commands that train: `fbp run`, `fbp resume`, `fbp reproduce`."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fbp.cli.base import exit_by_signal, experiment_path, main, set_option, shown, uri_option

if TYPE_CHECKING:
    from fbp.experiment.commands.launch import Launched, RunRequest


@main.command("run", short_help="train an experiment and log the run to MLflow")
@click.argument("experiment")
@set_option
@click.option(
    "--resume",
    type=click.Choice(["auto", "never"]),
    default="never",
    show_default=True,
    help="auto: resume the newest unfinished run of the same configuration, if there is one.",
)
@uri_option
def run(experiment: str, overrides: tuple[str, ...], resume: str, tracking_uri: str | None) -> None:
    """Train EXPERIMENT and log the run to MLflow.

    EXPERIMENT is a TOML file, or the name of one in experiments/.
    """
    from fbp.experiment.commands.launch import launch

    request = _request(tracking_uri)
    path = experiment_path(experiment)
    _report(launch(path, overrides, request, resume=resume == "auto"))


@main.command("resume", short_help="resume a run that was interrupted")
@click.argument("run_name", metavar="RUN")
@uri_option
def resume_run(run_name: str, tracking_uri: str | None) -> None:
    """Resume RUN (its folder, its name, or its MLflow run id) after an interruption."""
    from fbp.experiment.commands.launch import resume

    _report(resume(run_name, _request(tracking_uri)))


@main.command("reproduce", short_help="run a run again from its record; compare every bit")
@click.argument("run_name", metavar="RUN")
@click.option(
    "--code", type=click.Path(path_type=Path, exists=True), help="The file of a model of your own."
)
@uri_option
def reproduce_run(run_name: str, code: Path | None, tracking_uri: str | None) -> None:
    """Run RUN again from its record alone and compare every bit.

    The exit status is 1 if one bit differs.
    """
    from fbp.experiment.commands.reproduce import reproduce

    _collect_signals()
    sys.exit(0 if reproduce(run_name, tracking_uri, click.echo, code) else 1)


def _request(tracking_uri: str | None) -> "RunRequest":
    """Return how the command line runs: with a bar, and stopped by signals from now on."""
    from fbp.experiment.commands.launch import RunRequest
    from fbp.experiment.commands.progress import Bar

    return RunRequest(Bar, tracking_uri, _announce_wait, _collect_signals())


def _collect_signals() -> list[int]:
    """Install handlers for SIGINT and SIGTERM: they raise, and append to the list returned."""
    signals: list[int] = []

    def stop(number: int, frame: Any) -> None:
        signals.append(number)  # an exception may be lost in another's callback; this is not
        raise KeyboardInterrupt(signal.Signals(number))

    def report_unraisable(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = report_unraisable
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return signals


def _announce_wait() -> None:
    click.echo("sending the rest ...", err=True)


def _report(launched: "Launched") -> None:
    """Print how a run, or a group of them, ended, and exit with its status."""
    from rich.console import Console

    from fbp.experiment.commands.progress import results_table
    from fbp.experiment.rundir.journal import require_start

    outcomes = launched.outcomes
    Console().print(results_table({name: out.metrics for name, out in outcomes.items()}))
    for name, outcome in outcomes.items():
        if outcome.message:
            click.echo(f"fbp: {name}: {outcome.status}: {outcome.message}", err=True)
            click.echo(f"fbp: the last good parameters are in {shown(outcome.folder)}", err=True)
    statuses = {outcome.status for outcome in outcomes.values()}
    if "KILLED" in statuses:
        click.echo(f"fbp: go on with: fbp resume {launched.folder.name}", err=True)
    click.echo(f"run:        {require_start(launched.folder).name}")
    click.echo(f"run folder: {shown(launched.folder)}")
    _report_tracking(launched)
    number = next((outcome.signal for outcome in outcomes.values() if outcome.signal), None)
    if number:
        exit_by_signal(number)
    sys.exit(0 if statuses == {"FINISHED"} else 1)


def _report_tracking(launched: "Launched") -> None:
    from fbp.experiment.rundir import layout
    from fbp.experiment.tracking import uri
    from fbp.experiment.tracking.store import is_embedded

    if launched.sent:
        target = launched.destination
        if target.sink == "mlflow" and is_embedded(target.uri):
            click.echo("dashboard:  fbp ui, then http://127.0.0.1:5000")
        else:
            click.echo(f"tracked in: {uri.shown(target)}")
    else:
        log = shown(layout.shipper_log(launched.folder))
        click.echo(
            f"fbp: not all of the run has reached {uri.shown(launched.destination)} (see {log}); "
            "nothing is lost: 'fbp sync' sends the rest",
            err=True,
        )
