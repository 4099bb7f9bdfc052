"""Several variants of one experiment: a run each, shown in MLflow under a run of their own."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from fbp.errors import InputError
from fbp.experiment.config.schema import Config
from fbp.experiment.rundir import journal, layout, tags
from fbp.experiment.rundir.journal import ChildLine, Journal
from fbp.experiment.rundir.recorder import Recorder
from fbp.experiment.rundir.series import last_values
from fbp.experiment.runner.build import build
from fbp.experiment.runner.loop import Reporter
from fbp.experiment.runner.run import Outcome, RunIdentity, begin_journal, run


def run_group(
    config: Config,
    variants: dict[str, Config],
    origin: RunIdentity,
    folder: Path,
    make_reporter: Callable[[str], Reporter],
    signals: list[int] | None = None,
) -> dict[str, Outcome]:
    """Run each variant in a folder of its own; one that fails does not stop the others, a signal does.

    A group that ``folder`` holds already goes on: what is finished stays, what was broken off is resumed.

    Args:
        config: the experiment.
        variants: its variants' configurations by name.
        origin: where it came from.
        folder: the group's own, already there; the variants' folders are made beside it.
        make_reporter: from a variant's name to its Reporter.
        signals: signals that were signals before.

    Returns:
        The outcomes by variant; fewer than variants where a signal stopped the group.

    Raises:
        InputError: where a variant does not fit its data; then none is run.
    """
    for name, variant in variants.items():
        _check_fits(variant, f"{origin.source}, variant {name!r}")
    resuming = journal.read_start(folder) is not None
    begun = {
        line.variant: layout.safe_child(folder.parent, line.folder)
        for line in journal.read_lines(folder, ChildLine)
    }
    writer = Journal(folder)
    if resuming:
        writer.resume(0)
    else:
        begin_journal(writer, config, origin, {tags.VARIANTS: ", ".join(variants)})
    outcomes: dict[str, Outcome] = {}
    status, message = "FAILED", "a variant could not be run"
    try:
        for name, variant in variants.items():
            child = begun.get(name)
            if child is None:
                child = layout.new_run_folder(layout.root_of(folder), f"{config.name}-{name}")
                writer.child(child.name, name)
            end = journal.read_end(child)
            if end and end.status == "FINISHED":
                outcomes[name] = Outcome("FINISHED", "", _last_metrics(child), child)
                continue
            outcomes[name] = run(
                variant,
                RunIdentity(origin.source, name, folder.name),
                child,
                make_reporter(name),
                signals,
            )
            if outcomes[name].status == "KILLED":
                break
        # one that failed speaks for the group
        bad = [outcome for outcome in outcomes.values() if outcome.status != "FINISHED"]
        status, message = (bad[0].status, bad[0].message) if bad else ("FINISHED", "")
        results = {
            f"{name}/{key}": value
            for name, out in outcomes.items()
            for key, value in out.metrics.items()
        }
        tested = {key: value for key, value in results.items() if "/test_" in key}
        Recorder(writer).metrics(0, tested)
    except KeyboardInterrupt:
        status, message = "KILLED", "stopped between two variants"
        raise
    finally:
        with contextlib.suppress(OSError):  # a full disk
            writer.end(status, message)
        writer.close()
    return outcomes


def _last_metrics(folder: Path) -> dict[str, float]:
    return {key: value for key, value in last_values(folder).items() if "/" not in key}


def _check_fits(config: Config, where: str) -> None:
    """Build and throw away: the errors of :func:`build` without a run."""
    try:
        build(config)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
