"""Probable mistakes in data, model and loss that can be known before training."""

import sys

import numpy as np
import pytest

from tests.attacks.datafiles import built, refusal


def spanning(folder, low, high):
    x = np.linspace(low, high, 40)[:, None] * np.ones(2)
    np.savez(folder / "d.npz", x=x, y=np.arange(40) % 2)
    return {"name": "file", "path": str(folder / "d.npz")}


SUSPICIONS = {
    "features to 6300": ((0, 6300), {}, "softmax_cross_entropy", {}, "data.standardize = true"),
    "features far below 0": ((-900, 0), {}, "softmax_cross_entropy", {}, "data.standardize"),
    "pixels to 255": ((0, 255), {}, "softmax_cross_entropy", {}, "data.standardize = true"),
    "features scaled": ((0, 6300), {"standardize": True}, "softmax_cross_entropy", {}, None),
    "small features": ((0, 1), {}, "softmax_cross_entropy", {}, None),
    "softmax twice": (
        (0, 1),
        {},
        "softmax_cross_entropy",
        {"output_activation": "softmax"},
        "applies softmax to its outputs once more",
    ),
    "sigmoid twice": (
        (0, 1),
        {"task": "classification"},
        "sigmoid_cross_entropy",
        {"output_activation": "sigmoid"},
        "applies sigmoid to its outputs once more",
    ),
    "logits that happen to be small": (
        (0, 1),
        {},
        "cross_entropy",
        {
            "output_activation": "relu",
            "bias": {"name": "constant", "value": 0.5},
            "weights": "zeros",
        },
        "expects probabilities, but the model ends with relu",
    ),
    "probabilities": ((0, 1), {}, "cross_entropy", {"output_activation": "softmax"}, None),
    "targets to 900": ((0, 1), {"target": "far"}, "mean_squared_error", {}, "standardize_targets"),
    "seconds": (
        (1.7e9, 1.7e9 + 40),
        {},
        "softmax_cross_entropy",
        {},
        "float32 cannot tell their values apart",
    ),
}


@pytest.mark.promise("suspicions-told")
@pytest.mark.parametrize("case", SUSPICIONS)
def test_what_is_probably_a_mistake_is_told_in_a_line(tmp_path, case):
    span, more, loss, model, expected = SUSPICIONS[case]
    data = spanning(tmp_path, *span) | more
    if more.get("target") == "far":
        arrays = dict(np.load(data["path"]))
        np.savez(data["path"], **arrays, far=np.linspace(0, 900.5, 40))
    notes = built(data, loss, model={"name": "mlp", "hidden": [4], **model}).notes[1:]
    if expected is None:
        assert notes == ()
    else:
        assert any(expected in note and "\n" not in note for note in notes), notes


@pytest.mark.promise("coupled-losses-say-so")
@pytest.mark.parametrize(
    ("body", "is_refused"),
    [
        ("((output - target) ** 2).sum(axis=1)", False),
        ("((output - target) ** 2).sum(axis=1) / output.shape[0]", True),
        ("((output - output.mean(axis=0)) ** 2).sum(axis=1)", True),
        ("jnp.abs(output @ output.T).sum(axis=1)", True),
        ("jnp.full(output.shape[0], (output ** 2).mean())", True),
    ],
)
def test_a_loss_of_ones_own_that_couples_examples_must_say_so(
    tmp_path, monkeypatch, body, is_refused
):
    (tmp_path / "pairs.py").write_text(
        "import jax.numpy as jnp, fbp\n"
        f"def value(output, target):\n    return {body}\n"
        "def loss():\n    return fbp.losses.from_function(value)\n"
        "def coupled():\n    return fbp.losses.from_function(value, coupled=True)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("pairs", None)
    built({"name": "linear", "examples": 40}, "pairs:coupled")
    if is_refused:
        line = refusal(lambda: built({"name": "linear", "examples": 40}, "pairs:loss"))
        assert "say so with coupled=True" in line
    else:
        built({"name": "linear", "examples": 40}, "pairs:loss")
