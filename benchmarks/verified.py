"""Run 50 varied small models, and verify each fresh record: no false alarm may be among them.

    python -m benchmarks.verified

Each group is one experiment with ten variants, every variant a run of its own. Afterwards the
project is moved, its store repaired, and every record verified once more, in another process. Exit
status 1 if a record is called different.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FBP = [sys.executable, "-c", "from fbp.cli import main; main()"]

CLASSIFIER = '[data]\nname = "{data}"\n[loss]\nname = "softmax_cross_entropy"\n'
ADAM = '[optimizer]\nname = "adam"\nlearning_rate = 0.003\n[training]\nepochs = 2\n'
OPTIMIZERS = [
    *("sgd", "momentum", "nesterov", "adagrad", "adadelta"),
    *("rmsprop", "adam", "amsgrad", "lion", "lamb"),
]

GROUPS = {
    "widths": (
        CLASSIFIER.format(data="digits") + ADAM + '[model]\nname = "mlp"\nhidden = [8]\n',
        [f'"model.hidden" = [{width}], seed = {width}' for width in range(4, 14)],
    ),
    "optimizers": (
        CLASSIFIER.format(data="iris") + ADAM + '[model]\nname = "mlp"\nhidden = [4]\n',
        [f'"optimizer.name" = "{name}"' for name in OPTIMIZERS],
    ),
    "pictures": (
        CLASSIFIER.format(data="digits") + ADAM + '[model]\nname = "cnn"\n',
        [f'"data.limit" = {300 + 10 * i}, seed = {i}' for i in range(10)],
    ),
    "sequences": (
        CLASSIFIER.format(data="copy_memory").replace("[loss]", "examples = 200\n[loss]")
        + ADAM
        + '[model]\nname = "rnn"\nhidden = [8]\nembedding_width = 4\n',
        [
            f'"model.name" = "{name}", seed = {seed}'
            for name in ("rnn", "gru", "lstm")
            for seed in range(3)
        ]
        + ["seed = 9"],
    ),
    "regression": (
        '[data]\nname = "linear"\n[loss]\nname = "mean_squared_error"\n'
        + ADAM
        + '[model]\nname = "mlp"\nhidden = [4]\n',
        [f'"model.activation" = "{name}"' for name in ("relu", "tanh", "gelu", "selu", "silu")]
        + [f'"optimizer.clip_global_norm" = {norm}' for norm in (0.1, 0.5, 1.0, 5.0, 10.0)],
    ),
}


def write(project: Path, name: str) -> None:
    text, settings = GROUPS[name]
    variants = [
        f'[[variant]]\nname = "v{i}"\nset = {{ {setting} }}\n' for i, setting in enumerate(settings)
    ]
    (project / f"{name}.toml").write_text(text + "".join(variants))


def verified(project: Path) -> tuple[int, list[str]]:
    """Return how many records are as they were recorded, and what is said of the others."""
    good, different = 0, []
    for folder in sorted((project / "mlruns" / "runs").iterdir()):
        if not any(folder.name.startswith(f"{name}-2") for name in GROUPS):
            continue  # a variant, which is verified with its group
        done = subprocess.run(
            [*FBP, "verify", folder.name], cwd=project, capture_output=True, text=True
        )
        good += done.stdout.count("as it was recorded")
        if done.returncode:
            different.append(done.stdout + done.stderr)
    return good, different


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch) / "first"
        (project / "mlruns").mkdir(parents=True)
        for name in GROUPS:
            began = time.monotonic()
            write(project, name)
            done = subprocess.run(
                [*FBP, "run", f"{name}.toml"], cwd=project, capture_output=True, text=True
            )
            if done.returncode:
                print(done.stderr)
                return 1
            rows = len(re.findall(r"^│ v\d", done.stdout, re.M))
            print(f"{name}: {rows or 10} runs in {time.monotonic() - began:.0f} s", flush=True)
        for where in ("where they were made", "after a move and fbp repair-store"):
            good, different = verified(project)
            print(f"{where}: {good} records as they were recorded, {len(different)} groups not")
            print(*different, sep="\n")
            if different:
                return 1
            project = project.rename(project.with_name("second"))
            subprocess.run([*FBP, "repair-store"], cwd=project, check=True, capture_output=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
