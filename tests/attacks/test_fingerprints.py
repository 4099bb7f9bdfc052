"""Attacks on fingerprints: data sets that differ have different ones."""

import numpy as np
import pytest

from fbp import datasets
from fbp.datasets import Dataset, Examples, check
from tests.attacks.datafiles import built


def examples(x=((1.0, 2.0), (3.0, 4.0)), y=(0, 1), dtype=np.float32):
    return Examples(np.array(x, dtype), np.array(y, np.int32))


BASE = Dataset("d", examples(), classes=("a", "b"), tokens=("u", "v"))
CHANGES = {
    "a class": BASE._replace(classes=("a", "c")),
    "a token": BASE._replace(tokens=("u", "w")),
    "the order of classes": BASE._replace(classes=("b", "a")),
    "classes joined": BASE._replace(classes=("ab",)),
    "a class moved to the tokens": BASE._replace(classes=("a",), tokens=("b", "u", "v")),
    "an empty class": BASE._replace(classes=("a", "b", "")),
    "classes and tokens exchanged": BASE._replace(classes=("u", "v"), tokens=("a", "b")),
    "the order flag": BASE._replace(ordered=True),
    "a test part": BASE._replace(test=examples()),
    "another shape": BASE._replace(train=Examples(BASE.train.x.reshape(4, 1), BASE.train.y)),
    "another dtype": BASE._replace(train=examples(dtype=np.float64)),
    "another byte order": BASE._replace(train=examples(dtype=">f4")),
    "a bit": BASE._replace(train=examples(((1.0, 2.0), (3.0, np.nextafter(4, 5, dtype="f4"))))),
    "minus zero": BASE._replace(train=examples(((-0.0, 2.0), (3.0, 4.0)))),
    "zero": BASE._replace(train=examples(((0.0, 2.0), (3.0, 4.0)))),
}


@pytest.mark.promise("fingerprint")
def test_whatever_differs_has_another_fingerprint():
    prints = {case: data.fingerprint for case, data in {"base": BASE, **CHANGES}.items()}
    assert len(set(prints.values())) == len(prints)
    assert BASE._replace(name="other", notes=("note",)).fingerprint == BASE.fingerprint


@pytest.mark.promise("fingerprint")
def test_dtypes_that_share_a_code_are_told_apart():
    import ml_dtypes

    names = ("int4", "uint4", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "bfloat16")
    values = np.zeros((2, 2), np.float32)
    kinds = [values.astype(getattr(ml_dtypes, name)) for name in names] + [values.astype("f2")]
    prints = {Dataset("d", Examples(x, np.zeros(2, np.int32))).fingerprint for x in kinds}
    assert len(prints) == len(kinds)


@pytest.mark.promise("fingerprint")
def test_the_test_part_cannot_be_moved_into_the_training_part():
    x = np.arange(8, dtype=np.int32)
    pairs = [
        (Examples(x[:4], x[:0]), Examples(x[4:], x[:0])),
        (Examples(x[:4], x[4:]), Examples(x[:0], x[:0])),
        (Examples(x, x[:0]), Examples(x[:0], x[:0])),
    ]
    prints = {Dataset("d", train, test).fingerprint for train, test in pairs}
    assert len(prints) == len(pairs)


@pytest.mark.promise("fingerprint")
def test_a_run_records_the_fingerprint_of_the_data_as_loaded(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(40, 2)).astype("f4"), y=np.arange(40) % 2)
    data = {"name": "file", "path": str(tmp_path / "d.npz")}
    loaded = check(datasets.file(data["path"])).fingerprint
    for more in ({}, {"standardize": True}, {"test": 0.3}):
        assert built(data | more).fingerprint == loaded
    assert built(data, seed=3).fingerprint == loaded
    assert len(built(data).dataset.train.x) == 0
