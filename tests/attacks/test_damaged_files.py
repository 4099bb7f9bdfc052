"""Files of a record that are damaged, absurd, newer, or gone: told in one line, never obeyed."""

import contextlib
import io
import json
import os
import shutil
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

import fbp
from fbp import _diagram
from fbp.errors import InputError, NewerFormat
from fbp.experiment.commands import missing
from fbp.experiment.config import bounded, reading
from fbp.experiment.rundir import (
    checkpoints,
    environment,
    history,
    journal,
    layout,
    model_facts,
    npz,
    results,
)
from fbp.experiment.rundir.checkpoints import Checkpoint
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.runner import trained_model
from fbp.experiment.runner.build import build_model
from fbp.experiment.tracking.shipment import read_sent
from tests.attacks.hostile import unseen
from tests.projects import said, write_config

SMALL = 8 * 2**20  # bytes that reading a damaged file may take


def one_line(error: Exception) -> str:
    text = str(error)
    assert "\n" not in text
    assert not unseen(text, "")
    assert len(text) < 1000
    return text


@contextlib.contextmanager
def little_memory():
    """Fail if the block allocates more than a few megabytes."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < SMALL, f"{peak:,} bytes"


# --- arrays -----------------------------------------------------------------------------------


def header(shape: str, dtype: str = "'<f4'", order: str = "False") -> bytes:
    """Return the beginning of an ``.npy`` file."""
    text = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n" if len(text) < 117 else text + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def archive(path: Path, members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)


def inner_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(10**6))
    return buffer.getvalue()


def two_of_one_name(path: Path) -> None:
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
        warnings.simplefilter("ignore")
        for _ in range(2):
            file.writestr("params|1|w.npy", header("(1,)") + bytes(4))


def overlapping(path: Path) -> None:
    """Write many members that share one member's bytes, as the densest archives do."""
    archive(path, {f"{i:04d}.npy": header("(1000,)") + bytes(4000) for i in range(2)})
    content = bytearray(path.read_bytes())
    begin = content.index(b"PK\x01\x02")
    entry_length = content.index(b"PK\x01\x02", begin + 1) - begin
    entry = bytes(content[begin : begin + entry_length])
    end = content.index(b"PK\x05\x06")
    entries = b"".join(entry.replace(b"0000.npy", f"{i:04d}.npy".encode()) for i in range(500))
    tail = bytearray(content[end:])
    tail[8:12] = (500).to_bytes(2, "little") * 2
    tail[12:16] = len(entries).to_bytes(4, "little")
    path.write_bytes(bytes(content[:begin]) + entries + bytes(tail))


def with_member(content: bytes, name: str = "params|1|w.npy", compression=zipfile.ZIP_STORED):
    return lambda path: archive(path, {name: content}, compression)


ARRAYS = {
    "bomb, deflated": with_member(header("(250000000,)") + bytes(10**7), compression=8),
    "bomb, bzip2": with_member(header("(2500000,)") + bytes(10**7), compression=12),
    "bomb, lzma": with_member(header("(2500000,)") + bytes(10**7), compression=14),
    "shape beyond the file": with_member(header("(1000000000, 1000)") + bytes(64)),
    "shape of 10^40": with_member(header(f"({10**40},)") + bytes(64)),
    "shape that overflows": with_member(header("(4294967296, 4294967296, 0)")[:80]),
    "shape with zeros and giants": with_member(header(f"(0, {10**30})")),
    "negative shape": with_member(header("(-1,)") + bytes(4)),
    "shape of bools": with_member(header("(True, True)") + bytes(4)),
    "shape of texts": with_member(header("('a',)") + bytes(4)),
    "shape that is no tuple": with_member(header("5") + bytes(20)),
    "a hundred axes": with_member(header(f"({'1,' * 100})") + bytes(4)),
    "more bytes than the shape": with_member(header("(1,)") + bytes(400)),
    "objects": with_member(header("(1,)", "'|O'") + b"cos\nsystem\n(S'true'\ntR."),
    "objects in fields": with_member(header("(1,)", "[('a', '|O')]") + bytes(8)),
    "fields": with_member(header("(1,)", "[('a', '<f4')]") + bytes(4)),
    "texts": with_member(header("(1,)", "'<U4'") + bytes(16)),
    "times": with_member(header("(1,)", "'<M8[s]'") + bytes(8)),
    "arrays in arrays": with_member(header("(1,)", "('<f4', (1000000,))") + bytes(4)),
    "bytes without a name": with_member(header("(1,)", "'|V2'") + bytes(2)),
    "bytes of an unknown name": with_member(
        header("(1,)", "'|V2'") + bytes(2), "params|1|w@object.npy"
    ),
    "bytes of a numpy name": with_member(
        header("(1,)", "'|V4'") + bytes(4), "params|1|w@float32.npy"
    ),
    "bytes of another size": with_member(
        header("(1,)", "'|V8'") + bytes(8), "params|1|w@bfloat16.npy"
    ),
    "bytes named by code": with_member(
        header("(1,)", "'|V2'") + bytes(2), "params|1|w@__import__('os').npy"
    ),
    "a header of code": with_member(
        b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').system('x')  \n "
    ),
    "a deep header": with_member(
        b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"[" * 8999 + b"\n"
    ),
    "a header of 4 GB": with_member(b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100)),
    "no header": with_member(bytes(100)),
    "no array": with_member(b"text", "readme.txt"),
    "a zip in it": with_member(inner_zip()),
    "a name that leads out": with_member(header("(1,)") + bytes(4), "../../params|1|w.npy"),
    "another name": with_member(header("(1,)") + bytes(4), "params|9|w.npy"),
    "no member": lambda path: archive(path, {}),
    "two of one name": two_of_one_name,
    "members that overlap": overlapping,
    "no archive": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(200)),
    "empty": lambda path: path.write_bytes(b""),
    "a pipe's name": lambda path: path.write_bytes(b"\x93NUMPY"),
    "another shape": lambda path: npz.write_arrays(
        path, PARAMS | {"params/1/w": np.zeros((3, 4), np.float32)}
    ),
    "another dtype": lambda path: npz.write_arrays(
        path, {name: array.astype(np.float64) for name, array in PARAMS.items()}
    ),
    "one missing": lambda path: npz.write_arrays(path, {"params/1/w": PARAMS["params/1/w"]}),
    "one too many": lambda path: npz.write_arrays(path, PARAMS | {"x": np.zeros(3)}),
    "scaling of another shape": lambda path: npz.write_arrays(
        path, PARAMS | {"inputs/mean": np.zeros(9), "inputs/scale": np.ones(9)}
    ),
    "scaling without a scale": lambda path: npz.write_arrays(
        path, PARAMS | {"inputs/mean": np.zeros(4)}
    ),
    "scaling of texts": lambda path: npz.write_arrays(
        path, PARAMS | {"inputs/mean": np.zeros(4, int), "inputs/scale": np.ones(4, int)}
    ),
}
PARAMS: dict[str, np.ndarray] = {}


@pytest.fixture
def saved(tmp_path):
    """Return the folder of a trained model of iris, made without training."""
    config = reading.read(write_config(tmp_path, data="iris"))
    dataset, folder = fbp.datasets.iris(), tmp_path / "model"
    model = build_model(config, 3, 0, sequence=False)
    params, _ = model.init(jax.random.key(0), (4,))
    facts = {"shape": (4,), "dataset": dataset, "inputs": None, "targets": None}
    trained_model.write(folder, config, params, **facts)
    PARAMS.clear()
    PARAMS.update(npz.read_arrays(folder / layout.PARAMS))
    return folder


@pytest.mark.promise("record-headers-first")
@pytest.mark.parametrize("damage", ARRAYS.values(), ids=ARRAYS)
def test_arrays_of_a_model_are_checked_before_they_are_read(saved, damage):
    assert trained_model.read(saved).predict(np.zeros((1, 4))).shape == (1, 3)
    path = saved / layout.PARAMS
    damage(path)
    assert path.stat().st_size < 2 * 10**7
    with little_memory(), pytest.raises(InputError) as caught:
        trained_model.read(saved)
    assert "model" in one_line(caught.value)


@pytest.mark.promise("record-headers-first")
@pytest.mark.parametrize("damage", ARRAYS.values(), ids=ARRAYS)
def test_arrays_of_a_checkpoint_are_checked_before_they_are_read(tmp_path, damage):
    PARAMS.update({"params/1/w": np.ones((4, 8), np.float32)})
    path = tmp_path / "step-000000000001.npz"
    damage(path)
    with little_memory(), pytest.raises(InputError, match="the checkpoint is damaged"):
        checkpoints.read(path)


@pytest.mark.promise("record-headers-first")
@pytest.mark.parametrize("damage", ARRAYS.values(), ids=ARRAYS)
def test_arrays_of_results_are_checked_before_they_are_read(tmp_path, damage):
    damage(layout.results(tmp_path))
    with little_memory():
        try:
            found = results.read(tmp_path)
        except npz.READ_ERRORS:
            return
    assert found == results.Results()  # arrays that are none of its own


@pytest.mark.promise("record-headers-first")
@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("confusion", np.zeros((5000, 1), int)),
        ("confusion", np.zeros((3, 3))),
        ("confusion_classes", np.zeros((3, 3), int)),
        ("misclassified_x", np.zeros((5000, 1, 1, 1))),
        ("misclassified_true", np.zeros(3)),
        ("grid", np.zeros((2, 2))),
        ("points", np.zeros(3)),
    ],
)
def test_absurd_results_are_not_drawn(tmp_path, name, array):
    npz.write_arrays(layout.results(tmp_path), {name: array})
    with pytest.raises(ValueError, match=name):
        results.read(tmp_path)


# --- checkpoints ------------------------------------------------------------------------------

MANIFEST = {"format": 1, "step": 3, "names": ["state/w"], "metadata": {"journal": [0, 0]}}
BEST = {"value": 1.0, "step": 2, "metrics": {"loss": 1.0}, "evaluations_since": 0}
METADATA = {"journal": [0, 0], "seconds": 1.0, "latest": {"loss": 1.0}, "best": BEST}
MANIFESTS = {
    "no table": [],
    "a number": 5,
    "without a step": {key: MANIFEST[key] for key in ("format", "names", "metadata")},
    "without names": {key: MANIFEST[key] for key in ("format", "step", "metadata")},
    "without metadata": {key: MANIFEST[key] for key in ("format", "step", "names")},
    "without a format": {key: MANIFEST[key] for key in ("step", "names", "metadata")},
    "format of no kind": MANIFEST | {"format": "1"},
    "format 0": MANIFEST | {"format": 0},
    "format true": MANIFEST | {"format": True},
    "step -1": MANIFEST | {"step": -1},
    "step of a text": MANIFEST | {"step": "3"},
    "step of a fraction": MANIFEST | {"step": 3.5},
    "step true": MANIFEST | {"step": True},
    "step of 10^30": MANIFEST | {"step": 10**30},
    "step of another file": MANIFEST | {"step": 4},
    "names of another number": MANIFEST | {"names": ["state/w", "state/b"]},
    "no names": MANIFEST | {"names": []},
    "names that are numbers": MANIFEST | {"names": [0]},
    "names in a text": MANIFEST | {"names": "w"},
    "names in a table": MANIFEST | {"names": {"0": "w"}},
    "metadata in a list": MANIFEST | {"metadata": [1]},
    "journal of three": MANIFEST | {"metadata": {"journal": [1, 2, 3]}},
    "journal of texts": MANIFEST | {"metadata": {"journal": ["a", "b"]}},
    "journal below 0": MANIFEST | {"metadata": {"journal": [-1, 0]}},
    "journal of 10^30": MANIFEST | {"metadata": {"journal": [10**30, 0]}},
    "latest of texts": MANIFEST | {"metadata": METADATA | {"latest": {"loss": "a"}}},
    "latest in a list": MANIFEST | {"metadata": METADATA | {"latest": ["loss"]}},
    "latest that is a text": MANIFEST | {"metadata": METADATA | {"latest": "loss"}},
    "seconds of a text": MANIFEST | {"metadata": METADATA | {"seconds": "a"}},
    "best of a text": MANIFEST | {"metadata": METADATA | {"best": "a"}},
    "best without a value": MANIFEST | {"metadata": METADATA | {"best": {"step": 1}}},
    "best with a text for a step": MANIFEST
    | {"metadata": METADATA | {"best": BEST | {"step": "a"}}},
    "best without the latest": MANIFEST | {"metadata": {"journal": [0, 0], "best": BEST}},
    "deep": MANIFEST | {"metadata": {"x": json.loads("[" * 200 + "]" * 200)}},
}  # fmt: skip


def write_checkpoint(path: Path, manifest: object, arrays=None) -> None:
    """Write a checkpoint with any manifest, and a right checksum."""
    members = {"0": np.ones(3, np.float32)} if arrays is None else arrays
    content = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    members = members | {"manifest": np.frombuffer(content, np.uint8)}
    digest = np.frombuffer(bytes.fromhex(npz.digest_of(members)), np.uint8)
    npz.write_arrays(path, members | {"sha256": digest})


@pytest.mark.promise("checkpoint-makes-sense")
@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS)
def test_a_right_checksum_makes_no_nonsense_a_checkpoint(tmp_path, manifest):
    path = tmp_path / "step-000000000003.npz"
    write_checkpoint(path, MANIFEST)
    assert checkpoints.read(path).step == 3
    write_checkpoint(path, manifest)
    with pytest.raises(InputError, match=r"damaged") as caught:
        checkpoints.read(path)
    one_line(caught.value)


@pytest.mark.promise("checkpoint-makes-sense")
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b"null"],
    ids=["empty", "cut off", "no text", "deep list", "deep table", "long number", "null"],
)
def test_a_manifest_of_any_bytes_is_told(tmp_path, content):
    write_checkpoint(tmp_path / "step-3.npz", content)
    with pytest.raises(InputError, match="the checkpoint is damaged") as caught:
        checkpoints.read(tmp_path / "step-3.npz")
    one_line(caught.value)


def run_with_checkpoints(folder: Path) -> Journal:
    """Write a run of two checkpoints; return its journal."""
    layout.checkpoints(folder).mkdir(parents=True)
    writer = Journal(folder)
    writer.start(label="a", experiment="b", params={}, tags={})
    states = checkpoints.Checkpoints(folder, 5, writer)
    for step in (1, 2):
        states.save(step, {"w": np.full(3, step)}, {"w": np.full(3, step)}, {})
        states.wait()
    states.close()
    return writer


@pytest.mark.promise("checkpoint-makes-sense")
def test_a_checkpoint_that_the_run_did_not_write_is_not_resumed_from(tmp_path):
    run_with_checkpoints(tmp_path).close()
    notes = []
    newest, _ = checkpoints.files(tmp_path)
    assert checkpoints.latest(tmp_path, notes.append).step == 2
    metadata = checkpoints.read(newest).metadata
    checkpoints.write(newest, Checkpoint(2, {"w": np.full(3, 7)}, metadata))
    assert checkpoints.latest(tmp_path, notes.append).step == 1
    assert ["another checkpoint than the run has written" in note for note in notes] == [True]


@pytest.mark.promise("checkpoint-makes-sense")
@pytest.mark.parametrize("name", ["step-x.npz", "step-.npz", "step--1.npz", "step-1 2.npz"])
def test_a_file_of_another_name_is_no_checkpoint(tmp_path, name):
    run_with_checkpoints(tmp_path).close()
    (layout.checkpoints(tmp_path) / name).write_bytes(b"x")
    (layout.checkpoints(tmp_path) / "step-000000000009.npz").mkdir()
    assert [checkpoints.step_of(path) for path in checkpoints.files(tmp_path)] == [2, 1]


# --- JSON and TOML ----------------------------------------------------------------------------

FACTS = {"format": 1, "shape": [4], "outputs": 3, "classes": ["a", "b", "c"], "tokens": [],
         "sequence": False}  # fmt: skip
WRONG_FACTS = {
    "shape of 10^12": FACTS | {"shape": [10**12]},
    "shape of 10^40": FACTS | {"shape": [10**40]},
    "shape of giants": FACTS | {"shape": [65536, 65536]},
    "a hundred axes": FACTS | {"shape": [1] * 100},
    "shape 0": FACTS | {"shape": [0]},
    "negative shape": FACTS | {"shape": [-4]},
    "shape of texts": FACTS | {"shape": ["4"]},
    "shape of fractions": FACTS | {"shape": [4.0]},
    "shape of bools": FACTS | {"shape": [True]},
    "another shape": FACTS | {"shape": [5]},
    "outputs 0": FACTS | {"outputs": 0},
    "outputs of 10^12": FACTS | {"outputs": 10**12, "classes": []},
    "other outputs": FACTS | {"outputs": 4},
    "classes that are numbers": FACTS | {"classes": [1, 2, 3]},
    "classes in a text": FACTS | {"classes": "abc"},
    "sequence of a text": FACTS | {"sequence": "yes"},
    "no table": [],
    "without a shape": {"format": 1},
    "without a format": {key: value for key, value in FACTS.items() if key != "format"},
    "deep": FACTS | {"x": json.loads("[" * 500 + "]" * 500)},
}


@pytest.mark.promise("record-headers-first")
@pytest.mark.parametrize("facts", WRONG_FACTS.values(), ids=WRONG_FACTS)
def test_absurd_facts_of_a_model_are_refused(saved, facts):
    (saved / layout.MODEL_FACTS).write_text(json.dumps(facts))
    with little_memory(), pytest.raises(InputError) as caught:
        trained_model.read(saved)
    one_line(caught.value)


@pytest.mark.promise("record-headers-first")
@pytest.mark.parametrize("sizes", ["1000000000", "999999999999999999999999", "9, 9", "-1", "0"])
def test_absurd_sizes_in_a_configuration_are_refused(saved, sizes):
    path = saved / layout.CONFIG
    path.write_text(path.read_text().replace("    8,\n", f"    {sizes},\n"))
    assert sizes in path.read_text()
    with little_memory(), pytest.raises(InputError):
        trained_model.read(saved)


TOML = {
    "deep lists": "a = " + "[" * 5000 + "]" * 5000,
    "deep tables": "a = " + "{a = " * 2000 + "1" + "}" * 2000,
    "a key of many parts": ".".join(["a"] * 100_000) + " = 1",
    "a header of many parts": f"[{'.'.join(['a'] * 100_000)}]",
    "a long number": f"a = {'1' * 10_000}",
    "no date": "a = 2026-99-99",
    "no text": b"\xff\xfe\x00",
    "too large": "# " + "x" * (bounded.LARGEST_TOML + 1),
    "cut off": "a = {",
    "surrogates": 'a = "\\ud800"',
}
JSON = {
    "deep lists": "[" * 100_000,
    "closed deep lists": "[" * 900 + "]" * 900,
    "deep tables": '{"a":' * 100_000,
    "a long number": "1" * 10_000,
    "no text": b"\xff\xfe\x00",
    "cut off": '{"a": ',
    "a list": "[1, 2]",
    "a number": "5",
    "null": "null",
    "empty": "",
}


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.promise("bounded-texts")
@pytest.mark.parametrize("content", TOML.values(), ids=TOML)
def test_toml_is_bounded(tmp_path, content):
    path = written(tmp_path / "config.toml", content)
    for read in (reading.read, reading.require_trusted_names):
        with pytest.raises(InputError) as caught:
            read(path, *([] if read is reading.read else [reading.references.NOTHING]))
        one_line(caught.value)
    assert str(path) in said("run", path, status=2)


@pytest.mark.promise("bounded-texts")
@pytest.mark.parametrize("content", JSON.values(), ids=JSON)
def test_json_is_bounded(tmp_path, content):
    folder = tmp_path / "run"
    artifacts = layout.artifacts(folder)
    written(artifacts / layout.ENVIRONMENT, content)
    written(layout.history(artifacts) / layout.LAYER_NAMES, content)
    written(layout.history(artifacts) / layout.CHECKPOINT_DIGESTS, content)
    written(layout.sent(folder), content)
    written(layout.model_facts(folder), content)
    assert environment.read(artifacts) == {}
    assert history.read_layer_names(artifacts) == {}
    assert read_sent(folder).run_id == ""
    for read in (
        lambda: history.read_checkpoints(artifacts),
        lambda: model_facts.read(layout.model(folder)),
    ):
        with pytest.raises(InputError) as caught:
            read()
        one_line(caught.value)


@pytest.mark.promise("bounded-texts")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / layout.ENVIRONMENT)
    os.mkfifo(tmp_path / "config.toml")
    assert environment.read(tmp_path) == {}
    with pytest.raises(InputError, match="no plain file"):
        reading.read(tmp_path / "config.toml")


@pytest.mark.promise("bounded-texts")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("steps.csv", "step,loss\n1,2,3\n"),
        ("steps.csv", "step,loss\n"),
        ("steps.csv", ""),
        ("steps.csv", "step,loss,loss\n1,2,3\n"),
        ("steps.csv", "step,loss\nnan,1\n"),
        ("steps.csv", "step,loss\n1e300,1\n"),
        ("steps.csv", 'step,"loss\n'),
        ("metrics.csv", f"key,step,time,value\nloss,{10**30},0,1\n"),
        ("metrics.csv", "key,step,time,value\nloss\n"),
        ("metrics.csv", f"key,step,time,value\n{'x' * 200_000},1,1,1\n"),
        ("metrics.csv", "a,b\n1,2\n"),
        ("metrics.csv", b"\xff\xfe"),
    ],
)
def test_a_damaged_history_is_told(tmp_path, name, content):
    written(layout.history(tmp_path) / name, content)
    with pytest.raises(InputError, match="the history among its artifacts is damaged") as caught:
        history.read(tmp_path)
    one_line(caught.value)


@pytest.mark.promise("bounded-texts")
@pytest.mark.parametrize(
    "table",
    [
        {},
        {"boxes": [], "arrows": []},
        {"boxes": {"0": {}}, "arrows": []},
        {"boxes": {"a": 1}, "arrows": []},
        {"boxes": {}, "arrows": [[0, 1]]},
        {"arrows": [[1, 0]]},
        {"arrows": [[0, 5]]},
        {"arrows": [[0]]},
        {"arrows": [[0, 1]] * 200_000},
    ],
)
def test_an_absurd_diagram_is_not_drawn(table):
    box = {"lines": ["a"], "path": "0", "shape": "3", "parameters": 1, "groups": []}
    good = {"boxes": {"0": box, "1": box}, "arrows": [[0, 1]]}
    assert len(_diagram.from_json(good).boxes) == 2
    with pytest.raises(InputError, match="diagram"):
        _diagram.from_json(table if "boxes" in table or not table else good | table)


# --- journals ---------------------------------------------------------------------------------

START = {"kind": "start", "time": 1, "format": 1, "label": "a", "name": "a-0000", "experiment": "e",
         "params": {}, "tags": {}}  # fmt: skip
METRICS = {"kind": "metrics", "time": 1, "step": 1, "values": {"loss": 1.0}}
STEPS = {"kind": "steps", "time": 2, "began": 1, "first_step": 1, "columns": {"loss": "AACAPw=="}}
LINES = {
    "a list": [],
    "a text": "start",
    "without a kind": {"time": 1},
    "kind of a list": {"kind": ["start"]},
    "name of a number": START | {"name": 5},
    "params in a list": START | {"params": ["a"]},
    "params of numbers": START | {"params": {"a": 1}},
    "tags of tables": START | {"tags": {"a": {}}},
    "tags of null": START | {"tags": None},
    "time of a text": START | {"time": "now"},
    "time of 10^30": START | {"time": 10**30},
    "time below 0": START | {"time": -5},
    "inputs of texts": START | {"inputs": ["a"]},
    "inputs without a name": START | {"inputs": [{"digest": "a"}]},
    "inputs of other shapes": START | {"inputs": [{"name": "a", "digest": "b", "x": [5, 5]}]},
    "layers in a list": START | {"layers": ["a"]},
    "parent of a number": START | {"parent": 5},
    "steps below 0": START | {"steps": -1},
    "values of texts": METRICS | {"values": {"loss": "a"}},
    "values in a list": METRICS | {"values": [1.0]},
    "step of a text": METRICS | {"step": "1"},
    "step of 10^30": METRICS | {"step": 10**30},
    "step true": METRICS | {"step": True},
    "columns that are no base64": STEPS | {"columns": {"loss": "!!"}},
    "columns of half a number": STEPS | {"columns": {"loss": "AAA="}},
    "columns of numbers": STEPS | {"columns": {"loss": 5}},
    "columns in a list": STEPS | {"columns": ["AACAPw=="]},
    "first step of a text": STEPS | {"first_step": "a"},
    "began in year 10000": STEPS | {"began": 10**18},
    "end of a number": {"kind": "end", "time": 1, "status": 5, "message": ""},
    "tags of numbers": {"kind": "tags", "time": 1, "values": {"a": 5}},
    "child of a list": {"kind": "child", "time": 1, "folder": [], "variant": "a"},
    "checkpoint of texts": {"kind": "checkpoint", "time": 1, "step": 1, "params_digest": "a",
                            "tensors": [], "state_digest": "b"},
    "resume below 0": {"kind": "resume", "time": 1, "step": -1},
    "seal of a number": {"kind": "seal", "time": 1, "root": 1},
}  # fmt: skip


def journal_line(entries: object) -> bytes:
    """Return a line of a journal with a right checksum."""
    body = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return b'%s, "crc32": %d}\n' % (body[:-1], zlib.crc32(body))


@pytest.mark.promise("journal-makes-sense")
@pytest.mark.parametrize("entries", LINES.values(), ids=LINES)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_right_checksum_makes_no_nonsense_a_line(project, entries, place):
    folder = project / "mlruns" / "runs" / "small-0000"
    folder.mkdir(parents=True)
    good = b"".join(map(journal_line, (START, METRICS | {"values": {"accuracy": 0.5}}, STEPS)))
    bad = journal_line(entries)
    layout.journal(folder).write_bytes(bad + good if place == "before" else good + bad)
    for words in (["runs"], ["show", "a-0000"], ["runs", "metrics.accuracy > 0.1"]):
        output = said(*words)
        assert "a-0000" in output
        assert "0.5" in output
    assert "expected at least two" in said("compare", "a-0000", status=2)


@pytest.mark.promise("journal-makes-sense")
@pytest.mark.parametrize("body", [b'{"kind": ' + b"[" * 100_000 + b"}", b"{" + b"1" * 5000 + b"}"])
def test_a_line_of_any_text_is_passed_over(project, body):
    folder = project / "mlruns" / "runs" / "small-0000"
    folder.mkdir(parents=True)
    layout.journal(folder).write_bytes(journal_line(START) + journal_line(body))
    assert "a-0000" in said("runs")


# --- newer formats ----------------------------------------------------------------------------


@pytest.mark.promise("newer-is-told")
@pytest.mark.parametrize("format_", [2, 10**9, 10**40])
@pytest.mark.parametrize("words", [["show"], ["resume"], ["compare"], ["verify"], ["reproduce"]])
@pytest.mark.parametrize("by", ["folder's name", "path", "run's name"])
def test_a_run_of_a_newer_fbp_is_refused_in_one_line(project, words, by, format_):
    folder = project / "mlruns" / "runs" / "small-20260101-000000-12ab"
    folder.mkdir(parents=True)
    line = START | {"format": format_, "name": "small-12ab"}
    layout.journal(folder).write_bytes(journal_line(line))
    name = {"folder's name": folder.name, "path": folder, "run's name": "small-12ab"}[by]
    output = said(*words, name, status=2)
    assert "a newer fbp wrote it: update fbp" in output
    assert len(output.splitlines()) == 1
    assert f"a newer fbp wrote {folder.name}; update fbp to read them" in said("runs")


@pytest.mark.promise("newer-is-told")
def test_a_checkpoint_of_a_newer_fbp_is_not_put_aside(tmp_path):
    run_with_checkpoints(tmp_path).close()
    newest = checkpoints.files(tmp_path)[0]
    write_checkpoint(newest, MANIFEST | {"format": 2, "step": 2, "names": {"other": "fields"}})
    for read in (lambda: checkpoints.read(newest), lambda: checkpoints.latest(tmp_path, print)):
        with pytest.raises(NewerFormat, match="a newer fbp wrote it: update fbp"):
            read()
    assert newest.exists()


@pytest.mark.promise("newer-is-told")
def test_a_model_of_a_newer_fbp_is_refused_in_one_line(saved):
    (saved / layout.MODEL_FACTS).write_text(json.dumps({"format": 2, "other": "fields"}))
    with pytest.raises(NewerFormat, match="a newer fbp wrote it: update fbp") as caught:
        fbp.load(saved)
    one_line(caught.value)


# --- what was removed -------------------------------------------------------------------------

REMOVED = {
    "the configuration": ["config.toml"],
    "the parameters": ["model/params.npz"],
    "the facts of the model": ["model/model.json"],
    "the history": ["history"],
    "the environment": ["environment.json"],
    "all": ["."],
}


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    """Return a copy of the project of a finished run, and its run's name."""
    shutil.copytree(finished[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said("repair-store")
    (folder,) = (tmp_path / "copy" / "mlruns" / "runs").iterdir()
    return tmp_path / "copy", folder, journal.require_start(folder).name


def remove(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        assert path.exists()
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.mark.promise("missing-is-told")
@pytest.mark.parametrize("names", REMOVED.values(), ids=REMOVED)
def test_what_was_removed_from_mlflow_is_told(copied, names):
    project, folder, name = copied
    for artifacts in (project / "mlruns" / "artifacts").glob("small/*/artifacts"):
        remove(artifacts, names)
    expected = "history/metrics.csv" if names == ["history"] else names[0].strip(".")
    for words, status in ((["show"], 0), (["reproduce"], 2)):
        output = said(*words, name, status=status)
        (line,) = [line for line in output.splitlines() if "missing in" in line]
        assert line.startswith(f"fbp: run {name}: ")
        assert expected in line
        assert str(folder) in line  # where the run still has them
        assert "--tracking-uri folders" in line
    comparison = said("show", folder, "--tracking-uri", "folders")
    assert "missing in" not in comparison


@pytest.mark.promise("missing-is-told")
@pytest.mark.parametrize("names", REMOVED.values(), ids=REMOVED)
def test_what_was_removed_from_the_folder_of_a_run_is_told(copied, names):
    _, folder, name = copied
    remove(layout.artifacts(folder), names)
    folders = ["--tracking-uri", "folders"]
    if names != ["history"]:  # the journal has it
        output = said("show", name, *folders)
        (line,) = [line for line in output.splitlines() if "missing in" in line]
        assert line.startswith(f"fbp: run {name}: ")
        assert "from a backup" in line
        assert "missing in" in said("reproduce", name, *folders, status=2)
    if "model" in names[0] or names == ["."]:
        for path in (folder, name, folder.name):
            with pytest.raises(InputError) as caught:
                fbp.load(path)
            line = one_line(caught.value)
            assert line.startswith(f"run {name}: ")
            assert "missing in" in line
            assert "from a backup" in line
        assert f"run {name}: " in said("generate", name, status=2)


@pytest.mark.promise("missing-is-told")
def test_a_model_that_was_removed_from_mlflow_is_told_by_load(copied):
    project, folder, name = copied
    run_id = read_sent(folder).run_id
    for artifacts in (project / "mlruns" / "artifacts").glob("small/*/artifacts"):
        remove(artifacts, ["model"])
    shutil.rmtree(folder)
    with pytest.raises(InputError) as caught:
        fbp.load(run_id)
    line = one_line(caught.value)
    assert line.startswith(f"run {name}: model/params.npz, model/config.toml, model/model.json are")
    assert "/tmp/tmp" not in line


@pytest.mark.promise("missing-is-told")
def test_a_damaged_model_from_mlflow_is_named_and_not_a_temporary_folder(copied):
    project, folder, name = copied
    run_id = read_sent(folder).run_id
    for path in (project / "mlruns" / "artifacts").glob("small/*/artifacts/model/params.npz"):
        path.write_bytes(b"damaged")
    shutil.rmtree(folder)
    with pytest.raises(InputError) as caught:
        fbp.load(run_id)
    assert one_line(caught.value).startswith(f"run {name}: the trained model is damaged")


@pytest.mark.promise("missing-is-told")
def test_compare_says_which_runs_lack_what(copied, monkeypatch):
    _, _, name = copied
    monkeypatch.setattr(missing, "missing_artifacts", lambda runs, run: ["config.toml"])
    run = fbp.experiment.tracking.run_reader.RecordedRun(
        "1", "b", "e", "FINISHED", 0, 1, {}, {}, {}
    )
    from fbp.experiment.commands import compare

    monkeypatch.setattr(compare, "expand", lambda runs, found: [found, run._replace(run_id="2")])
    monkeypatch.setattr(
        fbp.experiment.tracking.mlflow_runs.MlflowRuns, "series", lambda self, run: {}
    )
    monkeypatch.setattr(
        fbp.experiment.tracking.mlflow_runs.MlflowRuns, "layers", lambda self, run: {}
    )
    output = said("compare", name, "--output", "report")
    assert f"fbp: run {name}: config.toml is missing in" in output
    assert "config.toml is missing in" in Path("report/report.md").read_text()


# --- a full disk, a store that cannot be read -------------------------------------------------


@pytest.mark.promise("full-disk-told")
@pytest.mark.parametrize("kind", ["ENOSPC", "EDQUOT"])
def test_a_full_disk_names_the_command_that_goes_on(warm, monkeypatch, kind):
    import errno

    from fbp.experiment.runner import loop

    def full(*_):
        raise OSError(getattr(errno, kind), "No space left on device", "journal.jsonl")

    monkeypatch.setattr(loop.Loop, "train", full)
    output = said("run", write_config(warm), status=1)
    (folder,) = (warm / "mlruns" / "runs").iterdir()
    assert (
        f"No space left on device; free some space, then go on with: fbp resume {folder.name}"
        in (output)
    )


@pytest.mark.promise("full-disk-told")
@pytest.mark.parametrize(
    "uri", ["sqlite:////nowhere/x.db", "postgresql://u:pass@127.0.0.1:1/x", "http://127.0.0.1:9"]
)
def test_a_store_that_cannot_be_read_leads_to_the_run_folders(project, uri):
    run_with_checkpoints(project / "mlruns" / "runs" / "small-0000").close()
    output = said("runs", "--tracking-uri", uri, status=2)
    assert "the run folders of this project can be read with: --tracking-uri folders" in output
    assert "small-0000" in said("show", "small-0000", "--tracking-uri", "folders")
