"""Commands about models and configurations: ``fbp check``, ``describe``, ``list``, ``generate``."""

import sys
from pathlib import Path

import click

from fbp.cli.base import experiment_path, main, named, set_option, shown, uri_option
from fbp.errors import InputError


@main.command("check", short_help="compare an experiment's gradients with jax.vjp")
@click.argument("experiment")
@set_option
@click.option(
    "--examples",
    default=8,
    show_default=True,
    type=click.IntRange(1),
    help="How many examples to check on.",
)
def check(experiment: str, overrides: tuple[str, ...], examples: int) -> None:
    """Compare the hand-written gradients of EXPERIMENT with jax.vjp and finite differences; exit status 1 if one is off."""
    import jax

    from fbp._gradcheck import check_gradients
    from fbp.experiment.config import reading as configuration
    from fbp.experiment.runner.build import build

    path = experiment_path(experiment)
    config = configuration.read(path, overrides)
    all_right = True
    for name, variant in (configuration.variants(config, str(path)) or {"": config}).items():
        with named(path):
            built = build(variant)
        params, _ = built.model.init(jax.random.key(variant.seed), built.shape)
        x, y = (part[:examples] for part in built.data.train)
        report = check_gradients(
            built.model, built.loss, params, x, y, key=jax.random.key(variant.seed)
        )
        click.echo(f"{path.stem} {name}".strip())
        click.echo(str(report))
        all_right &= report.ok
    sys.exit(0 if all_right else 1)


@main.command("describe", short_help="the layers of an experiment's model, and a picture")
@click.argument("experiment")
@set_option
@click.option(
    "--picture", type=click.Path(path_type=Path), help="A file ending in .svg, .png or .pdf."
)
def describe(experiment: str, overrides: tuple[str, ...], picture: Path | None) -> None:
    """Show the layers of EXPERIMENT's model: shapes, parameters, memory and work of each; and draw how they are connected."""
    from fbp import _summary
    from fbp._diagram import diagram
    from fbp.experiment.config import reading as configuration
    from fbp.experiment.figures import model_drawing
    from fbp.experiment.runner.build import build
    from fbp.experiment.tracking import store

    path = experiment_path(experiment)
    config = configuration.read(path, overrides)
    chosen = configuration.variants(config, str(path)) or {"": config}
    if picture and picture.suffix not in (".svg", ".png", ".pdf"):
        raise InputError(
            f"--picture: expected a file ending in .svg, .png or .pdf, got {str(picture)!r}"
        )
    for name, variant in chosen.items():
        with named(path):
            built = build(variant)
        rows = _summary.layer_rows(built.model, built.shape, built.data.train.x.dtype)
        title = f"{config.name} {name}".strip()
        click.echo(title)
        click.echo(_summary.as_text(rows))
        end = f"-{name}" if name else ""
        target = picture or store.root() / "pictures" / f"{config.name}.svg"
        target = target.with_stem(f"{target.stem}{end}")
        target.parent.mkdir(parents=True, exist_ok=True)
        model_drawing.draw(diagram(built.model, rows, built.shape), title).savefig(target, dpi=150)
        click.echo(f"picture: {shown(target)}\n")


@main.command("list", short_help="what a configuration can name")
@click.argument("kind", required=False)
def list_names(kind: str | None) -> None:
    """What can be named in a configuration, one line each; KIND (data, model, loss ...) shows that part alone."""
    from fbp.experiment.config.catalogue import CATALOGUE, suggest, summary
    from fbp.experiment.config.reading import settings

    plain = settings()
    if kind and kind not in CATALOGUE and kind not in plain:
        raise InputError(f"unknown kind {kind!r}; {suggest(kind, [*CATALOGUE, *plain])}")
    for section in [kind] if kind else [*CATALOGUE, *plain]:
        click.secho(section, bold=True)
        if section in plain:
            for key, default in plain[section].items():
                click.echo(f"  {key:22} {default}".rstrip())
            continue
        for name in CATALOGUE[section]:
            click.echo(f"  {name:22} {summary(section, name)}".rstrip())


@main.command("generate", short_help="write text with a trained language model")
@click.argument("run_name", metavar="RUN")
@click.option("--prompt", default="", help="How the text begins.")
@click.option(
    "--tokens",
    default=500,
    show_default=True,
    type=click.IntRange(1),
    help="How many characters to write.",
)
@click.option(
    "--temperature",
    default=0.8,
    show_default=True,
    type=click.FloatRange(0),
    help="0 takes the likeliest.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1))
@uri_option
def generate_text(
    run_name: str, prompt: str, tokens: int, temperature: float, seed: int, tracking_uri: str | None
) -> None:
    """Write text with the language model of RUN: its folder, its name, or its MLflow run id."""
    from fbp.experiment.commands.generate import generate
    from fbp.experiment.commands.load import load

    trained = load(run_name, tracking_uri)
    click.echo(prompt + generate(trained, prompt, count=tokens, temperature=temperature, seed=seed))
