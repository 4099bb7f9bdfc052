"""Losses: values by hand, extreme logits, targets of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import losses
from fbp.errors import ShapeError

LOG2 = np.log(2)


@pytest.mark.parametrize(
    ("loss", "output", "target", "value", "delta"),
    [
        (losses.mean_squared_error, [1.0, 4.0], [0.0, 2.0], 2.5, [1.0, 2.0]),
        (losses.quadratic, [1.0, 4.0], [0.0, 2.0], 2.5, [1.0, 2.0]),
        (losses.quadratic, [3.0, 0.0, 0.0], [0.0, 0.0, 0.0], 4.5, [3.0, 0.0, 0.0]),
        (losses.mean_absolute_error, [1.0, -4.0], [0.0, 2.0], 3.5, [0.5, -0.5]),
        (losses.huber(1.0), [0.5, 3.0], [0.0, 0.0], (0.125 + 2.5) / 2, [0.25, 0.5]),
        (losses.log_cosh, [0.0, 0.0], [0.0, 0.0], 0.0, [0.0, 0.0]),
        (losses.softmax_cross_entropy, [0.0, 0.0], 1, LOG2, [0.5, -0.5]),
        (losses.sigmoid_cross_entropy, [0.0, 0.0], [0.0, 1.0], 2 * LOG2, [0.5, -0.5]),
        (losses.hinge, [0.5, -2.0], [1.0, -1.0], 0.5, [-1.0, 0.0]),
        (losses.multiclass_hinge, [0.0, 0.5, -3.0], 0, 1.5, [-1.0, 1.0, 0.0]),
        (losses.kl_divergence, [0.0, 0.0], [0.5, 0.5], 0.0, [0.0, 0.0]),
        (losses.kl_divergence, [0.0, 0.0], [1.0, 0.0], LOG2, [-0.5, 0.5]),
        (losses.cross_entropy, [0.25, 0.75], 0, np.log(4), [-4.0, 0.0]),
        (losses.binary_cross_entropy, [0.5, 0.5], [1.0, 0.0], 2 * LOG2, [-2.0, 2.0]),
        (losses.poisson, [0.0, 0.0], [1.0, 2.0], 2.0, [0.0, -1.0]),
    ],
)
def test_value_and_delta_by_hand(loss, output, target, value, delta):
    output, target = jnp.array([output]), jnp.array([target])
    np.testing.assert_allclose(loss.value(output, target), [value], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loss.delta(output, target), [delta], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_losses_on_logits_are_finite_at_extreme_logits(scale):
    z = jnp.array([[scale, -scale, 0.0]])
    for loss, target in (
        (losses.softmax_cross_entropy, jnp.array([1])),
        (losses.sigmoid_cross_entropy, jnp.array([[0.0, 1.0, 1.0]])),
        (losses.kl_divergence, jnp.array([[0.0, 1.0, 0.0]])),
        (losses.multiclass_hinge, jnp.array([1])),
        (losses.log_cosh, jnp.array([[0.0, 0.0, 0.0]])),
    ):
        assert jnp.isfinite(loss.value(z, target)).all()
        assert jnp.isfinite(loss.delta(z, target)).all()
    np.testing.assert_allclose(
        losses.softmax_cross_entropy.value(z, jnp.array([1])), 2 * scale, rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.softmax_cross_entropy.delta(z, jnp.array([1])), [[1, -1, 0]], atol=1e-6
    )


def test_probabilities_of_zero_and_one_stay_finite():
    a = jnp.array([[0.0, 1.0]])
    assert jnp.isfinite(losses.cross_entropy.value(a, jnp.array([0]))).all()
    assert jnp.isfinite(losses.cross_entropy.delta(a, jnp.array([0]))).all()
    assert jnp.isfinite(losses.binary_cross_entropy.value(a, 1 - a)).all()
    assert jnp.isfinite(losses.binary_cross_entropy.delta(a, 1 - a)).all()
    np.testing.assert_array_equal(losses.binary_cross_entropy.value(a, a), [0.0])


def test_labels_and_one_hot_rows_are_the_same_target():
    z, labels = jnp.array([[0.3, -1.0, 2.0], [1.0, 0.0, 0.5]]), jnp.array([2, 1])
    for loss in (losses.softmax_cross_entropy, losses.multiclass_hinge):
        np.testing.assert_allclose(
            loss.value(z, labels), loss.value(z, jnp.eye(3)[labels]), rtol=1e-6
        )
        np.testing.assert_allclose(
            loss.delta(z, labels), loss.delta(z, jnp.eye(3)[labels]), rtol=1e-6, atol=1e-7
        )


def test_a_negative_label_counts_as_no_target():
    z = jnp.array([[0.3, -1.0, 2.0]])
    for loss in (losses.softmax_cross_entropy, losses.multiclass_hinge):
        assert loss.value(z, jnp.array([-1])) == 0
        assert not loss.delta(z, jnp.array([-1])).any()


def test_smoothed_labels_are_a_distribution():
    rows = losses.smooth_labels(jnp.array([0, 2]), 4, 0.2)
    np.testing.assert_allclose(
        rows, [[0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05]], rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.smooth_labels(jnp.eye(4)[jnp.array([0, 2])], 4, 0.2), rows, rtol=1e-6
    )


def test_targets_that_would_broadcast_are_refused():
    with pytest.raises(
        ShapeError, match=r"expects a target of the output's shape \(4, 1\), got \(4,\)"
    ):
        losses.mean_squared_error.value(jnp.ones((4, 1)), jnp.ones(4))
    with pytest.raises(ShapeError, match=r"labels of shape \(4,\) or targets of shape \(4, 3\)"):
        losses.softmax_cross_entropy.value(jnp.ones((4, 3)), jnp.ones(4))
    with pytest.raises(ShapeError, match=r"labels of shape \(4,\), got \(5,\)"):
        losses.softmax_cross_entropy.value(jnp.ones((4, 3)), jnp.ones(5, int))


def test_labels_of_a_narrow_type_count_to_any_number_of_classes():
    z = jnp.zeros((1, 300))
    for loss in (losses.softmax_cross_entropy, losses.multiclass_hinge, losses.cross_entropy):
        narrow, wide = jnp.array([1], jnp.uint8), jnp.array([1])
        np.testing.assert_array_equal(loss.value(z, narrow), loss.value(z, wide))
        np.testing.assert_array_equal(loss.delta(z, narrow), loss.delta(z, wide))
    assert losses.smooth_labels(jnp.array([1], jnp.int8), 300, 0.1).sum() > 0.99


def test_a_class_that_is_masked_out_costs_nothing_and_is_no_nan():
    z = jnp.array([[1.0, -jnp.inf, 0.0]])
    assert jnp.isfinite(losses.softmax_cross_entropy.value(z, jnp.array([0]))).all()
    assert jnp.isfinite(losses.kl_divergence.value(z, jnp.array([[0.5, 0.0, 0.5]]))).all()


def test_small_errors_are_not_lost_to_cancellation():
    np.testing.assert_allclose(
        losses.log_cosh.value(jnp.array([[3e-4]]), jnp.zeros((1, 1))), 4.5e-8, rtol=1e-3
    )


def test_half_precision_probabilities_of_zero():
    a = jnp.array([[1.0, 0.0]], jnp.float16)
    assert losses.cross_entropy.value(a, jnp.array([0])) == 0


class TestFromFunction:
    def quartic(self, **attributes):
        return losses.from_function(
            lambda output, target: ((output - target) ** 4).sum(axis=1), **attributes
        )

    def test_its_delta_is_per_example_and_passes_the_gradient_check(self):
        loss = self.quartic()
        output, target = jnp.array([[1.0, 2.0], [0.5, -1.0]]), jnp.zeros((2, 2))
        np.testing.assert_allclose(loss.delta(output, target), 4 * output**3)
        model = fbp.chain(fbp.layers.dense(3), fbp.layers.tanh(), fbp.layers.dense(2))
        params, _ = model.init(jax.random.key(0), (4,))
        x = jax.random.normal(jax.random.key(1), (5, 4))
        assert fbp.check_gradients(model, loss, params, x, jnp.ones((5, 2))).ok

    def test_it_equals_a_loss_written_by_hand(self):
        def cost(output, target):
            """Cross-entropy on logits."""
            return -jnp.take_along_axis(
                jax.nn.log_softmax(output), target[:, None], axis=1
            )[:, 0]  # fmt: skip

        loss = losses.from_function(cost, targets="labels", inverse_link=jax.nn.softmax)
        z, labels = jnp.array([[0.3, -1.0, 2.0], [1.0, 0.0, 0.5]]), jnp.array([2, 1])
        written = losses.softmax_cross_entropy
        np.testing.assert_allclose(loss.value(z, labels), written.value(z, labels), rtol=1e-6)
        np.testing.assert_allclose(loss.delta(z, labels), written.delta(z, labels), atol=1e-6)
        assert (loss.name, loss.summary) == ("cost", "Cross-entropy on logits.")
        assert loss.targets == "labels"
        assert loss.inverse_link is jax.nn.softmax

    @pytest.mark.parametrize(
        ("function", "received"),
        [
            (lambda output, target: output - target, "float32 of shape (4, 3)"),
            (lambda output, target: (output - target).mean(), "float32 of shape ()"),
            (lambda output, target: (output > target).any(axis=1), "bool of shape (4,)"),
            (lambda output, target: None, "NoneType"),
        ],
    )
    def test_another_result_is_refused_in_one_line(self, function, received):
        loss = losses.from_function(function, name="mine")
        for call in (loss.value, loss.delta):
            with pytest.raises(ShapeError) as raised:
                call(jnp.ones((4, 3)), jnp.zeros((4, 3)))
            assert str(raised.value) == (
                "loss 'mine': expected a function that gives one cost per example, "
                f"floats of shape (4,), got {received}"
            )


class TestWeighted:
    def test_one_output_is_seen_by_every_part(self):
        loss = losses.weighted((losses.quadratic, 0.5), (losses.mean_absolute_error, 2.0))
        output, target = jnp.array([[1.0, -4.0]]), jnp.array([[0.0, 2.0]])
        for function in ("value", "delta"):
            expected = 0.5 * getattr(losses.quadratic, function)(output, target)
            expected += 2.0 * getattr(losses.mean_absolute_error, function)(output, target)
            np.testing.assert_allclose(getattr(loss, function)(output, target), expected)

    def test_parts_that_need_other_targets_are_refused_on_one_output(self):
        loss = losses.weighted((losses.softmax_cross_entropy, 1.0), (losses.quadratic, 1.0))
        with pytest.raises(fbp.InputError, match=r"softmax_cross_entropy \(labels\), quadratic"):
            loss.value(jnp.ones((2, 3)), jnp.array([0, 1]))
        z = jnp.ones((2, 3))
        assert loss.value((z, z), (jnp.array([0, 1]), z)).shape == (2,)  # fine on two outputs

    def test_no_parts_are_refused(self):
        with pytest.raises(fbp.InputError, match="at least one pair"):
            losses.weighted()


class TestAttributes:
    def test_a_loss_is_a_pair_of_functions_with_attributes_beside(self):
        value, delta = losses.poisson
        assert losses.poisson == (value, delta)
        assert len(losses.poisson) == 2
        plain = fbp.Loss(value, delta)
        assert (plain.targets, plain.coupled, plain.takes_probabilities) == (
            "numbers", False, False,
        )  # fmt: skip
        assert plain.inverse_link(3) == 3

    def test_exchanging_a_function_keeps_the_attributes(self):
        other = losses.poisson._replace(delta=lambda output, target: output)
        assert (other.name, other.targets) == ("poisson", "counts")
        assert other.inverse_link is jnp.exp
        assert other.value is losses.poisson.value

    def test_unknown_targets_are_refused(self):
        with pytest.raises(fbp.InputError, match="targets must be one of labels, one_hot"):
            fbp.Loss(*losses.poisson, targets="classes")
