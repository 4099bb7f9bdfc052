"""Checkpoints that make no sense, though their checksum is right."""

import json

import numpy as np
import pytest

from fbp.errors import InputError
from fbp.experiment.rundir import checkpoints, layout
from fbp.experiment.rundir.checkpoints import Checkpoint
from tests.attacks.damage import MANIFEST, one_line, run_with_checkpoints, write_checkpoint

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
