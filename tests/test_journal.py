"""Journals with torn and damaged lines, full disks."""

import errno
import os

import numpy as np
import pytest

from fbp.experiment.rundir import journal, layout
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.recorder import Recorder
from fbp.experiment.rundir.series import read_series


class TestJournal:
    def test_a_torn_line_is_cut(self, tmp_path):
        Journal(tmp_path).metrics(1, {"a": 1})
        with open(tmp_path / layout.JOURNAL, "a") as file:
            file.write('{"kind": "met')
        Journal(tmp_path).metrics(2, {"a": 2})
        assert read_series(tmp_path)["a"].steps.tolist() == [1, 2]

    def test_a_long_torn_line_and_zeros_of_a_lost_power(self, tmp_path):
        Journal(tmp_path).metrics(1, {"a": 1})
        with open(tmp_path / layout.JOURNAL, "ab") as file:
            file.write(b"\0" * 200_000)
        Journal(tmp_path).metrics(2, {"a": 2})
        assert read_series(tmp_path)["a"].steps.tolist() == [1, 2]

    def test_a_full_disk_leaves_whole_lines(self, tmp_path, monkeypatch):
        writer = Journal(tmp_path)
        writer.metrics(1, {"a": 1})
        whole, real = (tmp_path / layout.JOURNAL).read_bytes(), os.write
        calls = []

        def half(file, data):
            calls.append(1)
            if len(calls) > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(file, data[: len(data) // 2])

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space left"):
            writer.metrics(2, {"a": 2})
        assert (tmp_path / layout.JOURNAL).read_bytes() == whole

    def test_what_could_not_be_removed_of_a_line_is_before_the_next(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.EIO, "Input/output error")

        def half(file, data, real=os.write):
            real(file, data[: len(data) // 2])
            full()

        writer = Journal(tmp_path)
        writer.metrics(1, {"a": 1})
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", half)
            patched.setattr(os, "ftruncate", full)
            with pytest.raises(OSError, match="Input/output"):
                writer.metrics(2, {"a": 2})
        writer.metrics(3, {"a": 3})
        assert read_series(tmp_path)["a"].steps.tolist() == [1, 3]
        assert journal.has_prefix(tmp_path, writer.checksum)
        assert writer.checksum.length == (tmp_path / layout.JOURNAL).stat().st_size


def test_a_record_fills_the_gaps_of_a_damaged_journal_and_repeats_nothing(tmp_path):
    values = np.arange(1, 11, dtype=np.float32)
    for write in range(2):
        writer = Journal(tmp_path)
        record = Recorder(writer, 1)
        for first in (1, 4, 7):
            record.steps(first, {"loss": values[first - 1 : first + 2]})
        record.metrics(9, {"x": 1.0, "examples_per_second": write})
        writer.close()
        content = (tmp_path / layout.JOURNAL).read_bytes()
        if not write:  # the middle line is damaged
            (tmp_path / layout.JOURNAL).write_bytes(
                content.replace(b'"first_step": 4', b'"first_step": 5')
            )
            assert read_series(tmp_path)["loss"].steps.tolist() == [1, 2, 3, 7, 8, 9]
    series = read_series(tmp_path)
    assert series["loss"].steps.tolist() == list(range(1, 10))
    assert series["loss"].values.tolist() == list(range(1, 10))
    assert series["examples_per_second"].values.tolist() == [0]
    assert record.first_mismatch is None
    Recorder(Journal(tmp_path), 1).steps(1, {"loss": values[:2]})
    other = Recorder(Journal(tmp_path), 1)
    other.steps(8, {"loss": np.array([8, 9.5, 10], np.float32)})
    other.metrics(9, {"x": 2.0})
    assert other.first_mismatch == ("loss", 9)
    assert read_series(tmp_path)["loss"].values.tolist() == list(range(1, 11))
