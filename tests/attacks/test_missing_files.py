"""Files of a record that were removed: told in one line, with where they still are."""

import shutil
from pathlib import Path

import pytest

import fbp
from fbp.errors import InputError
from fbp.experiment.commands import missing
from fbp.experiment.rundir import journal, layout
from fbp.experiment.tracking.shipment import read_sent
from tests.attacks.damage import one_line
from tests.projects import said

REMOVED = {
    "the configuration": ["config.toml"],
    "the parameters": ["model/params.npz"],
    "the facts of the model": ["model/model.json"],
    "the history": ["history"],
    "the environment": ["environment.json"],
    "all": ["."],
}


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    """Return a copy of the project of a finished run, and its run's name."""
    shutil.copytree(finished[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said("repair-store")
    (folder,) = (tmp_path / "copy" / "mlruns" / "runs").iterdir()
    return tmp_path / "copy", folder, journal.require_start(folder).name


def remove(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        assert path.exists()
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.mark.promise("missing-is-told")
@pytest.mark.parametrize("names", REMOVED.values(), ids=REMOVED)
def test_what_was_removed_from_mlflow_is_told(copied, names):
    project, folder, name = copied
    for artifacts in (project / "mlruns" / "artifacts").glob("small/*/artifacts"):
        remove(artifacts, names)
    expected = "history/metrics.csv" if names == ["history"] else names[0].strip(".")
    for words, status in ((["show"], 0), (["reproduce"], 2)):
        output = said(*words, name, status=status)
        (line,) = [line for line in output.splitlines() if "missing in" in line]
        assert line.startswith(f"fbp: run {name}: ")
        assert expected in line
        assert str(folder) in line  # where the run still has them
        assert "--tracking-uri folders" in line
    comparison = said("show", folder, "--tracking-uri", "folders")
    assert "missing in" not in comparison


@pytest.mark.promise("missing-is-told")
@pytest.mark.parametrize("names", REMOVED.values(), ids=REMOVED)
def test_what_was_removed_from_the_folder_of_a_run_is_told(copied, names):
    _, folder, name = copied
    remove(layout.artifacts(folder), names)
    folders = ["--tracking-uri", "folders"]
    if names != ["history"]:  # the journal has it
        output = said("show", name, *folders)
        (line,) = [line for line in output.splitlines() if "missing in" in line]
        assert line.startswith(f"fbp: run {name}: ")
        assert "from a backup" in line
        assert "missing in" in said("reproduce", name, *folders, status=2)
    if "model" in names[0] or names == ["."]:
        for path in (folder, name, folder.name):
            with pytest.raises(InputError) as caught:
                fbp.load(path)
            line = one_line(caught.value)
            assert line.startswith(f"run {name}: ")
            assert "missing in" in line
            assert "from a backup" in line
        assert f"run {name}: " in said("generate", name, status=2)


@pytest.mark.promise("missing-is-told")
def test_a_model_that_was_removed_from_mlflow_is_told_by_load(copied):
    project, folder, name = copied
    run_id = read_sent(folder).run_id
    for artifacts in (project / "mlruns" / "artifacts").glob("small/*/artifacts"):
        remove(artifacts, ["model"])
    shutil.rmtree(folder)
    with pytest.raises(InputError) as caught:
        fbp.load(run_id)
    line = one_line(caught.value)
    assert line.startswith(f"run {name}: model/params.npz, model/config.toml, model/model.json are")
    assert "/tmp/tmp" not in line


@pytest.mark.promise("missing-is-told")
def test_a_damaged_model_from_mlflow_is_named_and_not_a_temporary_folder(copied):
    project, folder, name = copied
    run_id = read_sent(folder).run_id
    for path in (project / "mlruns" / "artifacts").glob("small/*/artifacts/model/params.npz"):
        path.write_bytes(b"damaged")
    shutil.rmtree(folder)
    with pytest.raises(InputError) as caught:
        fbp.load(run_id)
    assert one_line(caught.value).startswith(f"run {name}: the trained model is damaged")


@pytest.mark.promise("missing-is-told")
def test_compare_says_which_runs_lack_what(copied, monkeypatch):
    _, _, name = copied
    monkeypatch.setattr(missing, "missing_artifacts", lambda runs, run: ["config.toml"])
    run = fbp.experiment.tracking.run_reader.RecordedRun(
        "1", "b", "e", "FINISHED", 0, 1, {}, {}, {}
    )
    from fbp.experiment.commands import compare

    monkeypatch.setattr(compare, "expand", lambda runs, found: [found, run._replace(run_id="2")])
    monkeypatch.setattr(
        fbp.experiment.tracking.mlflow_runs.MlflowRuns, "series", lambda self, run: {}
    )
    monkeypatch.setattr(
        fbp.experiment.tracking.mlflow_runs.MlflowRuns, "layers", lambda self, run: {}
    )
    output = said("compare", name, "--output", "report")
    assert f"fbp: run {name}: config.toml is missing in" in output
    assert "config.toml is missing in" in Path("report/report.md").read_text()
