"""Attacks by size: headers are checked first, memory and messages are bounded."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest

from fbp import datasets
from fbp.datasets import check
from tests.attacks.datafiles import refusal

MEMORY = """
import json, sys
import fbp.datasets, pandas, pyarrow.csv, pyarrow.parquet  # pyarrow imports pandas when it reads
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
before = peak()
data = fbp.datasets.check(fbp.datasets.file(sys.argv[1], task="classification"))
fbp.datasets.prepare(data, seed=0, standardize=sys.argv[2] == "True", overwrite=True)
print(json.dumps(peak() - before))
"""


@pytest.mark.promise("reading-memory")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_reading_takes_at_most_twice_the_file(tmp_path, kind, dtype):
    rows = 80 * 2**20 // (200 * np.dtype(dtype).itemsize)
    x = np.random.default_rng(0).normal(size=(rows, 200)).astype(dtype)
    y = np.arange(rows) % 2
    path = tmp_path / f"d.{kind}"
    if kind == "npz":
        np.savez(path, x=x, y=y)
    else:
        columns = {f"x{i}": x[:, i] for i in range(200)}
        pd.DataFrame({**columns, "y": y}).to_parquet(path, index=False)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path), "True"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) < 2 * path.stat().st_size


def npz_member(header, content=b"", compress=zipfile.ZIP_STORED, name="x.npy"):
    """An archive with a header of its own in the place of ``x``, and good labels."""
    buffer, labels = io.BytesIO(), io.BytesIO()
    np.save(labels, np.arange(4) % 2)
    padded = header.ljust(117).encode() + b"\n"
    with zipfile.ZipFile(buffer, "w") as archive:
        start = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little")
        archive.writestr(name, start + padded + content, compress)
        archive.writestr("y.npy", labels.getvalue())
    return buffer.getvalue()


def header(shape, dtype="'<f8'"):
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"


HEADERS = {
    "absurd shape": (npz_member(header((10**9, 10**9)), b"x" * 64), "says that it is float64"),
    "shape beyond 64 bits": (npz_member(header((2**40, 2**40)), b"x" * 64), "bytes are stored"),
    "negative shape": (npz_member(header((-4, -2)), b"x" * 64), "is damaged"),
    "too little stored": (npz_member(header((4, 2)), b"x" * 63), "but 63 bytes are stored"),
    "too much stored": (npz_member(header((4, 2)), b"x" * 65), "but 65 bytes are stored"),
    "objects": (npz_member(header((4, 2), "'|O'"), b"x" * 64), "Python objects"),
    "objects in fields": (
        npz_member(header((4,), "[('a', '|O')]"), b"x" * 32),
        "Python objects",
    ),
    "fields": (npz_member(header((4,), "[('a', '<f8'), ('b', '<f8')]"), b"x" * 64), "real numbers"),
    "complex": (npz_member(header((4, 1), "'<c16'"), b"x" * 64), "expected real numbers"),
    "dates": (npz_member(header((4, 2), "'<M8[s]'"), b"x" * 64), "expected real numbers"),
    "void": (npz_member(header((4, 2), "'|V8'"), b"x" * 64), "expected real numbers"),
    "code as header": (npz_member("__import__('os').abort()", b"x" * 64), "cannot be read"),
    "no array": (npz_member("", b"", name="x"), "cannot be read"),
    "no features": (npz_member(header((4, 0))), "expected features"),
    "no axis": (npz_member(header(()), b"x" * 8), "expected features"),
}


@pytest.mark.promise("headers-first")
@pytest.mark.parametrize("case", HEADERS)
def test_an_archive_is_checked_by_its_headers(tmp_path, case):
    content, problem = HEADERS[case]
    (tmp_path / "d.npz").write_bytes(content)
    assert problem in refusal(lambda: check(datasets.file(str(tmp_path / "d.npz"))))


@pytest.mark.promise("headers-first")
def test_an_archive_that_unpacks_to_gigabytes_is_refused_unread(tmp_path, monkeypatch):
    rows = 2**21
    buffer = npz_member(header((rows, 80)), b"\0" * (rows * 640), zipfile.ZIP_DEFLATED)
    (tmp_path / "d.npz").write_bytes(buffer)
    assert len(buffer) < 4e6
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("was read"))
    assert "unpacks to" in refusal(lambda: datasets.file(str(tmp_path / "d.npz")))


@pytest.mark.promise("headers-first")
def test_arrays_beyond_the_memory_are_refused_unread(tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 2)), y=np.arange(4) % 2)
    monkeypatch.setattr("os.sysconf", lambda name: 4)
    assert "of memory" in refusal(lambda: datasets.file(str(tmp_path / "d.npz")))


@pytest.mark.promise("headers-first")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        for name in ("x.npy", "y.npy", "x"):
            archive.writestr(name, b"")
    assert "two arrays of the same name" in refusal(lambda: datasets.file(str(tmp_path / "d.npz")))


@pytest.mark.promise("long-lists-cut")
@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_a_wrong_target_prints_the_nearest_names_and_a_count(tmp_path, kind):
    names, path = [f"gene_{i}" for i in range(20_000)], tmp_path / f"d.{kind}"
    if kind == "csv":
        path.write_text(",".join(names) + "\n" + ",".join(["1"] * 20_000) + "\n")
    elif kind == "parquet":
        pd.DataFrame(np.ones((1, 20_000)), columns=names).to_parquet(path)
    else:
        np.savez(path, **{name: np.zeros(0) for name in names[:3000]})
    line = refusal(lambda: datasets.file(str(path), target="gene_1x"))
    assert ("'gene_1'" in line and "20,000" in line) or "and 2,988 more" in line
    far = refusal(lambda: datasets.file(str(path), target="?"))
    assert "more" in far


@pytest.mark.promise("long-lists-cut")
@pytest.mark.parametrize("kind", ["text columns", "duplicates", "test labels"])
def test_no_other_message_lists_thousands_of_names(tmp_path, kind):
    names, path = [f"gene_{i}" for i in range(20_000)], tmp_path / "d.parquet"
    if kind == "text columns":
        pd.DataFrame([["t"] * 20_000], columns=names).to_parquet(path)
    elif kind == "duplicates":
        path = tmp_path / "d.csv"
        path.write_text(",".join(names * 2) + "\n")
    else:
        path = tmp_path / "d.npz"
        x, y = np.zeros((20_000, 1)), np.array(names)
        np.savez(path, x=x[:4], y=np.array(list("abab")), x_test=x, y_test=y)
    assert "more" in refusal(lambda: datasets.file(str(path)))
