"""The contest: who may take part, who is not timed, what is written."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import compare_runs, contest, contestants, growth, report
from benchmarks.__main__ import main

ROOT = Path(__file__).parent.parent


def test_costs_must_agree():
    curve = [2.0, 1.5, 1.2]
    assert contest.disagreement(curve, curve) is None
    assert contest.disagreement([2.0, 1.51, 1.19], curve) is None
    assert "before the first update" in contest.disagreement([2.01, 1.5, 1.2], curve)
    assert "at step 3" in contest.disagreement([2.0, 1.5, 1.3], curve)
    assert "at step 2" in contest.disagreement([2.0, float("nan"), 1.2], curve)
    assert "2 steps" in contest.disagreement(curve[:2], curve)


@pytest.fixture
def here(monkeypatch):
    """Contestants' processes find this test's works."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FBP_DATA", "nowhere")


def test_a_contest_is_timed_and_written(here, tmp_path, capsys, monkeypatch):
    words = [
        "benchmarks",
        "--only",
        "mlp",
        "--contestants",
        "fbp,jax",
        "--rounds",
        "2",
        "--output",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", words)
    assert main() == 0
    shown = capsys.readouterr().out
    assert "| fbp | " in shown
    assert "| jax.grad + scan | " in shown
    content = json.loads((tmp_path / "contest.json").read_text())
    results = content["works"]["mlp"]["results"]
    assert [len(r["seconds"]) for r in results] == [2, 2]
    assert all(len(r["costs"]) == content["works"]["mlp"]["steps"] == 100 for r in results)
    assert content["machine"]["cores"] >= 1
    assert "jax" in content["packages"]
    assert (tmp_path / "contest.md").read_text().startswith("# Time of each contestant")
    assert (tmp_path / "contest.png").stat().st_size > 5000


@pytest.mark.slow
def test_who_disagrees_is_reported_and_not_timed(here, monkeypatch):
    class Costly(contest._Process):
        """A contestant who trains something else."""

        def answer(self):
            said = super().answer()
            if "costs" in said and self.name == "jax":
                said["costs"] = [cost * 1.1 for cost in said["costs"]]
            return said

        def __init__(self, work, name):
            self.name = name
            super().__init__(work, name)

    monkeypatch.setattr(contest, "_Process", Costly)
    ours, other = contest.contest("mlp", ["fbp", "jax"], 1)
    assert ours.error is None
    assert len(ours.seconds) == 1
    assert other.seconds == []
    assert "costs disagree" in other.error
    assert "not timed: costs disagree" in report.table("mlp", [ours, other])


def test_who_is_not_installed_or_breaks_is_left_out(here, monkeypatch, capsys):
    absent = contestants.Entry("Absent", "absent", ("a_package_that_nobody_has",), ())
    monkeypatch.setitem(contestants.ENTRIES, "absent", absent)
    assert contest.contest("mlp", ["absent"], 1) == []
    assert "Absent left out: a_package_that_nobody_has not installed" in capsys.readouterr().err
    process = contest._Process("mlp", "nobody")
    with pytest.raises(contest.Stopped, match="nobody"):
        process.answer()
    process.close()


@pytest.mark.parametrize(
    "words", [["--only", "nothing"], ["--contestants", "fbp,nobody"], ["--rounds", "0"]]
)
def test_bad_choices_are_one_clear_line(words):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith(("benchmarks: unknown", "python -m benchmarks: error"))
    )


def test_slopes_are_exponents():
    sizes = [2, 4, 8, 16, 32, 64]
    assert growth.slope(sizes, [3.0 * n**2 for n in sizes]) == pytest.approx(2.0)


def test_every_contestant_has_every_network():
    """As far as what is installed here can tell."""
    from benchmarks.works import WORKS

    for name in ("plain_jax", "ours"):
        module = __import__(f"benchmarks.contestants.{name}", fromlist=["prepare"])
        assert callable(module.prepare)
        for work in WORKS.values():
            assert name == "ours" or callable(getattr(module, work.network))


def write_run(mlruns, node="1 1x1", key="first", loss=0.5, weight=1.0):
    """Write a run's journal and model, with the names of an old version unless others are given."""
    folder = mlruns / "runs" / "tiny-20260101-000000-abcd"
    (folder / "artifacts" / "model").mkdir(parents=True)
    column = base64.b64encode(np.array([2.0, loss], "<f4").tobytes()).decode()
    lines = [
        {"kind": "steps", key: 1, "columns": {"loss": column}},
        {"kind": "metrics", "step": 2, "values": {f"delta_norm/{node}/0": 0.25, "seconds": loss}},
        {"kind": "checkpoint", "step": 2, "tensors": {f"{node}/w": node, "head/w": "same"}},
        {"kind": "end", "status": "FINISHED"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "journal.jsonl").write_text(text + '{"kind": "met')
    arrays = {f"params|{node}|w": np.float32([weight])}
    np.savez(folder / "artifacts" / "model" / "params.npz", **arrays)
    return mlruns


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, "| tiny | 1 | 3 | 1 (1) | 0 | identical |"),
        ({"loss": 0.25}, "tiny: metric loss: was 0.5, is 0.25 at step 2; 1 of 2 steps differ"),
        ({"weight": 1.5}, "tiny: parameter params/1_1x1/w: differs by at most 0.5"),
        ({"node": "2_1x1"}, "tiny: parameter params/1_1x1/w: missing"),
    ],
    ids=["same", "metric", "parameter", "path"],
)
def test_runs_of_two_versions_are_compared_with_their_names_mapped(
    tmp_path, monkeypatch, capsys, change, line
):
    old = write_run(tmp_path / "old")
    new = write_run(tmp_path / "new", **{"node": "1_1x1", "key": "first_step"} | change)
    monkeypatch.setattr(sys, "argv", ["compare_runs", str(old), str(new)])
    assert compare_runs.main() == int(bool(change))
    assert line in capsys.readouterr().out.splitlines()
