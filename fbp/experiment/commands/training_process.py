"""A process that trains for another one, and ends when that one does.

The command that starts it sends a task, one line of JSON, to its standard input. The process writes
its answer to a file that the task names.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fbp.errors import InputError

_VARIABLES_FROM_RECORD = ("XLA_FLAGS", "PJRT_NPROC", "NPROC")  # and all JAX_* but its cache


def train_in_subprocess(
    task: Mapping[str, Any],
    recorded: Mapping[str, Any],
    variables: Mapping[str, str],
    command: str,
) -> dict[str, str]:
    """Train in a process of its own, which ends when this one does.

    Args:
        task: of JSON's types, see :func:`serve`; the name of the file for its answer is added.
        recorded: the environment of the record.
        variables: environment variables that restore it.
        command: Python code that calls :func:`serve`.

    Returns:
        The answer.

    Raises:
        InputError: if training could not start, or if the process died.
    """
    inherited = {name: value for name, value in os.environ.items() if _is_inherited(name)}
    if recorded.get("device", {}).get("platform") == "cpu":
        inherited["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "answer.json"
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", command],  # -P: nothing from the current folder
            stdin=subprocess.PIPE,
            text=True,
            env=inherited | dict(variables),
            start_new_session=True,  # Ctrl-C is for this process, which stops the other
        )
        assert process.stdin is not None
        try:
            # the pipe stays open; the child notices by its closing that this process has died
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps({**task, "answer": str(path)}) + "\n")
                process.stdin.flush()
            process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        answer = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not answer:
        raise InputError(f"it could not be trained again (exit status {process.returncode})")
    if "problem" in answer:
        raise InputError(answer["problem"])
    return dict(answer)


def _is_inherited(variable: str) -> bool:
    """Return whether the subprocess gets an environment variable from this process."""
    if variable in _VARIABLES_FROM_RECORD:
        return False
    return not variable.startswith("JAX_") or "COMPILATION_CACHE" in variable


def serve(train: Callable[[dict[str, Any]], str]) -> int:
    """Read a task, train, and write the answer; return the exit status.

    Args:
        train: takes a task and returns the run's folder; an InputError becomes the answer.
    """
    line = sys.stdin.readline()
    if not line.endswith("\n"):  # the parent died before it had sent the task
        return 1
    task = json.loads(line)
    threading.Thread(target=_stop_when_parent_dies, daemon=True).start()
    try:
        answer = {"folder": train(task)}
    except InputError as error:
        answer = {"problem": str(error)}
    Path(task["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def _stop_when_parent_dies() -> None:
    """Block until standard input is closed, then stop training as a SIGTERM does."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
