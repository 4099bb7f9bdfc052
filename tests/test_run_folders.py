"""Runs read from their folders, where no tracker has them, and without mlflow."""

import math
import os
import subprocess
import sys

import pytest

import fbp
from fbp.experiment.rundir import layout
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.series import metrics_digest
from fbp.experiment.tracking.folder_runs import FolderRuns, find_folder
from fbp.experiment.tracking.readers import open_runs
from fbp.experiment.tracking.run_filter import parse_filter, sort_runs
from fbp.experiment.tracking.run_reader import RecordedRun
from tests.projects import command, runs_of, said, without_mlflow, write_config


def a_run(name, **values):
    fields = {"run_id": f"id-{name}", "experiment": "e", "status": "FINISHED", "start": 0}
    empty = {"end": None, "params": {}, "tags": {}, "metrics": {}}
    return RecordedRun(**(fields | empty | {"name": name} | values))


RUNS = [
    a_run("a", metrics={"loss": 0.5}, params={"optimizer_name": "adam"}, start=1),
    a_run("b", metrics={"loss": 0.1}, params={"optimizer_name": "sgd"}, start=2),
    a_run("c", metrics={"loss": math.nan, "x/y": 1.0}, tags={"with space": "A%"}, start=3),
    a_run("d", status="KILLED", start=4),
]


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ("", "abcd"),
        ("metrics.loss < 0.3", "b"),
        ("metrics.loss >= 0.1 and params.optimizer_name = 'adam'", "a"),
        ("params.optimizer_name != 'adam'", "b"),
        ("metrics.`x/y` = 1", "c"),
        ("tags.`with space` LIKE 'A_'", "c"),
        ("params.optimizer_name ILIKE 'AD%' AND status = 'FINISHED'", "a"),
        ('attributes.status = "KILLED"', "d"),
        ("attributes.start_time > 2", "cd"),
    ],
)
def test_a_filter_selects_as_mlflow_does(condition, names):
    clauses = parse_filter(condition)
    selected = [run.name for run in RUNS if all(clause.holds(run) for clause in clauses)]
    assert selected == list(names)


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        ("metrics.loss >>", "Invalid clause"),
        ("metrics.loss > 1 or metrics.loss < 0", "expected 'and' between clauses"),
        ("metrics.loss > 1 and ", "expected a clause after 'and'"),
        ("metrics.loss > 'x'", "expected a number after loss, got 'x'"),
        ("params.a > 'x'", "expected one of =, !=, like, ilike, got '>'"),
        ("foo = 'x'", "Invalid attribute key 'foo'"),
    ],
)
def test_a_filter_that_is_not_understood_is_one_line(condition, problem):
    with pytest.raises(fbp.InputError) as error:
        parse_filter(condition)
    assert problem in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_runs_are_sorted_and_missing_values_come_last():
    def order(*keys):
        return "".join(run.name for run in sort_runs(RUNS, keys))

    assert order("metrics.loss ASC") == "bacd"
    assert order("metrics.loss DESC") == "abcd"
    assert order("attributes.start_time DESC") == "dcba"
    assert order("status ASC", "metrics.loss ASC") == "bacd"
    with pytest.raises(fbp.InputError, match="--sort x: Invalid order_by clause"):
        order("x")


def a_folder(root, label, status, **start):
    folder = layout.new_run_folder(root, label)
    writer = Journal(folder)
    writer.start(label=label, experiment="e", params={"seed": "1"}, tags={}, **start)
    writer.metrics(1, {"loss": 2.0})
    writer.metrics(2, {"loss": 1.0})
    if status:
        writer.tags({"fbp.message": "hello"})
        writer.end(status)
    writer.close()
    return folder


def test_a_folder_has_all_that_a_store_has(project):
    root = project / "mlruns"
    group = a_folder(root, "group", "FINISHED")
    child = a_folder(root, "child", "FAILED", parent=group.name, layers={"0": "dense"})
    dead = a_folder(root, "dead", None)
    reader = FolderRuns(root)
    assert {run.name: run.status for run in reader.search()} == {
        f"group-{group.name[-4:]}": "FINISHED",
        f"child-{child.name[-4:]}": "FAILED",
        f"dead-{dead.name[-4:]}": "KILLED",
    }
    run = reader.find(child.name)
    assert (run.metrics, run.params) == ({"loss": 1.0}, {"seed": "1"})
    assert run.tags["fbp.message"] == "hello"
    assert [found.name for found in reader.children(reader.find(str(group)))] == [run.name]
    assert reader.layers(run) == {"0": "dense"}
    assert reader.series(run)["loss"].values.tolist() == [2.0, 1.0]
    for name in (run.run_id, run.run_id[:8], run.name, run.name[-4:], child.name, str(child)):
        assert reader.find(name) == run
        assert find_folder(root, name).samefile(child)
    assert find_folder(root, "nothing") is None
    with pytest.raises(fbp.InputError, match="no run of that name or id"):
        reader.find("nothing")


def test_commands_read_the_run_folders_where_mlflow_cannot_be_imported(inside, tmp_path):
    _, (first, *_) = runs_of(inside)
    name, params = first.info.run_name, first.data.params
    every = [run.info.run_name for run in runs_of(inside)[1]]
    results = without_mlflow(
        ["runs", "metrics.test_loss > 0 and params.seed = '0'", "--sort", "-metrics.test_loss"],
        ["show", name],
        ["compare", *every, "--output", str(tmp_path)],
        ["generate", name],
        ["close-dead"],
        ["register", name, "model"],
    )
    assert [status for status, _, _ in results] == [0, 0, 0, 2, 2, 2], results
    runs, shown, compared, generated, *others = (output for _, output, _ in results)
    assert "expected a language model" in generated  # the model itself was loaded
    for output in others:
        assert "pip install" in output
        assert len(output.splitlines()) == 1
    assert name in runs
    for word in (first.info.run_id, params["optimizer_learning_rate"], "digits/train"):
        assert word in shown
    assert first.data.tags["fbp.params_digest"] in shown
    assert "over the seeds 0, 1, 2" in compared
    assert (tmp_path / "learning_curves.png").exists()


def test_the_two_readers_agree(inside):
    with open_runs(None) as reader:
        group = reader.find(runs_of(inside)[0].info.run_id)
        for run in (group, *reader.children(group)):
            folders = FolderRuns(layout.root())
            local = folders.find(run.name)
            assert local[:4] == run[:4]
            assert local.params == run.params
            assert local.parent_id == run.parent_id
            assert sorted(local.datasets) == sorted(run.datasets)
            assert folders.checkpoints(local) == reader.checkpoints(run)
            assert folders.layers(local) == reader.layers(run)
            assert metrics_digest(folders.series(local)) == metrics_digest(reader.series(run))


def test_runs_of_other_trackers_are_found_beside_an_mlflow_store(project, warm):
    folder = a_folder(project / "mlruns", "elsewhere", "FINISHED", sink="jsonl")
    output = said("runs")
    assert "0 runs" in output
    assert "1 more in other trackers: fbp runs --tracking-uri folders" in output
    assert folder.name[-4:] in said("runs", "--tracking-uri", "folders")
    assert "FINISHED" in said("show", f"elsewhere-{folder.name[-4:]}")


@pytest.mark.slow
def test_a_run_is_made_read_and_reproduced_where_mlflow_cannot_be_imported(project):
    """In every process: sitecustomize blocks mlflow in those that the commands start, too."""
    (project / "block").mkdir()
    (project / "block" / "sitecustomize.py").write_text("import sys; sys.modules['mlflow'] = None")
    paths = [str(project / "block"), *sys.path]
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def output(*words):
        done = subprocess.run(
            command(*words), env=settings, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    path = write_config(project, data="digits", more='[tracking]\nsink = "jsonl"\n')
    output("run", path)
    (folder,) = (project / "mlruns" / "runs").iterdir()
    assert "identical to the bit" in output("reproduce", folder.name)
    assert "1 run" in output("runs", "tags.`fbp.reproduction` = 'identical'")
    assert not (project / "mlruns" / "mlflow.db").exists()
