"""JSON, TOML and CSV of a record that are damaged or absurd: bounded, and told in one line."""

import json
import os
from pathlib import Path

import pytest

from fbp import _diagram
from fbp.errors import InputError
from fbp.experiment.config import bounded, reading
from fbp.experiment.rundir import environment, history, layout, model_facts
from fbp.experiment.runner import trained_model
from fbp.experiment.tracking.shipment import read_sent
from tests.attacks.damage import little_memory, one_line
from tests.projects import said

FACTS = {"format": 1, "shape": [4], "outputs": 3, "classes": ["a", "b", "c"], "tokens": [],
         "sequence": False}  # fmt: skip
WRONG_FACTS = {
    "shape of 10^12": FACTS | {"shape": [10**12]},
    "shape of 10^40": FACTS | {"shape": [10**40]},
    "shape of giants": FACTS | {"shape": [65536, 65536]},
    "a hundred axes": FACTS | {"shape": [1] * 100},
    "shape 0": FACTS | {"shape": [0]},
    "negative shape": FACTS | {"shape": [-4]},
    "shape of texts": FACTS | {"shape": ["4"]},
    "shape of fractions": FACTS | {"shape": [4.0]},
    "shape of bools": FACTS | {"shape": [True]},
    "another shape": FACTS | {"shape": [5]},
    "outputs 0": FACTS | {"outputs": 0},
    "outputs of 10^12": FACTS | {"outputs": 10**12, "classes": []},
    "other outputs": FACTS | {"outputs": 4},
    "classes that are numbers": FACTS | {"classes": [1, 2, 3]},
    "classes in a text": FACTS | {"classes": "abc"},
    "sequence of a text": FACTS | {"sequence": "yes"},
    "no table": [],
    "without a shape": {"format": 1},
    "without a format": {key: value for key, value in FACTS.items() if key != "format"},
    "deep": FACTS | {"x": json.loads("[" * 500 + "]" * 500)},
}


@pytest.mark.promise("record-headers-first")
@pytest.mark.parametrize("facts", WRONG_FACTS.values(), ids=WRONG_FACTS)
def test_absurd_facts_of_a_model_are_refused(saved, facts):
    (saved / layout.MODEL_FACTS).write_text(json.dumps(facts))
    with little_memory(), pytest.raises(InputError) as caught:
        trained_model.read(saved)
    one_line(caught.value)


@pytest.mark.promise("record-headers-first")
@pytest.mark.parametrize("sizes", ["1000000000", "999999999999999999999999", "9, 9", "-1", "0"])
def test_absurd_sizes_in_a_configuration_are_refused(saved, sizes):
    path = saved / layout.CONFIG
    path.write_text(path.read_text().replace("    8,\n", f"    {sizes},\n"))
    assert sizes in path.read_text()
    with little_memory(), pytest.raises(InputError):
        trained_model.read(saved)


TOML = {
    "deep lists": "a = " + "[" * 5000 + "]" * 5000,
    "deep tables": "a = " + "{a = " * 2000 + "1" + "}" * 2000,
    "a key of many parts": ".".join(["a"] * 100_000) + " = 1",
    "a header of many parts": f"[{'.'.join(['a'] * 100_000)}]",
    "a long number": f"a = {'1' * 10_000}",
    "no date": "a = 2026-99-99",
    "no text": b"\xff\xfe\x00",
    "too large": "# " + "x" * (bounded.LARGEST_TOML + 1),
    "cut off": "a = {",
    "surrogates": 'a = "\\ud800"',
}
JSON = {
    "deep lists": "[" * 100_000,
    "closed deep lists": "[" * 900 + "]" * 900,
    "deep tables": '{"a":' * 100_000,
    "a long number": "1" * 10_000,
    "no text": b"\xff\xfe\x00",
    "cut off": '{"a": ',
    "a list": "[1, 2]",
    "a number": "5",
    "null": "null",
    "empty": "",
}


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.promise("bounded-texts")
@pytest.mark.parametrize("content", TOML.values(), ids=TOML)
def test_toml_is_bounded(tmp_path, content):
    path = written(tmp_path / "config.toml", content)
    for read in (reading.read, reading.require_trusted_names):
        with pytest.raises(InputError) as caught:
            read(path, *([] if read is reading.read else [reading.references.NOTHING]))
        one_line(caught.value)
    assert str(path) in said("run", path, status=2)


@pytest.mark.promise("bounded-texts")
@pytest.mark.parametrize("content", JSON.values(), ids=JSON)
def test_json_is_bounded(tmp_path, content):
    folder = tmp_path / "run"
    artifacts = layout.artifacts(folder)
    written(artifacts / layout.ENVIRONMENT, content)
    written(layout.history(artifacts) / layout.LAYER_NAMES, content)
    written(layout.history(artifacts) / layout.CHECKPOINT_DIGESTS, content)
    written(layout.sent(folder), content)
    written(layout.model_facts(folder), content)
    assert environment.read(artifacts) == {}
    assert history.read_layer_names(artifacts) == {}
    assert read_sent(folder).run_id == ""
    for read in (
        lambda: history.read_checkpoints(artifacts),
        lambda: model_facts.read(layout.model(folder)),
    ):
        with pytest.raises(InputError) as caught:
            read()
        one_line(caught.value)


@pytest.mark.promise("bounded-texts")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / layout.ENVIRONMENT)
    os.mkfifo(tmp_path / "config.toml")
    assert environment.read(tmp_path) == {}
    with pytest.raises(InputError, match="no plain file"):
        reading.read(tmp_path / "config.toml")


@pytest.mark.promise("bounded-texts")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("steps.csv", "step,loss\n1,2,3\n"),
        ("steps.csv", "step,loss\n"),
        ("steps.csv", ""),
        ("steps.csv", "step,loss,loss\n1,2,3\n"),
        ("steps.csv", "step,loss\nnan,1\n"),
        ("steps.csv", "step,loss\n1e300,1\n"),
        ("steps.csv", 'step,"loss\n'),
        ("metrics.csv", f"key,step,time,value\nloss,{10**30},0,1\n"),
        ("metrics.csv", "key,step,time,value\nloss\n"),
        ("metrics.csv", f"key,step,time,value\n{'x' * 200_000},1,1,1\n"),
        ("metrics.csv", "a,b\n1,2\n"),
        ("metrics.csv", b"\xff\xfe"),
    ],
)
def test_a_damaged_history_is_told(tmp_path, name, content):
    written(layout.history(tmp_path) / name, content)
    with pytest.raises(InputError, match="the history among its artifacts is damaged") as caught:
        history.read(tmp_path)
    one_line(caught.value)


@pytest.mark.promise("bounded-texts")
@pytest.mark.parametrize(
    "table",
    [
        {},
        {"boxes": [], "arrows": []},
        {"boxes": {"0": {}}, "arrows": []},
        {"boxes": {"a": 1}, "arrows": []},
        {"boxes": {}, "arrows": [[0, 1]]},
        {"arrows": [[1, 0]]},
        {"arrows": [[0, 5]]},
        {"arrows": [[0]]},
        {"arrows": [[0, 1]] * 200_000},
    ],
)
def test_an_absurd_diagram_is_not_drawn(table):
    box = {"lines": ["a"], "path": "0", "shape": "3", "parameters": 1, "groups": []}
    good = {"boxes": {"0": box, "1": box}, "arrows": [[0, 1]]}
    assert len(_diagram.from_json(good).boxes) == 2
    with pytest.raises(InputError, match="diagram"):
        _diagram.from_json(table if "boxes" in table or not table else good | table)
