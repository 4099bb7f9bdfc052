"""Deep models and signals: a run says what it does, stops at once, and compiles nothing twice."""

import collections
import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

import fbp
from fbp import _diagram, _summary, diagnostics, layers, losses, training
from fbp._interruptible import Interrupted
from fbp.experiment.commands.progress import Bar
from fbp.experiment.config import reading
from fbp.experiment.figures import curves, folding, model_drawing, norms
from fbp.experiment.rundir import journal, layout
from fbp.experiment.rundir.series import Series, read_series
from fbp.experiment.runner import compilation, test_evaluation, trained_model
from fbp.experiment.runner import run as run_module
from fbp.experiment.runner.compilation import Compiler
from fbp.experiment.runner.loop import Loop
from fbp.experiment.runner.run import run
from fbp.experiment.runner.run_start import RunIdentity
from tests.projects import Silent, command

SECONDS = 4.0  # from a signal to the record's end; 1 or 2 on a machine that is not busy
FOREVER = 20.0  # seconds of a call that nothing interrupts

SMALL = """
[data]
name = "moons"
[model]
name = "cnn"
[loss]
name = "softmax_cross_entropy"
[optimizer]
name = "adam"
learning_rate = 0.01
[training]
steps = 6
evaluate_every = 3
"""
DENSE = SMALL.replace('name = "cnn"', 'name = "mlp"\nhidden = [8]')
NORMALIZED = SMALL.replace('"moons"', '"digits"\nlimit = 300').replace(
    'name = "cnn"', 'name = "cnn"\nchannels = [4]\nnorm = true'
)


def begin(project, text):
    """Return what `run` needs of an experiment of that text."""
    (project / "one.toml").write_text(text)
    config = reading.read(project / "one.toml")
    folder = layout.new_run_folder(project / "mlruns", "one")
    return config, RunIdentity(project / "one.toml", "one"), folder


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


class Attack:
    """Sends signals at a moment, and then does not return for long.

    Attributes:
        signals: what is sent.
        time: when the last one was sent.
    """

    def __init__(self, *signals):
        self.signals, self.time = signals, None

    def __call__(self, *args, **kwargs):
        if self.time is None:
            self.send()
        time.sleep(FOREVER)  # in XLA, as far as the main thread can see

    def send(self, *args, **kwargs):
        for number in self.signals:
            self.time = time.monotonic()
            os.kill(os.getpid(), number)
            time.sleep(0.3)


def compiling(title):
    """Attack while XLA compiles the program of that title."""

    def install(monkeypatch, attack):
        compile = Compiler.compile

        def attacked(self, program, function, *args, **more):
            if program == title:
                function = contextlib.nullcontext(function)  # any object with attributes
                function.lower = lambda *args: function
                function.compile = attack
            return compile(self, program, function, *args, **more)

        monkeypatch.setattr(Compiler, "compile", attacked)

    return install


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
@pytest.mark.parametrize("name", SIGNALS)
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
    "moment", ["compiling the training program", "compiling the norms", "the test"]
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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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


def block(width=4):
    return fbp.residual(layers.dense(width), layers.relu())


def shared():
    once = layers.dense(4)
    return fbp.chain(*[once] * 200)


DEEP_MODELS = {
    "dense": lambda: fbp.chain(
        *[part for _ in range(150) for part in (layers.dense(4), layers.relu())], layers.dense(2)
    ),
    "residual": lambda: fbp.chain(layers.dense(4), *[block() for _ in range(80)]),
    "alternating": lambda: fbp.chain(
        *[part for _ in range(40) for part in (layers.dense(4), layers.dense(3), block(3))]
    ),
    "all different": lambda: fbp.chain(*[layers.dense(i % 89 + 1) for i in range(178)]),
    "repeats": lambda: fbp.chain(
        layers.dense(4), *[fbp.repeat(block(), 3) for _ in range(60)], layers.dense(2)
    ),
    "branches": lambda: fbp.parallel(
        *[fbp.chain(layers.dense(4), layers.relu(), layers.dense(5)) for _ in range(60)]
    ),
    "skips over everything": lambda: fbp.residual(*[layers.dense(4) for _ in range(120)]),
    "nested": lambda: fbp.chain(
        layers.dense(4), *[fbp.residual(block(), block(), layers.dense(4)) for _ in range(40)]
    ),
    "shared": shared,
}


def diagram_of(name):
    model, shape = DEEP_MODELS[name](), (4,)
    return _diagram.make_diagram(model, _summary.summarize(model, shape), shape)


@pytest.mark.promise("pictures-are-bounded")
@pytest.mark.parametrize("name", DEEP_MODELS)
def test_picture_of_a_deep_model_is_folded(name):
    diagram = diagram_of(name)
    assert len(diagram.boxes) > folding.MAX_BOXES
    folded = folding.fold(diagram)
    assert len(folded.boxes) <= folding.MAX_BOXES
    if not any("more" in line for box in folded.boxes.values() for line in box.lines):
        total = sum(box.parameters for box in diagram.boxes.values())
        assert sum(box.parameters for box in folded.boxes.values()) == total
    for source, target in folded.arrows:
        assert source < target
        assert {source, target} <= set(folded.boxes)
    reached = {target for _, target in folded.arrows}
    assert reached == set(folded.boxes) - {0}, "each box but the input has an arrow to it"
    inches = model_drawing.draw(diagram, name).get_size_inches()
    assert max(inches) < 60, inches


@pytest.mark.promise("pictures-are-bounded")
def test_fold_says_how_many_blocks_there_are():
    folded = folding.fold(diagram_of("residual"))
    lines = [box.lines for box in folded.boxes.values()]
    assert lines == [("input",), ("dense(4)",), ("dense(4)", "relu"), ("+",)]
    assert [box.groups for box in folded.boxes.values()][2:] == [("1/body/0 x 80",)] * 2
    _, before, dense, add = folded.boxes
    assert folded.arrows == [(0, before), (before, dense), (dense, add), (before, add)]


@pytest.mark.promise("pictures-are-bounded")
def test_small_model_is_drawn_as_it_is():
    model = fbp.chain(*[block() for _ in range(20)])
    diagram = _diagram.make_diagram(model, _summary.summarize(model, (4,)), (4,))
    assert folding.fold(diagram) is diagram


@pytest.mark.promise("pictures-are-bounded")
def test_pictures_of_many_layers_and_many_runs_are_bounded():
    steps = np.arange(5)
    heat = norms.NormMap([f"{i} {'long' * 50}" for i in range(1000)], steps, np.ones((1000, 5)))
    tall = norms.delta_norms({"": heat})
    many = norms.delta_norms({f"run {i}": heat for i in range(100)})
    assert tall.get_size_inches()[1] < 12
    assert many.get_size_inches()[1] < 70
    series = {f"{part}_loss": Series(steps, np.ones(5), steps) for part in ("train", "validation")}
    compared = curves.compared_curves({f"run {i}": series for i in range(500)})
    labels = [text.get_text() for text in compared.legends[0].get_texts()]
    assert len(labels) <= 41
    assert labels[-1].startswith("and ")


@pytest.mark.promise("deep-models-compile")
@pytest.mark.parametrize("name", ["dense", "residual", "repeats", "shared"])
def test_norms_reduced_apart_are_the_same_norms(name):
    model, optimizer = DEEP_MODELS[name](), fbp.optimizers.adam(0.01)
    state = training.initial_state(model, optimizer, jax.random.key(0), (4,))
    x = jax.random.normal(jax.random.key(1), (8, 4))
    y = jax.numpy.zeros((8, model.init(jax.random.key(0), (4,))[1][0]))
    parts = model, losses.mean_squared_error, optimizer
    arguments = state.params, state.opt_state, x, y
    together = diagnostics.layer_norms(*parts)(*arguments)
    paths = list(_summary.layer_names(model))
    apart = diagnostics.norms_of(
        jax.jit(diagnostics.layer_tensors(*parts))(*arguments), state.params, paths
    )
    assert jax.tree.structure(together) == jax.tree.structure(apart)
    assert list(together.delta_norm) == list(apart.delta_norm)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), together, apart)


@pytest.mark.promise("deep-models-compile")
def test_costs_of_equal_layers_are_counted_once(monkeypatch):
    model = DEEP_MODELS["dense"]()
    _summary.summarize(model, (4,))
    lowered, lower = [], jax.stages.Traced.lower
    monkeypatch.setattr(
        jax.stages.Traced, "lower", lambda *args, **more: lowered.append(1) or lower(*args, **more)
    )
    summary = _summary.summarize(model, (4,))
    assert len(summary.rows) == 301
    assert len(lowered) <= 6  # dense(4), relu and dense(2), forward and backward


@pytest.mark.promise("deep-models-compile")
def test_deep_run_has_the_metrics_of_any_run(project):
    """A model with more parameters than are reduced in one program."""
    outcome = run(*begin(project, DENSE.replace("[8]", f"{[4] * 60}")), Silent())
    assert outcome.status == "FINISHED"
    names = set(read_series(outcome.folder))
    for path in ("1", "59", "121"):
        assert {f"{kind}/{path}/w" for kind in ("gradient_norm", "update_norm", "update_ratio")} | {
            f"delta_norm/{path}"
        } <= names
