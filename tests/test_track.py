"""`fbp.experiment.track`: loops of one's own, logged as runs."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp.experiment import track
from fbp.experiment.rundir import journal, layout
from fbp.experiment.rundir.series import read_series


class TestTrack:
    def test_metrics_of_any_kind_in_order(self, unsent):
        with track({"a": 1, "optimizer": {"rate": 0.1}}, experiment="mine") as run:
            run.log(1, {"loss": jnp.float32(0.5), "norm": {"w": np.float64(2), "b": 3}, "ok": True})
            run.log(2, {"loss": float("inf"), "norm": {"w": float("nan")}})
        series = read_series(run.folder)
        assert {key: points.steps.tolist() for key, points in series.items()} == {
            "loss": [1, 2],
            "norm/w": [1, 2],
            "norm/b": [1],
            "ok": [1],
        }
        assert math.isinf(series["loss"].values[1])
        start = journal.read_start(run.folder)
        assert start.params == {"a": "1", "optimizer_rate": "0.1"}
        assert journal.read_end(run.folder).status == "FINISHED"
        tags = journal.read_tags(run.folder)
        assert tags["fbp.nonfinite"] == "loss inf at step 2, norm/w nan at step 2"
        assert (run.folder / "artifacts" / layout.ENVIRONMENT).exists()

    @pytest.mark.parametrize(
        ("error", "status"),
        [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
    )
    def test_an_exception_ends_the_run_and_goes_on(self, unsent, error, status):
        with pytest.raises(error), track() as run:
            raise error("why")
        assert journal.read_end(run.folder).status == status
        assert "why" in journal.read_end(run.folder).message

    def test_two_names_that_mlflow_cannot_tell_apart(self, unsent):
        with (
            pytest.raises(fbp.InputError, match="'m_x' becomes 'm_x' in MLflow, but another"),
            track({"m": {"x": 1}, "m_x": 2}),
        ):
            pass

    def test_a_resumed_run_goes_on_where_its_checkpoint_is(self, unsent):
        tree = {"w": jnp.zeros(3), "key": jax.random.key(1)}
        with contextlib.suppress(RuntimeError), track({"a": 1}) as run:
            for step in range(1, 6):
                run.log(step, {"loss": step})
                run.checkpoint(step, tree | {"w": jnp.full(3, float(step))})
            raise RuntimeError
        newest = sorted((run.folder / "checkpoints").iterdir())[-1]
        newest.write_bytes(newest.read_bytes()[:-9])
        with track({"a": 1}, resume=run.name) as again:
            at, found = again.restore(jax.tree.map(lambda leaf: leaf, tree))
            assert (at, found["w"].tolist()) == (4, [4, 4, 4])
            for step in range(at + 1, 8):
                again.log(step, {"loss": step})
        assert again.folder == run.folder
        assert read_series(run.folder)["loss"].steps.tolist() == list(range(1, 8))

    @pytest.mark.parametrize(
        ("use", "problem"),
        [
            (lambda run: run.log(1, {"x": "abc"}), "x: expected a number, got 'abc'"),
            (lambda run: run.log(1, {"x": jnp.zeros(2)}), "x: expected a number"),
            (lambda run: run.log(1, {"x": None}), "x: expected a number, got 'None'"),
            (
                lambda run: run.checkpoint(1, np.zeros(2, [("a", "f4")])),
                "expected a pytree of arrays and numbers",
            ),
            (lambda run: run.log(1, {"x[0]": 1}), "expected names of letters, digits"),
            (lambda run: run.log(1, {"../x": 1}), "expected names of letters, digits"),
            (lambda run: run.log(1, {"a/./b": 1}), "expected names of letters, digits"),
            (lambda run: run.log(1, {".": 1}), "expected names of letters, digits"),
            (lambda run: run.tag(**{"bad:key!": 1}), "expected names of letters, digits"),
            (lambda run: run.log(-1, {"x": 1}), "expected a step, a whole number"),
            (lambda run: run.checkpoint(7.5, {}), "expected a step, a whole number"),
            (lambda run: run.log(1, 5), "expected a mapping"),
            (lambda run: run.artifact("nothing.txt"), "expected a file"),
            (lambda run: run.artifact(__file__, "../../x"), "inside the run's folder"),
        ],
    )
    def test_bad_input_is_one_line_and_nothing_is_lost(self, unsent, use, problem):
        with track() as run:
            run.log(0, {"x": 0})
            with pytest.raises(fbp.InputError, match=problem) as caught:
                use(run)
        assert len(str(caught.value).splitlines()) == 1
        assert read_series(run.folder)["x"].steps.tolist() == [0]

    def test_another_configuration_is_not_resumed(self, unsent):
        with track({"rate": 1}) as run:
            pass
        with (
            pytest.raises(fbp.InputError, match="rate was '1' when the run began, and is '2' now"),
            track({"rate": 2}, resume=run.name),
        ):
            pass
        with pytest.raises(fbp.InputError, match="no run 'nothing'"), track(resume="nothing"):
            pass

    def test_arrays_may_be_donated_or_changed_after_a_checkpoint(self, unsent):
        step = jax.jit(lambda p: p + 1, donate_argnums=0)
        own = np.zeros(3)
        with track() as run:
            params = jnp.zeros(1000)
            for i in range(1, 4):
                run.checkpoint(i, {"p": params, "own": own, "rate": 0.5, "epoch": i})
                params = step(params)
                own += 1
        with track(resume=run.name) as again:
            at, found = again.restore({"p": jnp.zeros(1000), "own": own, "rate": 0.1, "epoch": 0})
        assert (at, found["rate"], found["epoch"], found["own"].dtype, type(found["epoch"])) == (
            3,
            0.5,
            3,
            np.float64,
            int,
        )
        assert found["own"].tolist() == [2, 2, 2]
        assert (found["p"] == 2).all()

    def test_any_names_in_a_tree(self, unsent):
        tree = {
            "a|b": np.ones(1),
            "x": np.ones(2),
            "x.npy": np.ones(3),
            "a@b": np.ones(4),
            "ä %": [np.ones(5)],
        }
        with track() as run:
            run.checkpoint(1, tree, wait=True)
            found = run.restore(tree)[1]
            assert {key: np.size(value) for key, value in found.items()} == {
                key: np.size(v) for key, v in tree.items()
            }
            with pytest.raises(fbp.InputError, match="expected a pytree of arrays and numbers"):
                run.checkpoint(2, {"f": len})
            with pytest.raises(fbp.InputError, match=r"missing: y; not expected: a\|b"):
                run.restore(
                    {**{key: value for key, value in tree.items() if key != "a|b"}, "y": np.ones(1)}
                )

    def test_a_run_that_has_ended_takes_nothing_more(self, unsent):
        with track() as run:
            run.log(jnp.int32(5), {"x": 1})
        for use in (
            lambda: run.log(6, {"x": 1}),
            lambda: run.checkpoint(6, {}),
            lambda: run.tag(a=1),
        ):
            with pytest.raises(fbp.InputError, match="it has ended; resume it with"):
                use()

    def test_a_resume_that_gives_other_values_says_so(self, unsent):
        with contextlib.suppress(RuntimeError), track() as run:
            run.log(1, {"x": 1})
            raise RuntimeError
        with track(resume=run.name) as again:
            again.log(1, {"x": 2})
        assert read_series(run.folder)["x"].values.tolist() == [1]
        assert journal.read_tags(run.folder)["fbp.resume_differs"] == "x at step 1"
