"""Runs in this process and without MLflow: what is trained, evaluated and kept."""

import numpy as np
import pytest
from click.testing import CliRunner

import fbp
from fbp.cli import main
from fbp.experiment.config import reading
from fbp.experiment.rundir import layout
from fbp.experiment.rundir.series import read_series
from fbp.experiment.runner.run import run
from fbp.experiment.runner.run_start import RunIdentity
from fbp.experiment.runner.trained_model import read
from tests.projects import LEARNING, Silent, write_config


def run_here(project, *overrides):
    """A run in this process and without MLflow."""
    path = write_config(project, name="xor", data="xor")
    read_config = reading.read(path, ["training.batch_size=full", *overrides])
    return run(
        read_config,
        RunIdentity(path, "here"),
        layout.new_run_folder(project / "mlruns", "xor"),
        Silent(),
    )


def test_many_short_epochs_are_no_trouble(project):
    outcome = run_here(project, "training.epochs=500")
    assert (outcome.status, outcome.metrics["epoch"]) == ("FINISHED", 500)


def test_a_model_with_repeated_layers_is_diagnosed_copy_by_copy(project, monkeypatch):
    (project / "deep.py").write_text(
        "import fbp\n"
        "def model(outputs: int):\n"
        "    block = fbp.residual(fbp.layers.dense(4), fbp.layers.tanh())\n"
        "    body = fbp.repeat(block, 3)\n"
        "    return fbp.chain(fbp.layers.dense(4), body, fbp.layers.dense(outputs))\n"
    )
    monkeypatch.syspath_prepend(project)
    outcome = run_here(project, "training.epochs=2", "model={name='deep:model'}")
    assert outcome.status == "FINISHED"
    assert {f"delta_norm/1/body/0/{i}" for i in range(3)} <= set(read_series(outcome.folder))


def run_config(project, text, *overrides):
    """A run of a whole configuration, in this process and without MLflow."""
    path = project / "one.toml"
    path.write_text(text)
    return run(
        reading.read(path, overrides),
        RunIdentity(path, "one"),
        layout.new_run_folder(project / "mlruns", "one"),
        Silent(),
    )


LANGUAGE = f"""
[data]
name = "text"
path = "abc.txt"
context = 16
[model]
name = "gpt"
depth = 1
heads = 2
features = 16
{LEARNING}steps = 150
batch_size = 16
evaluate_every = 60
"""


def test_a_language_model_learns_and_writes(project):
    (project / "abc.txt").write_text("abcdefgh\n" * 400)
    outcome = run_config(project, LANGUAGE)
    assert outcome.metrics["test_accuracy"] > 0.9
    assert read_series(outcome.folder)["validation_loss"].steps.tolist() == [60, 120, 150]
    written = CliRunner().invoke(
        main,
        [
            "generate",
            str(outcome.folder),
            "--prompt",
            "abc",
            "--tokens",
            "40",
            "--temperature",
            "0",
        ],
    )
    assert written.exit_code == 0, written.output
    assert written.output.startswith("abcdefgh\nabcdefgh\n")
    for arguments, problem in (
        (["--prompt", "abX"], "the model has never seen 'X'"),
        (["--tokens", "0"], "0 is not in the range"),
    ):
        refused = CliRunner().invoke(main, ["generate", str(outcome.folder), *arguments])
        assert refused.exit_code == 2
        assert problem in refused.output
    trained = fbp.load(outcome.folder)
    assert trained.predict(np.zeros((3, 16), int)).shape == (3, 16, 9)
    with pytest.raises(fbp.InputError, match="expected tokens, whole numbers from 0 to 8"):
        trained.predict(np.full((3, 16), 9))


def test_only_a_language_model_writes_and_only_a_whole_one(project):
    outcome = run_here(project, "training.epochs=1")
    refused = CliRunner().invoke(main, ["generate", str(outcome.folder)])
    assert refused.exit_code == 2
    assert "expected a language model" in refused.output
    saved = outcome.folder / "artifacts" / "model"
    (saved / "params.npz").write_bytes((saved / "params.npz").read_bytes()[:200])
    for damage in (lambda: None, lambda: (saved / "model.json").write_text("{}")):
        damage()
        refused = CliRunner().invoke(main, ["generate", str(outcome.folder)])
        assert refused.exit_code == 2
        assert "the trained model is damaged" in refused.output


PICTURES = f"""
[data]
name = "digits"
limit = 400
[model]
name = "cnn"
channels = [8]
hidden = [16]
norm = true
[augmentation]
shift = 1
{LEARNING}epochs = 6
"""


def test_batch_norm_is_evaluated_and_kept_with_the_statistics_of_training_examples(project):
    outcome = run_config(project, PICTURES, "augmentation.shift=0", "training.epochs=12")
    assert outcome.metrics["test_accuracy"] > 0.8
    trained = read(outcome.folder / "artifacts" / "model")
    statistics = trained.params[1]
    assert not np.allclose(statistics["mean"], 0)
    assert not np.allclose(statistics["variance"], 1)
    x = fbp.datasets.digits().train.x[:50]
    assert (trained.predict(x).argmax(1) == fbp.datasets.digits().train.y[:50]).mean() > 0.8


def test_an_autoencoder_gives_back_its_inputs(project):
    text = PICTURES.replace('name = "digits"', 'name = "digits"\nreconstruct = true').replace(
        "[augmentation]\nshift = 1\n", ""
    )
    text = text.replace(
        '"cnn"\nchannels = [8]\nhidden = [16]\nnorm = true', '"autoencoder"'
    ).replace("softmax_cross_entropy", "mean_squared_error")
    outcome = run_config(project, text)
    assert outcome.metrics["test_loss"] < 0.06
    results = np.load(outcome.folder / "results.npz")
    assert results["originals"].shape == results["reconstructions"].shape == (25, 8, 8, 1)
    assert ((results["originals"] - results["reconstructions"]) ** 2).mean() < 0.08


def test_tokens_of_a_users_file(project):
    tokens = np.random.default_rng(0).integers(0, 5, (60, 7))
    np.savez(project / "t.npz", x=tokens, y=np.roll(tokens, 1, axis=1))
    text = LANGUAGE.replace(
        'name = "text"\npath = "abc.txt"\ncontext = 16',
        'name = "file"\npath = "t.npz"\nvocabulary = 5',
    )
    text = text.replace("steps = 150", "steps = 3").replace(
        '"gpt"\ndepth = 1\nheads = 2\nfeatures = 16', '"rnn"\nhidden = [8]'
    )
    assert run_config(project, text).status == "FINISHED"
    np.savez(project / "t.npz", x=tokens, y=np.arange(60) % 2)
    with pytest.raises(
        fbp.InputError,
        match="expected tokens, whole numbers from 0 to 3, got int64 numbers from 0 to 4",
    ):
        run_config(project, text, "data.vocabulary=4")


def test_a_divergence_that_only_the_validation_shows_fails_the_run(project):
    outcome = run_here(
        project,
        "training.epochs=1",
        "optimizer={name='sgd', learning_rate=3e38}",
        "model.weights={name='constant', value=30.0}",
    )
    assert outcome.status == "FAILED"
    assert "the validation loss became" in outcome.message
