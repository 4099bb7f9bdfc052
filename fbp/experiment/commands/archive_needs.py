"""What an archive has beside a run's folder, so that the run can be trained again elsewhere.

The user's own code and the versions of the packages are checked against `environment.json`, the
data against their fingerprint; the manifest of the record covers both.
"""

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fbp.datasets import Dataset, Examples
from fbp.errors import InputError
from fbp.experiment.config import bounded, reading, references
from fbp.experiment.config.trust import Trust
from fbp.experiment.rundir import environment, journal, layout, tags
from fbp.experiment.rundir.npz import READ_ERRORS, read_arrays, write_arrays
from fbp.experiment.runner.build import load_data

FOLDER = "needs"

_CODE, _DATA, _REQUIREMENTS = "code", "data.npz", "requirements.txt"


def code_folder(root: Path, run: str) -> Path:
    """Return the folder of a run's own code in an unpacked archive; it may not exist."""
    return root / FOLDER / run / _CODE


# --- writing ----------------------------------------------------------------------------------


def add(file: zipfile.ZipFile, folder: Path, trust: Trust, *, with_data: bool) -> list[str]:
    """Add what the run of a folder needs; return the own code that can't be found as it was.

    Args:
        file: the archive.
        folder: the run's.
        trust: which code of the user's own the run was begun with, and may load the data.
        with_data: whether the data set is included.

    Raises:
        InputError: if the data cannot be loaded, or are no longer those of the run.
    """
    place = f"{FOLDER}/{folder.name}"
    file.writestr(f"{place}/{_REQUIREMENTS}", _requirements(folder))
    if with_data:
        _add_data(file, f"{place}/{_DATA}", folder, trust)
    own_code = _own_code(folder)
    paths = {name: _find(name, digest, trust) for name, digest in own_code.items()}
    for name, path in paths.items():
        if path:
            file.write(path, f"{place}/{_CODE}/{name}")
    return [name for name, path in paths.items() if path is None]


def _add_data(file: zipfile.ZipFile, name: str, folder: Path, trust: Trust) -> None:
    config, fingerprint = layout.config(folder), _fingerprint(folder)
    if not (config.exists() and fingerprint):
        return
    with references.reading_record(trust):
        dataset = load_data(reading.read(config))
    if dataset.fingerprint != fingerprint:
        raise InputError(f"run {folder.name}: its data are no longer those it was trained with")
    with tempfile.TemporaryDirectory() as scratch:
        arrays = Path(scratch) / _DATA
        _write_dataset(arrays, dataset)
        file.write(arrays, name)


def _find(name: str, digest: str, trust: Trust) -> Path | None:
    """Return the file of own code that has this name and digest."""
    code_folders = (
        path if path.is_dir() else references.import_folder(path) for path in trust.code
    )
    for folder in (*trust.folders, *code_folders):
        path = folder / name
        is_inside = path.is_file() and path.resolve().is_relative_to(folder.resolve())
        if is_inside and environment.file_digest(path) == digest:
            return path
    return None


def _own_code(folder: Path) -> dict[str, str]:
    """Return the digests of the files of own code with which the run of a folder began."""
    own_code = environment.read(layout.artifacts(folder)).get("own_code", {})
    return {str(name): str(digest) for name, digest in own_code.items()}


def _fingerprint(folder: Path) -> str:
    return journal.read_tags(folder).get(tags.DATA_FINGERPRINT, "")


def _requirements(folder: Path) -> str:
    """Return the versions of all packages that a run's environment had, a line each."""
    packages = environment.read(layout.artifacts(folder)).get("packages", {})
    return "".join(f"{name}=={version}\n" for name, version in packages.items())


def _write_dataset(path: Path, dataset: Dataset) -> None:
    """Write a data set as arrays, without pickle."""
    parts = {"train": dataset.train, "test": dataset.test}
    arrays = {
        f"{part}/{name}": array
        for part, examples in parts.items()
        for name, array in (examples._asdict() if examples else {}).items()
    }
    facts = {key: getattr(dataset, key) for key in ("name", "classes", "tokens", "ordered")}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    write_arrays(path, arrays)


# --- reading ----------------------------------------------------------------------------------


def changes(root: Path, folder: Path) -> list[str]:
    """Return a line for each thing beside a run's folder that is not as it was.

    Args:
        root: the folder into which the archive was unpacked.
        folder: the run's.
    """
    lines, place = [], root / FOLDER / folder.name
    path = place / _REQUIREMENTS
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if text != _requirements(folder):
        lines.append(f"{_REQUIREMENTS}: its content was changed")
    digests = _own_code(folder)
    for path in sorted((place / _CODE).rglob("*")):
        name = path.relative_to(place / _CODE).as_posix()
        if path.is_file() and environment.file_digest(path) != digests.get(name):
            lines.append(f"{_CODE}/{name}: not the code that the run was begun with")
    try:
        dataset = read_dataset(root, folder.name)
    except InputError as error:
        return [*lines, str(error)]
    if dataset and dataset.fingerprint != _fingerprint(folder):
        lines.append("the data are not those of the run's fingerprint")
    return lines


def read_dataset(root: Path, run: str) -> Dataset | None:
    """Return the data set of a run in an unpacked archive; None if it is not included.

    Args:
        root: the folder into which the archive was unpacked.
        run: the name of the run's folder.

    Raises:
        InputError: if it is damaged.
    """
    path = root / FOLDER / run / _DATA
    if not path.exists():
        return None
    try:
        arrays = read_arrays(path)
        facts: dict[str, Any] = bounded.parse_json(arrays["facts"].tobytes())
        test = Examples(arrays["test/x"], arrays["test/y"]) if "test/x" in arrays else None
        return Dataset(
            str(facts["name"]),
            Examples(arrays["train/x"], arrays["train/y"]),
            test,
            tuple(map(str, facts["classes"])),
            tuple(map(str, facts["tokens"])),
            facts["ordered"] is True,
        )
    except (OSError, *READ_ERRORS) as error:
        raise InputError(f"the archive's data are damaged ({error})") from None
