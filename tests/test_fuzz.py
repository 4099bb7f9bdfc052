"""Files with anything in them are used, or refused in one line; never a traceback, never half.

``make fuzz`` runs many more cases.
"""

import csv
import functools
import gzip
import json
import shutil
import struct
import tomllib
import warnings
import zipfile

import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

import fbp
from fbp.experiment.config import reading, writing
from fbp.experiment.rundir import checkpoints, environment, history, journal, layout
from fbp.experiment.rundir.checkpoints import Checkpoint
from fbp.experiment.rundir.series import read_series
from fbp.experiment.runner.trained_model import read
from fbp.experiment.tracking.shipment import SentState, read_sent

GOOD = {
    "name": "fuzz",
    "seed": 1,
    "data": {"name": "iris", "validation": 0.2},
    "model": {"name": "mlp", "hidden": [4], "activation": "relu"},
    "loss": {"name": "softmax_cross_entropy"},
    "optimizer": {"name": "adam", "learning_rate": 0.01, "clip_norm": 1.0},
    "schedule": {"name": "cosine", "warmup": 3},
    "training": {"epochs": 2, "batch_size": 16},
    "selection": {"metric": "validation_loss", "patience": 3},
    "checkpoint": {"every_seconds": 1.0, "keep": 2},
    "augmentation": {"shift": 0},
    "variant": [{"name": "a", "set": {"seed": 2, "model.hidden": [3]}}],
}
WORDS = sorted(
    {key for section in GOOD.values() if isinstance(section, dict) for key in section}
    | {*GOOD, "x"}
)
LEAVES = st.one_of(
    st.none().map(lambda _: ""),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([*WORDS, "adam", "full", "relu", "os:system", "a.b:c", "../x"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)
    ),
    max_leaves=6,
)
PATHS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3)


def lines_of(error):
    """A message that a person reads: lines, each of them with something in it."""
    lines = str(error).split("\n")
    assert all(line.strip() for line in lines)
    return lines


def used_or_refused(use):
    """What ``use`` gives, None where it was refused in an orderly way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's and pandas' about odd numbers
        try:
            return use()
        except fbp.InputError as error:
            lines_of(error)
            return None


@given(changes=st.lists(st.tuples(PATHS, VALUES), min_size=1, max_size=3))
def test_configurations_of_any_shape(changes):
    table = json.loads(json.dumps(GOOD))
    for path, value in changes:
        place = table
        for word in path[:-1]:
            if not isinstance(place.get(word), dict):
                place[word] = {}
            place = place[word]
        place[path[-1]] = value
    found = used_or_refused(lambda: reading.parse(table, "fuzz.toml"))
    if found is not None:
        text = writing.to_toml(found)
        assert writing.to_toml(reading.parse(tomllib.loads(text), "again")) == text
        used_or_refused(lambda: reading.variants(found, "fuzz.toml"))


def changed(content, places, bytes_):
    """Some bytes of a file replaced, inserted or cut off."""
    content = bytearray(content)
    for place, new in zip(places, bytes_, strict=False):
        at = int(place * len(content))
        if new is None:
            del content[at:]
        else:
            content[at : at + len(new)] = new
    return bytes(content)


CHANGES = {
    "places": st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3),
    "bytes_": st.lists(
        st.one_of(st.none(), st.binary(min_size=1, max_size=4)), min_size=3, max_size=3
    ),
}


@given(**CHANGES)
def test_configuration_files_with_changed_bytes(tmp_path_factory, places, bytes_):
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(changed(tomli_w.dumps(GOOD).encode(), places, bytes_))
    used_or_refused(lambda: reading.read(path))


@given(text=st.text(max_size=30))
def test_overrides_of_any_text(text):
    used_or_refused(
        lambda: reading.parse(reading.override(json.loads(json.dumps(GOOD)), [text]), "fuzz.toml")
    )


@functools.cache
def data_file(kind):
    """The content of a good file."""
    rng = np.random.default_rng(0)
    import io

    buffer = io.BytesIO()
    if kind == "npz":
        np.savez(buffer, x=rng.normal(size=(20, 3)), y=np.arange(20) % 2)
    elif kind == "csv":
        buffer.write(
            b"a,b,c\n" + b"".join(b"%f,%f,%d\n" % (*rng.normal(size=2), i % 2) for i in range(20))
        )
    elif kind == "parquet":
        import pandas

        pandas.DataFrame({"a": rng.normal(size=20), "b": np.arange(20) % 2}).to_parquet(buffer)
    return buffer.getvalue()


LOSS_TARGETS = st.sampled_from([None, "labels", "one_hot", "signs", "shares", "counts", "numbers"])
TASKS = st.sampled_from(["auto", "classification", "regression"])


def checked_and_split(path, **arguments):
    """A file read, checked and split as a run does, and the same in its own memory."""

    def use():
        data = fbp.datasets.check(fbp.datasets.file(path=str(path), **arguments))
        fingerprint = data.fingerprint
        options = {"seed": 0, "standardize": not data.tokens, "validation": 0.3, "test": 0.3}
        copied = used_or_refused(lambda: fbp.datasets.prepare(data, **options))
        assert data.fingerprint == fingerprint
        if copied is not None:
            reused = fbp.datasets.prepare(data, **options, overwrite=True)
            for one, other in zip(copied[:3], reused[:3], strict=True):
                np.testing.assert_array_equal(one.x, other.x)
                np.testing.assert_array_equal(one.y, other.y)
                assert np.isfinite(one.x).all()
        return data

    return used_or_refused(use)


@pytest.mark.parametrize("kind", ["npz", "csv", "parquet"])
@given(loss_targets=LOSS_TARGETS, task=TASKS, **CHANGES)
def test_data_files_with_changed_bytes(tmp_path_factory, kind, loss_targets, task, places, bytes_):
    path = tmp_path_factory.getbasetemp() / f"fuzz.{kind}"
    path.write_bytes(changed(data_file(kind), places, bytes_))
    found = checked_and_split(path, loss_targets=loss_targets, task=task)
    if found is not None:
        assert len(found.train.x) == len(found.train.y)


CELLS = st.one_of(
    st.sampled_from(
        [
            "1",
            "-1",
            "0",
            "2.5",
            "007",
            "1e400",
            "nan",
            "NA",
            "",
            " ",
            "true",
            "False",
            "1,5",
            "x",
            "inf",
            "9007199254740993",
            '"',
            "\n",
            "a\nb",
            ";",
            "\ufeff",
            "\0",
            "Unnamed: 0",
            "-100",
        ]
    ),
    st.text(max_size=4),
    st.integers().map(str),
    st.floats().map(str),
)


GOOD_ROWS = st.tuples(
    st.sampled_from(["1", "2.5", " -3e2", "0"]),
    st.sampled_from(["4", "+.5", "9007199254740992"]),
    st.sampled_from(["x", "y", "NA", "1", "2", "-1", "007"]),
)
ODD_ROWS = st.one_of(
    st.lists(CELLS, max_size=4),
    st.tuples(CELLS, st.just("1"), st.just("x")),
    st.tuples(st.just("1"), st.just("1"), CELLS),
)


@given(
    rows=st.tuples(
        st.lists(GOOD_ROWS, min_size=4, max_size=9), st.lists(ODD_ROWS, max_size=1)
    ).flatmap(lambda rows: st.permutations([*rows[0], *rows[1]])),
    names=st.sampled_from([["a", "b", "c"], ["", "a", "c"], ["a", "b", "c"], None]),
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.booleans(),
    header=st.sampled_from([None, None, True, False]),
    target=st.sampled_from([None, None, "a", "c", "2", ""]),
    loss_targets=LOSS_TARGETS,
    task=TASKS,
)
def test_tables_of_any_cells(
    tmp_path_factory, rows, names, ends, quoting, header, target, loss_targets, task
):
    """A table is read as Python's own reader reads it, or refused in one line."""
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    rows = rows if names is None else [names, *rows]
    with open(path, "w", encoding="utf-8", newline="", errors="replace") as file:
        if quoting:
            csv.writer(file, lineterminator=ends).writerows(rows)
        else:
            file.write(ends.join(",".join(row) for row in rows))
    found = checked_and_split(
        path, header=header, target=target, loss_targets=loss_targets, task=task
    )
    if found is not None:
        with open(path, encoding="utf-8-sig", newline="") as file:
            whole = [row for row in csv.reader(file) if row]
        assert len(found.train.x) == len(whole) - (header is not False)
        assert len({len(row) for row in whole}) == 1


DTYPES = ["<f8", ">f8", "<f4", "<f2", "<i8", ">i4", "u1", "?", "<U3", "<c8", "<M8[s]", "|V4", "|O"]


SHAPES = st.one_of(
    st.sampled_from([(6, 2), (6,), (6, 2)]), st.lists(st.integers(-2, 6), max_size=3)
)


@given(
    x=st.tuples(st.sampled_from(DTYPES), SHAPES),
    y=st.tuples(st.sampled_from(DTYPES), SHAPES),
    stored=st.integers(0, 300),
    test=st.booleans(),
    vocabulary=st.sampled_from([None, 1, 300]),
    loss_targets=LOSS_TARGETS,
    task=TASKS,
    content=st.binary(min_size=1, max_size=16),
)
def test_archives_of_any_headers(
    tmp_path_factory, x, y, stored, test, vocabulary, loss_targets, task, content
):
    """An archive whose headers promise what they like; often what is stored."""
    path = tmp_path_factory.getbasetemp() / "headers.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, (dtype, shape) in {
            "x": x,
            "y": y,
            **({"x_test": x, "y_test": y} if test else {}),
        }.items():
            header = {"descr": dtype, "fortran_order": False, "shape": tuple(shape)}
            text = f"{header!r}".ljust(117).encode() + b"\n"
            size = abs(int(np.prod(shape))) * np.dtype(dtype).itemsize if stored % 4 else stored
            archive.writestr(
                f"{name}.npy",
                b"\x93NUMPY\x01\x00"
                + len(text).to_bytes(2, "little")
                + text
                + (content * (size // len(content) + 1))[:size],
            )
    checked_and_split(path, vocabulary=vocabulary, loss_targets=loss_targets, task=task)


@given(**CHANGES)
def test_text_files_with_changed_bytes(tmp_path_factory, places, bytes_):
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_bytes(
        changed("To be, or not to be — that is the question.\n".encode() * 20, places, bytes_)
    )
    found = used_or_refused(
        lambda: fbp.datasets.check(fbp.datasets.text(path=str(path), context=8))
    )
    assert found is None or found.train.x.max() < len(found.tokens)


@given(**CHANGES)
def test_picture_files_with_changed_bytes(tmp_path_factory, places, bytes_):
    folder = tmp_path_factory.getbasetemp() / "mnist"
    folder.mkdir(exist_ok=True)
    pictures = struct.pack(">IIII", 0x803, 20, 28, 28) + bytes(20 * 28 * 28)
    labels = struct.pack(">II", 0x801, 20) + bytes(i % 10 for i in range(20))
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(pictures))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    bad = folder / "train-images-idx3-ubyte.gz"
    bad.write_bytes(changed(bad.read_bytes(), places, bytes_))
    used_or_refused(lambda: fbp.datasets.check(fbp.datasets.mnist(folder=str(folder))))


@given(**CHANGES)
def test_journals_with_changed_bytes(tmp_path_factory, places, bytes_):
    """What is damaged is passed over; what is whole stays."""
    folder = tmp_path_factory.mktemp("journal")
    writer = journal.Journal(folder)
    writer.start(label="a", experiment="b", params={"p": "1"}, tags={})
    writer.steps(1, {"loss": np.arange(5, dtype=np.float32)})
    writer.metrics(5, {"x": 1.0})
    writer.checkpoint(5, "d", {}, "s")
    writer.end("FINISHED")
    writer.close()
    path = folder / layout.JOURNAL
    path.write_bytes(changed(path.read_bytes(), places, bytes_))
    whole = {"loss": [0.0, 1, 2, 3, 4], "x": [1.0]}
    for key, points in read_series(folder).items():
        assert points.values.tolist() == whole[key]
    assert journal.read_start(folder) is None or journal.read_start(folder).params == {"p": "1"}
    assert journal.read_end(folder) is None or journal.read_end(folder).status == "FINISHED"
    assert journal.read_checkpoints(folder).keys() <= {5}
    layout.sent(folder).write_bytes(
        changed(
            b'{"sink": "mlflow", "place": "embedded", "run_id": "a", "checksums": {}}',
            places,
            bytes_,
        )
    )
    assert read_sent(folder) == SentState() or read_sent(folder).place == "embedded"
    shutil.rmtree(folder)


@given(name=st.sampled_from(["params.npz", "model.json", "config.toml"]), **CHANGES)
def test_saved_models_with_changed_bytes(finished, tmp_path_factory, name, places, bytes_):
    folder = tmp_path_factory.getbasetemp() / "model"
    (saved,) = finished[0].glob("mlruns/runs/*/artifacts/model")
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(changed((folder / name).read_bytes(), places, bytes_))
    used_or_refused(lambda: read(folder))


@given(
    name=st.sampled_from(["steps.csv", "metrics.csv", "checkpoints.json", "layers.json"]), **CHANGES
)
def test_records_with_changed_bytes(finished, tmp_path_factory, name, places, bytes_):
    folder = tmp_path_factory.getbasetemp() / "record"
    (written,) = finished[0].glob("mlruns/runs/*/artifacts/history")
    shutil.copytree(written, folder / "history", dirs_exist_ok=True)
    (folder / "history" / name).write_bytes(changed((written / name).read_bytes(), places, bytes_))
    for use in (history.read, history.read_checkpoints, history.read_layer_names):
        used_or_refused(lambda use=use: use(folder))
    (folder / layout.ENVIRONMENT).write_bytes(
        changed(b'{"threads": 2, "jax": {}, "variables": {}}', places, bytes_)
    )
    environment.restorable_variables(environment.read(folder))
    environment.differences(environment.read(folder), {})


def test_a_checkpoint_without_its_facts_is_damaged(tmp_path):
    path = tmp_path / "step-1.npz"
    checkpoints.write(path, Checkpoint(1, {"state/step": np.int32(1)}, {}))
    assert checkpoints.read(path).arrays["state/step"] == 1
    np.savez(path, **{"state|step": np.int32(1)})
    with pytest.raises(fbp.InputError, match="the checkpoint is damaged"):
        checkpoints.read(path)
