"""Check the record of a run against its manifest, without training: ``fbp verify``."""

from collections.abc import Callable

from fbp.experiment.rundir.verification import Verification
from fbp.experiment.tracking.readers import open_runs
from fbp.experiment.tracking.run_reader import RecordedRun, RunReader

_MAX_LINES = 20


def verify(name: str, tracking_uri: str | None, say: Callable[[str], None]) -> bool:
    """Check the record of a run, and of each run under it; report what is not as it was.

    Args:
        name: the run's id or name, or its folder.
        tracking_uri: the store. Default: ``MLFLOW_TRACKING_URI``, or the store of this project.
        say: called with each line of the report.

    Returns:
        Whether everything is as it was recorded.

    Raises:
        InputError: if there is no such run, or if its record is not sealed yet.
    """
    with open_runs(tracking_uri, [name]) as runs:
        run = runs.find(name)
        results = [_verify_run(runs, each, say) for each in (run, *runs.children(run))]
        return all(results)


def _verify_run(runs: RunReader, run: RecordedRun, say: Callable[[str], None]) -> bool:
    verification = runs.verify(run)
    say(f"run {run.name} ({run.run_id}), {run.status}")
    for line in report(verification):
        say(f"  {line}")
    return verification.holds


def report(verification: Verification) -> list[str]:
    """Return the lines that say how a record compares with its manifest."""
    if not verification.holds:
        lines = list(verification.differences)
        rest = [f"and {len(lines) - _MAX_LINES} more"] if len(lines) > _MAX_LINES else []
        return ["DIFFERENT from what was recorded", *(f"  {x}" for x in lines[:_MAX_LINES] + rest)]
    return [
        f"as it was recorded: {', '.join(verification.covered)}",
        f"root {verification.root}",
        f"not covered: {verification.not_covered}",
    ]
