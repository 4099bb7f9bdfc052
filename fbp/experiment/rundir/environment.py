"""Records what a run runs on, and compares two records: code, packages, devices, threads.

All of it can change a result. `runner/jax_setup.py` sets what can be set.
"""

import contextlib
import getpass
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax

import fbp
from fbp.experiment.rundir import layout, tags
from fbp.experiment.rundir.redact import redact

_FLAGS = ("enable_x64", "default_prng_impl", "threefry_partitionable", "default_matmul_precision")
THREADS = "PJRT_NPROC"
_MOST_THREADS = 4096  # that a record can ask for
_PLAIN_FLAG = re.compile(r"--xla_(?!.*(dump|dir|path|file|log))[a-z0-9_]+(=(true|false|\d+)?)?")


def threads() -> int:
    """Return the number of threads that XLA uses on a CPU; the rounding of sums depends on it."""
    chosen = os.environ.get(THREADS) or os.environ.get("NPROC") or ""
    return int(chosen) if chosen.isdigit() and int(chosen) else _cores()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_digest() -> str:
    """Return a digest of what compiled programs depend on: processor, instruction sets, threads."""
    return hashlib.sha256(
        f"{platform.machine()} {_processor()} {_cpu_flags()} {threads()}".encode()
    ).hexdigest()[:12]


def cache_folder() -> Path:
    """Return fbp's folder in the user's cache folder; it may not exist yet."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(chosen) if chosen else Path.home() / ".cache"
    except RuntimeError:  # no HOME, and a user without an entry in passwd, as in containers
        return _temporary_cache_folder()
    return base / "fbp"


def _temporary_cache_folder() -> Path:
    """Return a folder that only this user can write, or one that cannot be made.

    Others may have made it before: compiled programs of theirs must not be run.
    """
    folder = Path(tempfile.gettempdir()) / f"fbp-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
        is_private = stat.S_ISDIR(facts.st_mode) and not facts.st_mode & 0o077
        if is_private and facts.st_uid == os.getuid():
            return folder
    return Path(os.devnull) / "fbp"


def read(artifacts: Path) -> dict[str, Any]:
    """Return the environment that a run recorded; empty if absent or damaged."""
    try:
        record = json.loads((artifacts / layout.ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    sections = ("device", "jax", "variables", "packages")
    return {
        key: value
        for key, value in record.items()
        if key not in sections or isinstance(value, dict)
    }


def restorable_variables(record: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Return the environment variables under which a recorded run can run again.

    A record may come from anybody. So only numbers of threads, JAX's numeric options, and XLA flags
    with the value true, false or a number are used, but none that names a file.

    Returns:
        The variables by name, and the recorded XLA flags that are refused.
    """
    variables = threads_of(record)
    options = record.get("jax", {})
    for name in _FLAGS:
        value = str(options.get(name))
        if value != "None" and re.fullmatch(r"[A-Za-z0-9_]+", value):
            variables[f"JAX_{name.upper()}"] = value
    flags = str(record.get("variables", {}).get("XLA_FLAGS", "")).split()
    accepted = [flag for flag in flags if _PLAIN_FLAG.fullmatch(flag)]
    if accepted:
        variables["XLA_FLAGS"] = " ".join(accepted)
    return variables, [flag for flag in flags if flag not in accepted]


def threads_of(record: dict[str, Any]) -> dict[str, str]:
    """Return the variable that sets the recorded number of threads; empty if it is not a number."""
    count = record.get("threads")
    return {THREADS: str(count)} if type(count) is int and 0 < count <= _MOST_THREADS else {}


def code_digest() -> str:
    """Return SHA-256 of fbp's own source files."""
    folder, digest = Path(fbp.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


class Difference(NamedTuple):
    """An entry of two environments that is not the same."""

    name: str
    recorded: str
    current: str


def differences(record: dict[str, Any], current: dict[str, Any]) -> list[Difference]:
    """Return the entries of two environments that differ. A package counts only if both have it.

    Args:
        record: a recorded environment.
        current: this process's, see :func:`describe`.
    """
    entries: list[tuple[str, Any, Any]] = [
        (key, record.get(key), current.get(key))
        for key in ("fbp", "code", "python", "platform", "processor", "threads")
    ]
    for section in ("device", "jax", "packages"):
        old, new = record.get(section, {}), current.get(section, {})
        names = set(old) & set(new) if section == "packages" else set(old) | set(new)
        entries += [
            (f"{section}.{name}", old.get(name), new.get(name)) for name in sorted(names - {"fbp"})
        ]
    flags = record.get("variables", {}).get("XLA_FLAGS")
    entries.append(("XLA_FLAGS", flags, os.environ.get("XLA_FLAGS")))
    return [Difference(name, str(old), str(new)) for name, old, new in entries if old != new]


def git(folder: Path) -> dict[str, str]:
    """Return the state of a git repository; empty outside of one.

    Returns:
        `remote`, `commit`, `branch`, `dirty` (whether files differ from the commit), and, if so,
        `diff`.
    """

    def output(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.decode(errors="replace")

    commit = output("rev-parse", "HEAD")
    if commit is None:
        return {}
    status = output("status", "--porcelain") or ""
    facts = {
        "remote": redact((output("remote", "get-url", "origin") or "").strip()),
        "commit": commit.strip(),
        "branch": (output("rev-parse", "--abbrev-ref", "HEAD") or "").strip(),
        "dirty": str(bool(status.strip())).lower(),
    }
    if status.strip():
        facts["diff"] = (output("diff", "HEAD") or "") + "".join(
            f"# untracked: {line[3:]}\n" for line in status.splitlines() if line.startswith("??")
        )
    return facts


def describe(backend_check: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return versions, flags and devices of this process, as JSON's types.

    Args:
        backend_check: the decision about the backend's known answers, if it was tested.
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
    """Write the environment, and uncommitted changes, among a run's artifacts.

    Args:
        artifacts: the folder.
        repository: the state of the code, see :func:`git`.
        backend_check: see :func:`describe`.
    """
    text = json.dumps(describe(backend_check), indent=1)
    (artifacts / layout.ENVIRONMENT).write_text(text, encoding="utf-8")
    if "diff" in repository:
        (artifacts / layout.GIT_DIFF).write_text(repository["diff"], encoding="utf-8")


def run_tags(repository: dict[str, str]) -> dict[str, str]:
    """Return the tags that describe what a run runs on, and the state of its code.

    Args:
        repository: the state of the code, see :func:`git`.
    """
    device = jax.devices()[0]
    values = {
        tags.USER: _user(),
        tags.SOURCE_TYPE: "LOCAL",
        tags.VERSION: fbp.__version__,
        tags.PYTHON: platform.python_version(),
        tags.JAX: jax.__version__,
        tags.JAXLIB: importlib.metadata.version("jaxlib"),
        tags.DEVICE: f"{jax.device_count()} x {device.device_kind}",
        tags.DEVICE_KIND: device.device_kind,
        tags.DEVICE_COUNT: str(jax.device_count()),
        tags.COMMAND: redact(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
    }
    if repository:
        values[tags.GIT_COMMIT] = repository["commit"]
        values[tags.GIT_BRANCH] = repository["branch"]
        values[tags.GIT_REPOSITORY] = repository["remote"]
        values[tags.GIT_DIRTY] = repository["dirty"]
    return values


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry for this user id, as in some containers
        return "unknown"


def _cpu_flags() -> str:
    """Return the instruction sets of the processor."""
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
