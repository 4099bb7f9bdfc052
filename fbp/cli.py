"""The ``fbp`` command."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fbp.errors import InputError

_SET_HELP = "Override a value of the configuration; may be repeated. VALUE is TOML, or a bare text."


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
        except (KeyboardInterrupt, click.Abort):
            click.echo("fbp: stopped", err=True)
            sys.exit(130)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            from fbp.experiment.catalogue import suggest

            raise InputError(f"unknown command {args[0]!r}; {suggest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fbp")
def main() -> None:
    """Neural networks with a backward pass written by hand, every run in MLflow."""


def _experiment_path(given: str) -> Path:
    """The file itself, or ``experiments/NAME.toml`` for a bare name."""
    path = Path(given)
    named = Path("experiments") / f"{given}.toml"
    return named if not path.exists() and path.suffix == "" and named.exists() else path


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Problems inside name the experiment's file."""
    try:
        yield
    except InputError as error:
        raise InputError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


_URI_OPTION = click.option(
    "--tracking-uri", metavar="URI", help="That MLflow store, not mlruns/ (or set MLFLOW_TRACKING_URI)."
)


@main.command()
@click.argument("experiment")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=_SET_HELP)
@click.option(
    "--resume",
    type=click.Choice(["auto", "never"]),
    default="never",
    show_default=True,
    help="auto: go on with the newest unfinished run of the same configuration, if there is one.",
)
@_URI_OPTION
def run(experiment: str, overrides: tuple[str, ...], resume: str, tracking_uri: str | None) -> None:
    """Train EXPERIMENT, a TOML file or the name of one in experiments/, and log the run to MLflow."""
    from fbp.experiment.launch import launch
    from fbp.experiment.progress import Bar

    received = _note_signals()
    path = _experiment_path(experiment)
    _report(launch(path, overrides, Bar, tracking_uri, _say_waiting, received, resume=resume == "auto"))


@main.command("resume")
@click.argument("run_name", metavar="RUN")
@_URI_OPTION
def resume_run(run_name: str, tracking_uri: str | None) -> None:
    """Go on with RUN (its folder, its name, or its MLflow run id) after an interruption or a death."""
    from fbp.experiment.launch import resume
    from fbp.experiment.progress import Bar

    received = _note_signals()
    _report(resume(run_name, Bar, tracking_uri, _say_waiting, received))


@main.command("reproduce")
@click.argument("run_name", metavar="RUN")
@_URI_OPTION
def reproduce_run(run_name: str, tracking_uri: str | None) -> None:
    """Run RUN again from its MLflow record alone and compare every bit; exit status 1 if one differs."""
    from fbp.experiment.reproduce import reproduce

    sys.exit(0 if reproduce(run_name, tracking_uri, click.echo) else 1)


def _note_signals() -> list[int]:
    """From now on Ctrl-C and SIGTERM are noted in the list that is returned, and stop what goes on."""
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        received.append(number)  # an exception may be lost in somebody's callback; this is not
        raise KeyboardInterrupt

    def unraisable(lost: Any) -> None:
        if lost.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(lost)

    sys.unraisablehook = unraisable
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return received


def _say_waiting() -> None:
    click.echo("sending the last of it to MLflow ...", err=True)


def _report(launched: Any) -> None:
    """Say how a run, or a group of them, ended, and end with its exit status."""
    from rich.console import Console

    from fbp.experiment import store
    from fbp.experiment.progress import results_table

    outcomes = launched.outcomes
    Console().print(results_table({name: out.metrics for name, out in outcomes.items()}))
    for name, outcome in outcomes.items():
        if outcome.message:
            click.echo(f"fbp: {name}: {outcome.status}: {outcome.message}", err=True)
            click.echo(f"fbp: the last good parameters are in {_shown(outcome.folder)}", err=True)
    if any(outcome.status == "KILLED" for outcome in outcomes.values()):
        click.echo(f"fbp: go on with: fbp resume {launched.folder.name}", err=True)
    click.echo(f"run folder: {_shown(launched.folder)}")
    if launched.sent:
        public = store.public(launched.uri)
        click.echo(f"dashboard:  {'fbp ui, then http://127.0.0.1:5000' if public.startswith('sqlite:') else public}")
    else:
        log = _shown(launched.folder / "shipper.log")
        click.echo(
            f"fbp: not all of the run has reached {store.public(launched.uri)} (see {log}); nothing is lost: 'fbp sync' sends "
            "the rest there",
            err=True,
        )
    interrupted = next((outcome.signal for outcome in outcomes.values() if outcome.signal), None)
    if interrupted:
        sys.exit(128 + interrupted)
    sys.exit(0 if all(outcome.status == "FINISHED" for outcome in outcomes.values()) else 1)


def _shown(path: Path) -> str:
    """A path relative to here, where it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@main.command()
@click.argument("experiment")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=_SET_HELP)
@click.option("--examples", default=8, show_default=True, type=click.IntRange(1), help="How many examples to check on.")
def check(experiment: str, overrides: tuple[str, ...], examples: int) -> None:
    """Compare the hand-written gradients of EXPERIMENT with jax.vjp and finite differences; exit status 1 if one is off."""
    import jax

    from fbp.experiment import config as configuration
    from fbp.experiment.build import build
    from fbp.gradcheck import check_gradients

    path = _experiment_path(experiment)
    config = configuration.read(path, overrides)
    all_right = True
    for name, variant in (configuration.variants(config, str(path)) or {"": config}).items():
        with _named(path):
            built = build(variant)
        params, _ = built.model.init(jax.random.key(variant.seed), built.shape)
        x, y = (part[:examples] for part in built.data.train)
        report = check_gradients(built.model, built.loss, params, x, y, key=jax.random.key(variant.seed))
        click.echo(f"{path.stem} {name}".strip())
        click.echo(str(report))
        all_right &= report.ok
    sys.exit(0 if all_right else 1)


@main.command()
@click.argument("experiment")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=_SET_HELP)
@click.option("--picture", type=click.Path(path_type=Path), help="A file ending in .svg, .png or .pdf.")
def describe(experiment: str, overrides: tuple[str, ...], picture: Path | None) -> None:
    """Show the layers of EXPERIMENT's model: shapes, parameters, memory and work of each; and draw how they are connected."""
    from fbp.experiment import config as configuration
    from fbp.experiment import model_picture, store, summary
    from fbp.experiment.build import build
    from fbp.experiment.diagram import diagram

    path = _experiment_path(experiment)
    config = configuration.read(path, overrides)
    chosen = configuration.variants(config, str(path)) or {"": config}
    if picture and picture.suffix not in (".svg", ".png", ".pdf"):
        raise InputError(f"--picture: expected a file ending in .svg, .png or .pdf, got {str(picture)!r}")
    for name, variant in chosen.items():
        with _named(path):
            built = build(variant)
        rows = summary.layer_rows(built.model, built.shape, built.data.train.x.dtype)
        title = f"{config.name} {name}".strip()
        click.echo(title)
        click.echo(summary.as_text(rows))
        end = f"-{name}" if name else ""
        target = picture or store.root() / "pictures" / f"{config.name}.svg"
        target = target.with_stem(f"{target.stem}{end}")
        target.parent.mkdir(parents=True, exist_ok=True)
        model_picture.draw(diagram(built.model, rows, built.shape), title).savefig(target, dpi=150)
        click.echo(f"picture: {_shown(target)}\n")


@main.command("list")
@click.argument("kind", required=False)
def list_names(kind: str | None) -> None:
    """What can be named in a configuration, one line each; KIND (data, model, loss ...) shows that part alone."""
    from fbp.experiment.catalogue import CATALOGUE, suggest, summary

    if kind and kind not in CATALOGUE:
        raise InputError(f"unknown kind {kind!r}; {suggest(kind, CATALOGUE)}")
    for section in [kind] if kind else CATALOGUE:
        click.secho(section, bold=True)
        for name in CATALOGUE[section]:
            click.echo(f"  {name:22} {summary(section, name)}".rstrip())


@main.command("generate")
@click.argument("run_name", metavar="RUN")
@click.option("--prompt", default="", help="How the text begins.")
@click.option("--tokens", default=500, show_default=True, type=click.IntRange(1), help="How many characters to write.")
@click.option("--temperature", default=0.8, show_default=True, type=click.FloatRange(0), help="0 takes the likeliest.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1))
@click.option("--tracking-uri", metavar="URI", help="Where to look for a run id that no local run has.")
def generate_text(
    run_name: str, prompt: str, tokens: int, temperature: float, seed: int, tracking_uri: str | None
) -> None:
    """Write text with the language model of RUN: its folder, its name, or its MLflow run id."""
    from fbp.experiment.generate import generate
    from fbp.experiment.loading import load

    trained = load(run_name, tracking_uri)
    click.echo(prompt + generate(trained, prompt, count=tokens, temperature=temperature, seed=seed))


@main.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--tracking-uri", metavar="URI", help="Show that store, not mlruns/.")
def ui(port: int, tracking_uri: str | None) -> None:
    """Start the MLflow dashboard on this project's runs, on this machine only."""
    from fbp.experiment import store

    root = store.root()
    uri = tracking_uri or store.default_uri(root)
    if uri.startswith("http"):
        raise InputError(
            f"--tracking-uri: {store.public(uri)} is a server with a dashboard of its own; open it in a browser"
        )
    if not tracking_uri and not (root / "mlflow.db").exists():
        raise InputError(f"there are no runs in {root} yet; start with: fbp run digits_mlp")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise InputError(f"--port: {port} is in use on this machine; choose another, such as --port {port + 1}")
    click.echo(f"dashboard: http://127.0.0.1:{port}  (some seconds until it answers; Ctrl-C stops it)")
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
    with subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], env=os.environ | settings) as server:
        signal.signal(signal.SIGTERM, lambda number, frame: server.terminate())  # it must not outlive this process
        try:
            sys.exit(server.wait())
        except KeyboardInterrupt:
            server.wait()


@main.command("runs")
@click.argument("condition", default="", metavar="[FILTER]")
@click.option(
    "--sort", multiple=True, metavar="[-]KEY", help="Such as -metrics.validation_accuracy; - for the largest first."
)
@click.option("--limit", default=30, show_default=True, type=click.IntRange(1, 10000))
@_URI_OPTION
def list_runs(condition: str, sort: tuple[str, ...], limit: int, tracking_uri: str | None) -> None:
    """A table of runs.

    FILTER is in MLflow's language: "metrics.validation_accuracy > 0.97 and params.optimizer_name = 'adam'".
    """
    from fbp.experiment import recorded, tables

    order = [f"{key.removeprefix('-')} {'DESC' if key.startswith('-') else 'ASC'}" for key in sort]
    with recorded.opened(tracking_uri) as runs:
        found = runs.search(condition, order or None, limit)
        if found:
            _console().print(tables.list_of_runs(found, runs.experiments, condition, sort).rich())
        click.echo(f"{len(found)} runs" + (", the most that --limit allows" if len(found) == limit else ""))


def _console() -> Any:
    """Where tables are printed: as wide as they need, where the output is not a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 240)


@main.command()
@click.argument("run_name", metavar="RUN")
@_URI_OPTION
def show(run_name: str, tracking_uri: str | None) -> None:
    """All that matters of RUN: configuration, data, metrics, digests."""
    from fbp.experiment import recorded, tables

    with recorded.opened(tracking_uri) as runs:
        found = runs.find(run_name)
        for table in tables.of_run(runs, found, runs.read(found)):
            _console().print(table.rich())


@main.command()
@click.argument("run_names", metavar="RUN RUN ...", nargs=-1, required=True)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="A folder for the report and its pictures."
)
@_URI_OPTION
def compare(run_names: tuple[str, ...], output: Path | None, tracking_uri: str | None) -> None:
    """Runs side by side: configuration, results, statistics over seeds, learning curves, norms of delta."""
    from fbp.experiment import comparison, recorded, store

    with recorded.opened(tracking_uri) as runs:
        folder = output or store.new_comparison_folder(store.root())
        found = comparison.compare(runs, run_names, folder)
    for table in found.tables:
        _console().print(table.rich())
    for path in found.files:
        click.echo(_shown(path))


@main.command()
@click.argument("run_name", metavar="RUN")
@click.argument("name")
@click.option("--alias", help="Such as champion.")
@_URI_OPTION
def register(run_name: str, name: str, alias: str | None, tracking_uri: str | None) -> None:
    """Give the model of RUN a NAME in MLflow's model registry."""
    from fbp.experiment import recorded, registry

    with recorded.opened(tracking_uri) as runs:
        address = registry.register(runs, run_name, name, alias)
    click.echo(f"load it with: fbp.load({address!r}) or mlflow.pyfunc.load_model({address!r})")


@main.command()
@click.option("--minutes", default=10.0, show_default=True, help="How old the heartbeat of a run elsewhere may be.")
@_URI_OPTION
def reap(minutes: float, tracking_uri: str | None) -> None:
    """Close the runs that MLflow shows as running though nobody trains them."""
    from fbp.experiment import recorded
    from fbp.experiment.reap import reap

    with recorded.opened(tracking_uri) as runs:
        closed = reap(runs, minutes, click.echo)
    click.echo(f"{closed} runs closed")


@main.command()
@_URI_OPTION
def sync(tracking_uri: str | None) -> None:
    """Send to MLflow what did not reach it when it was recorded, to where it was meant for or to --tracking-uri."""
    from fbp.experiment import journal, locks, shipper, store

    root = store.root()
    chosen = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    left = []
    for folder in store.run_folders(root):
        start = journal.start_of(folder)
        if start and not start["parent"] and not shipper.is_sent(folder):
            if locks.is_training(folder):
                click.echo(f"{start['name']} is still training; its own process sends it")
            else:
                left.append(folder)
    failed = 0
    for folder in left:
        uri = store.tracking_uri(root, chosen or shipper.destination(folder))
        click.echo(f"sending {folder.name} to {store.public(uri)} ...")
        failed += shipper.launch(folder, uri).wait() != 0
    click.echo(f"{len(left) - failed} of {len(left)} runs sent" if left else "nothing to send")
    sys.exit(1 if failed else 0)


@main.command()
def relocate() -> None:
    """Repair the store after the folder mlruns/ was moved or copied, so that MLflow finds its artifacts again."""
    from fbp.experiment import locks, store

    root = store.root()
    if not (root / "mlflow.db").exists():
        raise InputError(f"{root}: there is no store here")
    with locks.locked(root / ".init.lock"):
        old, changed = store.old_roots(root), store.relocate(root)
    for place in old:
        click.echo(f"was in {place}")
    click.echo(f"{changed} records now point to {store.artifact_root(root)}" if old else "nothing was moved")
