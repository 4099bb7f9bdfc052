"""Sign the record of a run with an SSH key: ``fbp sign``."""

from collections.abc import Callable
from pathlib import Path

from fbp.errors import InputError
from fbp.experiment.commands import archive as archives
from fbp.experiment.commands import archive_needs
from fbp.experiment.rundir import layout, signatures
from fbp.experiment.rundir.verification import Verification
from fbp.experiment.tracking.readers import open_runs


def sign(name: str, key: Path, tracking_uri: str | None, say: Callable[[str], None]) -> None:
    """Sign the manifest of a run, and of each run under it; each must be as it was recorded.

    The signature becomes a file among the run's artifacts, in MLflow, in the run's folder, or in
    the archive.

    Args:
        name: the run's id or name, its folder, or the file of an archive.
        key: the file of an SSH key.
        tracking_uri: the store. Default: ``MLFLOW_TRACKING_URI``, or the store of this project.
        say: called with a line for each signature.

    Raises:
        InputError: if there is no such run, if its record was changed, or if the key cannot sign.
    """
    if archives.is_archive(name):
        with archives.opened(Path(name)) as (folders, root):
            for run in folders.search():
                folder = folders.folder(run)
                changes = archive_needs.changes(root, folder)
                _require(run.name, folders.verify(run).with_differences(changes))
                say(f"{run.name}: {_signed(layout.artifacts(folder), key)}")
            archives.pack(root, Path(name))
        return
    with open_runs(tracking_uri, [name]) as runs:
        run = runs.find(name)
        for each in (run, *runs.children(run)):
            _require(each.name, runs.verify(each))
            artifacts = runs.signed_artifacts(each)
            line = _signed(artifacts, key)
            runs.add_signatures(each, layout.signatures(artifacts))
            say(f"{each.name}: {line}")


def _require(name: str, verification: Verification) -> None:
    if not verification.holds:
        raise InputError(
            f"run {name}: its record was changed ({verification.differences[0]}), so it is not "
            f"signed; see: fbp verify {name}"
        )


def _signed(artifacts: Path, key: Path) -> str:
    """Sign a manifest; return a line that says where the signature is."""
    return f"signed; {signatures.sign(artifacts, key).name} is among its artifacts"
