"""What a run ran on: code, packages, devices. Recorded because all of it can change a result."""

import getpass
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

import fbp

_FLAGS = ("enable_x64", "default_prng_impl", "threefry_partitionable", "default_matmul_precision")


def git(folder: Path) -> dict[str, str]:
    """Commit, branch, whether the tree is dirty, and its difference to the commit; empty outside a repository."""

    def ask(*words: str) -> str | None:
        try:
            answer = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.decode(errors="replace")

    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return {}
    status = ask("status", "--porcelain") or ""
    facts = {
        "commit": commit.strip(),
        "branch": (ask("rev-parse", "--abbrev-ref", "HEAD") or "").strip(),
        "dirty": str(bool(status.strip())).lower(),
    }
    if status.strip():
        facts["diff"] = (ask("diff", "HEAD") or "") + "".join(
            f"# untracked: {line[3:]}\n" for line in status.splitlines() if line.startswith("??")
        )
    return facts


def facts() -> dict[str, Any]:
    """Versions, flags and devices, as JSON's types."""
    device = jax.devices()[0]
    return {
        "fbp": fbp.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "jax": {
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
            **{name: getattr(jax.config, f"jax_{name}") for name in _FLAGS},
        },
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in ("XLA_FLAGS", "PJRT_NPROC", "NPROC", "OMP_NUM_THREADS") or name.startswith("JAX_")
        },
        "packages": {
            distribution.name: distribution.version
            for distribution in sorted(importlib.metadata.distributions(), key=lambda d: d.name.lower())
        },
    }


def tags(config_path: Path, seed: int, repository: dict[str, str]) -> dict[str, str]:
    """The tags of a run: MLflow's own for source and user, and fbp's."""
    device = jax.devices()[0]
    result = {
        "mlflow.user": _user(),
        "mlflow.source.name": config_path.as_posix(),
        "mlflow.source.type": "LOCAL",
        "fbp.version": fbp.__version__,
        "fbp.seed": str(seed),
        "fbp.python": platform.python_version(),
        "fbp.jax": jax.__version__,
        "fbp.jaxlib": importlib.metadata.version("jaxlib"),
        "fbp.device": f"{jax.device_count()} x {device.device_kind}",
        "fbp.device_kind": device.device_kind,
        "fbp.device_count": str(jax.device_count()),
        "fbp.command": " ".join(["fbp", *sys.argv[1:]]),
    }
    if repository:
        result["mlflow.source.git.commit"] = repository["commit"]
        result["mlflow.source.git.branch"] = repository["branch"]
        result["fbp.git_dirty"] = repository["dirty"]
    return result


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry for this user id, as in some containers
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
