"""Run every shipped experiment that takes less than a minute, and reproduce it from its record.

    python -m benchmarks.reproduced [--fresh] [NAME ...]

``--fresh`` reproduces in a new environment that has everything of requirements.lock. Exit status 1
if one bit differs.
"""

import argparse
import functools
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
FBP = "from fbp.cli import main; main()"


def short() -> list[str]:
    """Return the experiments whose files state a cost of less than a minute."""
    names = []
    for path in sorted((ROOT / "experiments").glob("*.toml")):
        cost = re.search(r"# Cost: +(\d+) s ", path.read_text(encoding="utf-8"))
        if cost and int(cost[1]) < 60:
            names.append(path.stem)
    return names


def fresh(folder: Path) -> str:
    """Return a new interpreter that has everything of requirements.lock, and fbp."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--require-hashes", "--requirement", str(ROOT / "requirements.lock")], check=True
    )
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)], check=True)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    different = 0
    with tempfile.TemporaryDirectory() as name:
        project = Path(name)
        (project / "mlruns").mkdir()
        settings = os.environ | (
            {"FBP_DATA": str(Path(os.environ["FBP_DATA"]).resolve())}
            if "FBP_DATA" in os.environ
            else {}
        )
        python = fresh(project / "environment") if options.fresh else sys.executable
        ask = functools.partial(
            subprocess.run, cwd=project, env=settings, capture_output=True, text=True
        )
        for experiment in options.names or short():
            began = time.monotonic()
            run = ask(
                [sys.executable, "-c", FBP, "run", str(ROOT / "experiments" / f"{experiment}.toml")]
            )
            folder = re.search(r"run folder: (\S+)", run.stdout)
            if run.returncode or not folder:
                print(f"{experiment}: could not be run: {run.stderr[-500:]}", flush=True)
                different += 1
                continue
            again = ask([python, "-c", FBP, "reproduce", folder[1]])
            verdicts = re.findall(r"identical to the bit: .*|DIFFERENT(?:\n.*)*", again.stdout) or [
                again.stderr[-500:]
            ]
            different += again.returncode != 0
            print(
                f"{experiment} ({time.monotonic() - began:.0f} s): {'; '.join(verdicts)}",
                flush=True,
            )
    print("all identical to the bit" if not different else f"{different} DIFFERENT")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
