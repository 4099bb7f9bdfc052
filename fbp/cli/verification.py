"""Commands that verify recorded runs: `fbp verify`, `fbp reproduce`."""

import sys
from pathlib import Path

import click

from fbp.cli.base import main, uri_option
from fbp.cli.training import collect_signals


@main.command("verify", short_help="check a run's record against its manifest, without training")
@click.argument("run_name", metavar="RUN")
@uri_option
def verify_run(run_name: str, tracking_uri: str | None) -> None:
    """Check that everything recorded of RUN is as it was when the run ended.

    Its manifest has the digest of each file, each metric and each tag. The exit status is 1 if
    anything was changed, removed or added since.
    """
    from fbp.experiment.commands.verify import verify

    sys.exit(0 if verify(run_name, tracking_uri, click.echo) else 1)


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

    collect_signals()
    sys.exit(0 if reproduce(run_name, tracking_uri, click.echo, code) else 1)
