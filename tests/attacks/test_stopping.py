"""Signals stop a run at any moment, and a resume loses nothing."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fbp import _summary, training
from fbp._interruptible import Interrupted
from fbp.experiment.rundir import journal, layout
from fbp.experiment.runner import run as run_module
from fbp.experiment.runner import test_evaluation, trained_model
from fbp.experiment.runner.compilation import Compiler
from fbp.experiment.runner.loop import Loop
from fbp.experiment.runner.run import run
from tests.attacks.short_runs import DENSE, FOREVER, NORMALIZED, Attack, begin, compiling
from tests.cases import slow_but
from tests.projects import Silent, command

SECONDS = 4.0  # from a signal to the record's end; 1 or 2 on a machine that is not busy


def digests(folder):
    tags = journal.read_tags(folder)
    return tags["fbp.params_digest"], tags["fbp.metrics_digest"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a function for the digests of an unbroken run of an experiment's text."""

    @functools.cache
    def of(text):
        project = tmp_path_factory.mktemp("whole")
        (project / "mlruns").mkdir()
        return digests(run(*begin(project, text), Silent()).folder)

    return of


def running(title):
    """Attack while the program of that title runs."""

    def install(monkeypatch, attack):
        compile = Compiler.compile
        monkeypatch.setattr(
            Compiler,
            "compile",
            lambda self, program, *args, **more: (
                attack if program == title else compile(self, program, *args, **more)
            ),
        )

    return install


def calling(owner, name):
    """Attack when Python calls a function, which goes on for long in Python."""

    def install(monkeypatch, attack):
        function = getattr(owner, name)

        def attacked(*args, **kwargs):
            if attack.time is None:
                attack.send()
                end = time.monotonic() + FOREVER
                while time.monotonic() < end:
                    pass
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, attacked)

    return install


def before(owner, name):
    """Attack when Python calls a function, which then does its work."""

    def install(monkeypatch, attack):
        function = getattr(owner, name)

        def attacked(*args, **kwargs):
            if attack.time is None:
                attack.send()
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, attacked)

    return install


MOMENTS = {
    "tracing the training program": (DENSE, calling(training, "_take")),
    "compiling the training program": (DENSE, compiling("the training program")),
    "summarizing the model": (DENSE, calling(_summary, "summarize")),
    "compiling the norms": (DENSE, compiling("the program for norms of layers")),
    "measuring the norms": (DENSE, running("the program for norms of layers")),
    "compiling the statistics": (
        NORMALIZED,
        compiling("the program for statistics of normalization layers"),
    ),
    "measuring the statistics": (
        NORMALIZED,
        running("the program for statistics of normalization layers"),
    ),
    "a step that takes long": (DENSE, running("the training program")),
    "compiling the evaluation": (DENSE, compiling("the validation program")),
    "the evaluation": (DENSE, running("the validation program")),
    "compiling the test": (DENSE, compiling("the test program")),
    "the test": (DENSE, running("the test program")),
    "tracing the test": (DENSE, calling(training, "_map_batches")),
    "the first step": (DENSE, before(Loop, "_take_chunk")),
    "saving a checkpoint": (DENSE, before(Loop, "save")),
    "the end of training": (DENSE, before(Loop, "journal_finished_checkpoint")),
    "writing the model": (DENSE, before(trained_model, "write")),
    "writing the results": (DENSE, before(test_evaluation.results, "write")),
}
SIGNALS = {"SIGTERM": [signal.SIGTERM], "SIGINT": [signal.SIGINT]}


@pytest.mark.promise("signals-stop-anything")
@pytest.mark.parametrize("name", slow_but(SIGNALS, "SIGTERM"))
@pytest.mark.parametrize("moment", MOMENTS)
def test_signal_ends_a_run_at_any_moment_and_a_resume_loses_nothing(project, whole, moment, name):
    text, install = MOMENTS[moment]
    config, identity, folder = begin(project, text)
    attack = Attack(*SIGNALS[name])
    with pytest.MonkeyPatch.context() as patch:
        install(patch, attack)
        outcome = run(config, identity, folder, Silent())
    seconds = time.monotonic() - attack.time
    assert outcome.signal == SIGNALS[name][0]
    assert seconds < SECONDS, moment
    end = journal.read_end(folder)
    assert (end.status, end.message) == (outcome.status, outcome.message)
    if outcome.status == "FINISHED":  # nothing was left that takes long
        assert moment == "writing the results"
    else:
        assert outcome.status == "KILLED"
        assert name in outcome.message
        resumed = run(config, identity, folder, Silent())
        assert (resumed.status, resumed.message) == ("FINISHED", "")
    assert digests(folder) == whole(text)


@pytest.mark.promise("signals-stop-anything")
@pytest.mark.parametrize(
    "moment",
    slow_but(
        ["compiling the training program", "compiling the norms", "the test"],
        "compiling the training program",
        "compiling the norms",
    ),
)
def test_second_signal_ends_what_the_first_one_left(project, whole, moment):
    text, install = MOMENTS[moment]
    config, identity, folder = begin(project, text)
    attack = Attack(signal.SIGTERM, signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        install(patch, attack)
        patch.setattr(run_module, "params_digest", lambda params: time.sleep(FOREVER))
        with pytest.raises(Interrupted) as stopped:
            run(config, identity, folder, Silent())
    assert time.monotonic() - attack.time < SECONDS
    assert stopped.value.args == (signal.SIGTERM,)  # of which the exit status is made
    assert journal.read_end(folder).status == "KILLED"
    assert run(config, identity, folder, Silent()).status == "FINISHED"
    assert digests(folder) == whole(text)


@pytest.mark.promise("signals-stop-anything")
def test_run_in_another_thread_obeys_its_list_of_signals(project):
    """Python runs handlers in the main thread only; elsewhere a caller appends to the list."""
    config, identity, folder = begin(project, DENSE)
    signals, outcomes = [], []

    def sleep_in_xla(*_):
        signals.append(signal.SIGTERM)
        time.sleep(FOREVER)

    with pytest.MonkeyPatch.context() as patch:
        compiling("the training program")(patch, sleep_in_xla)
        thread = threading.Thread(
            target=lambda: outcomes.append(run(config, identity, folder, Silent(), signals=signals))
        )
        began = time.monotonic()
        thread.start()
        thread.join()
    assert time.monotonic() - began < SECONDS + 3
    assert outcomes[0].status == "KILLED"


@pytest.mark.promise("signals-stop-anything")
def test_model_without_its_statistics_is_not_kept(project):
    """An average of nothing would give wrong answers; the checkpoint has all that is needed."""
    config, identity, folder = begin(project, NORMALIZED)
    with pytest.MonkeyPatch.context() as patch:
        compiling("the training program")(patch, Attack(signal.SIGTERM))
        run(config, identity, folder, Silent())
    assert not layout.model(folder).exists()
    assert "fbp.params_digest" not in journal.read_tags(folder)


@pytest.mark.promise("signals-stop-anything")
@pytest.mark.parametrize("number", slow_but([signal.SIGINT, signal.SIGTERM], signal.SIGTERM))
def test_command_leaves_xla_alone_when_it_compiles(project, number, warm):
    """The real compiler: without care the process waits for it, or is aborted by it."""
    (project / "deep.toml").write_text(DENSE.replace("[8]", f"{[16] * 300}"))
    environment = os.environ | {"XDG_CACHE_HOME": str(project / "cache")}
    with subprocess.Popen(
        command("run", "deep.toml"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "compiling the training program" in line:
                break
        sent = time.time()
        process.send_signal(number)
        rest = process.stderr.read()
        status = process.wait(timeout=60)
    assert (status, "Traceback" in rest) == (128 + number, False), (lines, rest)
    assert "KILLED: stopped by" in rest
    assert line.startswith("deep: compiling the training program, ")
    folder = layout.run_folders(project / "mlruns")[-1]
    assert journal.read_end(folder).status == "KILLED"
    assert layout.journal(folder).stat().st_mtime - sent < SECONDS


EXITS = {
    "exit_with": ("_interruptible.exit_with(7)", 7),
    "an error": ("raise ValueError", 1),
    "Ctrl-C": ("raise KeyboardInterrupt", -signal.SIGINT),
}


@pytest.mark.promise("signals-stop-anything")
@pytest.mark.parametrize("name", EXITS)
def test_process_ends_at_once_with_its_status_though_a_thread_was_left(name):
    ending, status = EXITS[name]
    began = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import time; from fbp import _interruptible\n"
            "def stop(): raise StopIteration\n"
            f"try: _interruptible.call_apart(lambda: time.sleep({FOREVER}), stop)\n"
            f"except StopIteration: print('left')\n{ending}",
        ],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (status, "left\n"), done.stderr
    assert time.monotonic() - began < FOREVER / 2


@pytest.mark.promise("signals-stop-anything")
def test_process_waits_for_a_thread_that_was_left_if_its_status_is_not_known():
    """`sys.exit(3)` cannot be seen at exit: a wrong status would be worse than a wait."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, time; from fbp import _interruptible\n"
            "def stop(): raise StopIteration\n"
            "try: _interruptible.call_apart(lambda: time.sleep(3), stop)\n"
            "except StopIteration: sys.exit(3)",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert "waiting for XLA" in done.stderr
