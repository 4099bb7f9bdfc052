"""Records of a newer fbp: refused in one line, and left as they are."""

import json

import pytest

import fbp
from fbp.errors import NewerFormat
from fbp.experiment.rundir import checkpoints, layout
from tests.attacks.damage import (
    MANIFEST,
    START,
    journal_line,
    one_line,
    run_with_checkpoints,
    write_checkpoint,
)
from tests.projects import said


@pytest.mark.promise("newer-is-told")
@pytest.mark.parametrize("format_", [2, 10**9, 10**40])
@pytest.mark.parametrize("words", [["show"], ["resume"], ["compare"], ["verify"], ["reproduce"]])
@pytest.mark.parametrize("by", ["folder's name", "path", "run's name"])
def test_a_run_of_a_newer_fbp_is_refused_in_one_line(project, words, by, format_):
    folder = project / "mlruns" / "runs" / "small-20260101-000000-12ab"
    folder.mkdir(parents=True)
    line = START | {"format": format_, "name": "small-12ab"}
    layout.journal(folder).write_bytes(journal_line(line))
    name = {"folder's name": folder.name, "path": folder, "run's name": "small-12ab"}[by]
    output = said(*words, name, status=2)
    assert "a newer fbp wrote it: update fbp" in output
    assert len(output.splitlines()) == 1
    assert f"a newer fbp wrote {folder.name}; update fbp to read them" in said("runs")


@pytest.mark.promise("newer-is-told")
def test_a_checkpoint_of_a_newer_fbp_is_not_put_aside(tmp_path):
    run_with_checkpoints(tmp_path).close()
    newest = checkpoints.files(tmp_path)[0]
    write_checkpoint(newest, MANIFEST | {"format": 2, "step": 2, "names": {"other": "fields"}})
    for read in (lambda: checkpoints.read(newest), lambda: checkpoints.latest(tmp_path, print)):
        with pytest.raises(NewerFormat, match="a newer fbp wrote it: update fbp"):
            read()
    assert newest.exists()


@pytest.mark.promise("newer-is-told")
def test_a_model_of_a_newer_fbp_is_refused_in_one_line(saved):
    (saved / layout.MODEL_FACTS).write_text(json.dumps({"format": 2, "other": "fields"}))
    with pytest.raises(NewerFormat, match="a newer fbp wrote it: update fbp") as caught:
        fbp.load(saved)
    one_line(caught.value)
