"""Losses: values by hand, extreme logits, targets of every kind."""

import jax.numpy as jnp
import numpy as np
import pytest

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
