"""Several variants of one experiment: a run each, under a run of their own in MLflow."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from fbp.errors import prefixed_by
from fbp.experiment.config.schema import Config
from fbp.experiment.rundir import journal, layout, tags
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.journal_lines import ChildLine
from fbp.experiment.rundir.recorder import Recorder
from fbp.experiment.rundir.series import last_values
from fbp.experiment.runner.build import build
from fbp.experiment.runner.changes import check_resumed, note_changes
from fbp.experiment.runner.loop import Reporter
from fbp.experiment.runner.run import Outcome, run
from fbp.experiment.runner.run_start import RunIdentity, begin_journal


def run_group(
    config: Config,
    variants: dict[str, Config],
    identity: RunIdentity,
    folder: Path,
    make_reporter: Callable[[str], Reporter],
    signals: list[int] | None = None,
) -> dict[str, Outcome]:
    """Run each variant in a folder of its own, beside the group's folder.

    A variant that fails does not stop the others; a signal does. The group of `folder` is resumed
    if it has begun: finished variants stay, interrupted ones are resumed.

    Args:
        config: the experiment.
        variants: the configurations of its variants by name.
        identity: where it comes from.
        folder: the group's folder, which exists.
        make_reporter: from a variant's name to its reporter.
        signals: signals that came already.

    Returns:
        The outcomes by variant; fewer than there are variants if a signal stopped the group.

    Raises:
        InputError: if a variant does not fit its data; then none is run.
    """
    for name, variant in variants.items():
        with prefixed_by(f"{identity.source}, variant {name!r}"):
            build(variant)  # for its errors; the result is not needed
    writer = _begin_or_resume(config, variants, identity, folder, make_reporter)
    outcomes: dict[str, Outcome] = {}
    status, message = "FAILED", "a variant could not be run"
    try:
        for name, variant in variants.items():
            child = _variant_folder(writer, name, f"{config.name}-{name}")
            outcomes[name] = _finished(child) or run(
                variant,
                identity._replace(label=name, parent=folder.name, tags={}, fingerprint=""),
                child,
                make_reporter(name),
                signals=signals,
            )
            if outcomes[name].status == "KILLED":
                break
        status, message = _group_status(outcomes)
        Recorder(writer).metrics(0, _test_metrics(outcomes))
    except KeyboardInterrupt:
        status, message = "KILLED", "stopped between two variants"
        raise
    finally:
        with contextlib.suppress(OSError):  # a full disk
            writer.end(status, message)
        writer.close()
    return outcomes


def _begin_or_resume(
    config: Config,
    variants: dict[str, Config],
    identity: RunIdentity,
    folder: Path,
    make_reporter: Callable[[str], Reporter],
) -> Journal:
    """Write the first line of a group's journal, or that it goes on; return the journal."""
    if journal.read_start(folder) is None:
        writer = Journal(folder)
        names = {tags.VARIANTS: ", ".join(variants)}
        begin_journal(writer, config, identity, names, variants=variants.values())
        return writer
    changes = check_resumed(config, identity, folder, variants.values())
    writer = Journal(folder)
    writer.resume(0)
    note_changes(writer, changes, make_reporter(next(iter(variants))))
    return writer


def _variant_folder(writer: Journal, variant: str, run_name: str) -> Path:
    """Return the folder of a variant that started already, or a new one, which is journaled."""
    runs = writer.folder.parent
    for line in journal.read_lines(writer.folder, ChildLine):
        started = layout.safe_child(runs, line.folder)
        if started is not None and line.variant == variant:
            return started
    folder = layout.new_run_folder(layout.root_of(writer.folder), run_name)
    writer.child(folder.name, variant)
    return folder


def _finished(folder: Path) -> Outcome | None:
    """Return the outcome of a variant that is finished already; None otherwise."""
    end = journal.read_end(folder)
    if end is None or end.status != "FINISHED":
        return None
    metrics = {key: value for key, value in last_values(folder).items() if "/" not in key}
    return Outcome("FINISHED", "", metrics, folder)


def _group_status(outcomes: dict[str, Outcome]) -> tuple[str, str]:
    """Return status and message of the first variant that did not finish; FINISHED if all did."""
    for outcome in outcomes.values():
        if outcome.status != "FINISHED":
            return outcome.status, outcome.message
    return "FINISHED", ""


def _test_metrics(outcomes: dict[str, Outcome]) -> dict[str, float]:
    return {
        f"{name}/{key}": value
        for name, outcome in outcomes.items()
        for key, value in outcome.metrics.items()
        if key.startswith("test_")
    }
