"""Records what a run runs on, and compares two records: code, packages, devices, threads.

All of it can change a result. `runner/jax_setup.py` sets what can be set. What cannot be found out
is recorded as unknown, with the reason, and stops no run.
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
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

import fbp
from fbp.errors import first_line
from fbp.experiment.config import bounded
from fbp.experiment.rundir import layout, tags
from fbp.experiment.rundir.redact import redact_command, redact_texts
from fbp.experiment.rundir.repository import UNKNOWN

_FLAGS = ("enable_x64", "default_prng_impl", "threefry_partitionable", "default_matmul_precision")
THREADS = "PJRT_NPROC"
_VARIABLES = ("XLA_FLAGS", THREADS, "NPROC", "OMP_NUM_THREADS")
_MOST_THREADS = 4096  # that a record can ask for
_PLAIN_FLAG = re.compile(r"--xla_(?!.*(dump|dir|path|file|log))[a-z0-9_]+(=(true|false|\d+)?)?")


def threads() -> int:
    """Return the number of threads that XLA uses on a CPU; the rounding of sums depends on it."""
    chosen = os.environ.get(THREADS) or os.environ.get("NPROC") or ""
    return int(chosen) if chosen.isdecimal() and int(chosen) else _cores()


def _cores() -> int:
    with contextlib.suppress(AttributeError, OSError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
        record = bounded.read_json(artifacts / layout.ENVIRONMENT)
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    sections = ("device", "jax", "variables", "packages", "own_code", "unknown")
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
    """Return the entries of two environments that differ, or are unknown in one of them.

    A package, or a file of the user's own code, counts only if both have it.

    Args:
        record: a recorded environment.
        current: this process's, see :func:`describe`.
    """
    entries: list[tuple[str, Any, Any]] = [
        (key, record.get(key), current.get(key))
        for key in ("fbp", "code", "python", "platform", "processor", "threads")
    ]
    for section in ("device", "jax", "packages", "own_code"):
        old, new = record.get(section, {}), current.get(section, {})
        common = section in ("packages", "own_code")
        names = set(old) & set(new) if common else set(old) | set(new)
        entries += [
            (f"{section}.{name}", old.get(name), new.get(name)) for name in sorted(names - {"fbp"})
        ]
    flags = record.get("variables", {}).get("XLA_FLAGS")
    entries.append(("XLA_FLAGS", flags, os.environ.get("XLA_FLAGS")))
    unknown = {**record.get("unknown", {}), **current.get("unknown", {})}
    return [
        Difference(name, _text(name, old, record), _text(name, new, current))
        for name, old, new in entries
        if old != new or (name in unknown and None in (old, new))
    ]


def _text(name: str, value: Any, facts: dict[str, Any]) -> str:
    return UNKNOWN if value is None and name in facts.get("unknown", {}) else str(value)


class _Facts:
    """Collects facts; one that cannot be found out is None.

    Attributes:
        unknown: why, by the name of the fact.
    """

    def __init__(self) -> None:
        self.unknown: dict[str, str] = {}

    def of(self, name: str, find: Callable[..., Any], *arguments: Any, default: Any = None) -> Any:
        """Return what `find` returns; `default` if it raises, whatever that is."""
        try:
            return find(*arguments)
        except Exception as error:  # no fact is worth a run
            self.unknown[name] = f"{type(error).__name__}: {first_line(error)}"
            return default


def describe(
    backend_check: dict[str, Any] | None = None, own_code: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Return versions, flags and devices of this process, as JSON's types.

    Args:
        backend_check: the decision about the backend's known answers, if it was tested.
        own_code: the files of the user's own code, by a short name.

    Returns:
        The facts. One that cannot be found out is None, and `unknown` says why.
    """
    facts = _Facts()
    return {
        "fbp": fbp.__version__,
        "code": facts.of("code", code_digest),
        "own_code": {
            name: facts.of(f"own_code.{name}", file_digest, path)
            for name, path in (own_code or {}).items()
        },
        "python": facts.of("python", platform.python_version),
        "platform": facts.of("platform", platform.platform),
        "processor": facts.of("processor", _processor),
        "cores": facts.of("cores", _cores),
        "threads": facts.of("threads", threads),
        "device": {
            "platform": facts.of("device.platform", lambda: jax.devices()[0].platform),
            "kind": facts.of("device.kind", lambda: jax.devices()[0].device_kind),
            "count": facts.of("device.count", jax.device_count),
        },
        "jax": {
            "jax": jax.__version__,
            "jaxlib": facts.of("jax.jaxlib", lambda: importlib.metadata.version("jaxlib")),
            **{name: facts.of(f"jax.{name}", _flag, name) for name in _FLAGS},
        },
        "backend_check": backend_check,
        "variables": {
            **{name: value for name, value in sorted(os.environ.items()) if name in _VARIABLES},
            **redact_texts(
                {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
            ),
        },
        "packages": facts.of("packages", _packages, facts, default={}),
        "unknown": facts.unknown,
    }


def _flag(name: str) -> Any:
    """Return an option of JAX as one of JSON's types."""
    value = getattr(jax.config, f"jax_{name}")
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _packages(facts: _Facts) -> dict[str, str]:
    """Return the versions of all installed packages; what has no name or version is unknown."""
    packages: dict[str, str] = {}
    for index, distribution in enumerate(importlib.metadata.distributions()):
        place = getattr(distribution, "_path", None)  # private, and for messages only
        where = f"packages.{Path(str(place)).name if place else index}"
        name = facts.of(where, _metadata, distribution, "Name")
        version = facts.of(where, _metadata, distribution, "Version")
        if isinstance(name, str) and isinstance(version, str):
            packages.setdefault(name, version)  # the first one is what Python imports
        else:
            facts.unknown.setdefault(where, "its metadata have no name or no version")
    return dict(sorted(packages.items(), key=lambda item: item[0].lower()))


def _metadata(distribution: importlib.metadata.Distribution, key: str) -> str | None:
    return distribution.metadata[key]


def file_digest(path: Path) -> str:
    """Return SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(
    artifacts: Path,
    repository: dict[str, str],
    backend_check: dict[str, Any] | None = None,
    own_code: Mapping[str, Path] | None = None,
) -> None:
    """Write the environment, and uncommitted changes, among a run's artifacts.

    Args:
        artifacts: the folder.
        repository: the state of the code, see :func:`.repository.git`.
        backend_check: see :func:`describe`.
        own_code: see :func:`describe`.
    """
    facts = describe(backend_check, own_code)
    if "problem" in repository:
        facts["unknown"]["git"] = repository["problem"]
    if "no_diff" in repository:
        facts["unknown"][layout.GIT_DIFF] = repository["no_diff"]
    text = json.dumps(facts, indent=1, default=str)
    (artifacts / layout.ENVIRONMENT).write_text(text, encoding="utf-8")
    if "diff" in repository:
        (artifacts / layout.GIT_DIFF).write_text(repository["diff"], encoding="utf-8")


def run_tags(repository: dict[str, str]) -> dict[str, str]:
    """Return the tags that describe what a run runs on, and the state of its code.

    Args:
        repository: the state of the code, see :func:`.repository.git`.
    """
    facts = _Facts()
    kind = facts.of("kind", lambda: jax.devices()[0].device_kind, default=UNKNOWN)
    count = facts.of("count", jax.device_count, default=UNKNOWN)
    values = {
        tags.USER: facts.of("user", getpass.getuser, default=UNKNOWN),
        tags.SOURCE_TYPE: "LOCAL",
        tags.VERSION: fbp.__version__,
        tags.PYTHON: facts.of("python", platform.python_version, default=UNKNOWN),
        tags.JAX: jax.__version__,
        tags.JAXLIB: facts.of(
            "jaxlib", lambda: importlib.metadata.version("jaxlib"), default=UNKNOWN
        ),
        tags.DEVICE: f"{count} x {kind}",
        tags.DEVICE_KIND: kind,
        tags.DEVICE_COUNT: str(count),
        tags.COMMAND: facts.of("command", _command_line, default=UNKNOWN),
    }
    if repository:
        values[tags.GIT_COMMIT] = repository["commit"]
        values[tags.GIT_BRANCH] = repository["branch"]
        values[tags.GIT_REPOSITORY] = repository["remote"]
        values[tags.GIT_DIRTY] = repository["dirty"]
    return {name: encodable(value) for name, value in values.items() if value}


def _command_line() -> str:
    program, *arguments = sys.argv or [UNKNOWN]
    return redact_command([Path(program).name, *arguments])


def encodable(text: str) -> str:
    """Return a text without what UTF-8 cannot hold, such as the bytes of an odd file name."""
    return text.encode("utf-8", "replace").decode()


def _cpu_flags() -> str:
    """Return the instruction sets of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor()
