"""Comparisons of many runs can be read."""

import io
import re

import pytest
from rich.console import Console

from fbp.experiment.commands import compare
from fbp.experiment.tracking.run_reader import RecordedRun


def recorded(i: int, count: int = 8) -> RecordedRun:
    """Return a run of a sweep over many settings."""
    params = {f"model_setting_{k}": str((i * (k + 3)) % 7 / 10) for k in range(count)}
    metrics = {"test_accuracy": 0.9 + i / 1000, "test_loss": 0.1, "validation_loss": 1 / (i + 1)}
    name = f"digits_mlp,hidden=_64,_64_,learning_rate={i / 1000}-{i:04x}"
    return RecordedRun(
        f"{i:032x}", name, "digits", "FINISHED", 0, 1, params | {"seed": str(i)}, {}, metrics
    )


@pytest.mark.promise("many-runs-readable")
@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("runs", [2, 3, 9, 50])
def test_a_comparison_of_many_runs_fits_the_terminal(width, runs):
    records = [recorded(i) for i in range(runs)]
    labels = compare._labels(records)
    for table in (compare._differences(records, labels), compare._final_metrics(records, labels)):
        fitted = table.fitted(width)
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(fitted.rich())
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= width
        body = [line for line in lines if line.startswith("│")]
        assert len(body) == len(fitted.cells)  # one line a row
        shown = "\n".join(lines)
        if runs == 50:
            assert all(f"-{i:04x}" in shown for i in range(runs))  # each can be told apart
            assert len(fitted.columns) >= 2
        left_out = re.search(r": (\d+) of (\d+);", " ".join(shown.split()))
        every = len(table.cells)
        assert left_out is None or int(left_out[2]) == every
        assert left_out or len(fitted.columns) - 1 in (every, len(labels))


@pytest.mark.promise("many-runs-readable")
def test_a_report_of_many_runs_has_a_row_for_each():
    records = [recorded(i) for i in range(50)]
    table = compare._differences(records, compare._labels(records))
    lines = table.markdown().splitlines()
    rows = [line for line in lines if line.startswith("| digits_mlp")]
    assert len(rows) == 50
    assert lines[2].count("|") == len(table.cells) + 2
