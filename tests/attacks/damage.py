"""What damaged files may cost, and how the tests damage checkpoints and journals."""

import contextlib
import json
import tracemalloc
import zlib
from pathlib import Path

import numpy as np

from fbp.experiment.rundir import checkpoints, layout, npz
from fbp.experiment.rundir.journal import Journal
from tests.attacks.hostile import unseen

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


# What arrays are damaged: those of the fixture `saved`, if a test in this process has used it.
PARAMS: dict[str, np.ndarray] = {"params/1/w": np.ones((4, 8), np.float32)}

MANIFEST = {"format": 1, "step": 3, "names": ["state/w"], "metadata": {"journal": [0, 0]}}


def write_checkpoint(path: Path, manifest: object, arrays=None) -> None:
    """Write a checkpoint with any manifest, and a right checksum."""
    members = {"0": np.ones(3, np.float32)} if arrays is None else arrays
    content = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    members = members | {"manifest": np.frombuffer(content, np.uint8)}
    digest = np.frombuffer(bytes.fromhex(npz.digest_of(members)), np.uint8)
    npz.write_arrays(path, members | {"sha256": digest})


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


START = {"kind": "start", "time": 1, "format": 1, "label": "a", "name": "a-0000", "experiment": "e",
         "params": {}, "tags": {}}  # fmt: skip


def journal_line(entries: object) -> bytes:
    """Return a line of a journal with a right checksum."""
    body = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return b'%s, "crc32": %d}\n' % (body[:-1], zlib.crc32(body))
