"""Attacks on scaling: numbers are scaled in float64, and no array of the user is overwritten."""

import jax
import numpy as np
import pandas as pd
import pytest

from fbp import datasets
from fbp.datasets import Dataset, Examples, check, prepare
from fbp.experiment.runner.build import build
from tests.attacks.datafiles import built, refusal

TIMES = 1.7e9 + np.arange(400.0)


def stored(folder, kind):
    """A data set of 400 unix seconds, and of a number that is 1.0 everywhere."""
    x, y = np.stack([TIMES, np.full(400, 0.1)], axis=1), np.arange(400) % 2
    frame = pd.DataFrame(x, columns=["time", "one"]).assign(y=np.where(y, "a", "b"))
    path = folder / f"d.{kind}"
    if kind == "npz":
        np.savez(path, x=x, y=y)
    elif kind == "npz of integers":
        path = folder / "d.npz"
        np.savez(path, x=x.astype(np.int64), y=y)
    elif kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path, index=False)
    elif kind == "arrays":
        return Dataset("d", Examples(x, y), classes=("a", "b"))
    elif kind == "lists":
        return Dataset("d", (x.tolist(), y.tolist()), (x.tolist(), y.tolist()), ("a", "b"))
    return datasets.file(str(path))


@pytest.mark.promise("scaled-in-float64")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["csv", "npz", "npz of integers", "parquet", "arrays", "lists"])
def test_numbers_are_scaled_before_they_are_narrowed(tmp_path, kind, overwrite):
    parts = prepare(check(stored(tmp_path, kind)), seed=0, standardize=True, overwrite=overwrite)
    seconds = [part.x[:, 0] for part in parts[:3]]
    assert all(part.x.dtype == np.float32 for part in parts[:3])
    assert len(np.unique(parts.train.x[:, 0])) == len(parts.train.x)
    whole = np.concatenate(seconds[:2] if kind == "lists" else seconds)
    assert len(np.unique(whole)) == 400
    np.testing.assert_allclose(parts.train.x[:, 0].std(), 1, rtol=1e-5)
    assert all((part.x[:, 1] == 0).all() for part in parts[:3])  # constant, whatever rounds
    raw = parts.input_scaling.undo(parts.train.x)[:, 0]
    assert np.abs(raw[:, None] - TIMES).min(axis=1).max() < 1e-4


@pytest.mark.promise("scaled-in-float64")
def test_a_loaded_model_scales_in_float64_too(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.stack([TIMES, TIMES], 1), y=(TIMES.mean() < TIMES) * 1)
    experiment = built({"name": "file", "path": str(tmp_path / "d.npz"), "standardize": True})
    from fbp.experiment.runner import trained_model

    params, _ = experiment.model.init(jax.random.key(0), experiment.shape)
    trained_model.write(
        tmp_path / "model",
        experiment.config,
        params,
        shape=experiment.shape,
        dataset=experiment.dataset,
        inputs=experiment.data.input_scaling,
        targets=None,
    )
    trained = trained_model.read(tmp_path / "model")
    x = np.stack([TIMES, TIMES], 1)
    assert len(np.unique(trained.predict(x)[:, 0])) > 300
    expected, _ = experiment.model.forward(params, experiment.data.input_scaling.apply(x))
    np.testing.assert_allclose(trained.predict(x), jax.nn.softmax(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.promise("scaled-in-float64")
@pytest.mark.parametrize("reuse", ["reconstruct", "sliced", "read only", "Fortran", "float64"])
def test_parts_in_the_memory_of_the_data_set_are_the_parts_of_a_copy(reuse):
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    y = np.arange(60, dtype=np.int32) % 2

    def data():
        values = x.copy()
        if reuse == "reconstruct":
            return datasets.as_autoencoding(Dataset("d", Examples(values, y), classes=("a", "b")))
        if reuse == "sliced":
            values = np.repeat(values, 2, axis=1)[:, ::2]
        elif reuse == "read only":
            values.flags.writeable = False
        elif reuse == "Fortran":
            values = np.asfortranarray(values)
        elif reuse == "float64":
            values = values.astype(np.float64) + 1e-9
        return Dataset("d", Examples(values, y.copy()), classes=("a", "b"))

    for scale in (False, True):
        kept, reused = (
            prepare(data(), seed=3, standardize=scale, overwrite=overwrite)
            for overwrite in (False, True)
        )
        for one, other in zip(kept[:3], reused[:3], strict=True):
            np.testing.assert_array_equal(one.x, other.x)
            np.testing.assert_array_equal(one.y, other.y)


@pytest.mark.promise("scaled-in-float64")
def test_a_users_own_arrays_are_not_overwritten(tmp_path, monkeypatch):
    (tmp_path / "held.py").write_text(
        "import numpy as np\nfrom fbp.datasets import Dataset, Examples\n"
        "X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)\n"
        "Y = np.arange(60, dtype=np.int32) % 2\n"
        "def data():\n    return Dataset('d', Examples(X, Y), classes=('a', 'b'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import held

    before = held.X.copy(), held.Y.copy()
    built({"name": "held:data", "standardize": True})
    given = datasets.iris()
    fingerprint, config = given.fingerprint, built({"name": "iris"}).config
    assert build(config, given).fingerprint == given.fingerprint == fingerprint
    np.testing.assert_array_equal(held.X, before[0])
    np.testing.assert_array_equal(held.Y, before[1])


@pytest.mark.promise("scaled-in-float64")
def test_a_feature_that_varies_in_the_test_part_alone_is_told():
    train = np.array([[0.0], [1e-38]] * 20)
    data = Dataset(
        "d", Examples(train, np.zeros((40, 1))), Examples(train[:9] + 9, np.zeros((9, 1)))
    )
    line = refusal(lambda: prepare(check(data), seed=0, standardize=True))
    assert "number 0 of an example (counted from 0) is too large for float32" in line
