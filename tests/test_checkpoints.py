"""Checkpoint files: read as they were written, or refused; rotation."""

import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fbp
from fbp.experiment.rundir import checkpoints
from fbp.experiment.rundir.checkpoints import Checkpoint
from fbp.experiment.rundir.journal import Journal
from fbp.experiment.rundir.npz import flatten_by_path, params_digest, unflatten_like

TREE = {
    "w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3),
    "half": jnp.array([1.5, -2], jnp.bfloat16),
    "quarter": jnp.array([1.5, -2], jnp.float8_e5m2),
    "key": jax.random.key(3),
    "step": jnp.int32(7),
    "empty": jnp.zeros((0, 4)),
    "nested": [{"a": jnp.array([True, False])}, ()],
}


class TestCheckpointFile:
    def test_what_is_read_is_what_was_written(self, tmp_path):
        path = tmp_path / "step-7.npz"
        checkpoints.write(
            path,
            Checkpoint(7, flatten_by_path(TREE), {"latest": {"loss": float("nan")}, "best": None}),
        )
        found = checkpoints.read(path)
        assert found.step == 7
        assert np.isnan(found.metadata["latest"]["loss"])
        back = unflatten_like(found.arrays, jax.eval_shape(lambda: TREE))
        assert jax.tree.structure(back) == jax.tree.structure(TREE)
        assert params_digest(back) == params_digest(TREE)
        assert back["half"].dtype == jnp.bfloat16
        assert (jax.random.bits(back["key"]) == jax.random.bits(TREE["key"])).all()

    @given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
    def test_one_changed_byte_is_noticed(self, tmp_path_factory, place, flip, cut):
        folder = tmp_path_factory.getbasetemp()
        good = folder / "step-good.npz"
        if not good.exists():
            checkpoints.write(good, Checkpoint(7, flatten_by_path(TREE), {"x": 1}))
        content = bytearray(good.read_bytes())
        at = int(place * len(content))
        if cut:
            del content[at:]
        else:
            content[at] ^= flip
        bad = folder / "step-bad.npz"
        bad.write_bytes(content)
        found = problem = None
        try:
            found = checkpoints.read(bad)
        except fbp.InputError as error:
            problem = str(error)
        if found is None:
            assert len(problem.splitlines()) == 1
        else:  # a byte that means nothing, such as a time in the archive
            assert not cut
            assert (found.step, found.metadata) == (7, {"x": 1})
            assert params_digest(
                unflatten_like(found.arrays, jax.eval_shape(lambda: TREE))
            ) == params_digest(TREE)

    @pytest.mark.parametrize(
        "like",
        [
            {"w": TREE["w"]},
            TREE | {"w": jnp.zeros((3, 2))},
            TREE | {"w": jnp.zeros((2, 3), jnp.int32)},
        ],
        ids=["names", "shape", "dtype"],
    )
    def test_another_structure_is_refused(self, like):
        with pytest.raises(ValueError, match=r"expected|missing"):
            unflatten_like(flatten_by_path(TREE), like)

    def test_a_damaged_one_is_passed_over_with_a_warning(self, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        for step in (1, 2, 3):
            checkpoints.write(
                tmp_path / "checkpoints" / f"step-{step:012d}.npz",
                Checkpoint(step, {}, {"journal": [0, 0]}),
            )
        newest, middle, _ = checkpoints.files(tmp_path)
        newest.write_bytes(b"")
        middle.write_bytes(middle.read_bytes()[:-30])
        said = []
        assert checkpoints.latest(tmp_path, said.append).step == 1
        assert [
            f"step-{step:012d}.npz: the checkpoint is damaged" in said[3 - step] for step in (3, 2)
        ] == [True, True]

    def test_the_newest_are_kept_and_leftovers_removed(self, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / ".step-9.npz.partial").write_text("half")
        states = checkpoints.Checkpoints(tmp_path, 2, Journal(tmp_path))
        for step in range(4):
            states.save(step, {"tree": TREE}, TREE, {})
            assert states.wait().params_digest == params_digest(TREE)
        states.close()
        assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
            "step-000000000002.npz",
            "step-000000000003.npz",
        ]

    def test_a_full_disk_leaves_the_ones_before(self, tmp_path, monkeypatch):
        states = checkpoints.Checkpoints(tmp_path, 2, Journal(tmp_path))
        states.save(1, {}, {}, {})
        states.wait()
        monkeypatch.setattr(
            np, "savez", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space"))
        )
        states.save(2, {}, {}, {})
        with pytest.raises(OSError, match="no space"):
            states.wait()
        states.close()
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
            "step-000000000001.npz"
        ]


def test_damaged_checkpoints_do_not_push_out_good_ones(tmp_path):
    states = checkpoints.Checkpoints(tmp_path, 1, Journal(tmp_path))
    for path in ("step-000000000008.npz", "step-000000000009.npz"):
        (tmp_path / "checkpoints" / path).write_text("damaged")
    assert checkpoints.latest(tmp_path, lambda text: None) is None
    checkpoints.quarantine_after(tmp_path, -1)
    states.save(4, {"tree": TREE}, TREE, {})
    states.wait()
    states.close()
    assert checkpoints.latest(tmp_path, lambda text: None).step == 4
