"""From an experiment file to a finished run in MLflow: what ``fbp run`` does."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fbp.errors import InputError
from fbp.experiment import config as configuration
from fbp.experiment import shipper, store
from fbp.experiment.group import run_group
from fbp.experiment.journal import start_of
from fbp.experiment.run import Origin, Outcome, Reporter, run

_SEND_SECONDS = 120.0  # how long to wait for MLflow at the end; the journal stays in any case


class Launched(NamedTuple):
    """A run, or a group of variants: their names and outcomes, the folder, and whether MLflow has it all."""

    outcomes: dict[str, Outcome]
    folder: Path
    uri: str
    sent: bool


def launch(
    path: Path,
    overrides: Sequence[str],
    make_reporter: Callable[[str], Reporter],
    tracking_uri: str | None = None,
    waiting: Callable[[], None] = lambda: None,
    received: list[int] | None = None,
) -> Launched:
    """Run an experiment file and wait until MLflow has it.

    Args:
        path: the file.
        overrides: ``section.key=value`` texts.
        make_reporter: from a label to who shows the progress of a run.
        tracking_uri: where to log, if not to the embedded store.
        received: signals that were received before; a run that finds one stops in good order.
        waiting: called once, when training is over and MLflow is waited for.

    Raises:
        InputError: where the configuration or the data cannot be used; no run exists then.
    """
    config = configuration.read(path, overrides)
    variants = configuration.variants(config, str(path))
    root = store.root()
    uri = store.tracking_uri(root, tracking_uri)
    origin = Origin(path, ", ".join(overrides)[:80] or config.name)
    folder, process = store.new_run_folder(root, config.name), None
    try:
        (folder / shipper.DESTINATION).write_text(uri, encoding="utf-8")
        process = shipper.launch(folder, uri)
        if variants:
            label = lambda name: make_reporter(f"{config.name} {name}")
            outcomes = run_group(config, variants, origin, folder, label, received)
        else:
            outcomes = {config.name: run(config, origin, folder, make_reporter(config.name), received)}
    except BaseException as error:
        begun = start_of(folder) is not None
        if process and begun:
            _wait(process)
        elif process:
            process.terminate()
            process.wait()
        if not begun:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, InputError) and not str(error).startswith(str(path)):
            raise InputError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None
        raise
    waiting()
    return Launched(outcomes, folder, uri, _wait(process))


def _wait(process: subprocess.Popen[bytes]) -> bool:
    try:
        return process.wait(timeout=_SEND_SECONDS) == 0
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        return False
