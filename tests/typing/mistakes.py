"""A user's script with seven mistakes, each of them on a line marked so; never run."""

import jax

import fbp

dataset = fbp.datasets.iris()
model = fbp.chain(fbp.layers.dense(8), fbp.layers.relu())
loss = fbp.losses.softmax_cross_entropy
params, _ = model.init(jax.random.key(0), (4,))
x, y = map(jax.numpy.asarray, dataset.train)

fbp.chain(fbp.layers.dense(8), fbp.layers.relu)  # mistake: the factory, not a layer
fbp.layers.dense("8")  # mistake: a text, not a number
cost, grads, output = fbp.value_and_grad(model, loss)(params, x, y)  # mistake: two results
optimizer = fbp.optimizers.adam("1e-3")  # mistake: a text, not a number or a schedule
optimizer.update(grads, optimizer.init(params))
print(dataset.train.labels)  # mistake: called y
fbp.load(17)  # mistake: a number, not the name of a run
print(fbp.check_gradients(model, loss, params, x, y).okay)  # mistake: called ok
