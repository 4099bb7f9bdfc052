"""Commands that train: ``fbp run``, ``fbp resume``, ``fbp reproduce``."""

import signal
import sys
from pathlib import Path
from typing import Any

import click

from fbp.cli.base import experiment_path, main, set_option, shown, uri_option


@main.command("run", short_help="train an experiment and log the run to MLflow")
@click.argument("experiment")
@set_option
@click.option(
    "--resume",
    type=click.Choice(["auto", "never"]),
    default="never",
    show_default=True,
    help="auto: go on with the newest unfinished run of the same configuration, if there is one.",
)
@uri_option
def run(experiment: str, overrides: tuple[str, ...], resume: str, tracking_uri: str | None) -> None:
    """Train EXPERIMENT, a TOML file or the name of one in experiments/, and log the run to MLflow."""
    from fbp.experiment.commands.launch import launch
    from fbp.experiment.commands.progress import Bar

    signals = _note_signals()
    path = experiment_path(experiment)
    _report(
        launch(path, overrides, Bar, tracking_uri, _say_waiting, signals, resume=resume == "auto")
    )


@main.command("resume", short_help="go on with a run after an interruption or a death")
@click.argument("run_name", metavar="RUN")
@uri_option
def resume_run(run_name: str, tracking_uri: str | None) -> None:
    """Go on with RUN (its folder, its name, or its MLflow run id) after an interruption or a death."""
    from fbp.experiment.commands.launch import resume
    from fbp.experiment.commands.progress import Bar

    signals = _note_signals()
    _report(resume(run_name, Bar, tracking_uri, _say_waiting, signals))


@main.command("reproduce", short_help="run a run again from its record; compare every bit")
@click.argument("run_name", metavar="RUN")
@click.option(
    "--code", type=click.Path(path_type=Path, exists=True), help="The file of a model of your own."
)
@uri_option
def reproduce_run(run_name: str, code: Path | None, tracking_uri: str | None) -> None:
    """Run RUN again from its MLflow record alone and compare every bit; exit status 1 if one differs."""
    from fbp.experiment.commands.reproduce import reproduce

    _note_signals()
    sys.exit(0 if reproduce(run_name, tracking_uri, click.echo, code) else 1)


def _note_signals() -> list[int]:
    """From now on Ctrl-C and SIGTERM are noted in the list that is returned, and stop what goes on."""
    signals: list[int] = []

    def stop(number: int, frame: Any) -> None:
        signals.append(number)  # an exception may be lost in somebody's callback; this is not
        raise KeyboardInterrupt(signal.Signals(number))

    def unraisable(lost: Any) -> None:
        if lost.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(lost)

    sys.unraisablehook = unraisable
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return signals


def _say_waiting() -> None:
    click.echo("sending the last of it to MLflow ...", err=True)


def _report(launched: Any) -> None:
    """Say how a run, or a group of them, ended, and end with its exit status."""
    from rich.console import Console

    from fbp.experiment.commands.progress import results_table
    from fbp.experiment.rundir import layout
    from fbp.experiment.rundir.journal import require_start
    from fbp.experiment.rundir.redact import redact

    outcomes = launched.outcomes
    Console().print(results_table({name: out.metrics for name, out in outcomes.items()}))
    for name, outcome in outcomes.items():
        if outcome.message:
            click.echo(f"fbp: {name}: {outcome.status}: {outcome.message}", err=True)
            click.echo(f"fbp: the last good parameters are in {shown(outcome.folder)}", err=True)
    if any(outcome.status == "KILLED" for outcome in outcomes.values()):
        click.echo(f"fbp: go on with: fbp resume {launched.folder.name}", err=True)
    click.echo(f"run:        {require_start(launched.folder).name}")
    click.echo(f"run folder: {shown(launched.folder)}")
    if launched.sent:
        embedded = launched.uri.startswith("sqlite:")
        click.echo(
            f"dashboard:  {'fbp ui, then http://127.0.0.1:5000' if embedded else redact(launched.uri)}"
        )
    else:
        log = shown(layout.shipper_log(launched.folder))
        click.echo(
            f"fbp: not all of the run has reached {redact(launched.uri)} (see {log}); nothing is lost: 'fbp sync' sends "
            "the rest there",
            err=True,
        )
    interrupted = next((outcome.signal for outcome in outcomes.values() if outcome.signal), None)
    if interrupted:
        sys.exit(128 + interrupted)
    sys.exit(0 if all(outcome.status == "FINISHED" for outcome in outcomes.values()) else 1)
