"""Refuse to train on a backend that computes wrong numbers, or mend it by a flag if that is enough.

The programs of ``known_answers.py`` run in a process of their own, because a wrong backend may
crash, and because XLA reads its flags only once. The verdict is kept in the user's cache folder, so
that a good version of jaxlib costs one such process once.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fbp._jaxlib import JAXLIB, WITHOUT_FUSIONS
from fbp.errors import InputError
from fbp.experiment.rundir import environment
from fbp.experiment.runner import known_answers

_PROGRAMS = Path(known_answers.__file__)
_SECONDS = 300  # a wrong backend may hang
_CRASHES = tuple(
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")
    if hasattr(signal, name)
)
_DEVICES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


class _Verdict(NamedTuple):
    """What the known-answer programs did under certain flags.

    Attributes:
        device: the kind of device they ran on; empty if they did not get so far.
        failures: the programs with wrong answers, and how the process ended if it crashed.
        unchecked: why they could not be run; empty if they ran.
    """

    device: str
    failures: tuple[str, ...]
    unchecked: str = ""


class BackendCheck(NamedTuple):
    """What was decided about the backend of this process.

    Attributes:
        verdict: ``right``, ``right without fusions`` or ``not checked``.
        failures: the programs that are wrong with fusions.
        device: the kind of device that was tested.
        note: the line to tell the user; empty if the backend is right as it is.
    """

    verdict: str
    failures: tuple[str, ...] = ()
    device: str = ""
    note: str = ""

    def facts(self) -> dict[str, Any]:
        """Return what is recorded with a run, as JSON's types."""
        return {"verdict": self.verdict, "device": self.device, "wrong": list(self.failures)}


_decision: BackendCheck | None = None
_flags_of_decision: str | None = None


def decision() -> BackendCheck | None:
    """Return the decision of :func:`ensure_right_backend` in this process; None before it ran."""
    return _decision


def jax_has_started() -> bool:
    """Return whether JAX has made its devices: their number on a CPU can then not be changed."""
    settings: Any = jax.config
    devices = settings.jax_num_cpu_devices
    try:
        jax.config.update("jax_num_cpu_devices", 2 if devices == 1 else 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", devices)
    return False


def ensure_right_backend() -> BackendCheck:
    """Test the backend by programs with known answers; switch fusions off if it needs that.

    May start a process (a second or two) if no verdict is cached, and may set ``XLA_FLAGS`` for
    this process and its children. Called before JAX starts, and again as often as you like.

    Returns:
        The decision; its ``note`` is to be told to the user if it is not empty.

    Raises:
        InputError: if the backend is wrong and no flag mends it, or JAX has started already.
    """
    global _decision, _flags_of_decision
    started = jax_has_started()
    if _decision is None or not (started or os.environ.get("XLA_FLAGS") == _flags_of_decision):
        _decision = _decide(started=started)
        _flags_of_decision = os.environ.get("XLA_FLAGS")
    return _decision


def take_over_flags(record: dict[str, Any]) -> None:
    """Set the flag that a recorded run needed, so that it goes on with the same programs.

    Args:
        record: the run's environment, as it was recorded.
    """
    recorded = str(record.get("variables", {}).get("XLA_FLAGS", "")).split()
    current = os.environ.get("XLA_FLAGS", "")
    missing = WITHOUT_FUSIONS in recorded and WITHOUT_FUSIONS not in current.split()
    if missing and not jax_has_started():
        os.environ["XLA_FLAGS"] = _without_fusions(current)


def _without_fusions(flags: str) -> str:
    return f"{flags} {WITHOUT_FUSIONS}".strip()  # the last of two equal flags counts


def _decide(*, started: bool) -> BackendCheck:
    flags = os.environ.get("XLA_FLAGS", "")
    mended = WITHOUT_FUSIONS in flags.split()
    verdict = _verdict(flags)
    if verdict.unchecked:
        note = f"the backend was not checked for wrong results: {verdict.unchecked}"
        return BackendCheck("not checked", note=note)
    failures = verdict.failures
    if started and mended and not failures:  # did JAX start with this flag, or without it?
        failures = tuple(known_answers.wrong_answers(known_answers.SUMS))
    if not failures:
        how = "right without fusions" if mended else "right"
        return BackendCheck(how, device=verdict.device)
    if started or mended:
        raise InputError(_refusal(failures, mendable=not mended or started))
    other = _verdict(_without_fusions(flags))
    if other.failures or other.unchecked:
        raise InputError(_refusal(failures, mendable=False))
    os.environ["XLA_FLAGS"] = _without_fusions(flags)
    note = (
        f"{_described(failures)}; XLA's fusions are switched off for this run "
        f"(XLA_FLAGS={WITHOUT_FUSIONS}), which makes it right, and slower"
    )
    return BackendCheck("right without fusions", failures, other.device, note)


def _described(failures: tuple[str, ...]) -> str:
    return f"jaxlib {JAXLIB} computes wrong results here ({failures[0]})"


def _refusal(failures: tuple[str, ...], *, mendable: bool) -> str:
    if mendable:
        advice = f"JAX has started already; start the process with XLA_FLAGS={WITHOUT_FUSIONS}"
    else:
        advice = "also without XLA's fusions; install another version of jax"
    return f"{_described(failures)}, {advice}"


def _verdict(flags: str) -> _Verdict:
    """Return the cached verdict on these flags, or run the programs and cache what they say."""
    path = _cache_path(flags)
    cached = _read(path)
    if cached is None:
        cached, conclusive = _run_programs(flags)
        if conclusive:
            _write(path, cached)
    return cached


def _cache_path(flags: str) -> Path:
    """Return the file of the verdict; its name holds everything that the verdict depends on."""
    variables = [os.environ.get(name, "") for name in _DEVICES]
    accelerators = [str(path) for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
    parts = [
        *(jax.__version__, JAXLIB, environment.machine_digest(), flags),
        *(_PROGRAMS.read_text(encoding="utf-8"), *variables, *accelerators),
    ]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return environment.cache_folder() / f"backend-{JAXLIB}-{digest}.json"


def _read(path: Path) -> _Verdict | None:
    """Return a cached verdict; None if there is none or the file is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        device, failures = content["device"], content["failures"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(device) is not str or type(failures) is not list:
        return None
    if not all(type(failure) is str for failure in failures):
        return None
    return _Verdict(device, tuple(failures))


def _write(path: Path, verdict: _Verdict) -> None:
    """Write the verdict atomically; if the folder cannot be written, each process tests anew."""
    content = {
        "jaxlib": JAXLIB,
        "device": verdict.device,
        "failures": list(verdict.failures),
    }
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8"
        ) as file:
            partial = Path(file.name)
        try:
            partial.write_text(json.dumps(content), encoding="utf-8")
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _run_programs(flags: str) -> tuple[_Verdict, bool]:
    """Run the programs in a process of their own.

    Returns:
        The verdict, and whether another run would surely give the same, so that it may be cached.
    """
    variables = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # a GPU's memory may be in use by another run
    }
    try:
        ended = subprocess.run(
            [sys.executable, "-P", str(_PROGRAMS)],
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return _Verdict("", (f"no answer in {_SECONDS} seconds",)), False
    except OSError as error:
        return _Verdict("", (), f"no process could be started ({error})"), False
    answer = _last_answer(ended.stdout)
    failures = [str(name) for name in answer.get("wrong", [])]
    if ended.returncode < 0 and -ended.returncode in _CRASHES:
        failures.append(f"crash by {signal.Signals(-ended.returncode).name}")
    elif (ended.returncode or not answer.get("complete")) and not failures:
        lines = ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"]
        return _Verdict("", (), lines[-1]), False
    return _Verdict(str(answer.get("device", "")), tuple(failures)), True


def _last_answer(output: str) -> dict[str, Any]:
    """Return the last line of the programs' output that is a JSON object; empty if none is."""
    for line in reversed(output.splitlines()):
        with contextlib.suppress(ValueError):
            answer = json.loads(line)
            if isinstance(answer, dict):
                return answer
    return {}
