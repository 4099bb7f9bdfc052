"""The packages of the runner import only earlier ones; a run stays short to follow by reading."""

import shutil
from pathlib import Path

import pytest

from benchmarks import reading

ROOT = Path(__file__).parent.parent
PACKAGES = ["config", "rundir", "figures", "tracking", "runner", "commands"]


def test_each_package_of_the_runner_imports_only_earlier_ones():
    graph = reading.imports(ROOT / "fbp" / "experiment")
    assert sorted(graph) == sorted(PACKAGES)
    for package, imported in graph.items():
        assert imported <= set(PACKAGES[: PACKAGES.index(package)]), package


def test_levels_of_imports():
    assert reading.levels({"a": set(), "b": {"a"}, "c": {"a", "b"}}) == 3
    with pytest.raises(ValueError, match="a cycle of imports: a -> b -> a"):
        reading.levels({"a": {"b"}, "b": {"a"}})


def test_re_entries_count_calls_and_returns():
    def call(caller, file):
        return reading.Call(file, "f", caller, follows=True, batch=())

    assert reading.re_entries([call("", "a"), call("a", "b"), call("b", "b"), call("a", "c")]) == (
        3,
        1,
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None, reason="a run records the commit")
def test_a_run_is_short_to_follow(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    training, *others = reading.trace_run(ROOT, "xor")
    files, entered_again = reading.re_entries(training.followed())
    # three of them are there for trust: what is read is bounded, and the command that is recorded
    # passes through environment.py and redact.py
    assert files <= 15
    assert entered_again <= 15
    (shipper,) = [trace for trace in others if any("shipper" in word for word in trace.command)]
    assert len(shipper.files()) <= 20  # to seal a record it reads all that the record has
    batch = set().union(*(trace.files_of_a_batch() for trace in (training, *others)))
    assert len(batch) <= 36
