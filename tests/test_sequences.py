"""Sequences end to end: data, generating position by position, pictures changed at random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import augmentation, blocks, datasets, generation, layers, losses, models
from fbp.errors import InputError
from tests.tables import draw, numbers, quick_jit


class TestData:
    def test_text_is_cut_into_pieces_and_each_characters_target_is_the_next(self, tmp_path):
        file = tmp_path / "a.txt"
        file.write_text("abcdefghij" * 50, encoding="utf-8")
        data = datasets.check(datasets.text(str(file), context=8))
        assert data.tokens == data.classes == tuple("abcdefghij")
        x, y = data.train
        assert x.shape == y.shape == (62, 8)
        np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
        np.testing.assert_array_equal(x[1:, 0], y[:-1, -1])
        prepared = datasets.prepare(data, seed=0, validation=0.1, test=0.1)
        joined = np.concatenate([prepared.train.x, prepared.validation.x, prepared.test.x])
        np.testing.assert_array_equal(joined, x)  # cut, not shuffled

    def test_the_default_text_comes_with_python(self):
        data = datasets.text()
        assert data.name == "python_reference"
        assert data.train.x.size > 300_000

    def test_tiny_shakespeare(self, tmp_path):
        from tests.conftest import DATA

        path = DATA / "tinyshakespeare" / "input.txt"
        if not path.exists():
            pytest.skip(f"{path} is not there")
        assert len(datasets.text(str(path)).tokens) == 65

    def test_bad_texts(self, tmp_path):
        short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
        one = tmp_path / "one.txt"
        one.write_text("x" * 2000)
        short.write_text("abc")
        binary.write_bytes(b"\xff\xfe\x80")
        for path, problem in (
            (short, "a text of at least 20 pieces of 64 characters, got 3"),
            (binary, "a text in UTF-8"),
            (tmp_path / "none.txt", "which does not exist"),
            (tmp_path, "which is a folder"),
            (one, "different characters, got 2000 times the same"),
        ):
            with pytest.raises(InputError, match=problem):
                datasets.text(str(path))

    def test_adding_problem(self):
        x, y = datasets.adding_problem(examples=50, length=20).train
        assert x.shape == (50, 20, 2)
        assert (x[..., 1].sum(axis=1) == 2).all()
        np.testing.assert_allclose((x[..., 0] * x[..., 1]).sum(axis=1), y[:, 0], rtol=1e-5)

    def test_copy_memory(self):
        data = datasets.check(datasets.copy_memory(examples=20, delay=6, symbols=5, length=3))
        x, y = data.train
        assert x.shape == y.shape == (20, 12)
        np.testing.assert_array_equal(x[:, :3], y[:, -3:])
        assert (y[:, :-3] == -1).all()
        assert (x[:, 3 + 6 - 1] == 6).all()
        assert (x[:, 9:] == 5).all()

    def test_sequential_digits_are_the_digits(self):
        rows, pixels = (datasets.sequential_digits(by).train.x for by in ("rows", "pixels"))
        assert rows.shape[1:] == (8, 8)
        np.testing.assert_array_equal(rows.ravel(), pixels.ravel())

    def test_tokens_out_of_range_are_refused_where_data_is_read(self):
        good = datasets.copy_memory(examples=20)
        for bad in (-1, 10):
            x = good.train.x.copy()
            x[3, 4] = bad
            with pytest.raises(
                InputError, match=r"expected tokens, whole numbers from 0 to 9, got int32 numbers"
            ):
                datasets.check(good._replace(train=datasets.Examples(x, good.train.y)))

    def test_the_test_part_of_a_token_file(self, tmp_path):
        draw_tokens = np.random.default_rng(0).integers
        x, x_test = draw_tokens(0, 5, (40, 6)), draw_tokens(0, 5, (8, 6))
        for y, y_test in ((x, x_test), (x[:, 0] % 3, x_test[:, 0] % 3)):
            np.savez(tmp_path / "t.npz", x=x, y=y, x_test=x_test, y_test=y_test)
            data = datasets.check(datasets.file(str(tmp_path / "t.npz"), vocabulary=5))
            np.testing.assert_array_equal(data.test.x, x_test)
            assert data.test.x.dtype == np.int32
            assert data.test.y.shape == y_test.shape
            np.savez(tmp_path / "t.npz", x=x, y=y, x_test=x_test + 3, y_test=y_test)
            with pytest.raises(InputError, match="test part: expected tokens"):
                datasets.check(datasets.file(str(tmp_path / "t.npz"), vocabulary=5))
        np.savez(tmp_path / "t.npz", x=x, y=x, x_test=x_test)
        with pytest.raises(InputError, match="needs 'y_test'"):
            datasets.file(str(tmp_path / "t.npz"), vocabulary=5)

    def test_a_token_out_of_range_gives_nan_and_no_silent_neighbour(self):
        layer = layers.embedding(4, 2)
        params, _ = layer.init(jax.random.key(0), (3,))
        y, cache = layer.forward(params, jnp.array([[0, 4, -1]]))
        assert jnp.isnan(y).all(axis=-1).tolist() == [[False, True, True]]
        _, grads = layer.backward(params, cache, jnp.ones_like(y))
        assert grads["w"].sum(axis=1).tolist() == [2, 0, 0, 0]


def test_positions_without_a_target_do_not_count():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)
    labels = jnp.array([[0, -1, -1, 2], [-1, -1, -1, -1]])
    value = losses.softmax_cross_entropy.value(z, labels)
    kept = losses.softmax_cross_entropy.value(
        z[:1, jnp.array([0, 3])], labels[:1, jnp.array([0, 3])]
    )
    np.testing.assert_allclose(value, [kept[0], 0], rtol=1e-6)
    right = fbp.metrics.accuracy(z, jnp.where(labels < 0, labels, z.argmax(-1)))
    assert right[0] == 1
    assert np.isnan(right[1])  # no position has a target


STREAMED = {
    "gpt": models.gpt(7, 2, 2, 8),
    "rotary": models.gpt(7, 1, 2, 8, positions="rotary", tied=False),
    "sinusoidal": models.gpt(7, 1, 2, 8, positions="sinusoidal"),
    "lstm": models.lstm(7, (8, 8), vocabulary=7, sequence=True),
    "gru": models.gru(7, (8,), vocabulary=7, sequence=True),
    "rnn": models.rnn(7, (8,), vocabulary=7, sequence=True),
    "repeat of recompute": fbp.chain(
        layers.embedding(7, 8),
        fbp.repeat(fbp.recompute(blocks.transformer_block(8, 2, causal=True)), 3),
        layers.dense(7),
    ),
    "graph": fbp.graph(
        {
            "a": (layers.embedding(7, 6), "x"),
            "b": (layers.lstm(6), "a"),
            "sum": (layers.add(), "a", "b"),
        }
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMED)
def test_position_by_position_is_the_whole_sequence(name):
    model = STREAMED[name]
    streamed = generation.incremental(model, (9,), batch=2)
    params, _ = draw(model, (9,))
    x = np.random.default_rng(0).integers(0, 7, (2, 9))

    @quick_jit
    def both(params, x):
        def step(state, x):
            y, state = streamed.step(params, x[:, None], state)
            return state, y[:, 0]

        outputs = jax.lax.scan(step, streamed.start(), x.T)[1]
        return outputs.swapaxes(0, 1), model.forward(params, x)[0]

    np.testing.assert_allclose(*both(params, x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        models.lstm(7, (8,), vocabulary=7, sequence=True, bidirectional=True),
        fbp.chain(layers.embedding(7, 8), layers.attention(2), layers.dense(7)),
        fbp.chain(layers.embedding(7, 8), layers.conv1d(8, 3), layers.dense(7)),
        models.lstm(7, (8,), vocabulary=7),
    ],
    ids=["bidirectional", "not causal", "convolution", "last"],
)
def test_what_looks_ahead_cannot_be_run_position_by_position(model):
    with pytest.raises(InputError, match="cannot be run position by position"):
        generation.incremental(model, (9,))


def test_sampling_goes_on_beyond_the_context_and_repeats_with_its_key():
    model = STREAMED["gpt"]
    params, _ = draw(model, (9,))
    sampled = generation.sample(model, (9,), count=30)
    first, again, other = (
        sampled(params, jnp.array([1, 2]), jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert first.shape == (30,)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_samples_that_cannot_be_drawn():
    model = STREAMED["gpt"]
    params, _ = draw(model, (9,))
    with pytest.raises(InputError, match="a context of at least 2"):
        generation.sample(model, (1,), count=3)
    with pytest.raises(InputError, match="not those of this model for a context of 12"):
        generation.sample(model, (12,), count=3)(params, jnp.array([1]), jax.random.key(0))
    for prompt, problem in (([], "a prompt of at least one token"), ([99], "not a number")):
        with pytest.raises(InputError, match=problem):
            generation.sample(model, (9,), count=3)(
                params, jnp.array(prompt, jnp.int32), jax.random.key(0)
            )


def test_sums_over_many_are_wide_under_mixed_precision():
    table = fbp.precision(layers.embedding(4, 2))
    params, _ = draw(layers.embedding(4, 2), (1000,))
    _, cache = table.forward(params, jnp.zeros((4, 1000), jnp.int32))
    assert float(table.backward(params, cache, jnp.ones((4, 1000, 2)))[1]["w"][0, 0]) == 4000
    x = jnp.ones((1, 20, 20, 1), jnp.bfloat16)
    mean = quick_jit(lambda x: layers.avg_pool(20).forward((), x)[0])(x)
    assert float(mean.ravel()[0]) == 1


def test_whatever_padding_holds_reaches_no_gradient():
    layer = layers.lstm(3, with_lengths=True)
    params, _ = draw(layers.lstm(3), (5, 2))
    x = numbers(2, 5, 2)
    x[0, 3:] = np.nan
    y, cache = layer.forward(params, (x, jnp.array([3, 5])))
    _, grads = layer.backward(params, cache, jnp.ones_like(y))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((y, grads)))


def test_temperature_0_takes_the_likeliest():
    model = STREAMED["lstm"]
    params, _ = draw(model, (9,))
    tokens = generation.sample(model, (9,), count=12, temperature=0)(
        params, jnp.array([1]), jax.random.key(0)
    )
    logits = quick_jit(lambda x: model.forward(params, x)[0])(
        jnp.array([[1, *tokens[:-1].tolist()]])
    )
    assert tokens.tolist() == logits[0].argmax(axis=-1).tolist()


class TestAugmentation:
    x = np.random.default_rng(0).uniform(1, 2, (40, 6, 5, 2)).astype(np.float32)

    def test_shift_moves_each_picture_and_fills_with_zeros(self):
        y = np.asarray(augmentation.shift(2)(jax.random.key(0), self.x))
        moves = set()
        for before, after in zip(self.x, y, strict=True):
            wide = np.pad(before, [(2, 2), (2, 2), (0, 0)])
            found = [
                (i, j)
                for i in range(5)
                for j in range(5)
                if (wide[i : i + 6, j : j + 5] == after).all()
            ]
            assert len(found) == 1
            moves |= set(found)
        assert len(moves) > 10

    def test_flip_turns_about_half(self):
        y = np.asarray(augmentation.flip()(jax.random.key(0), self.x))
        turned = [(after == before[:, ::-1]).all() for before, after in zip(self.x, y, strict=True)]
        kept = [(after == before).all() for before, after in zip(self.x, y, strict=True)]
        assert all(a != b for a, b in zip(turned, kept, strict=True))
        assert 10 < sum(turned) < 30

    def test_crop_keeps_the_size_and_invents_no_zeros(self):
        y = augmentation.crop(2)(jax.random.key(0), self.x)
        assert y.shape == self.x.shape
        assert (y >= 1).all()

    def test_cutout_removes_a_square_that_may_stick_out(self):
        removed = (np.asarray(augmentation.cutout(3)(jax.random.key(0), self.x)) == 0).sum(
            axis=(1, 2, 3)
        ) / 2
        assert removed.max() == 9
        assert removed.min() >= 4

    def test_the_same_key_gives_the_same_pictures_and_each_step_others(self):
        change = augmentation.compose([augmentation.shift(1), augmentation.flip()])
        a, b, c = (change(jax.random.key(seed), self.x) for seed in (0, 0, 1))
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()

    def test_training_changes_the_examples_of_each_step_and_cutting_it_changes_nothing(self):
        model = fbp.chain(layers.flatten(), layers.dense(3))
        optimizer = fbp.optimizers.sgd(0.1)
        y = np.arange(40) % 3
        steps = jax.jit(
            fbp.training.make_steps(
                model,
                losses.softmax_cross_entropy,
                optimizer,
                batch_size=8,
                max_steps=10,
                augment=augmentation.shift(1),
            )
        )
        state = fbp.training.initial_state(model, optimizer, jax.random.key(0), (6, 5, 2))
        whole, _, _ = steps(state, self.x, y, 10)
        half, _, _ = steps(state, self.x, y, 4)
        rest, _, _ = steps(half, self.x, y, 6)
        for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(rest.params), strict=True):
            np.testing.assert_array_equal(a, b)
