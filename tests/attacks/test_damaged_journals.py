"""Lines of a journal that fbp cannot have written: passed over."""

import pytest

from fbp.experiment.rundir import layout
from tests.attacks.damage import START, journal_line
from tests.projects import said

METRICS = {"kind": "metrics", "time": 1, "step": 1, "values": {"loss": 1.0}}
STEPS = {"kind": "steps", "time": 2, "began": 1, "first_step": 1, "columns": {"loss": "AACAPw=="}}
LINES = {
    "a list": [],
    "a text": "start",
    "without a kind": {"time": 1},
    "kind of a list": {"kind": ["start"]},
    "name of a number": START | {"name": 5},
    "params in a list": START | {"params": ["a"]},
    "params of numbers": START | {"params": {"a": 1}},
    "tags of tables": START | {"tags": {"a": {}}},
    "tags of null": START | {"tags": None},
    "time of a text": START | {"time": "now"},
    "time of 10^30": START | {"time": 10**30},
    "time below 0": START | {"time": -5},
    "inputs of texts": START | {"inputs": ["a"]},
    "inputs without a name": START | {"inputs": [{"digest": "a"}]},
    "inputs of other shapes": START | {"inputs": [{"name": "a", "digest": "b", "x": [5, 5]}]},
    "layers in a list": START | {"layers": ["a"]},
    "parent of a number": START | {"parent": 5},
    "steps below 0": START | {"steps": -1},
    "values of texts": METRICS | {"values": {"loss": "a"}},
    "values in a list": METRICS | {"values": [1.0]},
    "step of a text": METRICS | {"step": "1"},
    "step of 10^30": METRICS | {"step": 10**30},
    "step true": METRICS | {"step": True},
    "columns that are no base64": STEPS | {"columns": {"loss": "!!"}},
    "columns of half a number": STEPS | {"columns": {"loss": "AAA="}},
    "columns of numbers": STEPS | {"columns": {"loss": 5}},
    "columns in a list": STEPS | {"columns": ["AACAPw=="]},
    "first step of a text": STEPS | {"first_step": "a"},
    "began in year 10000": STEPS | {"began": 10**18},
    "end of a number": {"kind": "end", "time": 1, "status": 5, "message": ""},
    "tags of numbers": {"kind": "tags", "time": 1, "values": {"a": 5}},
    "child of a list": {"kind": "child", "time": 1, "folder": [], "variant": "a"},
    "checkpoint of texts": {"kind": "checkpoint", "time": 1, "step": 1, "params_digest": "a",
                            "tensors": [], "state_digest": "b"},
    "resume below 0": {"kind": "resume", "time": 1, "step": -1},
    "seal of a number": {"kind": "seal", "time": 1, "root": 1},
}  # fmt: skip


@pytest.mark.promise("journal-makes-sense")
@pytest.mark.parametrize("entries", LINES.values(), ids=LINES)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_right_checksum_makes_no_nonsense_a_line(project, entries, place):
    folder = project / "mlruns" / "runs" / "small-0000"
    folder.mkdir(parents=True)
    good = b"".join(map(journal_line, (START, METRICS | {"values": {"accuracy": 0.5}}, STEPS)))
    bad = journal_line(entries)
    layout.journal(folder).write_bytes(bad + good if place == "before" else good + bad)
    for words in (["runs"], ["show", "a-0000"], ["runs", "metrics.accuracy > 0.1"]):
        output = said(*words)
        assert "a-0000" in output
        assert "0.5" in output
    assert "expected at least two" in said("compare", "a-0000", status=2)


@pytest.mark.promise("journal-makes-sense")
@pytest.mark.parametrize("body", [b'{"kind": ' + b"[" * 100_000 + b"}", b"{" + b"1" * 5000 + b"}"])
def test_a_line_of_any_text_is_passed_over(project, body):
    folder = project / "mlruns" / "runs" / "small-0000"
    folder.mkdir(parents=True)
    layout.journal(folder).write_bytes(journal_line(START) + journal_line(body))
    assert "a-0000" in said("runs")
