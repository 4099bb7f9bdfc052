"""Names and paths of all files of a run and of ``mlruns``; no other module spells them.

mlruns/
    mlflow.db                   the embedded MLflow store, a SQLite database
    artifacts/                  MLflow's copies of the artifacts of its runs
    tracked.jsonl               all runs that were sent to the sink ``jsonl``
    comparisons/, pictures/     reports of ``fbp compare``, pictures of ``fbp describe``
    runs/RUN/
        journal.jsonl           all that training has recorded, see journal.py
        system.jsonl            a second journal: samples of the machine, written by the shipper
        checkpoints/            states from which the run can be resumed
        results.npz             what the pictures of the test part are drawn from
        diagram.json            the boxes and arrows of the model's picture
        destination             the tracking URI that the run was meant for
        sent.json               how much of the journals the tracker has
        shipper.log             errors of the shipper
        problem.json            why the tracker does not have all of the run
        .training.lock, .shipper.lock
        artifacts/              the files that a tracker gets
            config.toml, environment.json, git.diff, summary.txt
            model/              params.npz, config.toml, model.json: the trained model
            history/            steps.csv, metrics.csv, checkpoints.json, layers.json
            plots/              pictures
            manifest.json       digests of all of the above, see manifest.py
            signatures/         SSH signatures of the manifest

The three formats that other programs may read later carry a number: the journal's first line, the
manifest of a checkpoint, and ``model.json``.
"""

import hashlib
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any

from fbp.errors import InputError, NewerFormat
from fbp.experiment.config import bounded

JOURNAL_FORMAT = CHECKPOINT_FORMAT = MODEL_FORMAT = 1
_ABSURD = 10**6  # for a number of a format
_LONGEST_ADDRESS = 2**14  # bytes
_LONGEST_FOLDER = 120  # characters of a name: a file system takes 255 bytes

JOURNAL, SYSTEM_JOURNAL = "journal.jsonl", "system.jsonl"
CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
GIT_DIFF = "git.diff"
MODEL = "model"
PARAMS, MODEL_FACTS = "params.npz", "model.json"
HISTORY = "history"
MANIFEST, SIGNATURES = "manifest.json", "signatures"
STEPS_CSV, METRICS_CSV = "steps.csv", "metrics.csv"
CHECKPOINT_DIGESTS, LAYER_NAMES = "checkpoints.json", "layers.json"
DATABASE = "mlflow.db"

READ = (
    CONFIG,
    ENVIRONMENT,
    GIT_DIFF,
    f"{HISTORY}/{STEPS_CSV}",
    f"{HISTORY}/{METRICS_CSV}",
    f"{HISTORY}/{CHECKPOINT_DIGESTS}",
    f"{HISTORY}/{LAYER_NAMES}",
)
"""The artifacts that fbp reads back, apart from the trained model."""
READ_MODEL = tuple(f"{MODEL}/{name}" for name in (PARAMS, CONFIG, MODEL_FACTS))
"""The files of the trained model among a run's artifacts."""


def check_format(path: Path, number: object, supported: int) -> None:
    """Raise an error if a file has a format that this version of fbp does not know.

    Args:
        path: the file, for the message.
        number: its format number.
        supported: the newest format that can be read.

    Raises:
        NewerFormat: if a newer fbp wrote it.
        InputError: if it is no number of a format.
    """
    if type(number) is int and number > supported:
        shown = number if number < _ABSURD else f"more than {_ABSURD}"
        raise NewerFormat(
            f"{path}: expected format {supported} or older, got {shown}; a newer fbp wrote it: "
            "update fbp"
        )
    if type(number) is not int or number < 1:
        raise InputError(
            f"{path}: expected the number of a format, got {str(number)[:20]!r}; it is damaged"
        )


# --- mlruns -----------------------------------------------------------------------------------


def root() -> Path:
    """Return the nearest folder ``mlruns`` from the current one upwards, or a new one in it."""
    current = Path.cwd()
    for folder in (current, *current.parents):
        if (folder / "mlruns").is_dir():
            return folder / "mlruns"
    return current / "mlruns"


def runs(root: Path) -> Path:
    """Return the folder that holds the folders of all runs."""
    return root / "runs"


def root_of(folder: Path) -> Path:
    """Return the folder ``mlruns`` that a run's folder is in."""
    return folder.parent.parent


def database(root: Path) -> Path:
    """Return the file of the embedded MLflow store."""
    return root / DATABASE


def tracker_artifacts(root: Path) -> Path:
    """Return the folder where the embedded MLflow store keeps artifacts."""
    return root / "artifacts"


def tracked_lines(root: Path) -> Path:
    """Return the file that the sink ``jsonl`` appends to unless another one is chosen."""
    return root / "tracked.jsonl"


def store_lock(root: Path) -> Path:
    """Return the lock file for changes of the embedded store's tables and experiments."""
    return root / ".init.lock"


def pictures(root: Path) -> Path:
    """Return the folder for pictures of models."""
    return root / "pictures"


def new_comparison_folder(root: Path) -> Path:
    """Return a new name for the folder of a comparison's report; the folder is not made."""
    return root / "comparisons" / _stamped()


def new_run_folder(root: Path, name: str) -> Path:
    """Make a folder for a run, with a subfolder for its artifacts.

    Args:
        root: the folder ``mlruns``.
        name: how the folder's name begins; the time and four random digits follow.

    Raises:
        InputError: if the folder cannot be made.
    """
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", name).lstrip(".-")[:_LONGEST_FOLDER] or "run"
    folder = runs(root) / f"{name}-{_stamped()}"
    while folder.exists():
        folder = runs(root) / f"{name}-{_stamped()}"
    try:
        artifacts(folder).mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder}: the run's folder cannot be made ({error.strerror})") from None
    return folder


def _stamped() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def run_folders(root: Path) -> list[Path]:
    """Return the folders of all runs, the oldest first."""
    folders = [path.parent for path in runs(root).glob(f"*/{JOURNAL}")]
    return sorted(folders, key=lambda folder: folder.stat().st_mtime)


def local_run_id(folder_name: str) -> str:
    """Return an id for a run whose tracker gives none: a digest of its folder's name."""
    return hashlib.blake2b(folder_name.encode(), digest_size=16).hexdigest()


def safe_child(folder: Path, name: Any) -> Path | None:
    """Return the subfolder of that name.

    None if there is no such folder, or if the name, which may come from anybody's record, leads out
    of ``folder``.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name):
        return None
    return folder / name if (folder / name).is_dir() else None


def run_folder(root: Path, name: Any) -> Path | None:
    """Return the folder of the run of that name; None if there is none (see :func:`safe_child`)."""
    return safe_child(runs(root), name)


# --- a run's folder ---------------------------------------------------------------------------


def journal(folder: Path, name: str = JOURNAL) -> Path:
    """Return the run's journal, or the one with the machine's samples (``SYSTEM_JOURNAL``)."""
    return folder / name


def checkpoints(folder: Path) -> Path:
    """Return the folder of the run's checkpoints."""
    return folder / "checkpoints"


def results(folder: Path) -> Path:
    """Return the file of arrays that the pictures of the test part are drawn from."""
    return folder / "results.npz"


def diagram(folder: Path) -> Path:
    """Return the file with the boxes and arrows of the model's picture."""
    return folder / "diagram.json"


def destination(folder: Path) -> Path:
    """Return the file with the tracking URI that the run was meant for."""
    return folder / "destination"


EMBEDDED = "embedded"
"""Stands, as an address, for the store beside a run's folder, which may be moved."""


def read_destination(folder: Path) -> str:
    """Return the address that a run's folder says it was meant for; empty if it says none."""
    try:
        return os.fsdecode(bounded.read_bytes(destination(folder), _LONGEST_ADDRESS))
    except (OSError, ValueError):
        return ""


def write_destination(folder: Path, place: str) -> None:
    """Write the address that a run is meant for."""
    destination(folder).write_bytes(os.fsencode(place))


def sent(folder: Path) -> Path:
    """Return the file that says how much of the journals the tracker has."""
    return folder / "sent.json"


def problem(folder: Path) -> Path:
    """Return the file that says why the tracker does not have all of the run."""
    return folder / "problem.json"


def shipper_log(folder: Path) -> Path:
    """Return the file with the shipper's errors."""
    return folder / "shipper.log"


def training_lock(folder: Path) -> Path:
    """Return the file that the process which trains the run holds a lock on."""
    return folder / ".training.lock"


def shipper_lock(folder: Path) -> Path:
    """Return the file that the process which sends the run holds a lock on."""
    return folder / ".shipper.lock"


def artifacts(folder: Path) -> Path:
    """Return the folder of the files that a tracker gets."""
    return folder / "artifacts"


# --- a run's artifacts: in its own folder, or copied from a tracker ---------------------------


def config(folder: Path) -> Path:
    """Return the run's resolved configuration."""
    return artifacts(folder) / CONFIG


def model(folder: Path) -> Path:
    """Return the folder of the run's trained model."""
    return artifacts(folder) / MODEL


def model_facts(folder: Path) -> Path:
    """Return the file with the shape, classes and tokens of the run's trained model."""
    return model(folder) / MODEL_FACTS


def summary(folder: Path) -> Path:
    """Return the file with the table of the model's layers."""
    return artifacts(folder) / "summary.txt"


def history(artifacts: Path) -> Path:
    """Return the folder of the history, among a run's artifacts (here, or copied)."""
    return artifacts / HISTORY


def plots(folder: Path) -> Path:
    """Return the folder of the run's pictures."""
    return artifacts(folder) / "plots"


def manifest(artifacts: Path) -> Path:
    """Return the manifest, among a run's artifacts (here, or copied)."""
    return artifacts / MANIFEST


def signatures(artifacts: Path) -> Path:
    """Return the folder with the signatures of the manifest, among a run's artifacts."""
    return artifacts / SIGNATURES


def is_about_manifest(name: str) -> bool:
    """Return whether an artifact is the manifest or a signature of it, which it cannot cover."""
    return name == MANIFEST or name.startswith(f"{SIGNATURES}/")
