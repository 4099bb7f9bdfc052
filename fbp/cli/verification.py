"""Commands that verify recorded runs: `fbp verify`, `archive`, `sign`, `reproduce`."""

import os
import sys
from pathlib import Path

import click

from fbp.cli.base import code_option, main, say, shown, trust_option, uri_option
from fbp.cli.training import collect_signals
from fbp.errors import InputError


@main.command("verify", short_help="check a run's record against its manifest, without training")
@click.argument("run_name", metavar="RUN|FILE")
@click.option(
    "--signers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Allowed signers, as for ssh-keygen; one of them must have signed the record.",
)
@click.option("--from", "start", type=int, metavar="STEP", help="Train again from this checkpoint.")
@click.option("--to", "stop", type=int, metavar="STEP", help="Train again up to this checkpoint.")
@trust_option
@code_option
@uri_option
def verify_run(
    run_name: str,
    signers: Path | None,
    start: int | None,
    stop: int | None,
    trust: tuple[str, ...],
    code: tuple[Path, ...],
    tracking_uri: str | None,
) -> None:
    """Check that everything recorded of RUN is as it was when the run ended.

    Its manifest has the digest of each file, each metric and each tag. FILE is an archive. The exit
    status is 1 if anything was changed, removed or added since. With --from and --to, the steps
    between two checkpoints are also trained again and compared bit for bit.
    """
    from fbp.experiment.commands.verify import verify, verify_part
    from fbp.experiment.config.trust import trust_of

    if (start is None) != (stop is None):
        raise InputError("--from and --to: expected both, or none")
    holds = verify(run_name, tracking_uri, say, signers)
    if holds and start is not None and stop is not None:
        collect_signals()
        holds = verify_part(run_name, start, stop, say, trust_of(trust, code))
    sys.exit(0 if holds else 1)


@main.command("archive", short_help="write a run's record into one file")
@click.argument("run_name", metavar="RUN")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write."
)
@click.option("--with-data", is_flag=True, help="Include the data set, as arrays.")
@trust_option
@code_option
def archive_run(
    run_name: str,
    output: Path | None,
    with_data: bool,  # noqa: FBT001
    trust: tuple[str, ...],
    code: tuple[Path, ...],
) -> None:
    """Write everything that RUN has recorded into one file.

    'fbp verify FILE' and 'fbp reproduce FILE' need nothing else on another machine but the
    packages, whose versions the file lists, and the data, unless they are included. Your own code
    that the run was begun with is included.
    """
    from fbp.experiment.commands.archive import archive
    from fbp.experiment.config.trust import trust_of

    path, missing = archive(run_name, output, with_data=with_data, trust=trust_of(trust, code))
    say(f"{shown(path)}  ({path.stat().st_size / 2**20:.1f} MB)")
    if missing:
        say(
            f"without own code {', '.join(missing)}, which is not found as it was when the run "
            "began; where it is, give its folder with --code"
        )


@main.command("sign", short_help="sign a run's record with an SSH key")
@click.argument("run_name", metavar="RUN|FILE")
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    default=Path("~/.ssh/id_ed25519"),
    show_default=True,
    metavar="FILE",
    help="Private SSH key, or the public one if an agent has the private.",
)
@uri_option
def sign_run(run_name: str, key: Path, tracking_uri: str | None) -> None:
    """Sign the manifest of RUN, or of an archive FILE, by ssh-keygen.

    'fbp verify' says who has signed. The record must be as it was when the run ended.
    """
    from fbp.experiment.commands.sign import sign

    sign(run_name, Path(os.path.expanduser(key)), tracking_uri, say)


@main.command("reproduce", short_help="run a run again from its record; compare every bit")
@click.argument("run_name", metavar="RUN|FILE")
@trust_option
@code_option
@uri_option
def reproduce_run(
    run_name: str, trust: tuple[str, ...], code: tuple[Path, ...], tracking_uri: str | None
) -> None:
    """Run RUN again from its record alone and compare every bit.

    The exit status is 1 if one bit differs.
    """
    from fbp.experiment.commands.reproduce import reproduce
    from fbp.experiment.config.trust import trust_of

    collect_signals()
    trusted = trust_of(trust, code)
    sys.exit(0 if reproduce(run_name, tracking_uri, say, trusted) else 1)
