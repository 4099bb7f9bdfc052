"""A user's script without a mistake; never run."""

import jax

import fbp
from fbp import layers, losses, optimizers, schedules, training

dataset = fbp.datasets.check(fbp.datasets.iris())
data = fbp.datasets.prepare(dataset, seed=0, standardize=True)
model = fbp.chain(
    layers.dense(8, weights=fbp.initializers.he_normal()), layers.relu(), layers.dense(3)
)
same: fbp.Layer = fbp.models.mlp(3, (8,), layers.tanh, residual_blocks=True)
loss: fbp.Loss = losses.softmax_cross_entropy
params, shape = model.init(jax.random.key(0), (4,))
x, y = jax.numpy.asarray(data.train.x), jax.numpy.asarray(data.train.y)

cost, grads = jax.jit(fbp.value_and_grad(model, loss))(params, x, y)
result = fbp.backpropagate(model, loss)(params, x, y, jax.random.key(1))
print(cost, result.cost.item(), result.input_delta, shape[0] + 1)

schedule: schedules.Schedule = schedules.warmup(schedules.cosine(1e-2, 100), 10)
optimizer: fbp.Optimizer = optimizers.chain(
    optimizers.clip_by_global_norm(1.0), optimizers.adamw(schedule, weight_decay=0.1)
)
updates, state = optimizer.update(grads, optimizer.init(params), params)
params = optimizers.apply_updates(params, updates)
step = training.make_step(model, loss, optimizer)

report = fbp.check_gradients(model, loss, params, x, y)
print("right" if report.ok else report)
trained = fbp.load("digits_mlp-1a2b")
print(trained.predict(data.test.x), trained.params)


def scale() -> fbp.Layer:
    """Return a layer of one's own."""

    def init(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, tuple[int, ...]]:
        return jax.numpy.ones(()), shape

    def forward(
        s: jax.Array, x: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        return s * x, x

    def backward(s: jax.Array, x: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
        return s * delta, (delta * x).sum()

    return fbp.Layer(init, forward, backward)
