"""Short runs, and attacks on them while XLA compiles a program."""

import contextlib
import os
import time

from fbp.experiment.config import reading
from fbp.experiment.rundir import layout
from fbp.experiment.runner.compilation import Compiler
from fbp.experiment.runner.run_start import RunIdentity

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
