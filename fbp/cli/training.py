"""Commands that train: `fbp run`, `fbp resume`."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fbp.cli.base import (
    code_option,
    exit_by_signal,
    experiment_path,
    main,
    print_table,
    say,
    set_option,
    shown,
    trust_option,
    uri_option,
)

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
@click.option(
    "--accept-changes", is_flag=True, help="Go on although your own code is another than before."
)
@trust_option
@code_option
@uri_option
def resume_run(
    run_name: str,
    accept_changes: bool,  # noqa: FBT001
    trust: tuple[str, ...],
    code: tuple[Path, ...],
    tracking_uri: str | None,
) -> None:
    """Resume RUN (its folder, its name, or its MLflow run id) after an interruption.

    Configuration and data must be those that it was begun with, and so must your own code unless
    you accept its changes.
    """
    from fbp.experiment.commands.launch import resume
    from fbp.experiment.config.trust import trust_of

    request = _request(tracking_uri)._replace(
        trust=trust_of(trust, code), accepts_changes=accept_changes
    )
    _report(resume(run_name, request))


def _request(tracking_uri: str | None) -> "RunRequest":
    """Return how the command line runs: with a bar, and stopped by signals from now on."""
    from fbp.experiment.commands.launch import RunRequest
    from fbp.experiment.commands.progress import Bar

    return RunRequest(Bar, tracking_uri, _announce_wait, collect_signals())


def collect_signals() -> list[int]:
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
    say("sending the rest ...", err=True)


def _report(launched: "Launched") -> None:
    """Print how a run, or a group of them, ended, and exit with its status."""
    from fbp.experiment.commands.progress import results_table
    from fbp.experiment.rundir.journal import require_start
    from fbp.experiment.tracking.shipper import REFUSED

    outcomes = launched.outcomes
    print_table(results_table({name: out.metrics for name, out in outcomes.items()}))
    for name, outcome in outcomes.items():
        if outcome.message:
            say(f"fbp: {name}: {outcome.status}: {outcome.message}", err=True)
            say(f"fbp: the last good parameters are in {shown(outcome.folder)}", err=True)
    statuses = {outcome.status for outcome in outcomes.values()}
    if "KILLED" in statuses:
        say(f"fbp: go on with: fbp resume {launched.folder.name}", err=True)
    say(f"run:        {require_start(launched.folder).name}")
    say(f"run folder: {shown(launched.folder)}")
    is_refused = _report_tracking(launched)
    number = next((outcome.signal for outcome in outcomes.values() if outcome.signal), None)
    if number:
        exit_by_signal(number)
    if statuses != {"FINISHED"}:
        sys.exit(1)
    sys.exit(REFUSED if is_refused else 0)


def _report_tracking(launched: "Launched") -> bool:
    """Say where the run is; return whether the tracker refuses it for good."""
    from fbp.experiment.tracking import uri
    from fbp.experiment.tracking.shipment import read_problem
    from fbp.experiment.tracking.store import is_embedded
    from fbp.experiment.tracking.supervised import unsent_message

    if launched.sent:
        target = launched.destination
        if target.sink == "mlflow" and is_embedded(target.uri):
            say("dashboard:  fbp ui, then http://127.0.0.1:5000")
        else:
            say(f"tracked in: {uri.shown(target)}")
    else:
        place = uri.shown(launched.destination)
        say(f"fbp: {unsent_message(launched.folder, place)}", err=True)
    problem = None if launched.sent else read_problem(launched.folder)
    return problem is not None and problem.refused
