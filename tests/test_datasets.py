"""Data sets: shapes, splits, fingerprints, files of every kind, and damage."""

import gzip
import tarfile

import numpy as np
import pandas as pd
import pytest

from fbp import datasets
from fbp.datasets import Dataset, Examples, check, download, prepare
from fbp.errors import InputError, as_keys_of

OFFLINE = {
    "digits": ((1797, 8, 8, 1), 10),
    "iris": ((150, 4), 3),
    "wine": ((178, 13), 3),
    "breast_cancer": ((569, 30), 2),
    "diabetes": ((442, 10), 0),
    "xor": ((400, 2), 2),
    "spirals": ((1000, 2), 2),
    "moons": ((1000, 2), 2),
    "circles": ((1000, 2), 2),
    "linear": ((1000, 5), 0),
    "sine": ((1000, 1), 0),
}


@pytest.mark.parametrize("name", OFFLINE)
def test_offline_data(name):
    shape, classes = OFFLINE[name]
    dataset = check(getattr(datasets, name)())
    assert dataset.train.x.shape == shape
    assert dataset.train.x.dtype == np.float32
    assert len(dataset.classes) == classes
    if classes:
        assert dataset.train.y.dtype == np.int32
        assert set(dataset.train.y) == set(range(classes))
    else:
        assert dataset.train.y.shape == (shape[0], 1)
    assert dataset.fingerprint == getattr(datasets, name)().fingerprint


def test_linear_regression_has_the_answer_it_says():
    x, y = datasets.linear(noise=0.0).train
    _, residue, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)
    assert residue < 1e-6


class TestFingerprint:
    examples = Examples(np.zeros((3, 2), np.float32), np.zeros(3, np.int32))

    def test_changes_with_any_element_shape_and_type(self):
        base = Dataset("d", self.examples).fingerprint
        changed = self.examples.x.copy()
        changed[2, 1] = 1e-30
        others = [
            Dataset("d", Examples(changed, self.examples.y)),
            Dataset("d", Examples(self.examples.x.reshape(2, 3), self.examples.y)),
            Dataset("d", Examples(self.examples.x.astype(np.float64), self.examples.y)),
            Dataset("d", self.examples, test=self.examples),
        ]
        assert len({base, *(other.fingerprint for other in others)}) == 5

    def test_does_not_depend_on_memory_layout(self):
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        y = np.zeros(2, np.int32)
        transposed = np.asfortranarray(x)
        assert (
            Dataset("d", Examples(x, y)).fingerprint
            == Dataset("d", Examples(transposed, y)).fingerprint
        )


class TestCheckOfAUsersData:
    x = np.zeros((4, 2))

    def test_converts_what_can_be_meant_in_one_way_only(self):
        lists = Dataset("d", (self.x.tolist(), [0.0, 1, 1, 0]), classes=(0, 1))
        part, classes = check(lists).train, check(lists).classes
        assert isinstance(part, Examples)
        assert (part.x.dtype, part.y.dtype, part.y.shape) == (np.float32, np.int32, (4,))
        assert classes == ("0", "1")
        assert check(lists._replace(classes=np.array(["a", "b"]))).classes == ("a", "b")
        for y in (np.arange(4.0), np.arange(4), [True, False, True, True]):
            part = check(Dataset("d", Examples(self.x, y), test=(self.x, y))).test
            assert (part.y.dtype, part.y.shape) == (np.float32, (4, 1))

    @pytest.mark.parametrize(
        ("dataset", "problem"),
        [
            (Dataset(x, x), "data: expected a text as the data set's name, got a value of type nd"),
            (Dataset("d", x), "train part: expected Examples(x, y), got a value of type ndarray;"),
            (Dataset("d", (x,)), "expected Examples(x, y), got a value of type tuple of 1 items;"),
            (Dataset("d", (x, x), test=x), "data 'd', test part: expected Examples(x, y), got"),
            (Dataset("d", (x.astype(object), x)), "part, x: expected an array of numbers, got dt"),
            (Dataset("d", (x, list("abab"))), "part, y: expected an array of numbers, got dtype"),
            (Dataset("d", ([[1], [2, 3]], [0, 1])), "part, x: expected an array of numbers: "),
            (Dataset("d", (x, [0.5] * 4), classes=("a", "b")), "expected labels, whole numbers"),
            (Dataset("d", (x, [0] * 4), classes=3), "classes: expected a tuple of names, got a va"),
            (Dataset("d", (x, [0] * 4), classes="ab"), "classes: expected a tuple of names, got "),
            (Dataset("d", (x, np.full(4, 1e300))), "expected finite targets"),
            (Dataset("d", (3, 4)), "expected examples with features, got arrays of shapes"),
        ],
    )
    def test_refuses_the_rest_in_one_line(self, dataset, problem):
        with pytest.raises(InputError) as caught:
            check(dataset)
        (line,) = str(caught.value).splitlines()
        assert problem in line


class TestPrepare:
    def test_parts_are_disjoint_and_decided_by_the_seed(self):
        data = Dataset(
            "d", Examples(np.arange(100, dtype=np.float32)[:, None], np.arange(100, dtype=np.int32))
        )
        parts = prepare(data, seed=1, validation=0.2, test=0.1)
        sizes = [len(part.x) for part in parts[:3]]
        assert sizes == [70, 20, 10]
        assert sorted(np.concatenate([part.y for part in parts[:3]])) == list(range(100))
        again, other = (prepare(data, seed=seed, validation=0.2, test=0.1) for seed in (1, 2))
        np.testing.assert_array_equal(parts.train.y, again.train.y)
        assert parts.train.y.tolist() != other.train.y.tolist()

    def test_standardization_sees_the_training_part_only(self):
        data = datasets.wine()
        parts = prepare(data, seed=0, standardize=True)
        np.testing.assert_allclose(parts.train.x.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(parts.train.x.std(axis=0), 1, atol=1e-4)
        assert np.abs(parts.test.x.mean(axis=0)).max() > 1e-3
        raw = prepare(data, seed=0)
        np.testing.assert_allclose(
            parts.input_scaling.undo(parts.test.x), raw.test.x, rtol=1e-4, atol=1e-4
        )

    def test_a_constant_feature_stays_finite(self):
        data = Dataset(
            "d", Examples(np.ones((50, 2), np.float32), np.zeros(50, np.int32)), classes=("a",)
        )
        assert np.isfinite(prepare(data, seed=0, standardize=True).train.x).all()

    def test_the_authors_test_part_is_kept(self):
        data = Dataset(
            "d", Examples(np.zeros((50, 1)), np.zeros(50)), Examples(np.ones((7, 1)), np.zeros(7))
        )
        parts = prepare(data, seed=0)
        assert (len(parts.test.x), len(parts.validation.x), len(parts.train.x)) == (7, 5, 45)

    @pytest.mark.parametrize(("validation", "test"), [(0.001, 0.1), (0.5, 0.5), (0.1, 0.0)])
    def test_an_empty_part_is_refused(self, validation, test):
        with pytest.raises(InputError, match="part is empty"):
            prepare(datasets.iris(), seed=0, validation=validation, test=test)


@pytest.mark.parametrize(
    ("x", "y", "problem"),
    [
        ([[1.0], [np.nan]], [0, 1], r"NaN, infinity or .* in 1 of 2 rows, the first in row 1"),
        ([[1.0], [np.inf]], [0, 1], r"NaN, infinity or a number beyond"),
        (
            [[1.0], [2.0]],
            [0, 2],
            r"labels from 0 to 1 \(negative without a target\), got labels from 0 to 2",
        ),
        ([[1.0], [2.0]], [1, 2], r"got labels from 1 to 2; count them from 0"),
        ([[1.0], [2.0]], [-1, -7], r"got only negative ones, which say that there is no target"),
        ([[1.0], [2.0]], [0], r"2 examples, 1 targets"),
    ],
)
def test_bad_arrays_are_refused(x, y, problem):
    with pytest.raises(InputError, match=problem):
        check(Dataset("d", Examples(np.array(x), np.array(y)), classes=("a", "b")))


class TestFiles:
    x = np.arange(40.0).reshape(20, 2)
    labels = np.array(["cat", "dog"] * 10)

    def frame(self):
        return pd.DataFrame(self.x, columns=["a", "b"])

    @pytest.mark.parametrize("ending", ["csv", "parquet"])
    def test_tables_with_text_labels(self, tmp_path, ending):
        path = tmp_path / f"pets.{ending}"
        frame = self.frame().assign(animal=self.labels)
        frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
        data = datasets.file(str(path))
        assert data.classes == ("cat", "dog")
        np.testing.assert_array_equal(data.train.x, self.x)
        assert data.train.y[:4].tolist() == [0, 1, 0, 1]

    def test_a_chosen_target_and_a_regression(self, tmp_path):
        path = tmp_path / "t.csv"
        self.frame().assign(c=np.arange(20)).to_csv(path, index=False)
        assert len(datasets.file(str(path)).classes) == 20
        assert datasets.file(str(path), task="regression").train.y.shape == (20, 1)
        by_a = datasets.file(str(path), target="a")  # fractions
        assert by_a.train.x.shape == (20, 2)
        assert not by_a.classes

    def test_npz_with_a_test_part(self, tmp_path):
        path = tmp_path / "d.npz"
        np.savez(path, x=self.x, y=self.labels, x_test=self.x[:4], y_test=self.labels[:4])
        data = datasets.file(str(path))
        assert data.test.y.tolist() == [0, 1, 0, 1]

    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            ("missing.csv", None, "does not exist"),
            ("d.txt", b"x", r"ending in \.npz, \.csv or \.parquet"),
            ("d.npz", b"not a zip", r"cannot be read as \.npz"),
            ("d.parquet", b"PAR1 damaged", r"cannot be read as \.parquet"),
            ("d.csv", b"", r"cannot be read as \.csv"),
            ("d.csv", b"a,b\n1,2\n1,2,3,4\n", r"expected 2 cells in each row .*, got 4 in line 3"),
            ("d.csv", b"a\n1\n2\n", "at least two columns"),
            ("d.csv", b"a,b\nx,1\ny,2\n", r"got text 'x' in column 'a', line 2"),
            ("d.csv", b"a,b\n1,x\n2,\n", "empty cells in column 'b'"),
        ],
    )
    def test_bad_files_say_what_is_wrong(self, tmp_path, name, content, problem):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=problem):
            datasets.file(str(tmp_path / name))

    def test_pickled_arrays_are_not_loaded(self, tmp_path):
        np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}], dtype=object), y=np.zeros(1))
        with pytest.raises(InputError, match="array 'x' holds Python objects, which are never"):
            datasets.file(str(tmp_path / "d.npz"))

    def test_other_mistakes(self, tmp_path):
        np.savez(tmp_path / "d.npz", a=self.x)
        with pytest.raises(InputError, match=r"expected arrays 'x' and 'y' in .*, got a"):
            datasets.file(str(tmp_path / "d.npz"))
        np.savez(
            tmp_path / "e.npz", x=self.x, y=self.labels, x_test=self.x[:1], y_test=np.array(["cow"])
        )
        with pytest.raises(
            InputError, match="test part has labels that the training part lacks: cow"
        ):
            datasets.file(str(tmp_path / "e.npz"))
        self.frame().to_csv(tmp_path / "d.csv", index=False)
        with pytest.raises(
            InputError, match=r"target: expected one of the 2 columns of .*, got 'z'; "
        ):
            datasets.file(str(tmp_path / "d.csv"), target="z")


def idx(array: np.ndarray) -> bytes:
    header = (
        b"\x00\x00\x08" + bytes([array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    )
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder, zipped=True):
    random = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 10)):
        for name, array in (
            (f"{part}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28))),
            (f"{part}-labels-idx1-ubyte", np.arange(count) % 10),
        ):
            (folder / (name + ".gz" * zipped)).write_bytes(
                gzip.compress(idx(array)) if zipped else idx(array)
            )


class TestImages:
    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("load", [datasets.mnist, datasets.fashion_mnist])
    def test_idx_files(self, tmp_path, load, zipped):
        write_idx(tmp_path, zipped)
        data = check(load(str(tmp_path)))
        assert data.train.x.shape == (30, 28, 28, 1)
        assert data.test.x.shape == (10, 28, 28, 1)
        assert 0 <= data.train.x.min() < data.train.x.max() <= 1
        assert data.train.y[:3].tolist() == [0, 1, 2]

    def test_original_mnist(self, mnist_folder):
        data = check(datasets.mnist(mnist_folder))
        assert (len(data.train.x), len(data.test.x)) == (60000, 10000)
        assert data.train.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        np.testing.assert_allclose(data.train.x.mean(), 0.1307, atol=1e-4)

    def test_the_folder_may_come_from_the_environment(self, tmp_path, monkeypatch):
        (tmp_path / "mnist").mkdir()
        write_idx(tmp_path / "mnist")
        monkeypatch.setenv("FBP_DATA", str(tmp_path))
        assert len(datasets.mnist().train.x) == 30

    def test_damage_is_recognized(self, tmp_path, monkeypatch):
        monkeypatch.delenv("FBP_DATA", raising=False)
        with pytest.raises(InputError, match=r"folder: expected .* got no such folder; set folder"):
            datasets.mnist(str(tmp_path / "nowhere"))
        with pytest.raises(
            InputError,
            match=r"expected the file train-images-idx3-ubyte or .*\.gz in .*, got neither",
        ):
            datasets.mnist(str(tmp_path))
        write_idx(tmp_path)
        path = tmp_path / "train-images-idx3-ubyte.gz"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match="is damaged"):
            datasets.mnist(str(tmp_path))
        path.write_bytes(gzip.compress(gzip.decompress(whole)[:-5]))
        with pytest.raises(
            InputError,
            match=r"expected an IDX file of bytes of shape \(30, 28, 28\), got 23531 bytes",
        ):
            datasets.mnist(str(tmp_path))
        path.write_bytes(gzip.compress(b"something else"))
        with pytest.raises(InputError, match="is damaged: expected an IDX file"):
            datasets.mnist(str(tmp_path))

    @pytest.mark.parametrize("archived", [True, False])
    def test_cifar(self, tmp_path, archived):
        random = np.random.default_rng(0)
        where = tmp_path / "cifar-10-batches-bin"
        where.mkdir()
        pictures = random.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
        for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
            records = np.c_[
                np.arange(4, dtype=np.uint8), pictures.transpose(0, 3, 1, 2).reshape(4, -1)
            ]
            (where / name).write_bytes(records.tobytes())
        if archived:
            with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
                tar.add(where, where.name)
            for path in where.iterdir():
                path.unlink()
        data = check(datasets.cifar10(str(tmp_path)))
        assert data.train.x.shape == (20, 32, 32, 3)
        np.testing.assert_allclose(data.test.x, pictures / 255, atol=1e-6)
        if not archived:
            (where / "test_batch.bin").write_bytes(b"short")
            with pytest.raises(InputError, match="expected records of 3073 bytes, got 5 bytes"):
                datasets.cifar10(str(tmp_path))


class TestDownload:
    def test_a_wrong_checksum_is_refused(self):
        for archive in (download.ARCHIVES["mnist"][0], download.ARCHIVES["cifar10"][0]):
            with pytest.raises(
                InputError, match=r"expected the .* digest .* the file was not kept"
            ):
                download.verify(archive, gzip.compress(b"other"))
        with pytest.raises(InputError, match="the fetched file is damaged"):
            download.verify(download.ARCHIVES["mnist"][0], b"not gzip")

    def test_original_files_have_the_checksums(self, mnist_folder):
        from pathlib import Path

        for archive in download.ARCHIVES["mnist"]:
            download.verify(archive, (Path(mnist_folder) / archive.name).read_bytes())

    def test_fetching_keeps_what_is_there_and_verifies_what_is_not(self, tmp_path, monkeypatch):
        content = gzip.compress(b"content")
        archive = download.Archive(
            "a.gz", tmp_path.as_uri() + "/", download.ARCHIVES["mnist"][0].checksum
        )
        good = archive._replace(
            checksum="sha256:ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
        )
        (tmp_path / "a.gz").write_bytes(content)
        monkeypatch.setitem(download.ARCHIVES, "mnist", (good,))
        download.fetch("mnist", tmp_path / "to")
        assert (tmp_path / "to" / "a.gz").read_bytes() == content
        monkeypatch.setitem(download.ARCHIVES, "mnist", (archive,))
        download.fetch("mnist", tmp_path / "to")  # there already
        with pytest.raises(InputError, match="not kept"):
            download.fetch("mnist", tmp_path / "other")
        assert not list((tmp_path / "other").iterdir())
        monkeypatch.setitem(
            download.ARCHIVES, "mnist", (archive._replace(base="file:///nowhere/"),)
        )
        with pytest.raises(InputError, match="could not be fetched"):
            download.fetch("mnist", tmp_path / "third")


@pytest.mark.parametrize(("examples", "seed", "noise"), [(1000, 0, 0.15), (101, 3, 0.0)])
def test_moons_and_circles_are_those_of_scikit_learn(examples, seed, noise):
    from sklearn.datasets import make_circles, make_moons

    for ours, (x, y) in (
        (
            datasets.moons(examples, noise, seed),
            make_moons(examples, noise=noise, random_state=seed),
        ),
        (
            datasets.circles(examples, noise, 0.5, seed),
            make_circles(examples, noise=noise, factor=0.5, random_state=seed),
        ),
    ):
        np.testing.assert_array_equal(ours.train.x, x.astype(np.float32))
        np.testing.assert_array_equal(ours.train.y, y)


def test_an_argument_is_named_as_the_caller_writes_it():
    """A function's own name and argument for a library's user, the key for a configuration's."""
    with pytest.raises(InputError, match=r"^file: path: expected a file, got 'nowhere\.npz'"):
        datasets.file("nowhere.npz")
    with (
        pytest.raises(InputError, match=r"^data\.path: expected a file, got 'nowhere\.npz'"),
        as_keys_of("data"),
    ):
        datasets.file("nowhere.npz")
    tokens = datasets.copy_memory(20)
    with (
        pytest.raises(InputError, match=r"^data\.reconstruct: expected numbers as inputs"),
        as_keys_of("data", dataset="reconstruct"),
    ):
        datasets.as_autoencoding(tokens)
    with pytest.raises(InputError, match=r"^circles: factor: expected a number from 0"):
        datasets.circles(factor=1.0)
