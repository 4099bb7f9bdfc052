"""Recorded runs: listed, shown, compared, registered; and stores that do not answer."""

import io

import numpy as np
import pytest
from rich.console import Console

import fbp
from fbp.experiment.commands import compare, tables
from fbp.experiment.tracking.readers import open_runs
from tests.projects import runs_of, said


class TestRuns:
    def test_a_filter_and_an_order_in_mlflows_language(self, inside):
        _, children = runs_of(inside)
        best = sorted(children, key=lambda run: -run.data.metrics["validation_accuracy"])
        output = said(
            "runs",
            "metrics.validation_accuracy > 0.1 and params.optimizer_name = 'adam'",
            "--sort",
            "-metrics.validation_accuracy",
        )
        places = [output.index(run.info.run_id[:8]) for run in best]
        assert places == sorted(places)
        assert "3 runs" in output
        for column in ("validation_accuracy", "optimizer_name", "seed", "FINISHED"):
            assert column in output
        assert "0 runs" in said("runs", "params.optimizer_name = 'sgd'")

    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            (["runs", "metrics.x >>"], "Invalid clause"),
            (
                ["runs", "--tracking-uri", "sqlite:////nowhere/x.db"],
                "sqlite:////nowhere/x.db: there is no such store",
            ),
            (
                ["runs", "--tracking-uri", "postgresql://u:pass@127.0.0.1:1/x"],
                "postgresql://127.0.0.1:1/x: the store does not",
            ),
            (
                ["runs", "--tracking-uri", "http://u:pass@"],
                "tracking URI: expected http(s)://HOST[:PORT], got 'http://'",
            ),
            (
                ["register", "nothing", "name", "--alias", "v1"],
                "expected an alias that MLflow does not keep for itself",
            ),
            (
                ["register", "nothing", "."],
                "expected letters, digits and . - _ in the name, got '.'",
            ),
            (["close-dead", "--minutes", "nan"], "--minutes: expected a number, got nan"),
            (["runs", "--sort", "foo.bar"], "--sort foo.bar ASC: Invalid"),
            (["runs", "--sort", "nothing"], "--sort nothing ASC: Invalid order_by clause"),
            (["runs", "metrics.acc > 0.9"], "no run has metrics.acc; expected one of best_step"),
            (["runs", "--sort", "-metrics.val_accuracy"], "did you mean 'validation_accuracy'"),
            (["show", "nothing"], "no run of that name or id"),
            (["show", "seed-0' or '1'='1"], "no run of that name or id"),
            (["compare", "nothing", "other"], "no run of that name or id"),
            (["register", "nothing", "name"], "no run of that name or id"),
            (["reproduce", "0" * 32], "no run of that name or id"),
            (["resume", "nothing"], "no run of that name or id"),
        ],
    )
    def test_what_is_not_understood_is_one_line(self, inside, words, problem):
        output = said(*words, status=2)
        assert problem in output
        assert len(output.splitlines()) == 1

    def test_a_narrow_terminal_breaks_no_line(self, inside):
        with open_runs(None) as reader:
            children = reader.search("attributes.run_name like 'seed-%'")
        assert len(children) >= 3
        for width in (60, 80, 120, 200):
            rows = tables.runs_table(children, [("metrics", "test_loss")], width)
            assert {"run", "id", "test_loss"} <= set(rows.columns)
            console = Console(width=width, record=True, file=io.StringIO())
            console.print(rows.rich())
            assert len(console.export_text().splitlines()) == 4 + len(children)

    def test_long_names_leave_room_for_results(self, inside):
        with open_runs(None) as reader:
            run, *_ = reader.search("attributes.run_name like 'seed-%'")
        long = run._replace(name=f"{'small,hidden=_8_,learning_rate=0.001,' * 2}seed=0-ab12")
        rows = tables.runs_table([long], [], 80)
        assert {"status", "test_accuracy"} <= set(rows.columns)
        assert rows.cells[0][0].endswith("…-ab12")
        whole = tables.runs_table([long], [], None)
        assert whole.cells[0][0] == long.name

    def test_the_beginning_of_an_id_and_the_end_of_a_name_are_enough(self, inside):
        _, (first, *_) = runs_of(inside)
        for short in (first.info.run_id[:8], first.info.run_name[-4:]):
            assert first.info.run_id in said("show", short)
            assert fbp.load(short).config.name == "small"

    def test_show(self, inside):
        parent, children = runs_of(inside)
        output = said("show", children[0].info.run_id)
        for word in (
            children[0].info.run_name,
            "params_digest",
            "optimizer_learning_rate",
            "digits/train",
            "test_loss",
        ):
            assert word in output
        assert "child runs" in said("show", parent.info.run_name)


class TestCompare:
    def test_a_group_is_compared_with_statistics_and_pictures(self, inside, tmp_path):
        parent, children = runs_of(inside)
        output = said("compare", parent.info.run_name, "--output", tmp_path / "report")
        report = (tmp_path / "report" / "report.md").read_text()
        assert {path.name for path in (tmp_path / "report").iterdir()} == {
            "report.md",
            "learning_curves.png",
            "delta_norms.png",
        }
        values = [run.data.metrics["test_loss"] for run in children]
        mean, spread = np.mean(values), np.std(values, ddof=1)
        low, high = compare.bootstrap(values)
        assert min(values) <= low <= mean <= high <= max(values)
        for text in (output, report):
            assert f"{mean:.5g}" in text
            assert f"{spread:.5g}" in text
            assert f"{low:.5g} to {high:.5g}" in text
            assert f"({values[1] - values[0]:+.3g})" in text
            assert "over the seeds 0, 1, 2" in text
        assert "| seed | 0 | 1 | 2 |" in report
        assert "![learning curves](learning_curves.png)" in report

    def test_one_run_is_not_enough(self, inside):
        assert "expected at least two different runs" in said(
            "compare", runs_of(inside)[1][0].info.run_id, status=2
        )

    def test_the_interval_covers_as_often_as_it_says(self):
        drawn = np.random.default_rng(1).normal(size=(200, 30))
        covered = np.mean([low < 0 < high for low, high in map(compare.bootstrap, drawn)])
        assert 0.88 < covered < 0.99


def test_a_registered_model_is_loaded_by_its_alias(inside):
    _, (first, second, _) = runs_of(inside)
    x = fbp.datasets.digits().train.x[:4]
    for run in (first, second):  # the alias moves
        assert "fbp.load('models:/small@champion')" in said(
            "register", run.info.run_id, "small", "--alias", "champion"
        )
        loaded = fbp.load("models:/small@champion").predict(x)
        np.testing.assert_array_equal(loaded, fbp.load(run.info.run_id).predict(x))
    assert "no such registered model" in said("generate", "models:/nothing@x", status=2)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("reproduce", "list_artifacts"),
        ("reproduce", "download_artifacts"),
        ("reproduce", "get_metric_history"),
        ("show", "search_runs"),
        ("register", "search_logged_models"),
    ],
)
def test_a_store_that_fails_later_is_called_that(inside, monkeypatch, words, call):
    """Not another result, a damaged record, a wrong filter; and no traceback."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def fail(*_, **__):
        raise MlflowException("API request failed with error code 500")

    _, (first, *_) = runs_of(inside)
    monkeypatch.setattr(MlflowClient, call, fail)
    output = said(words, first.info.run_name, *(["m"] if words == "register" else []), status=2)
    assert (
        "the store does not answer (MlflowException: API request failed with error code 500)"
        in output
    )
    assert len(output.strip().splitlines()) <= 3
