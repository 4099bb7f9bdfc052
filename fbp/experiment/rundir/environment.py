"""Records what a run runs on, and compares two records: code, packages, devices, threads.

All of it can change a result. `runner/jax_setup.py` sets what can be set.
"""

import getpass
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

import fbp
from fbp.experiment.rundir.redact import redact

_FLAGS = ("enable_x64", "default_prng_impl", "threefry_partitionable", "default_matmul_precision")
THREADS = "PJRT_NPROC"
_MOST_THREADS = 4096  # that a record can ask for
_PLAIN_FLAG = re.compile(r"--xla_(?!.*(dump|dir|path|file|log))[a-z0-9_]+(=(true|false|\d+)?)?")
NAME = "environment.json"


def threads() -> int:
    """How many threads XLA computes with on a CPU: sums over other numbers of threads round in another way."""
    chosen = os.environ.get(THREADS) or os.environ.get("NPROC") or ""
    return int(chosen) if chosen.isdigit() and int(chosen) else _cores()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_digest() -> str:
    """Return a digest of what compiled programs depend on: processor, instruction sets, threads."""
    return hashlib.sha256(
        f"{platform.machine()} {_processor()} {_abilities()} {threads()}".encode()
    ).hexdigest()[:12]


def cache_folder() -> Path:
    """Return fbp's folder in the user's cache folder; it may not exist yet."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fbp"


def recorded(artifacts: Path) -> dict[str, Any]:
    """The environment that a run recorded among its artifacts; empty where that is absent or damaged."""
    try:
        found = json.loads((artifacts / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    sections = ("device", "jax", "variables", "packages")
    return {
        key: value for key, value in found.items() if key not in sections or isinstance(value, dict)
    }


def variables(record: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The environment variables under which a recorded run can run again, and those of the record that are not taken over.

    A record may come from anybody: only numbers of threads, JAX's switches for numbers, and XLA flags that are true, false or
    a number are taken over; none that names a file.
    """
    found, left = threads_of(record), []
    settings = record.get("jax", {})
    for name in _FLAGS:
        value = str(settings.get(name))
        if value != "None" and re.fullmatch(r"[A-Za-z0-9_]+", value):
            found[f"JAX_{name.upper()}"] = value
    flags = str(record.get("variables", {}).get("XLA_FLAGS", "")).split()
    good = [flag for flag in flags if _PLAIN_FLAG.fullmatch(flag)]
    left += [flag for flag in flags if flag not in good]
    if good:
        found["XLA_FLAGS"] = " ".join(good)
    return found, left


def threads_of(record: dict[str, Any]) -> dict[str, str]:
    """The variable that sets as many threads as a record names, where that is a number of threads."""
    count = record.get("threads")
    return {THREADS: str(count)} if type(count) is int and 0 < count <= _MOST_THREADS else {}


def code_digest() -> str:
    """SHA-256 over fbp's own source files."""
    folder, digest = Path(fbp.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What of a recorded environment is another now: name, then, now; packages only where both have them."""
    found = []
    for key in ("fbp", "code", "python", "platform", "processor", "threads"):
        found.append((key, before.get(key), now.get(key)))
    for section in ("device", "jax", "packages"):
        old, new = before.get(section, {}), now.get(section, {})
        names = (
            sorted(set(old) & set(new)) if section == "packages" else sorted(set(old) | set(new))
        )
        found += [
            (f"{section}.{name}", old.get(name), new.get(name)) for name in names if name != "fbp"
        ]
    found.append(
        ("XLA_FLAGS", before.get("variables", {}).get("XLA_FLAGS"), os.environ.get("XLA_FLAGS"))
    )
    return [(name, str(old), str(new)) for name, old, new in found if old != new]


def git(folder: Path) -> dict[str, str]:
    """Commit, branch, whether the tree is dirty, and its difference to the commit; empty outside a repository."""

    def ask(*words: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.decode(errors="replace")

    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return {}
    status = ask("status", "--porcelain") or ""
    facts = {
        "remote": redact((ask("remote", "get-url", "origin") or "").strip()),
        "commit": commit.strip(),
        "branch": (ask("rev-parse", "--abbrev-ref", "HEAD") or "").strip(),
        "dirty": str(bool(status.strip())).lower(),
    }
    if status.strip():
        facts["diff"] = (ask("diff", "HEAD") or "") + "".join(
            f"# untracked: {line[3:]}\n" for line in status.splitlines() if line.startswith("??")
        )
    return facts


def facts(backend_check: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return versions, flags and devices, as JSON's types.

    Args:
        backend_check: what was decided about the backend's known answers, if it was tested.
    """
    device = jax.devices()[0]
    return {
        "fbp": fbp.__version__,
        "code": code_digest(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": _cores(),
        "threads": threads(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "jax": {
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
            **{name: getattr(jax.config, f"jax_{name}") for name in _FLAGS},
        },
        "backend_check": backend_check,
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in ("XLA_FLAGS", "PJRT_NPROC", "NPROC", "OMP_NUM_THREADS")
            or name.startswith("JAX_")
        },
        "packages": {
            distribution.name: distribution.version
            for distribution in sorted(
                importlib.metadata.distributions(), key=lambda d: d.name.lower()
            )
        },
    }


def write(
    artifacts: Path, repository: dict[str, str], backend_check: dict[str, Any] | None = None
) -> None:
    """Write the environment, and what is not committed, among a run's artifacts."""
    text = json.dumps(facts(backend_check), indent=1)
    (artifacts / NAME).write_text(text, encoding="utf-8")
    if "diff" in repository:
        (artifacts / "git.diff").write_text(repository["diff"], encoding="utf-8")


def tags(config_path: Path, seed: int | None, repository: dict[str, str]) -> dict[str, str]:
    """The tags of a run: MLflow's own for source and user, and fbp's; no seed where the runner has none."""
    device = jax.devices()[0]
    result = {
        "mlflow.user": _user(),
        "mlflow.source.name": config_path.as_posix(),
        "mlflow.source.type": "LOCAL",
        "fbp.version": fbp.__version__,
        "fbp.seed": "" if seed is None else str(seed),
        "fbp.python": platform.python_version(),
        "fbp.jax": jax.__version__,
        "fbp.jaxlib": importlib.metadata.version("jaxlib"),
        "fbp.device": f"{jax.device_count()} x {device.device_kind}",
        "fbp.device_kind": device.device_kind,
        "fbp.device_count": str(jax.device_count()),
        "fbp.command": redact(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
    }
    if repository:
        result["mlflow.source.git.commit"] = repository["commit"]
        result["mlflow.source.git.branch"] = repository["branch"]
        result["mlflow.source.git.repoURL"] = repository["remote"]
        result["fbp.git_dirty"] = repository["dirty"]
    return result


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry for this user id, as in some containers
        return "unknown"


def _abilities() -> str:
    """The instruction sets of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor()
