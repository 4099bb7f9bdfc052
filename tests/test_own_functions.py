"""What a user's own functions return is checked before a run begins."""

import pytest

from fbp.experiment.config import reading
from fbp.experiment.rundir import layout
from fbp.experiment.runner import run as run_module
from fbp.experiment.runner.run_start import RunIdentity
from tests.own_functions import override, refusal
from tests.projects import Silent


@pytest.mark.parametrize(
    ("kind", "name", "problem"),
    [
        (
            "data",
            "nothing",
            "data 'mine:nothing': expected a function that returns a Dataset, got None",
        ),
        (
            "model",
            "net_nothing",
            "model 'mine:net_nothing': expected a function that returns a Layer, got None",
        ),
        (
            "activation",
            "nothing",
            "activation 'mine:nothing': expected a function that returns a Layer, got None",
        ),
        (
            "initializer",
            "nothing",
            "initializer 'mine:nothing': expected a function (key, shape, dtype)",
        ),
        (
            "initializer",
            "draw_wrong",
            "initializer 'mine:draw_wrong': expected float32 of shape (4, 4), "
            "got float32 of shape (7,)",
        ),
        (
            "loss",
            "nothing",
            "loss 'mine:nothing': expected a Loss, or a function that returns one, got None",
        ),
        (
            "loss",
            "cost_wrong",
            "loss 'mine:cost_wrong': expected a value of shape (B,), got float32 of shape (B, 3)",
        ),
        (
            "optimizer",
            "rule_wrong",
            "optimizer 'mine:rule_wrong': expected updates of the parameters' structure",
        ),
        (
            "optimizer",
            "rule_state",
            "optimizer 'mine:rule_state': expected an update that keeps the structure",
        ),
        (
            "schedule",
            "nothing",
            "schedule 'mine:nothing': expected a function that returns a schedule",
        ),
        (
            "schedule",
            "rows",
            "schedule 'mine:rows': expected one number, of shape (), got float32 of shape (2,)",
        ),
        ("metric", "nothing", "metric 'mine:nothing': expected a function (output, target)"),
        (
            "metric",
            "top_wrong",
            "metric 'top_wrong': expected one number per example, of shape (B,), "
            "got float32 of shape (B, 3)",
        ),
        ("augmentation", "nothing", "augmentation 'mine:nothing': expected a function (key, x)"),
        (
            "augmentation",
            "noise_wrong",
            "augmentation 'mine:noise_wrong': expected examples as they came, float32 of shape "
            "(B, 4), got float32 of shape (B, 1)",
        ),
        ("data", "raises", "data 'mine:raises' raised KeyError: 'oh no'"),
        ("data", "points_wrong", "data 'points', train part: expected examples with features"),
        ("model", "net_raises", "model 'mine:net_raises' raised KeyError: 'x'"),
        ("activation", "raises", "activation 'mine:raises' raised KeyError"),
        ("initializer", "draw_raises", "initializer 'mine:draw_raises' raised KeyError"),
        ("loss", "raises", "loss 'mine:raises' raised KeyError"),
        ("loss", "cost_raises", "loss 'mine:cost_raises' raised KeyError"),
        ("optimizer", "rule_raises", "optimizer 'mine:rule_raises' raised KeyError"),
        ("schedule", "rows_raises", "schedule 'mine:rows_raises' raised KeyError"),
        ("metric", "top_raises", "metric 'top_raises' raised KeyError"),
        ("augmentation", "noise_raises", "augmentation 'mine:noise_raises' raised KeyError"),
        (
            "model",
            "net_with_text_in_cache",
            "model 'mine:net_with_text_in_cache', layer 1/body (odd): expected arrays in the cache "
            "that forward returns, got a value of type str; put only arrays there",
        ),
        ("model", "net_thing", "expected arguments of types that a file can hold"),
        (
            "model",
            "net_without",
            "model 'mine:net_without': expected a function with an argument 'outputs'",
        ),
    ],
)
def test_what_a_reference_stands_for_is_checked(own_minimal, kind, name, problem):
    assert problem in refusal(own_minimal, override(kind, f"mine:{name}"))


def test_a_summary_that_cannot_be_made_costs_a_note_only(own_minimal, monkeypatch):
    def fail(*_):
        raise TypeError("no summary\nof this")

    monkeypatch.setattr(run_module._summary, "summarize", fail)
    reporter, notes = Silent(), []
    reporter.note = notes.append
    folder = layout.new_run_folder(own_minimal.parent / "mlruns", "minimal")
    config = reading.read(own_minimal, ["training.steps=2"])
    outcome = run_module.run(config, RunIdentity(own_minimal, "minimal"), folder, reporter)
    assert outcome.status == "FINISHED"
    assert notes[-1] == "the model has no summary and no picture: TypeError: no summary"
    assert not layout.summary(folder).exists()
