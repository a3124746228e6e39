"""Trainings with a loop or a step of their own: two optimizers, losses of any sign, games."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from healthy_parts.rows import BATCH, Row, digits, points

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
Make = Callable[[], Any]


def _net(inputs: int, *sizes: int, activation: str = "relu") -> Any:
    hidden = [layers.Dense(size, activation) for size in sizes[:-1]]
    return keras.Sequential([keras.Input((inputs,)), *hidden, layers.Dense(sizes[-1])])


def _step_of(
    optimizer: Any, variables: Any, loss_of: Callable[..., Any], *, tell: bool = True
) -> Callable[..., Any]:
    """Return a compiled step that takes what `loss_of` takes.

    Args:
        optimizer: It is built on the variables.
        variables: What it trains.
        loss_of: Returns the loss.
        tell: Whether the step calls `scale_loss`, as Keras' own does.
    """
    optimizer.build(variables)

    @tf.function
    def step(*batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(*batch)
            scaled = optimizer.scale_loss(loss) if tell else loss
        optimizer.apply(tape.gradient(scaled, variables), variables)
        return loss

    return step


def _batches(x: Any, y: Any, epochs: int, seed: int) -> Any:
    draw = np.random.default_rng([seed, 11])
    for _ in range(epochs):
        order = draw.permutation(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
        for rows in order:
            yield tf.constant(x[rows]), tf.constant(y[rows])


def _neighbours(embed: Any, seed: int) -> float:
    """Return the share of test digits whose nearest training digit is of their class, per cent."""
    x, y, other_x, other_y = digits(seed)
    known, asked = (np.asarray(embed(part), "float64") for part in (x, other_x))
    distances = (asked**2).sum(1)[:, None] - 2 * asked @ known.T + (known**2).sum(1)
    return 100.0 * float(np.mean(y[distances.argmin(1)] == other_y))


def _variational(make: Make, seed: int, quick: bool) -> float:
    x, _, other_x, _ = digits(seed)
    encoder, decoder = _net(64, 48, 16), _net(8, 48, 64)
    noise = keras.random.SeedGenerator(seed)

    def loss_of(images: Any, _: Any) -> Any:
        mean, log_variance = tf.split(encoder(images), 2, axis=1)
        code = mean + tf.exp(0.5 * log_variance) * keras.random.normal(tf.shape(mean), seed=noise)
        told = tf.nn.sigmoid_cross_entropy_with_logits(labels=images, logits=decoder(code))
        apart = -0.5 * tf.reduce_sum(1 + log_variance - mean**2 - tf.exp(log_variance), axis=1)
        return tf.reduce_mean(tf.reduce_sum(told, axis=1) + apart)

    step = _step_of(make(), encoder.trainable_weights + decoder.trainable_weights, loss_of)
    for batch in _batches(x, x, 1 if quick else 12, seed):
        step(*batch)
    mean = encoder(other_x)[:, :8]
    told = tf.nn.sigmoid_cross_entropy_with_logits(labels=other_x, logits=decoder(mean))
    return points(tf.reduce_mean(tf.reduce_sum(told, axis=1)))


def _adversarial(make: Make, seed: int, quick: bool) -> float:
    draw = np.random.default_rng([seed, 12])
    generator, critic = _net(4, 32, 32, 2), _net(2, 32, 32, 1)
    noise = keras.random.SeedGenerator(seed)

    def fakes(count: int) -> Any:
        return generator(keras.random.normal((count, 4), seed=noise))

    def bce(logits: Any, label: float) -> Any:
        labels = tf.fill(tf.shape(logits), label)
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))

    critic_step = _step_of(
        make(),
        critic.trainable_weights,
        lambda real: bce(critic(real), 1.0) + bce(critic(fakes(64)), 0.0),
    )
    generator_step = _step_of(
        make(), generator.trainable_weights, lambda: bce(critic(fakes(64)), 1.0)
    )
    angles = draw.uniform(0, 2 * np.pi, (20 if quick else 800, 64))
    ring = np.stack([np.cos(angles), np.sin(angles)], -1) + 0.05 * draw.standard_normal(
        (*angles.shape, 2)
    )
    for real in ring.astype("float32"):
        critic_step(tf.constant(real))
        generator_step()
    made = np.linalg.norm(fakes(1000).numpy(), axis=1)
    return -100.0 * float(np.mean(np.abs(made - 1.0)))


def _contrastive(make: Make, seed: int, quick: bool) -> float:
    x, y, _, _ = digits(seed)
    embed = _net(64, 64, 16)
    noise = keras.random.SeedGenerator(seed)

    def loss_of(images: Any, _: Any) -> Any:
        views = [
            tf.nn.l2_normalize(
                embed(images + 0.2 * keras.random.normal(tf.shape(images), seed=noise)), axis=1
            )
            for _ in range(2)
        ]
        likeness = tf.matmul(views[0], views[1], transpose_b=True) / 0.2
        return tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(BATCH), likeness)
        )

    step = _step_of(make(), embed.trainable_weights, loss_of)
    for batch in _batches(x, y, 1 if quick else 12, seed):
        step(*batch)
    return _neighbours(embed, seed)


def _triplets(make: Make, seed: int, quick: bool) -> float:
    x, y, _, _ = digits(seed)
    embed = _net(64, 64, 16)

    def loss_of(images: Any, labels: Any) -> Any:
        codes = embed(images)
        squares = tf.reduce_sum(codes**2, axis=1)
        far = squares[:, None] - 2 * tf.matmul(codes, codes, transpose_b=True) + squares
        is_same = tf.cast(labels[:, None] == labels, "float32")
        near = tf.reduce_max(far * is_same, axis=1)
        other = tf.reduce_min(far + 1e6 * is_same, axis=1)
        return tf.reduce_mean(tf.nn.relu(near - other + 1.0))

    step = _step_of(make(), embed.trainable_weights, loss_of)
    for batch in _batches(x, y, 1 if quick else 12, seed):
        step(*batch)
    return _neighbours(embed, seed)


def _distilled(make: Make, seed: int, quick: bool) -> float:
    x, y, other_x, other_y = digits(seed)
    teacher, student = _net(64, 96, 10), _net(64, 12, 10)
    teacher.compile("adam", CROSS_ENTROPY)
    teacher.fit(x, y, epochs=1 if quick else 10, verbose=0)

    def loss_of(images: Any, labels: Any) -> Any:
        soft = tf.nn.softmax(teacher(images) / 3.0)
        logits = student(images)
        told = tf.nn.softmax_cross_entropy_with_logits(soft, logits / 3.0)
        hard = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.reduce_mean(9.0 * told + 0.1 * hard)

    step = _step_of(make(), student.trainable_weights, loss_of)
    for batch in _batches(x, y, 1 if quick else 12, seed):
        step(*batch)
    return 100.0 * float(np.mean(student(other_x).numpy().argmax(-1) == other_y))


def _deep_q(make: Make, seed: int, quick: bool) -> float:
    """Learn to walk to the end of a corridor of eight cells, with a reward at the end only."""
    draw = np.random.default_rng([seed, 13])
    net, target = _net(8, 24, 2), _net(8, 24, 2)
    target.set_weights(net.get_weights())

    def loss_of(states: Any, actions: Any, goals: Any) -> Any:
        values = tf.gather(net(states), actions, batch_dims=1)
        return tf.reduce_mean((values - goals) ** 2)

    step = _step_of(make(), net.trainable_weights, loss_of)
    cells, memory = np.eye(8, dtype="float32"), []
    greedy = tf.function(net)
    for episode in range(4 if quick else 60):
        place = 0
        for _ in range(30):
            values = greedy(tf.constant(cells[place : place + 1])).numpy()[0]
            explores = draw.random() < max(0.1, 1 - episode / 30)
            action = int(draw.integers(2)) if explores else int(values.argmax())
            after = min(max(place + (1 if action else -1), 0), 7)
            memory.append((place, action, float(after == 7), after))
            place = after
            if len(memory) >= BATCH:
                rows = [memory[each] for each in draw.integers(0, len(memory), BATCH)]
                old, done, reward, new = map(np.array, zip(*rows, strict=True))
                ahead = target(cells[new]).numpy().max(1) * (new != 7)
                goals = (reward + 0.9 * ahead).astype("float32")
                step(tf.constant(cells[old]), tf.constant(done), tf.constant(goals))
            if place == 7:
                break
        if episode % 5 == 4:
            target.set_weights(net.get_weights())
    true = 0.9 ** np.arange(6, -1, -1)
    return -100.0 * float(np.abs(net(cells[:7]).numpy()[:, 1] - true).mean())


def _actor_critic(make: Make, seed: int, quick: bool) -> float:
    """Play a bandit of four states and three arms; losses are sums and change their sign."""
    draw = np.random.default_rng([seed, 14])
    net = _net(4, 24, 4)
    pays = np.random.default_rng(3).uniform(0, 1, (4, 3))

    def loss_of(states: Any, actions: Any, rewards: Any) -> Any:
        outputs = net(states)
        value = outputs[:, 3]
        advantage = rewards - value
        chosen = -tf.nn.sparse_softmax_cross_entropy_with_logits(actions, outputs[:, :3])
        actor = -tf.reduce_sum(chosen * tf.stop_gradient(advantage))
        return actor + tf.reduce_sum(keras.losses.huber(rewards[:, None], value[:, None]))

    step = _step_of(make(), net.trainable_weights, loss_of)
    cells = np.eye(4, dtype="float32")
    policy = tf.function(lambda states: tf.nn.softmax(net(states)[:, :3]))
    for _ in range(10 if quick else 400):
        places = draw.integers(0, 4, 16)
        shares = policy(tf.constant(cells[places])).numpy().astype("float64")
        actions = np.array([draw.choice(3, p=each / each.sum()) for each in shares])
        rewards = (draw.random(16) < pays[places, actions]).astype("float32")
        step(tf.constant(cells[places]), tf.constant(actions), tf.constant(rewards))
    got = (policy(tf.constant(cells)).numpy() * pays).sum(1)
    return 100.0 * float(np.mean(got / pays.max(1)))


def _variable_alone(goal: float, steps: int, tell: bool) -> Callable[[Make, int, bool], float]:
    """Return what moves one variable of zeros to a far goal."""

    def train(make: Make, seed: int, quick: bool) -> float:
        draw = np.random.default_rng([seed, 15])
        wanted = draw.uniform(0, goal, (16, 16)).astype("float32")
        variable = keras.Variable(np.zeros((16, 16), "float32"))

        def loss_of() -> Any:
            return tf.reduce_sum((variable.value - wanted) ** 2) / 256

        step = _step_of(make(), [variable], loss_of, tell=tell)
        for _ in range(10 if quick else steps):
            step()
        return -100.0 * float(np.sqrt(np.mean((variable.numpy() - wanted) ** 2)) / goal)

    return train


_SGD, _ADAM = keras.optimizers.SGD, keras.optimizers.Adam

ROWS = [
    Row("variational autoencoder", lambda: _ADAM(2e-3), _variational),
    Row("GAN, two optimizers", lambda: _ADAM(1e-3, beta_1=0.5), _adversarial),
    Row("contrastive loss", lambda: _ADAM(2e-3), _contrastive),
    Row("triplet loss", lambda: _SGD(0.02, momentum=0.9), _triplets),
    Row("distillation", lambda: _SGD(0.02, momentum=0.9), _distilled),
    Row("deep Q learning", lambda: _ADAM(3e-3), _deep_q),
    Row("deep Q learning", lambda: _SGD(0.2), _deep_q),
    Row("actor and critic, sums", lambda: _ADAM(5e-3), _actor_critic),
    Row("an image alone, loss not told", lambda: _ADAM(5.0), _variable_alone(255.0, 300, False)),
    Row("a quadratic alone", lambda: _SGD(50.0), _variable_alone(1.0, 60, True)),
    Row("a quadratic alone, loss not told", lambda: _SGD(50.0), _variable_alone(1.0, 60, False)),
]
