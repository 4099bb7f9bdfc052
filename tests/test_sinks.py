"""Trackers beside MLflow, a user's own one, and commands in a project that has no MLflow store."""

import json
import subprocess

import numpy as np
import pytest

import fbp
from fbp.experiment import track
from fbp.experiment.rundir import journal, layout
from fbp.experiment.rundir.series import read_series
from fbp.experiment.runner.trained_model import PYFUNC_CODE
from fbp.experiment.tracking import shipper, sink, store, uri
from fbp.experiment.tracking.jsonl_sink import JsonlSink
from fbp.experiment.tracking.shipment import is_sent
from fbp.experiment.tracking.sink import Point, RunInfo
from tests.projects import command, one, said, write_config

OWN = """
import json
from pathlib import Path

class Own:
    def __init__(self, uri, root):
        self.path = Path(root) / "own.txt"
    def write(self, *entries):
        with open(self.path, "a") as file:
            print(json.dumps(entries), file=file)
    def open(self, run):
        self.write("open", run.name)
        return "id-of-" + run.folder
    def log_params(self, params):
        self.write("params", len(params))
    def log_inputs(self, inputs):
        self.write("inputs", [entry["context"] for entry in inputs])
    def log_metrics(self, points):
        self.write("metrics", sorted({point.key for point in points}))
    def set_tags(self, values):
        self.write("tags", sorted(values))
    def log_artifacts(self, folder):
        self.write("artifacts", sorted(path.name for path in folder.iterdir()))
    def log_model(self, folder, code):
        self.write("model", sorted(path.name for path in folder.iterdir()), code.name)
    def finish(self, status, time):
        self.write("finish", status)
"""


def entries_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_of_json_lines(tmp_path):
    target = JsonlSink(str(tmp_path / "a" / "lines.jsonl"), tmp_path)
    run_id = target.open(RunInfo("folder", "name", "experiment", 5, {"t": "1"}))
    target.log_params({"p": "1"})
    target.log_metrics([Point("loss", 0.5, 7, 1), Point("loss", float("nan"), 8, 2)])
    target.log_metrics([Point("loss", float("-inf"), 8, 3)])
    target.set_tags({"u": "2"})
    target.log_inputs([{"name": "digits"}])
    target.log_artifacts(tmp_path)
    target.log_model(tmp_path, PYFUNC_CODE)
    target.finish("FINISHED", 9)
    events = entries_of(tmp_path / "a" / "lines.jsonl")
    assert {event["run"] for event in events} == {run_id}
    assert [event["event"] for event in events] == [
        *("run", "params", "metric", "metric", "metric", "tags", "inputs", "artifacts", "model"),
        "end",
    ]
    assert [event["value"] for event in events if event["event"] == "metric"] == [
        0.5,
        "nan",
        "-inf",
    ]
    again = JsonlSink(str(tmp_path / "a" / "lines.jsonl"), tmp_path)
    assert again.open(RunInfo("folder", "name", "experiment", 5, {})) == run_id


@pytest.fixture
def untracked(project):
    """A project with a run that went to a file of JSON lines."""
    write_config(project, data="digits", more='[tracking]\nsink = "jsonl"\n')
    done = subprocess.run(command("run", "small.toml"), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "tracked.jsonl" in done.stdout
    return project


def test_commands_without_a_store(untracked):
    """In one test, because each command takes seconds."""
    root, folder = untracked / "mlruns", one(untracked / "mlruns" / "runs")
    assert not layout.database(root).exists()
    start = journal.require_start(folder)
    assert start.sink == "jsonl"
    assert is_sent(folder)
    metrics = [line for line in entries_of(layout.tracked_lines(root)) if line["event"] == "metric"]
    losses = [line["value"] for line in metrics if line["key"] == "validation_loss"]
    assert losses == read_series(folder)["validation_loss"].values.tolist()
    assert {path.name for path in layout.plots(folder).iterdir()} >= {"learning_curves.png"}
    assert "1 run" in said("runs", "metrics.validation_loss > 0 and params.data_name = 'digits'")
    assert "0 runs" in said("runs", "params.data_name = 'iris'")
    assert start.name in said("runs", "--sort", "-metrics.validation_loss")
    assert "no run has metrics.validation_los" in said(
        "runs", "metrics.validation_los > 0", status=2
    )
    assert "metrics.x >>: Invalid clause" in said("runs", "metrics.x >>", status=2)
    shown = said("show", start.name)
    for text in ("FINISHED", "digits/train", "validation_loss", "optimizer_name"):
        assert text in shown
    assert "identical to the bit" in said("reproduce", folder.name)
    again = next(path for path in layout.run_folders(root) if path != folder)
    assert journal.read_tags(again)["fbp.reproduction"] == "identical"
    assert "none" in said("compare", start.name, again.name)
    assert fbp.load(start.name[-4:]).predict(np.zeros((1, 8, 8, 1))).shape == (1, 10)
    assert "1 of 1 runs sent" in said("sync")  # the tag came after the run's end
    assert "nothing to send" in said("sync")
    assert entries_of(layout.tracked_lines(root))[-1]["event"] == "end"


def test_a_sink_of_the_users_own(project, monkeypatch):
    (project / "own_tracker.py").write_text(OWN)
    monkeypatch.syspath_prepend(project)
    with track({"a": 1}, sink="own_tracker:Own", tags={"x": "y"}) as run:
        run.log(1, {"loss": 1.0})
        run.log(2, {"loss": 0.5})
    assert is_sent(run.folder), layout.shipper_log(run.folder).read_text()
    entries = entries_of(project / "mlruns" / "own.txt")
    assert entries[0] == ["open", run.name]
    assert ["params", 1] in entries
    assert ["metrics", ["loss"]] in entries
    assert ["artifacts", ["environment.json", "history"]] in [
        [kind, [name for name in rest[0] if name not in ("git.diff", "plots")]]
        for kind, *rest in entries
        if kind == "artifacts"
    ]
    assert entries[-1] == ["finish", "FINISHED"]
    assert journal.require_start(run.folder).sink == "own_tracker:Own"


def test_a_sink_that_fails_costs_no_result(project, monkeypatch, capfd):
    monkeypatch.setenv("FBP_RETRY_SECONDS", "0")
    monkeypatch.syspath_prepend(project)
    failing = OWN.replace(
        'self.write("metrics"', 'raise RuntimeError("no space")\n        self.write("m"'
    )
    (project / "failing_tracker.py").write_text(failing)
    with track({"a": 1}, sink="failing_tracker:Own") as run:
        run.log(1, {"loss": 1.0})
    assert "nothing is lost: 'fbp sync'" in capfd.readouterr().err
    assert "no space" in layout.shipper_log(run.folder).read_text()
    assert journal.read_end(run.folder).status == "FINISHED"
    (project / "failing_tracker.py").write_text(OWN)
    done = subprocess.run(command("sync"), capture_output=True, text=True, timeout=100)
    assert "1 of 1 runs sent" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("wandb", "unknown tracker 'wandb'"),
        ("no_such_module:Own", "no_such_module"),
        ("own_trackers:NoSuchClass", "NoSuchClass"),
        ("own_trackers:Poor", "it has no method log_params, log_inputs"),
    ],
)
def test_a_sink_that_cannot_be_used_is_one_line(project, monkeypatch, name, problem):
    (project / "own_trackers.py").write_text(
        "class Poor:\n    def open(self, run):\n        pass\n"
    )
    monkeypatch.syspath_prepend(project)
    with pytest.raises(fbp.InputError) as caught:
        sink.load(sink.reference(name))
    assert problem in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_newer_format_is_refused_in_one_line_and_hides_no_other_run(project):
    root = project / "mlruns"
    for name in ("newer", "older"):
        writer = journal.Journal(layout.new_run_folder(root, name))
        if name == "newer":
            layout_format, layout.JOURNAL_FORMAT = layout.JOURNAL_FORMAT, 2
        writer.start(label=name, experiment="e", params={}, tags={})
        layout.JOURNAL_FORMAT = layout_format
        writer.close()
    (newer,) = (root / "runs").glob("newer-*")
    with pytest.raises(fbp.InputError, match=r"expected format 1 or older, got 2; .*update fbp$"):
        journal.read_start(newer)
    assert [start.label for _, start in journal.started_runs(root)] == ["older"]


def test_unknown_kinds_and_entries_of_lines_are_skipped(tmp_path):
    writer = journal.Journal(tmp_path)
    writer.metrics(1, {"a": 1.0})
    for line in (b'{"kind": "later", "x": 1}', b'{"kind": "metrics", "time": 1, "new": 2}'):
        with open(layout.journal(tmp_path), "ab") as file:
            file.write(journal._with_checksum(line))
    known = {"kind": "metrics", "time": 3, "step": 2, "values": {"a": 2.0}, "new": 5}
    with open(layout.journal(tmp_path), "ab") as file:
        file.write(journal._with_checksum(json.dumps(known).encode()))
    assert read_series(tmp_path)["a"].values.tolist() == [1, 2]


def test_a_shipper_that_loses_its_pictures_sends_the_rest(project, monkeypatch):
    pictures = shipper.PictureProcess()
    folder = layout.new_run_folder(project / "mlruns", "a")
    assert pictures.draw(folder, []) == []
    pictures._process.kill()
    assert pictures.draw(folder, []) == ["the process that draws has ended"]


def test_where_a_run_is_sent(project, monkeypatch):
    root = project / "mlruns"
    assert uri.destination(root, "mlflow").place == "embedded"
    assert uri.destination(root, "jsonl") == ("jsonl", str(root / "tracked.jsonl"), "embedded")
    assert uri.destination(root, "jsonl", "x.jsonl").place == "x.jsonl"
    folder = layout.new_run_folder(root, "a")
    writer = journal.Journal(folder)
    writer.start(label="a", experiment="e", params={}, tags={}, sink="jsonl")
    layout.destination(folder).write_text("embedded")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert uri.recorded_destination(folder, override=True).uri == str(root / "tracked.jsonl")
    assert store.is_embedded(uri.default_uri(root))
