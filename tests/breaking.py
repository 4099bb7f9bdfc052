"""Break runs off at random moments, resume them, and compare with a run that was left alone.

    python -m tests.breaking --count 50

Each trial starts a run, kills it (``kill -9``) after a random time, perhaps its shipper too,
resumes it, perhaps kills that, and so on until it is finished. Then the digests of parameters and
metrics, and the number of records of each metric in MLflow's store, must be those of the unbroken
run.
"""

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """
name = "broken"
[data]
name = "digits"
[model]
name = "mlp"
hidden = [64]
[loss]
name = "softmax_cross_entropy"
[optimizer]
name = "adam"
learning_rate = 0.001
average = 0.99
[training]
epochs = 300
[checkpoint]
every_seconds = 1.0
"""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from fbp.cli import main; main()", *map(str, arguments)]


def newest(project: Path) -> Path | None:
    """The folder of the newest run that has begun."""
    begun = [
        path.parent
        for path in project.glob("mlruns/runs/*/journal.jsonl")
        if b"\n" in path.read_bytes()
    ]
    return max(begun, key=lambda folder: folder.name) if begun else None


def shipper_of(folder: Path) -> int | None:
    """The process that sends a run, by its command line."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if (
                any(b"fbp.experiment.tracking.shipper" in word for word in words)
                and str(folder).encode() in words
            ):
                return int(entry.name)
    return None


def facts(project: Path, folder: Path) -> dict[str, object]:
    """What must be the same: digests, status, and the records of every metric in MLflow."""
    with contextlib.closing(
        sqlite3.connect(project / "mlruns" / "mlflow.db", timeout=20)
    ) as database:
        ((run, status),) = database.execute(
            "select runs.run_uuid, status from runs join tags using (run_uuid) "
            "where key = 'fbp.folder' and value = ?",
            (folder.name,),
        ).fetchall()
        tags = dict(database.execute("select key, value from tags where run_uuid = ?", (run,)))
        rows = database.execute(
            "select key, step, count(*) from metrics "
            "where run_uuid = ? and key not like 'system/%' group by key, step",
            (run,),
        ).fetchall()
        models = database.execute(
            "select count(*) from logged_models where source_run_id = ?", (run,)
        ).fetchone()
    assert "fbp.resume_differs" not in tags, tags["fbp.resume_differs"]
    return {
        "status": status,
        "params": tags.get("fbp.params_digest"),
        "metrics": tags.get("fbp.metrics_digest"),
        "rows": sorted(rows),
        "models": models,
    }


def unbroken(project: Path) -> tuple[dict[str, object], float]:
    """What a run that is left alone gives, and how many seconds it takes."""
    (project / "mlruns").mkdir(exist_ok=True)
    (project / "broken.toml").write_text(CONFIG)
    began = time.monotonic()
    subprocess.run(command("run", "broken.toml"), cwd=project, check=True, capture_output=True)
    folder = newest(project)
    assert folder
    return facts(project, folder), time.monotonic() - began


def trial(
    project: Path, seconds: float, chance: random.Random
) -> tuple[dict[str, object], list[float]]:
    """Break a run off once or twice; return its end, and the seconds until each kill."""
    (project / "broken.toml").write_text(CONFIG)
    before, kills = newest(project), []
    for _ in range(chance.choice([1, 1, 2])):
        begun = newest(project)
        again = begun != before and chance.random() < 0.5
        words = (
            ("resume", begun.name)
            if again and begun
            else ("run", "broken.toml", "--resume", "auto")
        )
        with subprocess.Popen(
            command(*words), cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            kills.append(chance.uniform(0.3, 0.9) * seconds)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(kills[-1])
            process.kill()
        begun = newest(project)
        shipper = shipper_of(begun) if begun and begun != before and chance.random() < 0.5 else None
        if shipper:
            with contextlib.suppress(ProcessLookupError):
                os.kill(shipper, signal.SIGKILL)
    done = subprocess.run(
        command("run", "broken.toml", "--resume", "auto"),
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = newest(project)
    assert folder
    return facts(project, folder), kills


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, bad = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        expected, seconds = unbroken(project)
        print(f"unbroken: {seconds:.1f} s, {len(expected['rows'])} metric records", flush=True)
        for i in range(options.count):
            found, kills = trial(project, seconds, chance)
            different = [key for key, value in expected.items() if found[key] != value]
            bad += bool(different)
            at = ", ".join(f"{kill:.1f}" for kill in kills)
            print(f"{i + 1}: killed after {at} s: {', '.join(different) or 'the same'}", flush=True)
    print(f"{options.count - bad} of {options.count} ended as the unbroken run")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
