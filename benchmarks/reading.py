"""How much of fbp one reads to follow a run: files entered, hops between files, imports.

    python -m benchmarks.reading [CHECKOUT] [--experiment NAME]

It runs `fbp run` of an experiment with the code of CHECKOUT (this one by default), traces the
function calls of the training process and of the shipper, and prints:

* the files of fbp that each of the two processes enters by a function call;
* the files that one batch passes on the way from the TOML file to the tracker: those with a
  function on the call stack, or called, while the configuration is read, while the training step is
  traced, while its numbers are journaled, and while the shipper sends them;
* what somebody passes who follows the experiment through the calls: the functions of the runner and
  of the command line that are given the path, the configuration, or what is built from it. Each is
  read once, from its caller. Printed are the number of files, and how often a file that was left is
  entered again, by a call or by the return to a caller;
* the packages of `fbp/experiment` (modules, if it is flat): their number, levels and arrows.

The execution of a module is no call, and neither is what it calls while it is imported.
"""

import argparse
import ast
import atexit
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

_FOLDER, _PACKAGE = "FBP_READING_FOLDER", "FBP_READING_PACKAGE"
_FUNCTION_CODE = 0x1  # CO_OPTIMIZED: the code of a function, not of a module or a class
_EXPERIMENT_TYPES = ("Config", "Experiment", "ConfigModel")
_ON_THE_WAY_OF_A_BATCH = re.compile(
    r"experiment/config(\.py|/reading\.py):read"
    r"|training\.py:(take|make)_steps\.<locals>\.steps"
    r"|experiment/(rundir/)?journal\.py:Journal\.steps"
    r"|experiment/(tracking/)?ship(per|ment)\.py:Shipment\.(_take_steps|_points_of|_send(_points)?)"
)


class Call(NamedTuple):
    """A call of a function of fbp.

    Attributes:
        file: the function's file, relative to the package.
        function: its qualified name.
        caller: the file of the nearest function of fbp below it on the stack; empty if none is.
        follows: whether an argument is, or holds, the experiment's path or configuration.
        batch: the files on the stack if the call is on the way of one batch; empty otherwise.
    """

    file: str
    function: str
    caller: str
    follows: bool
    batch: tuple[str, ...]


# --- in the traced processes ------------------------------------------------------------------


def trace_this_process() -> None:
    """Record the calls of this process; write them to a file when it ends."""
    package, folder = os.environ[_PACKAGE] + os.sep, os.environ[_FOLDER]
    path = next((word for word in sys.orig_argv if word.endswith(".toml")), None)
    calls: dict[Call, None] = {}

    def record(frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(package):
            return
        stack = [f for f in _stack(frame) if f.f_code.co_filename.startswith(package)]
        if all(f.f_code.co_flags & _FUNCTION_CODE for f in stack):  # otherwise: an import
            calls.setdefault(_call(stack, package, path))

    def write() -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        text = json.dumps({"command": sys.orig_argv, "calls": list(calls)})
        Path(folder, f"{os.getpid()}.json").write_text(text, encoding="utf-8")

    atexit.register(write)
    threading.setprofile(record)
    sys.setprofile(record)


def _stack(frame: Any) -> Iterator[Any]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _call(stack: list[Any], package: str, path: str | None) -> Call:
    """Return the call of the topmost frame of a stack of functions of fbp."""
    files = [frame.f_code.co_filename.removeprefix(package) for frame in stack]
    names = [frame.f_code.co_qualname for frame in stack]
    code, values = stack[0].f_code, stack[0].f_locals
    count = code.co_argcount + code.co_kwonlyargcount
    follows = any(_holds_experiment(values.get(n), path) for n in code.co_varnames[:count])
    on_the_way = [
        i for i, name in enumerate(names) if _ON_THE_WAY_OF_A_BATCH.fullmatch(f"{files[i]}:{name}")
    ]
    # what runs inside, and what leads to it
    batch = tuple(files) if 0 in on_the_way else tuple(files[:1]) if on_the_way else ()
    caller = files[1] if len(files) > 1 else ""
    return Call(files[0], names[0], caller, follows, batch)


def _holds_experiment(value: Any, path: str | None, depth: int = 0) -> bool:
    if isinstance(value, str | PurePath):
        return path is not None and str(value) == path
    if type(value).__name__ in _EXPERIMENT_TYPES:
        return True
    if isinstance(value, tuple | list) and depth < 3:
        return any(_holds_experiment(part, path, depth + 1) for part in value)
    return False


# --- in the process that measures -------------------------------------------------------------


class Trace(NamedTuple):
    """The calls of one process, in the order in which each was made first."""

    command: list[str]
    calls: list[Call]

    def files(self) -> set[str]:
        """Return the files that were entered."""
        return {call.file for call in self.calls}

    def files_of_a_batch(self) -> set[str]:
        """Return the files on the way of one batch."""
        return {file for call in self.calls for file in call.batch}

    def followed(self) -> list[Call]:
        """Return the calls to read when one follows the experiment, each function once."""
        functions = {}
        for call in self.calls:
            is_runner = call.file.startswith(("cli/", "experiment/"))
            if call.follows and is_runner and "<" not in call.function:
                functions.setdefault((call.file, call.function), call)
        return list(functions.values())


def re_entries(calls: Iterable[Call]) -> tuple[int, int]:
    """Return the number of files that a reader of the calls passes, and that of re-entries."""
    passed: list[str] = []
    for call in calls:
        for file in (call.caller, call.file):
            if file and passed[-1:] != [file]:
                passed.append(file)
    return len(set(passed)), len(passed) - len(set(passed))


def trace_run(checkout: Path, experiment: str) -> list[Trace]:
    """Run an experiment of a checkout; return the traces of its processes, the training first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("traces", "start", "project/mlruns"):
            (folder / part).mkdir(parents=True)
        # Python imports a module of this name when it starts
        module = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("fbp_reading", {__file__!r})
reading = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reading)
reading.trace_this_process()
"""
        (folder / "start" / "sitecustomize.py").write_text(module, encoding="utf-8")
        variables = {
            "PYTHONPATH": f"{folder / 'start'}{os.pathsep}{checkout}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "XDG_CACHE_HOME": str(folder / "cache"),
            _FOLDER: str(folder / "traces"),
            _PACKAGE: str(checkout / "fbp"),
        }
        path = checkout / "experiments" / f"{experiment}.toml"
        command = [sys.executable, "-c", "from fbp.cli import main; main()", "run", str(path)]
        subprocess.run(
            command,
            cwd=folder / "project",
            env=os.environ | variables,
            check=True,
            stdout=sys.stderr,
        )
        traces = []
        for file in (folder / "traces").glob("*.json"):
            content = json.loads(file.read_text(encoding="utf-8"))
            calls = [Call(*call[:4], tuple(call[4])) for call in content["calls"]]
            if calls:
                traces.append(Trace(content["command"], calls))
    return sorted(traces, key=lambda trace: "run" not in trace.command)


def imports(package: Path) -> dict[str, set[str]]:
    """Return what each part of a package imports of the others.

    A part is a subpackage, or a module if it is directly in the package. Imports inside functions
    and for type checking count too.
    """
    parts: dict[str, set[str]] = {}
    prefix = f"fbp.{package.name}."
    for file in package.rglob("*.py"):
        relative = file.relative_to(package).with_suffix("")
        part = relative.parts[0]
        if part == "__init__":
            continue
        imported = parts.setdefault(part, set())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for name in _imported_names(node):
                if name.startswith(prefix):
                    imported.add(name.removeprefix(prefix).partition(".")[0])
    return {part: (others & parts.keys()) - {part} for part, others in parts.items()}


def _imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def levels(graph: dict[str, set[str]]) -> int:
    """Return the number of levels of imports: the parts on the longest chain of arrows.

    Raises:
        ValueError: if the imports have a cycle.
    """
    depth: dict[str, int] = {}

    def measure(part: str, path: tuple[str, ...]) -> int:
        if part in path:
            raise ValueError(f"a cycle of imports: {' -> '.join((*path, part))}")
        if part not in depth:
            depth[part] = 1 + max((measure(p, (*path, part)) for p in graph[part]), default=0)
        return depth[part]

    return max(measure(part, ()) for part in graph)


def main() -> None:
    """Print the figures of a checkout."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    own = Path(__file__).resolve().parent.parent
    parser.add_argument("checkout", type=Path, nargs="?", default=own)
    parser.add_argument("--experiment", default="xor")
    parser.add_argument("--verbose", action="store_true", help="print the files and functions too")
    options = parser.parse_args()
    checkout = options.checkout.resolve()
    training, *others = trace_run(checkout, options.experiment)
    files, entries = re_entries(training.followed())
    figures: dict[str, tuple[object, Iterable[str]]] = {
        "files entered, training process": (len(training.files()), sorted(training.files())),
    }
    for trace in others:
        is_shipper = any("shipper" in word for word in trace.command)
        name = "shipper" if is_shipper else f"another process, {trace.calls[0].file}"
        figures[f"files entered, {name}"] = len(trace.files()), sorted(trace.files())
    batch = set().union(*(trace.files_of_a_batch() for trace in (training, *others)))
    figures["files on the way of one batch"] = len(batch), sorted(batch)
    steps = [f"{call.caller} -> {call.file}: {call.function}" for call in training.followed()]
    figures["following the experiment: files"] = files, steps
    figures["following the experiment: files entered again"] = entries, ()
    graph = imports(checkout / "fbp" / "experiment")
    arrows = [f"{part} -> {', '.join(sorted(others))}" for part, others in sorted(graph.items())]
    figures["parts of fbp/experiment"] = len(graph), arrows
    figures["arrows of imports between them"] = sum(map(len, graph.values())), ()
    with contextlib.suppress(ValueError):
        figures["levels of imports"] = levels(graph), ()
    for name, (value, details) in figures.items():
        print(f"{name:48} {value}")
        if options.verbose:
            for line in details:
                print(f"    {line}")


if __name__ == "__main__":
    main()
