"""The check of the backend: known answers, the cached verdict, the flag, and what a run records."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from fbp import _jaxlib
from fbp.errors import InputError
from fbp.experiment.rundir import environment
from fbp.experiment.runner import backend_check, known_answers
from tests import fusions
from tests.projects import one, the_run, write_config

FLAG = _jaxlib.WITHOUT_FUSIONS
RIGHT = 'print(json.dumps({"device": "fake", "wrong": [], "complete": True}))'
WRONG = 'print(json.dumps({"device": "fake", "wrong": ["a sum"], "complete": True}))'
CRASH = """
print(json.dumps({"device": "fake", "wrong": []}), flush=True)
os.kill(os.getpid(), signal.SIGSEGV)
"""
MENDED = f"""
if {FLAG!r} in os.environ["XLA_FLAGS"].split():
    {RIGHT}
else:
    {WRONG}
"""

START = """
from pathlib import Path
from fbp.experiment.runner import backend_check
backend_check._PROGRAMS = Path("programs.py")
from fbp.cli import main
main()
"""


@pytest.fixture
def backend(tmp_path, monkeypatch):
    """Return a function that exchanges the programs, with an empty cache and JAX not started."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(backend_check, "_decision", None)
    monkeypatch.setattr(backend_check, "jax_has_started", lambda: False)

    def exchange(code: str, *, started: bool = False) -> Path:
        script = tmp_path / "programs.py"
        count = 'print("x", file=open(os.path.dirname(__file__) + "/count", "a"))'
        script.write_text(f"import json, os, signal, sys\n{count}\n{textwrap.dedent(code)}\n")
        monkeypatch.setattr(backend_check, "_PROGRAMS", script)
        monkeypatch.setattr(backend_check, "jax_has_started", lambda: started)
        return tmp_path / "count"

    return exchange


def processes(count: Path) -> int:
    return len(count.read_text().splitlines())


def decide() -> backend_check.BackendCheck:
    """Decide as a new process does."""
    backend_check._decision = None
    return backend_check.ensure_right_backend()


def test_decision_is_kept_with_its_note(backend):
    backend(MENDED)
    assert backend_check.ensure_right_backend() is backend_check.ensure_right_backend()
    assert backend_check.decision().note


def test_right_backend_needs_one_process_per_version_and_flags(backend, monkeypatch):
    count = backend(RIGHT)
    for _ in range(3):
        assert decide() == ("right", (), "fake", "")
    assert processes(count) == 1
    assert os.environ["XLA_FLAGS"] == ""
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    decide()
    assert processes(count) == 2


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"device": 1, "failures": []}', '{"device": ""}']
)
def test_damaged_cache_is_ignored(backend, damage):
    count = backend(RIGHT)
    decide()
    one(environment.cache_folder()).write_text(damage)
    assert decide().verdict == "right"
    assert processes(count) == 2
    assert json.loads(one(environment.cache_folder()).read_text())["failures"] == []


def test_cache_folder_that_cannot_be_written_is_no_error(backend, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    count = backend(RIGHT)
    decide()
    decide()
    assert processes(count) == 2


def test_wrong_backend_gets_the_flag(backend, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    count = backend(MENDED)
    decision = decide()
    assert decision[:3] == ("right without fusions", ("a sum",), "fake")
    assert "a sum" in decision.note
    assert FLAG in decision.note
    assert "\n" not in decision.note
    assert os.environ["XLA_FLAGS"] == f"--xla_cpu_enable_fast_math=false {FLAG}"
    assert processes(count) == 2


def test_crash_counts_as_wrong(backend):
    backend(CRASH)
    with pytest.raises(InputError, match=r"crash by SIGSEGV.*install another version of jax"):
        decide()
    assert os.environ["XLA_FLAGS"] == ""


def test_hanging_backend_counts_as_wrong_and_is_not_cached(backend, monkeypatch):
    monkeypatch.setattr(backend_check, "_SECONDS", 0.5)
    count = backend("import time; time.sleep(60)")
    for _ in range(2):
        with pytest.raises(InputError, match=r"no answer in 0\.5 seconds"):
            decide()
    assert processes(count) == 4


def test_backend_that_stays_wrong_is_refused_in_one_line(backend):
    backend(WRONG)
    with pytest.raises(InputError, match="also without XLA's fusions; install another") as error:
        decide()
    assert "\n" not in str(error.value)


def test_wrong_backend_that_has_started_is_refused(backend):
    backend(MENDED, started=True)
    with pytest.raises(
        InputError, match=f"has started already; start the process with XLA_FLAGS={FLAG}"
    ):
        decide()


def test_flag_set_after_jax_has_started_does_not_hide_a_wrong_backend(backend, monkeypatch):
    backend(MENDED, started=True)
    monkeypatch.setenv("XLA_FLAGS", FLAG)
    monkeypatch.setattr(known_answers, "wrong_answers", lambda programs: ["a sum"])
    with pytest.raises(InputError, match="JAX has started already"):
        decide()
    monkeypatch.setattr(known_answers, "wrong_answers", lambda programs: [])
    assert decide().verdict == "right without fusions"


def test_programs_that_cannot_run_are_noted(backend):
    backend("raise RuntimeError('no such device')")
    decision = decide()
    assert decision.verdict == "not checked"
    assert "no such device" in decision.note


def test_recorded_flag_is_taken_over(backend, monkeypatch):
    record = {"variables": {"XLA_FLAGS": f"--xla_cpu_enable_fast_math=true {FLAG}"}}
    backend(RIGHT)
    assert (
        environment.restorable_variables(record)[0]["XLA_FLAGS"] == record["variables"]["XLA_FLAGS"]
    )
    backend_check.take_over_flags(record)
    assert os.environ["XLA_FLAGS"] == FLAG
    backend_check.take_over_flags(record)
    assert os.environ["XLA_FLAGS"] == FLAG
    assert decide().verdict == "right without fusions"


def test_known_answers_are_right_here():
    assert known_answers.wrong_answers(known_answers.SUMS | known_answers.CRASHES) == []


def run_with(programs: str, project: Path) -> subprocess.CompletedProcess:
    (project / "programs.py").write_text(f"import json, os\n{programs}")
    write_config(project)
    return subprocess.run(
        [sys.executable, "-c", START, "run", "small.toml"],
        env=os.environ | {"XDG_CACHE_HOME": str(project / "cache"), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_run_says_and_records_that_fusions_are_off(project):
    done = run_with(MENDED, project)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "a sum" in line]
    assert "fusions are switched off" in line
    recorded = environment.read(one(project / "mlruns" / "runs") / "artifacts")
    assert recorded["backend_check"]["verdict"] == "right without fusions"
    assert recorded["backend_check"]["wrong"] == ["a sum"]
    assert recorded["variables"]["XLA_FLAGS"] == FLAG
    assert the_run(project).data.tags["fbp.backend_check"] == "right without fusions"


def test_run_on_a_wrong_backend_is_refused(project):
    done = run_with(WRONG, project)
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line]) == 1, done.stderr
    assert "a sum" in done.stderr
    assert list((project / "mlruns" / "runs").iterdir()) == []


@pytest.mark.parametrize("version", [*_jaxlib.WRONG_ON_CPU, "0.10.1"])
def test_import_warns_of_a_wrong_version(version):
    code = (
        f"import jax, jaxlib.version; jaxlib.version.__version__ = {version!r}; import fbp; "
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    for flags, warned in (("", version in _jaxlib.WRONG_ON_CPU), (FLAG, False)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"XLA_FLAGS": flags},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert (f"jaxlib {version}" in done.stderr) == warned


def test_programs_from_the_cache_are_read_without_a_word(tmp_path):
    code = (
        "from fbp.experiment.runner import jax_setup; jax_setup._enable_compilation_cache(); "
        "import jax; jax.jit(lambda x: (jax.numpy.sin(x) @ x).sum())(jax.numpy.ones((5, 5)))"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ
            | {"XDG_CACHE_HOME": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": "true"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.glob("fbp/programs-*/*-cache"))


@pytest.mark.skipif(_jaxlib.JAXLIB != "0.10.2", reason="needs jaxlib 0.10.2, which is wrong")
def test_real_wrong_version_fails_and_the_flag_mends_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(backend_check, "_decision", None)
    monkeypatch.setattr(backend_check, "jax_has_started", lambda: False)
    decision = decide()
    assert decision.verdict == "right without fusions"
    assert any("squared length" in failure for failure in decision.failures)
    assert os.environ["XLA_FLAGS"] == FLAG


@pytest.mark.slow
def test_many_rows_give_the_same_without_fusions(tmp_path):
    """Layers, losses and training steps on 16,385 rows and more, against float64 without fusions.

    A difference is measured in root mean squares of the leaf and of the program's largest leaf:
    gradients that are 0 but for rounding have no size of their own.
    """
    settings = {
        "exact": ("float64", FLAG),
        "float64": ("float64", ""),
        "float32": ("float32", ""),
    }
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", "tests.fusions", str(tmp_path / f"{name}.npz"), dtype],
            env=os.environ | {"XLA_FLAGS": flags},
            cwd=Path(__file__).parent.parent,
        )
        for name, (dtype, flags) in settings.items()
    }
    for process in processes.values():
        assert process.wait() == 0
    exact = dict(np.load(tmp_path / "exact.npz"))
    for name, of_leaf, of_largest in (("float64", 1e-10, 1e-12), ("float32", 1e-3, 1e-5)):
        results = dict(np.load(tmp_path / f"{name}.npz"))
        assert len(results) > 300
        assert results.keys() == exact.keys() or name == "float32"
        differences = fusions.differences(results, exact, of_leaf, of_largest)
        assert differences == []
