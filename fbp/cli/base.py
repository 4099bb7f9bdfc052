"""The command group, its error handling, common options, and all printing of the commands.

What a command prints may hold texts from anybody, so it goes through :func:`say`, :func:`echo` or
:func:`print_table`, which make it neutral for a terminal; errors without secrets, too.
"""

import contextlib
import errno
import io
import shutil
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any, NoReturn

import click

from fbp import _neutral
from fbp._secrets import redact
from fbp.errors import InputError

_PACKAGE = Path(__file__).parent.parent
_GROUPS = {
    "Train": ("run", "resume"),
    "Inspect": ("ui", "runs", "show", "compare", "list", "describe"),
    "Verify": ("check", "verify", "reproduce", "archive", "sign"),
    "Use": ("generate", "register"),
    "Maintain": ("sync", "close-dead", "repair-store"),
}
_NAME_WIDTH = 22  # columns of the names in a list
WIDTH_OF_FILES = 240
"""Columns of a table that is not printed to a terminal."""

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override a configuration value; may be repeated. VALUE is TOML, or plain text.",
)
uri_option = click.option(
    "--tracking-uri",
    metavar="URI",
    help="MLflow store to use instead of mlruns/, or 'folders' for the run folders "
    "(default: $MLFLOW_TRACKING_URI, if set).",
)
trust_option = click.option(
    "--trust",
    multiple=True,
    metavar="MODULE:NAME",
    help="Code outside of fbp that the run's configuration may name; may be repeated.",
)
code_option = click.option(
    "--code",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    metavar="FILE",
    help="Python file of your own whose functions the run's configuration may name; may be "
    "repeated.",
)


class _Commands(click.Group):
    """Commands that answer bad input with one line and exit status 2, never with a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        _never_fail_to_print()
        try:
            result = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.exit(result if isinstance(result, int) else 0)
        except InputError as error:
            for line in str(error).split("\n"):
                _complain(line)
            sys.exit(2)
        except click.ClickException as error:
            shown = io.StringIO()
            error.show(shown)
            echo(shown.getvalue().rstrip("\n"), err=True)
            sys.exit(error.exit_code)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _complain(f"{where}{error.strerror or error}{_remedy(error)}")
            sys.exit(1)
        except (KeyboardInterrupt, click.Abort) as error:
            say("fbp: stopped", err=True)
            exit_by_signal(_signal_of(error))
        except (MemoryError, RuntimeError) as error:  # JAX's own error is a RuntimeError
            if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = next(iter(str(error).splitlines()), "")
            _complain(f"out of memory ({reason}); use a smaller model, batch size or data set")
            sys.exit(1)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            from fbp.errors import did_you_mean

            raise InputError(f"unknown command {args[0]!r}; {did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, grouped by purpose."""
        for title, names in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].short_help or "") for name in names])


def _complain(line: str) -> None:
    """Print one line of an error, without secrets."""
    say(f"fbp: {redact(line)}", err=True)


def _remedy(error: OSError) -> str:
    """Return what to do about a full disk; empty for any other error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    notes = getattr(error, "__notes__", ())
    return "; ".join(["", *(notes or ("free some space, and start again",))])


def _never_fail_to_print() -> None:
    """Let the standard streams escape what their encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors="backslashreplace")


def _signal_of(error: BaseException) -> int:
    """Return the signal that caused an interruption; SIGINT if none is recorded."""
    arguments = (error.__cause__ or error).args  # click turns a KeyboardInterrupt into an Abort
    return next((n for n in arguments if isinstance(n, signal.Signals)), signal.SIGINT)


def exit_by_signal(number: int) -> NoReturn:
    """Exit with the status of a process that a signal ended, though XLA may be compiling still."""
    from fbp import _interruptible

    _interruptible.exit_with(128 + number)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fbp")
def main() -> None:
    """Train neural networks with hand-written backward passes; every run is tracked in MLflow."""


def experiment_path(experiment: str) -> Path:
    """Return the path of an experiment.

    Args:
        experiment: a path, or a bare name: of a file in ``experiments/`` of the working folder, or
            of an experiment that was installed with fbp.
    """
    from fbp.experiment.config.reading import experiment_folders

    path = Path(experiment)
    if path.exists() or path.suffix:
        return path
    files = [folder / f"{experiment}.toml" for folder in experiment_folders()]
    return next((file for file in files if file.exists()), path)


def shown(path: Path) -> str:
    """Return `path` relative to the current folder if it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def say(line: str = "", *, err: bool = False) -> None:
    """Print one line, to standard error if `err`; it stays one line whatever it quotes."""
    click.echo(_neutral.line(line), err=err)


def echo(value: object, *, err: bool = False) -> None:
    """Print a text of several lines; characters that are not seen are escaped."""
    click.echo(_neutral.text(value), err=err)


def terminal_width() -> int | None:
    """Return the number of columns of the terminal; None if the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_table(table: Any) -> None:
    """Print a table of rich; if the output is not a terminal, it is wide enough for most rows."""
    from rich.console import Console

    Console(width=terminal_width() or WIDTH_OF_FILES).print(table)


def wrapped_entry(name: str, text: str) -> str:
    """Return a list entry: a name and its description, wrapped to the width of the terminal."""
    label = f"  {name:{_NAME_WIDTH}} "
    width = terminal_width()
    if width is None:
        return f"{label}{text}".rstrip()
    indent = " " * (_NAME_WIDTH + 3)
    return textwrap.fill(text, width, initial_indent=label, subsequent_indent=indent) or label
