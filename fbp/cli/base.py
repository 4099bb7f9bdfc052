"""What all commands share: the group, how bad input ends, options, and how paths and tables are shown."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fbp.errors import InputError

_SECTIONS = {
    "Train": ("run", "resume", "check", "describe", "list", "generate"),
    "Look": ("ui", "runs", "show", "compare"),
    "Prove": ("reproduce",),
    "Keep in order": ("sync", "reap", "relocate", "register"),
}

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override a value of the configuration; may be repeated. VALUE is TOML, or a bare text.",
)
uri_option = click.option(
    "--tracking-uri",
    metavar="URI",
    help="That MLflow store, not mlruns/ (or set MLFLOW_TRACKING_URI).",
)


class _Commands(click.Group):
    """Commands whose bad input ends in one line and exit status 2, never in a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.exit(result if isinstance(result, int) else 0)
        except InputError as error:
            for line in str(error).splitlines():
                click.echo(f"fbp: {line}", err=True)
            sys.exit(2)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"fbp: {where}{error.strerror or error}", err=True)
            sys.exit(1)
        except (KeyboardInterrupt, click.Abort) as error:
            click.echo("fbp: stopped", err=True)
            found = (error.__cause__ or error).args  # click makes an Abort of a KeyboardInterrupt
            sys.exit(
                128
                + next(
                    (number for number in found if isinstance(number, signal.Signals)),
                    signal.SIGINT,
                )
            )
        except (MemoryError, RuntimeError) as error:  # JAX's own error is a RuntimeError
            if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            first = next(iter(str(error).splitlines()), "")
            click.echo(
                f"fbp: not enough memory ({first}); a smaller model, batch or data set needs less",
                err=True,
            )
            sys.exit(1)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            from fbp.experiment.config.catalogue import suggest

            raise InputError(f"unknown command {args[0]!r}; {suggest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by what they are for."""
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].short_help or "") for name in names])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fbp")
def main() -> None:
    """Neural networks with a backward pass written by hand, every run in MLflow."""


def experiment_path(given: str) -> Path:
    """The file itself, or ``experiments/NAME.toml`` for a bare name."""
    path = Path(given)
    named = Path("experiments") / f"{given}.toml"
    return named if not path.exists() and path.suffix == "" and named.exists() else path


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Problems inside name the experiment's file."""
    try:
        yield
    except InputError as error:
        raise InputError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def shown(path: Path) -> str:
    """A path relative to here, where it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def console() -> Any:
    """Where tables are printed: as wide as they need, where the output is not a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 240)
