"""The commands that start no run: help, check, describe and list."""

import pytest
from click.testing import CliRunner

import fbp
from fbp.cli import main
from tests.projects import write_config


class TestOtherCommands:
    def test_help_has_each_command_once(self):
        shown = CliRunner().invoke(main, ["--help"]).output
        for name, described in main.commands.items():
            assert shown.count(f"\n  {name} ") == 1
            assert f"  {described.short_help}\n" in shown

    def test_check_prints_a_table_and_exits_0(self, project):
        write_config(project)
        result = CliRunner().invoke(main, ["check", "small.toml"])
        assert result.exit_code == 0, result.output
        assert "all right" in result.output
        assert "1 dense(8)" in result.output

    def test_check_exits_1_where_a_backward_is_wrong(self, project, monkeypatch):
        (project / "wrong.py").write_text(
            "import fbp\n"
            "def model(outputs: int):\n"
            "    good = fbp.layers.tanh()\n"
            "    back = lambda p, c, d: (2 * good.backward(p, c, d)[0], ())\n"
            "    bad = good._replace(backward=back)\n"
            "    return fbp.chain(fbp.layers.dense(5), bad, fbp.layers.dense(outputs))\n"
        )
        monkeypatch.syspath_prepend(project)
        write_config(project)
        result = CliRunner().invoke(
            main, ["check", "small.toml", "--set", "model={name='wrong:model'}"]
        )
        assert result.exit_code == 1
        assert "WRONG" in result.output

    def test_describe_shows_the_layers_and_draws_the_graph(self, project):
        write_config(project, data="digits")
        options = ["--set", "model={name='inception', channels=4}", "--picture", "model.svg"]
        result = CliRunner().invoke(main, ["describe", "small.toml", *options])
        assert result.exit_code == 0, result.output
        for word in (
            "1_5x5/1/0",
            "conv2d(4, 5x5)",
            "8 x 8 x 16",
            "cache",
            "bwd FLOPs",
            "picture: model.svg",
        ):
            assert word in result.output
        picture = (project / "model.svg").read_text()
        assert "<svg" in picture
        refused = CliRunner().invoke(main, ["describe", "small.toml", "--picture", "model.gif"])
        assert (refused.exit_code, "ending in .svg, .png or .pdf" in refused.output) == (2, True)

    def test_list_has_a_line_for_each_name(self):
        result = CliRunner().invoke(main, ["list"])
        assert result.exit_code == 0
        for name in ("digits", "mlp", "gelu", "he_normal", "huber", "lamb", "one_cycle"):
            assert f"  {name} " in result.output

    def test_an_unknown_run_is_not_loaded(self, project):
        with pytest.raises(fbp.InputError, match="no such folder, and no run of that name"):
            fbp.load("nothing")
