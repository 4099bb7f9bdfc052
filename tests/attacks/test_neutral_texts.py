"""Texts from anybody are shown as they are and as nothing else."""

import ast
import csv
import io
import os
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from rich.console import Console

import fbp
from fbp import _diagram, _neutral
from fbp.errors import InputError, first_line
from fbp.experiment.commands import progress, tables
from fbp.experiment.figures import classification, curves, draw, images, model_drawing, norms
from fbp.experiment.rundir import history, layout, tags
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.series import Series, read_series
from tests.attacks.hostile import TEXTS, unseen
from tests.cases import slow_but
from tests.projects import said

hostile = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


def hostile_run(root: Path, text: str, seed: int, name: str = "") -> Path:
    """Write the folder of a run, every text of which is hostile."""
    folder = layout.new_run_folder(root, "hostile")
    writer = Journal(folder)
    # a seed that differs, so that runs are compared; names are unique by their folder
    writer.start(
        label=name or text,
        experiment=text,
        params={"seed": str(seed), f"model_{text}": text, "data_name": text, "name": text},
        tags={tags.MESSAGE: text, tags.SOURCE_NAME: text, f"fbp.{text}": text, tags.SEED: "1"},
        inputs=[{"name": text, "digest": text}],
        layers={"0": text},
    )
    values = {"test_loss": 0.5 + seed, f"test_{text}": 1.0, "train_loss": 1.0}
    for step in (1, 2, 3):
        writer.metrics(step, values | {"delta_norm/0": 1.0, "gradient_norm/0/w": 1.0})
    writer.tags({tags.NONFINITE: text})
    writer.end("FINISHED", text)
    writer.close()
    return folder


@pytest.fixture
def hostile_project(project):
    """Return a function that makes a project of two runs with a text everywhere."""

    def make(text):
        return [hostile_run(project / "mlruns", text, seed).name for seed in (1, 2)]

    return make


# --- the terminal -----------------------------------------------------------------------------


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_every_command_shows_texts_and_obeys_none(hostile_project, text):
    first, _second = hostile_project(text)
    for words in (
        ["runs"],
        ["show", first],
        ["show", text],
        ["resume", text],
        [text],
        ["list", text],
    ):
        output = said(*words, status=None)
        assert not unseen(output)
        assert "fbp: identical to the bit" not in output.splitlines()


@pytest.mark.promise("neutral-everywhere")
def test_a_comparison_of_all_hostile_runs_is_shown_and_written(project):
    names = [
        hostile_run(project / "mlruns", text, seed).name for seed, text in enumerate(TEXTS.values())
    ]
    output = said("compare", *names, "--output", "report", status=0)
    assert not unseen(output)
    report = (project / "report" / "report.md").read_text()
    assert not unseen(report)
    assert {path.name for path in (project / "report").iterdir()} == {
        "report.md",
        "learning_curves.png",
        "delta_norms.png",
    }


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_a_table_shows_texts_and_no_markup(text):
    rows = tables.Rows(text, ["", text], [["a", text]])
    console = Console(file=io.StringIO(), width=100_000, force_terminal=True, color_system=None)
    console.print(rows.rich())
    output = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())  # styles of the header
    assert not unseen(output)
    assert output.count(_neutral.line(text).rstrip()) >= 2


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_progress_shows_texts_and_obeys_none(capsys, text):
    bar = progress.Bar(text)
    bar.begin(10, 1)
    bar.advance(10, 1, {"validation_loss": 1.0, text: 2.0})
    bar.note(text)
    bar.close()
    terminal = progress.Bar(text)
    terminal.console = Console(file=io.StringIO(), force_terminal=True, width=200)
    terminal.begin(10, 1)
    terminal.advance(5, 1, {"loss": 1.0})
    terminal.note(text)
    terminal.close()
    Console(file=sys.stdout).print(
        progress.results_table(
            {text: {"test_loss": 1.0, f"test_{text}": 1.0}, "b": {"test_loss": 1}}
        )
    )
    captured = capsys.readouterr()
    assert not unseen(captured.out + captured.err)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.console.file.getvalue())
    assert not unseen(shown, "\n\r")


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_an_error_quotes_texts_and_obeys_none(text):
    for error in (
        InputError(f"run {text}: no"),
        fbp.errors.ArgumentError(text, text, text),
        fbp.errors.ShapeError(text, (text,)),
    ):
        assert not unseen(str(error), "\n\t")
    assert not unseen(first_line(RuntimeError(text)), "")


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_a_model_of_hostile_layers_is_summarized(text):
    layer = fbp.layers.relu()._replace(name=text)
    summary = fbp.summarize(fbp.chain(layer, fbp.layers.dense(2)), (3,))
    assert not unseen(str(summary))


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_generated_text_prints_no_control_characters(monkeypatch, text):
    from fbp.experiment.commands import generate, load

    monkeypatch.setattr(load, "load", lambda *_, **__: None)
    monkeypatch.setattr(generate, "generate", lambda *_, **__: f"a\tb\r\nc{text}")
    output = said("generate", "run", status=0)
    assert not unseen(output, "\n\t\u200c\u200d")
    assert output.startswith("a\tb\nc")


@pytest.mark.promise("neutral-everywhere")
def test_the_commands_print_in_one_way_only():
    printing = []
    for path in sorted(Path(fbp.__file__).parent.glob("cli/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print", "click.echo", "sys.stdout.write", "sys.stderr.write", "rich.print",
            ):  # fmt: skip
                printing.append(f"{path.name}: {ast.unparse(node)}")
    assert printing == [
        "base.py: click.echo(_neutral.line(line), err=err)",
        "base.py: click.echo(_neutral.text(value), err=err)",
        "models.py: click.echo(_neutral.generated(prompt + written))",
    ]


@pytest.mark.promise("neutral-everywhere")
def test_a_terminal_that_knows_few_letters_gets_escapes(project):
    hostile_run(project / "mlruns", "漢 \U0001f600", 1)
    done = subprocess.run(
        [sys.executable, "-m", "fbp", "runs"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u6f22" in done.stdout


# --- files ------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Collects the tags of a page, and the texts of its cells."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.cells, self.text = set(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add((tag, tuple(attrs)))
        self.text = ""

    def handle_data(self, data):
        self.text += data

    def handle_endtag(self, tag):
        if tag in ("td", "th", "h2"):
            self.cells.append(self.text)


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_markdown_shows_texts_and_is_only_a_table(text):
    rows = tables.Rows(f"a {text}", ["x", f"b{text}"], [["y", f"{text}."], ["z", f".{text}"]])
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    page = _Page(renderer.render(rows.markdown()))
    assert {tag for tag, _ in page.tags} == {"h2", "table", "thead", "tbody", "tr", "th", "td"}
    line = _neutral.line(text)
    expected = [f"a {line}", "x", f"b{line}", "y", f"{line}.", "z", f".{line}"]
    assert [cell.strip() for cell in page.cells] == [cell.strip() for cell in expected]
    for address in ("http://", "www.", "mailto:"):  # GitHub makes links of bare addresses, too
        assert address not in rows.markdown()


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_a_label_is_a_short_line_and_no_formula(text):
    label = _neutral.label(text)
    assert not unseen(label, "")
    figure = Figure()
    artist = figure.text(0, 0, label)
    shown, is_math = artist._preprocess_math(artist.get_text())
    assert not is_math
    assert len(shown) <= 61
    line = _neutral.line(text)
    assert shown.lstrip() == line.lstrip() or (len(line) > 30 and shown[:24].strip() in line)
    assert not label.startswith("_")


@pytest.mark.promise("neutral-everywhere")
@pytest.mark.parametrize("name", slow_but(TEXTS, *list(TEXTS)[::4]))
def test_pictures_show_texts_and_are_drawn(tmp_path, name):
    text = TEXTS[name]
    points = Series(np.arange(3), np.arange(3) + 1.0, np.arange(3))
    series = {"train_loss": points, f"validation_{text}": points, "validation_loss": points}
    series |= {"delta_norm/0": points, "gradient_norm/0/w": points}
    maps = {text: norms.norm_map(series, {"0": text}), "b": None}
    box = _diagram.Box((text, text), text, text, 3, (f"{text} x 3",))
    diagram = _diagram.Diagram({0: box, 1: box}, [(0, 1)])
    with draw.drawing(), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Glyph .* missing from|constrained_layout not")
        figures = {
            "curves": curves.compared_curves({text: series, "b": series}),
            "norms": norms.delta_norms(maps),
            "model": model_drawing.draw(diagram, text),
            "images": images.misclassified(np.zeros((1, 2, 2, 1)), [text], [text], np.ones(1)),
            "confusion": classification.confusion_matrix(np.eye(2), [text, "b"], of=2),
        }
        for name, figure in figures.items():
            figure.savefig(tmp_path / f"{name}.svg")
            assert max(figure.get_size_inches()) < 40
            for node in ElementTree.parse(tmp_path / f"{name}.svg").iter():
                assert "script" not in str(node.tag)
                assert not any("onerror" in key or key == "href" for key in node.attrib)
    legend = figures["curves"].legends[0]
    assert len(legend.get_texts()) == 2


@pytest.mark.promise("neutral-everywhere")
@hostile
def test_a_table_of_a_spreadsheet_has_no_formula(tmp_path, text):
    folder = tmp_path / "run"
    layout.artifacts(folder).mkdir(parents=True)
    writer = Journal(folder)
    writer.start(label="a", experiment="b", params={}, tags={})
    writer.steps(1, {text: np.arange(3, dtype=np.float32), "loss": np.ones(3, np.float32)})
    writer.metrics(3, {f"{text}": 2.0, "=": 1.0})
    writer.close()
    encodable = text.encode("utf-8", "replace").decode() == text
    if not encodable:
        pytest.skip("no metric can have that name")
    history.write(folder)
    written = history.read(layout.artifacts(folder))
    assert set(written) == set(read_series(folder))
    for path in layout.history(layout.artifacts(folder)).glob("*.csv"):
        with open(path, newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r"))]
        assert not [cell for cell in cells if re.match(r"-[^\d]", cell)]
