"""Runs that are resumed from checkpoints, whatever a death left."""

import os
import shutil
import signal
import subprocess

import numpy as np
import pytest

import fbp
from fbp.experiment.commands.launch import RunRequest, continue_run
from fbp.experiment.config import reading
from fbp.experiment.rundir import checkpoints, journal, layout, locks
from fbp.experiment.rundir.series import read_series
from fbp.experiment.runner import run_start
from fbp.experiment.runner.loop import Interrupted, Loop
from fbp.experiment.runner.run import run
from fbp.experiment.runner.run_start import RunIdentity
from fbp.experiment.runner.trained_model import read
from tests import breaking
from tests.cases import slow_but
from tests.projects import LEARNING, Silent, command, write_config
from tests.test_runs import PICTURES


class Snapshots(Silent):
    """Keeps copies of a run's folder, each as a ``kill -9`` would leave it."""

    def __init__(self, project, at):
        self.project, self.at, self.copies = project, at, []

    def advance(self, step, epoch, latest):
        folder = layout.run_folders(self.project / "mlruns")[-1]
        if len(self.copies) < len(self.at) and step >= self.at[len(self.copies)]:
            copy = self.project / f"copy{len(self.copies)}"
            while True:
                try:
                    shutil.copytree(folder, copy)
                    break
                except (
                    shutil.Error
                ):  # a checkpoint got its name meanwhile, or one before it was removed
                    shutil.rmtree(copy)
            with open(copy / layout.JOURNAL, "a") as file:
                file.write('{"kind": "steps", "ti')  # and it was writing a line
            self.copies.append(copy)


HARD = (
    PICTURES.replace('name = "cnn"', 'name = "cnn"\ndropout_rate = 0.1')
    .replace(
        "[optimizer]\n", "[optimizer]\naverage = 0.9\naccumulate = 2\nclip_global_norm = 1.0\n"
    )
    .replace("limit = 400", "limit = 200")
    + "[checkpoint]\nevery_steps = 7\n"
)


def result(folder):
    tags = journal.read_tags(folder)
    series = read_series(folder)
    for points in series.values():  # every step once, in order
        assert (np.diff(points.steps) > 0).all()
    assert "fbp.resume_differs" not in tags
    return tags["fbp.params_digest"], tags["fbp.metrics_digest"], journal.read_end(folder).status


def origin(project):
    return RunIdentity(project / "one.toml", "one")


def test_a_death_at_any_moment_changes_nothing(project):
    """Random layers, augmentation, averages, accumulated gradients and statistics are kept."""
    (project / "one.toml").write_text(HARD.replace("epochs = 6", "epochs = 4"))
    wanted = reading.read(project / "one.toml")
    reporter = Snapshots(project, [6, 16])
    outcome = run(
        wanted, origin(project), layout.new_run_folder(project / "mlruns", "one"), reporter
    )
    expected = result(outcome.folder)
    assert len(reporter.copies) == 2
    for copy in reporter.copies:
        before = (copy / layout.JOURNAL).read_bytes()
        again = run(wanted, origin(project), copy, Silent())
        assert result(copy) == expected
        assert again.metrics.keys() == outcome.metrics.keys()
        assert (
            (copy / layout.JOURNAL).read_bytes().startswith(before.rpartition(b"\n")[0])
        )  # what was written stays written
    first, *_, last = reporter.copies
    assert [path.name[-5:-4] for path in checkpoints.files(last)] == [
        path.name[-5:-4] for path in checkpoints.files(first)
    ]


@pytest.mark.slow
def test_a_resume_can_be_broken_off_too_and_a_damaged_checkpoint_is_no_end(project):
    (project / "one.toml").write_text(HARD.replace("epochs = 6", "epochs = 4"))
    wanted = reading.read(project / "one.toml")
    reporter = Snapshots(project, [1, 9, 15])
    expected = result(
        run(
            wanted, origin(project), layout.new_run_folder(project / "mlruns", "one"), reporter
        ).folder
    )
    *others, copy = reporter.copies
    for other in others:
        run(wanted, origin(project), other, Silent())
        assert result(other) == expected
    newest = checkpoints.files(copy)[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    stopped = run(wanted, origin(project), copy, Silent(), signals=[signal.SIGTERM])
    assert (stopped.status, stopped.signal) == ("KILLED", signal.SIGTERM)
    finished = run(wanted, origin(project), copy, Silent())
    assert finished.status == "FINISHED"
    assert result(copy) == expected


EARLY = f"""
[data]
name = "iris"
[model]
name = "mlp"
hidden = [16]
{LEARNING.replace("0.01", "0.05")}epochs = 200
[selection]
metric = "validation_accuracy"
patience = 5
restore_best = true
"""


@pytest.mark.parametrize("at", slow_but([9, 15], 15))
def test_a_second_signal_in_an_evaluation_loses_nothing(project, monkeypatch, at):
    (project / "one.toml").write_text(
        EARLY.replace("epochs = 200", "steps = 15\nevaluate_every = 3\n").replace(
            "patience = 5", ""
        )
    )
    wanted = reading.read(project / "one.toml")
    alone = run(
        wanted, origin(project), layout.new_run_folder(project / "mlruns", "alone"), Silent()
    )
    evaluate = Loop._evaluate

    def broken_off(self):
        if self.state.step == at:
            monkeypatch.setattr(Loop, "_evaluate", evaluate)
            raise Interrupted("stopped at once by SIGINT")
        evaluate(self)

    monkeypatch.setattr(Loop, "_evaluate", broken_off)
    folder = layout.new_run_folder(project / "mlruns", "broken")
    assert run(wanted, origin(project), folder, Silent()).status == "KILLED"
    assert run(wanted, origin(project), folder, Silent()).status == "FINISHED"
    assert result(folder) == result(alone.folder)


def flipped(content, kind):
    place = content.index(b'"%s", ' % kind, len(content) // 3) + 30
    return content[:place] + b"#" + content[place + 1 :]


def without_a_line(content):
    lines = content.splitlines(keepends=True)
    place = next(
        i for i, line in enumerate(lines) if i > len(lines) // 3 and b'"steps", ' in line[:20]
    )
    return b"".join(lines[:place] + lines[place + 1 :])


DAMAGES = {
    "a flipped byte in steps": lambda content: flipped(content, b"steps"),
    "a flipped byte in metrics": lambda content: flipped(content, b"metrics"),
    "a line is gone": without_a_line,
    "the end is gone": lambda content: content[: -len(content) // 4],
    "half of it is gone": lambda content: content[: len(content) // 2],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_journal_is_filled_again(project, damage):
    (project / "one.toml").write_text(EARLY + "[checkpoint]\nevery_steps = 4\n")
    wanted = reading.read(project / "one.toml")
    reporter = Snapshots(project, [20])
    expected = result(
        run(
            wanted, origin(project), layout.new_run_folder(project / "mlruns", "one"), reporter
        ).folder
    )
    (copy,) = reporter.copies
    (copy / layout.JOURNAL).write_bytes(damage((copy / layout.JOURNAL).read_bytes()))
    again = Silent()
    again.note = (said := []).append
    run(wanted, origin(project), copy, again)
    assert result(copy) == expected
    assert "damaged before step" in "".join(said)


def test_a_variant_cannot_be_strict_alone(project):
    path = write_config(
        project, more='[[variant]]\nname = "a"\nset = { "training.strict" = true }\n'
    )
    with pytest.raises(fbp.InputError, match=r"training.strict: set it for all variants"):
        reading.variants(reading.read(path), "small.toml")


def test_early_stopping_keeps_the_best_and_survives_a_death(project):
    (project / "one.toml").write_text(EARLY)
    wanted = reading.read(project / "one.toml")
    outcome = run(
        wanted, origin(project), layout.new_run_folder(project / "mlruns", "one"), Silent()
    )
    series = read_series(outcome.folder)
    accuracy = series["validation_accuracy"]
    best = int(np.argmax(accuracy.values))  # the first of equals
    assert (
        len(accuracy.steps) == best + 1 + 5 + 1 < 200
    )  # the last is that of the model that is kept
    assert accuracy.values[-1] == accuracy.values[best] == outcome.metrics["validation_accuracy"]
    assert outcome.metrics["best_step"] == accuracy.steps[best]
    assert outcome.metrics["best_validation_accuracy"] == accuracy.values.max()
    trained = read(outcome.folder / "artifacts" / "model")
    data = fbp.datasets.prepare(fbp.datasets.iris(), seed=0)
    kept = (trained.predict(data.validation.x).argmax(1) == data.validation.y).mean()
    assert kept == pytest.approx(accuracy.values.max())
    # the process dies after training, before the run's end: the decision to stop is in the
    # checkpoint
    expected = result(outcome.folder)
    content = (outcome.folder / layout.JOURNAL).read_text().splitlines(keepends=True)
    kinds = [line.split('"')[3] for line in content]
    (outcome.folder / layout.JOURNAL).write_text("".join(content[: kinds.index("tags")]))
    run(wanted, origin(project), outcome.folder, Silent())
    assert result(outcome.folder) == expected


@pytest.mark.parametrize("metric", ["delta_norm/1", "gradient_norm", "train_loss"])
def test_any_metric_selects(project, metric):
    (project / "one.toml").write_text(
        EARLY.replace("validation_accuracy", metric).replace("epochs = 200", "epochs = 3")
    )
    wanted = reading.read(project / "one.toml")
    outcome = run(
        wanted, origin(project), layout.new_run_folder(project / "mlruns", "one"), Silent()
    )
    assert {"best_step", f"best_{metric}"} <= set(read_series(outcome.folder))


class TestRefused:
    def begun(self, project, text=EARLY):
        (project / "one.toml").write_text(text)
        folder = layout.new_run_folder(project / "mlruns", "one")
        config = reading.read(project / "one.toml")
        run(config, origin(project), folder, Silent(), signals=[signal.SIGINT])
        return folder

    def resumed(self, folder):
        return continue_run(folder, RunRequest(lambda label: Silent()))

    def test_a_metric_that_is_not_there(self, project):
        (project / "one.toml").write_text(
            EARLY.replace("validation_accuracy", "validation_acuracy")
        )
        with pytest.raises(fbp.InputError, match="did you mean 'validation_accuracy'"):
            run(reading.read(project / "one.toml"), origin(project), project, Silent())

    def test_other_data(self, project):
        text = EARLY.replace('name = "iris"', 'name = "file"\npath = "d.csv"')
        (project / "d.csv").write_text("a,b\n" + "1,0\n2,1\n" * 40)
        folder = self.begun(project, text)
        (project / "d.csv").write_text("a,b\n" + "1,0\n3,1\n" * 40)
        before = (folder / layout.JOURNAL).read_bytes()
        with pytest.raises(fbp.InputError, match="not what the run was begun with"):
            run(
                reading.read(folder / "artifacts" / "config.toml"),
                origin(project),
                folder,
                Silent(),
            )
        assert (folder / layout.JOURNAL).read_bytes() == before

    def test_a_run_that_is_finished(self, project):
        folder = self.begun(project)
        run(reading.read(project / "one.toml"), origin(project), folder, Silent())
        with pytest.raises(fbp.InputError, match="the run is finished"):
            self.resumed(folder)

    def test_a_run_that_is_being_trained(self, project):
        folder = self.begun(project)
        with locks.try_hold_training_lock(folder) as mine:
            assert mine
            assert locks.is_training(folder)
            with pytest.raises(fbp.InputError, match="another process is training this run"):
                self.resumed(folder)
        assert not locks.is_training(folder)

    def test_a_checkpoint_of_another_model(self, project, monkeypatch):
        folder = self.begun(project)
        other = reading.read(folder / "artifacts" / "config.toml", ["model.hidden=[3]"])
        with pytest.raises(fbp.InputError, match="its configuration differs in model_hidden"):
            run(other, origin(project), folder, Silent())
        # as if own code gave another model, and the user accepted it
        monkeypatch.setattr(run_start, "check_resumed", lambda *_: [])
        with pytest.raises(fbp.InputError, match="its checkpoint does not fit the model"):
            run(other, origin(project), folder, Silent())


def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_when_there_is_room(project, warm):
    path = write_config(project, data="digits", more="[checkpoint]\nevery_steps = 20\n")
    wanted = reading.read(path, ["training.epochs=40"])
    words = [
        *command("run", path, "--set", "training.epochs=40"),
        "--tracking-uri",
        "http://127.0.0.1:9",
    ]
    limited = [
        "bash",
        "-c",
        'ulimit -f 60; exec "$@"',
        "limited",
        *words,
    ]  # no file may be larger than 60 kB
    done = subprocess.run(
        limited,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"FBP_RETRY_SECONDS": "0"},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert f"{layout.JOURNAL}: File too large" in done.stderr
    (folder,) = layout.run_folders(project / "mlruns")
    assert 0 < max(journal.read_checkpoints(folder)) < 40 * 44
    run(wanted, origin(project), folder, Silent())
    alone = run(
        wanted, origin(project), layout.new_run_folder(project / "mlruns", "alone"), Silent()
    )
    assert result(folder) == result(alone.folder)


@pytest.mark.slow
def test_kill_9_at_random_moments(project, warm):
    """A handful; ``python -m tests.breaking`` does more."""
    expected, seconds = breaking.unbroken(project)
    chance = breaking.random.Random(11)
    for _ in range(2):
        found, kills = breaking.trial(project, seconds, chance)
        assert found == expected, kills
