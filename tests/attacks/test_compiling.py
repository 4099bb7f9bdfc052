"""A run says what it compiles, and compiles nothing twice."""

import collections
import signal
import time

import jax
import pytest

from fbp.experiment.commands.progress import Bar
from fbp.experiment.runner import compilation
from fbp.experiment.runner.compilation import Compiler
from fbp.experiment.runner.run import run
from tests.attacks.short_runs import DENSE, NORMALIZED, Attack, begin, compiling
from tests.projects import Silent


class Listener(Silent):
    def __init__(self):
        self.tasks, self.notes = [], []

    def working(self, task, seconds):
        self.tasks.append((task, seconds))

    def note(self, text):
        self.notes.append(text)


@pytest.mark.promise("compiling-is-said")
@pytest.mark.parametrize(
    "title",
    [
        "the training program",
        "the program for norms of layers",
        "the validation program",
        "the test program",
    ],
)
def test_what_is_compiled_is_said_with_its_seconds(project, monkeypatch, title):
    monkeypatch.setattr(compilation, "_INTERVAL", 0.01)
    monkeypatch.setattr(compilation, "_LONG", 0.1)
    compile = Compiler.compile

    class Slow:
        def __init__(self, function):
            self.function = function

        def lower(self, *args):
            time.sleep(0.3)
            return self.function.lower(*args)

    monkeypatch.setattr(
        Compiler,
        "compile",
        lambda self, name, function, *args, **more: compile(
            self, name, Slow(function) if name == title else function, *args, **more
        ),
    )
    listener = Listener()
    run(*begin(project, DENSE), listener)
    seconds = [seconds for task, seconds in listener.tasks if task == f"compiling {title}"]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 0.2
    assert sum("fbp.repeat" in note for note in listener.notes) == 1


@pytest.mark.promise("compiling-is-said")
def test_log_has_a_line_now_and_then(capsys):
    bar = Bar("deep")
    bar.begin(10, 1)
    for half_seconds in range(600):
        bar.working("compiling the training program", half_seconds / 2)
    bar.working("compiling the test program", 0.5)
    bar.working("compiling the test program", 5.5)
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    seconds = [5, 10, 20, 40, 80, 140, 200, 260]
    assert lines == [
        *(f"deep: compiling the training program, {number} s" for number in seconds),
        "deep: compiling the test program, 6 s",
    ]


@pytest.mark.promise("no-program-twice")
@pytest.mark.parametrize("text", [DENSE, NORMALIZED], ids=["dense", "normalized"])
def test_each_program_is_compiled_once(project, text):
    counts = collections.Counter()

    def count(event, seconds, **more):
        if event.endswith("backend_compile_duration"):
            counts[more.get("fun_name", "")] += 1

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        outcome = run(*begin(project, text), Silent())
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert outcome.status == "FINISHED"
    programs = ["steps", "norms", "evaluate", "predict"] + ["fill"] * (text is NORMALIZED)
    compiled = {name: counts[f"jit({name})"] for name in programs}
    assert compiled == dict.fromkeys(programs, 1), counts
    parts = ("forward", "backward", "init", "gradients", "step", "tensors")
    assert not any(counts[f"jit({name})"] for name in parts), counts


@pytest.mark.promise("no-program-twice")
def test_run_with_all_its_steps_compiles_no_training_program_to_be_tested(project):
    config, identity, folder = begin(project, DENSE)
    with pytest.MonkeyPatch.context() as patch:
        compiling("the test program")(patch, Attack(signal.SIGTERM))
        run(config, identity, folder, Silent())
    titles = []
    with pytest.MonkeyPatch.context() as patch:
        compile = Compiler.compile
        patch.setattr(
            Compiler,
            "compile",
            lambda self, title, *args, **more: (
                titles.append(title) or compile(self, title, *args, **more)
            ),
        )
        assert run(config, identity, folder, Silent()).status == "FINISHED"
    assert titles == ["the test program"]
