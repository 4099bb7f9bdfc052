"""Arrays of a record that are damaged or absurd: refused by their headers, before they are read."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fbp.errors import InputError
from fbp.experiment.rundir import checkpoints, layout, npz, results
from fbp.experiment.runner import trained_model
from tests.attacks.damage import PARAMS, little_memory, one_line


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
