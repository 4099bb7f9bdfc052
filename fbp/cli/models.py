"""Commands about models and configurations: ``fbp check``, ``describe``, ``list``, ``generate``."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fbp.cli.base import (
    code_option,
    echo,
    experiment_path,
    main,
    say,
    set_option,
    shown,
    trust_option,
    uri_option,
    wrapped_entry,
)
from fbp.errors import InputError, prefixed_by

_PICTURES = (".svg", ".png", ".pdf")
_OTHER_IN_EVALUATION = ("dropout", "stochastic_depth", "batch_norm")


def _built_variants(path: Path, overrides: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, configuration and built experiment of each variant ("" if it has none)."""
    from fbp.experiment.config import reading as configuration
    from fbp.experiment.runner.build import build

    config = configuration.read(path, overrides)
    for name, variant in (configuration.variants(config, str(path)) or {"": config}).items():
        with prefixed_by(path):
            built = build(variant)
        yield name, variant, built


@main.command("check", short_help="compare an experiment's gradients with jax.vjp")
@click.argument("experiment")
@set_option
@click.option(
    "--examples",
    default=8,
    show_default=True,
    type=click.IntRange(1),
    help="Number of training examples to check on.",
)
def check(experiment: str, overrides: tuple[str, ...], examples: int) -> None:
    """Compare the hand-written gradients of EXPERIMENT with jax.vjp and finite differences.

    If the targets are labels, one of several examples is checked without a target. A model that
    behaves otherwise in training than in evaluation is checked in both. The exit status is 1 if a
    gradient is wrong.
    """
    import jax

    from fbp._gradcheck import check_gradients
    from fbp._observation import positions

    path, passed = experiment_path(experiment), True
    for name, config, built in _built_variants(path, overrides):
        key = jax.random.key(config.seed)
        params, _ = built.model.init(key, built.shape)
        x, y = (part[:examples].copy() for part in built.data.train)
        if built.loss.targets == "labels" and y.dtype.kind == "i" and len(y) > 1:
            y[-1] = -1
        differs = any(place.layer.kind in _OTHER_IN_EVALUATION for place in positions(built.model))
        for each_key in (key, None) if differs else (key,):
            report = check_gradients(built.model, built.loss, params, x, y, key=each_key)
            when = "in evaluation" if each_key is None else "in training" if differs else ""
            say(" ".join(filter(None, (path.stem, name, when))))
            echo(str(report))
            passed &= report.ok
    sys.exit(0 if passed else 1)


@main.command("describe", short_help="show a model's layers, and draw them")
@click.argument("experiment")
@set_option
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    help="File of the drawing, ending in .svg, .png or .pdf.",
)
def describe(experiment: str, overrides: tuple[str, ...], picture: Path | None) -> None:
    """Show shape, parameters, memory and FLOPs of each layer of EXPERIMENT's model.

    A drawing of the connections goes to mlruns/pictures/, or to the file of --picture.
    """
    import fbp
    from fbp._diagram import make_diagram
    from fbp.experiment.figures import model_drawing
    from fbp.experiment.rundir import layout

    if picture and picture.suffix not in _PICTURES:
        raise InputError(
            f"--picture: expected a file ending in .svg, .png or .pdf, got {str(picture)!r}"
        )
    for name, config, built in _built_variants(experiment_path(experiment), overrides):
        summary = fbp.summarize(built.model, built.shape, built.data.train.x.dtype)
        title = f"{config.name} {name}".strip()
        say(title)
        echo(summary)
        target = picture or layout.pictures(layout.root()) / f"{config.name}.svg"
        target = target.with_stem(f"{target.stem}-{name}" if name else target.stem)
        target.parent.mkdir(parents=True, exist_ok=True)
        diagram = make_diagram(built.model, summary, built.shape)
        model_drawing.draw(diagram, title).savefig(target, dpi=150)
        say(f"picture: {shown(target)}")
        say()


@main.command("list", short_help="list what a configuration can name")
@click.argument("kind", required=False)
def list_names(kind: str | None) -> None:
    """List everything that a configuration can name, one line each.

    KIND (data, model, loss, ...) restricts the list to one section.
    """
    from fbp.errors import did_you_mean
    from fbp.experiment.config.catalogue import CATALOGUE, summary
    from fbp.experiment.config.schema import settings

    plain = settings()
    if kind and kind not in CATALOGUE and kind not in plain:
        raise InputError(f"unknown kind {kind!r}; {did_you_mean(kind, [*CATALOGUE, *plain])}")
    for section in [kind] if kind else [*CATALOGUE, *plain]:
        click.secho(section, bold=True)
        entries = (
            plain[section]
            if section in plain
            else {name: summary(section, name) for name in CATALOGUE[section]}
        )
        for name, text in entries.items():
            say(wrapped_entry(name, text))


@main.command("generate", short_help="write text with a trained language model")
@click.argument("run_name", metavar="RUN")
@click.option("--prompt", default="", help="Text to continue.")
@click.option(
    "--tokens",
    default=500,
    show_default=True,
    type=click.IntRange(1),
    help="Number of characters to write.",
)
@click.option(
    "--temperature",
    default=0.8,
    show_default=True,
    type=click.FloatRange(0),
    help="Sampling temperature; 0 always takes the most likely character.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**32 - 1),
    help="Seed of the sampling.",
)
@trust_option
@code_option
@uri_option
def generate_text(
    run_name: str,
    *,
    prompt: str,
    tokens: int,
    temperature: float,
    seed: int,
    trust: tuple[str, ...],
    code: tuple[Path, ...],
    tracking_uri: str | None,
) -> None:
    """Write text with the language model of RUN: a run's folder, name or MLflow run id."""
    from fbp import _neutral
    from fbp.experiment.commands.generate import generate
    from fbp.experiment.commands.load import load

    trained = load(run_name, tracking_uri, trust=trust, code=code)
    written = generate(trained, prompt, count=tokens, temperature=temperature, seed=seed)
    click.echo(_neutral.generated(prompt + written))
