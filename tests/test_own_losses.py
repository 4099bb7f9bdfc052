"""A user's own losses: weighted sums, and costs that depend on the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np

import fbp
from fbp.experiment.config import reading
from fbp.experiment.runner import build, loop, test_evaluation
from tests.own_functions import OWN, override, refusal
from tests.projects import silent_compiler


def test_weighted_losses_are_named_with_their_weights(own_minimal):
    parts = "loss={name='weighted', parts=[[{name='mine:cost', power=2}, 0.5], ['mine:cost', 1]]}"
    built = build.build(reading.read(own_minimal, [parts]))
    assert built.loss.targets == "one_hot"
    assert built.data.train.y.shape[1:] == (3,)
    assert "expected at least one pair" in refusal(own_minimal, "loss={name='weighted'}")
    assert "unknown loss 'hing'; did you mean 'hinge'" in refusal(
        own_minimal, "loss={name='weighted', parts=[['hing', 1.0]]}"
    )


class TestCoupledLoss:
    """A loss whose cost of one example depends on the others of its batch."""

    def test_the_test_part_is_evaluated_in_batches_as_in_training(self, own_minimal):
        source = """
def contrast():
    def cost(output, target):
        return ((output - output.mean(axis=0)) ** 2).sum(axis=1)
    return fbp.losses.from_function(cost, targets="labels", coupled=True)
"""
        (own_minimal.parent / "mine.py").write_text(OWN + source)
        overrides = [override("loss", "mine:contrast"), "training.batch_size=4"]
        experiment = build.build(reading.read(own_minimal, overrides))
        assert loop.evaluation_batch(experiment) == 4
        params, _ = experiment.model.init(jax.random.key(0), experiment.shape)
        x, y = (jnp.asarray(part) for part in experiment.data.test)
        metrics = test_evaluation.evaluate_and_write(
            experiment, params, own_minimal.parent, silent_compiler()
        )
        output, _ = experiment.model.forward(params, x)
        batches = [output[start : start + 4] for start in range(0, len(x), 4)]
        costs = [((batch - batch.mean(axis=0)) ** 2).sum(axis=1) for batch in batches]
        np.testing.assert_allclose(metrics["test_loss"], np.concatenate(costs).mean(), rtol=1e-5)
        assert fbp.check_gradients(experiment.model, experiment.loss, params, x[:5], y[:5]).ok

    def test_a_loss_of_whole_sequences_has_no_costs_by_position(self):
        whole = fbp.losses.from_function(
            lambda output, target: output.sum(axis=(1, 2)) * 0.0 + target.sum(axis=1)
        )
        output, y = jnp.ones((2, 3, 5)), np.zeros((2, 3), np.int32)
        alone = test_evaluation._takes_single_positions
        assert alone(fbp.losses.softmax_cross_entropy, output, y)
        assert not alone(whole, output, y)
        assert not alone(fbp.losses.softmax_cross_entropy._replace(coupled=True), output, y)
