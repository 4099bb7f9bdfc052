"""Projects to test in: experiment files, commands, and what a store has afterwards."""

import functools
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

CONFIG = """
description = "a small run"
[data]
name = "{data}"
[model]
name = "mlp"
hidden = [8]
[loss]
name = "{loss}"
[optimizer]
name = "adam"
learning_rate = 0.01
[training]
epochs = 3
"""


def write_config(
    project: Path, name="small", data="iris", loss="softmax_cross_entropy", more=""
) -> Path:
    path = project / f"{name}.toml"
    path.write_text(CONFIG.format(data=data, loss=loss) + more)
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from fbp.cli import main; main()", *map(str, arguments)]


def fbp_run(*arguments: object, status: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(command("run", *arguments), capture_output=True, text=True, timeout=240)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def client(project: Path):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")


def the_run(project: Path, experiment="small"):
    found = client(project)
    (run,) = found.search_runs([found.get_experiment_by_name(experiment).experiment_id])
    return run


def one(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


SEEDS = "".join(
    f'[[variant]]\nname = "seed-{seed}"\nset = {{ seed = {seed} }}\n' for seed in range(3)
)


MINIMAL = """
[data]
name = "iris"
[model]
name = "mlp"
[loss]
name = "softmax_cross_entropy"
[optimizer]
name = "adam"
learning_rate = 0.01
"""
LEARNING = """[loss]
name = "softmax_cross_entropy"
[optimizer]
name = "adam"
learning_rate = 0.01
[training]
"""


class Silent:
    def begin(self, steps, epochs):
        pass

    def advance(self, step, epoch, latest):
        pass

    def working(self, task, seconds):
        pass

    def note(self, text):
        pass

    def close(self):
        pass


def silent_compiler():
    """What compiles the programs of a run, without a word."""
    from fbp._interruptible import StopRequest
    from fbp.experiment.runner.compilation import Compiler

    return Compiler(Silent(), StopRequest())


def empty_store(full: Path, empty: Path) -> None:
    """A store with all its tables and no runs: opening a new one takes MLflow seconds."""
    shutil.copy(full, empty)
    database = sqlite3.connect(empty)
    for table in (
        "metrics",
        "latest_metrics",
        "params",
        "tags",
        "experiment_tags",
        "input_tags",
        "inputs",
        "datasets",
        "runs",
    ):
        database.execute(f"delete from {table}")
    for table in (
        "logged_model_metrics",
        "logged_model_params",
        "logged_model_tags",
        "logged_models",
    ):
        database.execute(f"delete from {table}")
    database.execute("delete from experiments where experiment_id != 0")
    database.commit()
    database.close()


def said(*words, status=0):
    from click.testing import CliRunner

    from fbp.cli import main

    result = CliRunner().invoke(main, [str(word) for word in words])
    assert status is None or result.exit_code == status, result.output
    assert "Traceback" not in result.output, result.output
    return result.output


def runs_of(project):
    found = client(project)
    every = found.search_runs(
        [found.get_experiment_by_name("small").experiment_id], order_by=["start_time ASC"]
    )
    parent = next(run for run in every if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in every if run is not parent and run.info.run_name.startswith("seed-")]
    return parent, children


WITHOUT_MLFLOW = """
import json, sys
sys.modules["mlflow"] = None  # every import of it raises ImportError
from click.testing import CliRunner
from fbp.cli import main
results = [CliRunner().invoke(main, words) for words in json.loads(sys.argv[1])]
print(json.dumps([[r.exit_code, r.output, repr(r.exception)] for r in results]))
"""


def without_mlflow(*commands):
    """Exit status, output and exception of each command in a process that cannot import mlflow."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MLFLOW, json.dumps(commands)],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


BORROWED = functools.partial(subprocess.run, capture_output=True)
"""An object of this module, for files that import it."""
