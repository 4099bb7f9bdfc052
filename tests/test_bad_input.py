"""Bad input to the commands: one clear line, exit status 2, and no run."""

import sqlite3

import numpy as np
import pytest
from click.testing import CliRunner

from fbp.cli import main
from tests.projects import write_config


class TestBadInput:
    """One clear line, exit status 2, no traceback, no run."""

    def refused(self, *arguments):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        return result.output

    def no_run(self, project):
        runs = project / "mlruns" / "runs"
        assert not runs.exists() or not list(runs.iterdir())
        database = project / "mlruns" / "mlflow.db"
        if database.exists():
            assert sqlite3.connect(database).execute("select count(*) from runs").fetchone() == (0,)

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["run", "nothing.toml"], "no such file"),
            (
                ["run", "small.toml", "--set", "optimizer.learning_rat=1"],
                "did you mean 'learning_rate'",
            ),
            (
                ["run", "small.toml", "--set", "training.batch_size=1000"],
                "at most the 120 training examples, got 1000",
            ),
            (
                ["run", "small.toml", "--set", "data.validation=0.001"],
                "the validation part is empty",
            ),
            (
                ["run", "small.toml", "--set", "data.name=mnist", "--set", "data.folder=nowhere"],
                "got no such folder",
            ),
            (
                ["run", "small.toml", "--set", "data={name='file', path='no.csv'}"],
                "'no.csv', which does not exist",
            ),
            (["run", "small.toml", "--tracking-uri", "./runs"], "expected sqlite:///PATH"),
            (["check", "nothing.toml"], "no such file"),
            (
                ["run", "small.toml", "--set", "augmentation.shift=2"],
                "expected pictures (H, W, C), got examples of shape (4,)",
            ),
            (
                ["run", "small.toml", "--set", "model={name='lstm'}"],
                "layer 0 (lstm(128)): lstm expects examples of shape (T, F)",
            ),
            (
                ["run", "small.toml", "--set", "model.hidden=[1000000000000]"],
                "model: its parameters take 32,000 GB",
            ),
            (
                ["run", "small.toml", "--set", "model={name='gpt', features=10}"],
                "features must be a multiple of heads",
            ),
            (
                ["run", "small.toml", "--set", "data={name='text', context=100000}"],
                "a text of at least 20 pieces",
            ),
            (["generate", "nothing"], "there is no such folder, and no run of that name"),
            (["list", "optimiser"], "did you mean 'optimizer'"),
            (["rnu"], "did you mean 'run'"),
            (["ui"], "there are no runs"),
        ],
    )
    def test_is_refused(self, project, arguments, problem):
        write_config(project)
        output = self.refused(*arguments)
        assert problem in output
        assert len(output.splitlines()) == 1
        self.no_run(project)

    def test_a_test_part_of_another_shape(self, project):
        np.savez(
            project / "d.npz",
            x=np.zeros((20, 3)),
            y=np.arange(20) % 2,
            x_test=np.zeros((4, 5)),
            y_test=np.zeros(4, int),
        )
        write_config(project)
        output = self.refused("run", "small.toml", "--set", "data={name='file', path='d.npz'}")
        assert (
            "test part: expected examples of the training part's shape (N, 3), got (4, 5)" in output
        )
        self.no_run(project)

    @pytest.mark.parametrize("value", ["nan", "inf"])
    def test_features_that_are_not_finite(self, project, value):
        (project / "d.csv").write_text("a,b\n" + "1,0\n2,1\n" * 20 + f"{value},1\n")
        write_config(project)
        output = self.refused("run", "small.toml", "--set", "data={name='file', path='d.csv'}")
        assert f"got text '{value}' in column 'a', line 42; fill or remove it" in output
        self.no_run(project)
