"""The command line itself: help, groups, widths, and what it imports."""

import pytest

from fbp.cli import base, main
from tests.projects import said, without_mlflow, write_config


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
