"""The command line itself: help, groups, widths, and what it imports."""

import json
import subprocess
import sys

import pytest

from fbp.cli import base, main
from tests.projects import said, write_config

WITHOUT_MLFLOW = """
import json, sys
sys.modules["mlflow"] = None  # every import of it raises ImportError
from click.testing import CliRunner
from fbp.cli import main
results = [CliRunner().invoke(main, words) for words in json.loads(sys.argv[1])]
print(json.dumps([[r.exit_code, r.output, repr(r.exception)] for r in results]))
"""


def without_mlflow(*commands):
    """Exit status, output and exception of each command in a process that cannot import mlflow."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MLFLOW, json.dumps(commands)],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_command_is_in_one_group():
    names = [name for group in base._GROUPS.values() for name in group]
    assert sorted(names) == sorted(main.commands)


@pytest.mark.parametrize("name", main.commands)
def test_help_fits_80_columns_and_describes_every_option(name):
    output = said(name, "--help")
    assert max(map(len, output.splitlines())) <= 80
    for option in main.commands[name].params:
        assert option.param_type_name == "argument" or option.help, option.name
    short = main.commands[name].short_help
    assert short
    assert len(short) < 80 - 16


def test_help_lists_and_descriptions_do_not_need_mlflow(project):
    write_config(project)
    helps = [[name, "--help"] for name in main.commands]
    commands = [["--help"], *helps, ["list"], ["describe", "small.toml"]]
    for words, (status, output, error) in zip(commands, without_mlflow(*commands), strict=True):
        assert status == 0, (words, output, error)


def test_an_unknown_command_is_answered_with_the_nearest():
    assert "did you mean 'compare'?" in said("compair", status=2)
