"""What each process of ``tensorflow_ps`` runs; the chief measures and prints one JSON line."""

import json
import os
import signal
import statistics
import time

import tensorflow as tf

import trainkit

ROUNDS, EXECUTION = int(os.environ["ROUNDS"]), int(os.environ["EXECUTION"])
SINGLE, SEVERAL = 400, 40 * EXECUTION
BATCH = 32


def data():
    x = tf.random.stateless_normal((256, 8), seed=(1, 2))
    rows = tf.data.Dataset.from_tensor_slices((x, tf.reduce_sum(x, 1, keepdims=True)))
    return rows.repeat().batch(BATCH)


def main(ctx):
    with ctx.native.scope():
        weights = tf.Variable(tf.zeros((8, 1)))

    def step(batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((tf.matmul(x, weights) - y) ** 2)
        weights.assign_sub(0.01 * tape.gradient(loss, weights))
        return loss

    coordinator = tf.distribute.coordinator.ClusterCoordinator(ctx.native)
    batches = iter(coordinator.create_per_worker_dataset(data))

    @tf.function
    def once(iterator):
        return ctx.native.run(step, args=(next(iterator),))

    def hand_written(count):
        for _ in range(count):
            coordinator.schedule(once, args=(batches,))
        coordinator.join()

    loader = ctx.setup_dataloader(data())
    steps = loader.steps(step, stop=10**9, steps_per_execution=EXECUTION)

    def ours(count):
        begin = done = next(steps)[0]
        while done - begin < count:
            done = next(steps)[0]
        return done - begin

    hand_written(50)
    ours(4 * EXECUTION)
    found = {"hand-written": [], "trainkit": []}
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        hand_written(SINGLE)
        middle = time.perf_counter()
        done = ours(SEVERAL) + 4 * EXECUTION  # the first round is trained too, beside the count
        end = time.perf_counter()
        found["hand-written"].append(SINGLE / (middle - begin))
        found["trainkit"].append(done / (end - middle))
    usual = statistics.median(gap for gap in gaps(steps, 60))
    os.kill(int(os.environ["VICTIM"]), signal.SIGKILL)
    longest = max(gaps(steps, 400))
    print(json.dumps({**found, "usual": usual, "longest": longest, "stall": longest - usual}))


def gaps(steps, count):
    for _ in range(count):
        begin = time.perf_counter()
        next(steps)
        yield time.perf_counter() - begin


if __name__ == "__main__":
    trainkit.run(main)
