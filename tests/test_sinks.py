"""Trackers beside MLflow, a user's own one, and commands in a project that has no MLflow store."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest

import fbp
from fbp.experiment import track
from fbp.experiment.commands import launch
from fbp.experiment.config import reading, writing
from fbp.experiment.rundir import environment, journal, layout
from fbp.experiment.rundir.series import read_series
from fbp.experiment.runner import backend_check
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
    assert "nothing to send" in said("sync")
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
    assert ["artifacts", ["environment.json", "history", "manifest.json"]] in [
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
    assert uri.destination(root, "jsonl", "x.jsonl").place == str(project / "x.jsonl")
    folder = layout.new_run_folder(root, "a")
    writer = journal.Journal(folder)
    writer.start(label="a", experiment="e", params={}, tags={}, sink="jsonl")
    layout.destination(folder).write_text("embedded")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert uri.recorded_destination(folder, override=True).uri == str(root / "tracked.jsonl")
    assert store.is_embedded(uri.default_uri(root))


@pytest.fixture
def lines(tmp_path):
    """A sink of JSON lines with a run in it, and its file."""
    path = tmp_path / "lines.jsonl"
    target = JsonlSink(str(path), tmp_path)
    target.open(RunInfo("folder", "name", "experiment", 5, {}))
    return target, path


def test_a_full_disk_leaves_no_part_of_a_line(lines):
    target, path = lines
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 30, limits[1]))
    try:
        with pytest.raises(OSError):  # noqa: PT011  # its class depends on the disk
            target.set_tags({"a": "1"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    target.set_tags({"a": "2"})
    assert entries_of(path)[1:] == [{"run": target._run_id, "event": "tags", "tags": {"a": "2"}}]


@pytest.mark.parametrize("part", [b'{"r', b'{"run": "x", "event": "ta'])
def test_a_part_of_a_line_is_removed_before_the_next(lines, part):
    target, path = lines
    with open(path, "ab") as file:
        file.write(part)
    target.set_tags({"a": "1"})
    assert [entry["event"] for entry in entries_of(path)] == ["run", "tags"]


@pytest.mark.parametrize("last", ["my own notes", '{"run": "x", "event": "end"}'])
def test_a_whole_last_line_is_not_removed(lines, last):
    """An editor may have taken its newline, or the file may be another program's."""
    target, path = lines
    path.write_text(path.read_text() + last)
    target.set_tags({"a": "1"})
    assert path.read_text().splitlines()[1] == last
    assert json.loads(path.read_text().splitlines()[2])["event"] == "tags"


@pytest.mark.parametrize("address", ["sqlite:////x.db", "http://user:word@host"])
def test_a_file_of_lines_is_no_server(project, address):
    for use in (
        lambda: JsonlSink(address, project),
        lambda: uri.destination(project / "mlruns", "jsonl", address),
    ):
        with pytest.raises(fbp.InputError, match="tracker jsonl: expected the path of a file") as e:
            use()
        assert "word" not in str(e.value)
    assert [path.name for path in project.iterdir()] == ["mlruns"]


def a_run(root, label, sink):
    folder = layout.new_run_folder(root, label)
    writer = journal.Journal(folder)
    writer.start(label=label, experiment="e", params={}, tags={}, sink=sink)
    writer.end("FINISHED")
    writer.close()
    layout.destination(folder).write_text("embedded")
    return folder


def test_a_tracker_that_is_gone_stops_no_other_run(project):
    lost = a_run(project / "mlruns", "a", "no_such_module:Own")
    sent = a_run(project / "mlruns", "b", "jsonl")
    output = said("sync", status=1)
    (problem,) = [line for line in output.splitlines() if "not sent" in line]
    assert problem.startswith(f"{lost.name}: not sent: ")
    assert "no_such_module" in problem
    assert "1 of 2 runs sent" in output
    assert is_sent(sent)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('self.write("open", run.name)', "import sys; sys.exit(0)", "SystemExit: 0"),
        ('return "id-of-" + run.folder', "return None", "open: expected the run's id"),
        ('return "id-of-" + run.folder', 'return ""', "open: expected the run's id"),
    ],
)
def test_a_sink_that_opens_no_run_has_failed(project, monkeypatch, old, new, problem):
    monkeypatch.setenv("FBP_RETRY_SECONDS", "0")
    monkeypatch.syspath_prepend(project)
    monkeypatch.setenv("PYTHONPATH", str(project), prepend=":")
    (project / "poor_tracker.py").write_text(OWN.replace(old, new))
    folder = a_run(project / "mlruns", "a", "poor_tracker:Own")
    monkeypatch.delitem(sys.modules, "poor_tracker", raising=False)
    sink.load("poor_tracker:Own")  # as every command does that starts a shipper
    process = shipper.launch(folder, sink.Destination("poor_tracker:Own", "", ""), PYFUNC_CODE)
    assert process.wait(60) == 1
    assert problem in layout.shipper_log(folder).read_text()
    assert not layout.sent(folder).exists()


def test_an_unfinished_run_is_looked_for_beside_those_of_a_newer_fbp(project):
    config = reading.read(write_config(project))
    folders = [layout.new_run_folder(project / "mlruns", name) for name in ("small", "zz")]
    for folder, number in zip(folders, (1, 2), strict=True):
        line = {"kind": "start", "format": number, "time": 1, "label": "a", "name": "a"}
        line |= {"experiment": "e", "params": {}, "tags": {}}
        layout.journal(folder).write_bytes(journal._with_checksum(json.dumps(line).encode()))
        layout.config(folder).parent.mkdir(exist_ok=True)
        layout.config(folder).write_text(writing.to_toml(config))
    assert launch._unfinished_run(project / "mlruns", config) == folders[0]


def test_a_user_without_a_home_has_a_private_cache(tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(environment.Path, "home", no_home)
    monkeypatch.setattr(environment.tempfile, "tempdir", str(tmp_path))
    folder = environment.cache_folder()
    assert folder == environment.cache_folder() == one(tmp_path)
    assert folder.name == f"fbp-{environment.os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)  # as somebody else may have made it
    with pytest.raises(OSError, match="Not a directory"):
        environment.cache_folder().mkdir(parents=True)


def test_a_cached_verdict_may_be_damaged_or_impossible_to_write(tmp_path):
    verdict = backend_check._Verdict("cpu", ())
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert backend_check._read(tmp_path / "deep.json") is None
    (tmp_path / "folder" / "taken.json").mkdir(parents=True)
    backend_check._write(tmp_path / "folder" / "taken.json", verdict)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["taken.json"]
    backend_check._write(tmp_path / "good.json", verdict)
    assert backend_check._read(tmp_path / "good.json") == verdict
