"""A user's script for TensorFlow, as the tests start it in every pod; it tells what it does.

Settings come from JOB, a JSON object: stop, execution, every, batch, after, pause, slow, strategy,
and dies, for one that is killed when all have met and TensorFlow begins to connect them.
"""

import hashlib
import json
import os
import signal
import sys
import time

import numpy as np
import tensorflow as tf

import trainkit

JOB = {
    "stop": 64,
    "execution": 4,
    "every": 1000,
    "batch": 8,
    "after": 0,
    "pause": 0,
    "slow": 0,
    "strategy": "auto",
    "dies": False,
}
JOB |= json.loads(os.environ.get("JOB", "{}"))
SAMPLES = 128


def tell(**what):
    print(json.dumps(what), flush=True)


def data():
    """Batches of features [B, 4], targets [B, 1] and sample ids [B]."""
    ids = tf.range(SAMPLES)
    x = tf.random.stateless_normal((SAMPLES, 4), seed=(1, 2))
    rows = tf.data.Dataset.from_tensor_slices((x, tf.reduce_sum(x, 1, keepdims=True), ids))
    batches = rows.shuffle(SAMPLES, seed=3).batch(JOB["batch"])
    return delayed(batches, JOB["slow"]) if JOB["slow"] else batches


def delayed(batches, seconds):
    """Each batch takes its time, wherever it is read."""
    slow = tf.raw_ops.SleepDataset(
        input_dataset=tf.data.experimental.to_variant(batches),
        sleep_microseconds=int(seconds * 1e6),
        output_types=[spec.dtype for spec in batches.element_spec],
        output_shapes=[spec.shape for spec in batches.element_spec],
    )
    return tf.data.experimental.from_variant(slow, batches.element_spec)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def digest(model):
    values = b"".join(np.array(variable).tobytes() for variable in model.variables)
    return hashlib.sha256(values).hexdigest()


def make(ctx):
    keras = tf.keras
    with ctx.native.scope():
        keras.utils.set_random_seed(5)
        model = keras.Sequential(
            [keras.layers.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)]
        )
        optimizer = keras.optimizers.Adam(0.02)
        optimizer.build(model.trainable_variables)
    return ctx.setup(model), optimizer


def worker_index(strategy):
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        return tf.distribute.coordinator.experimental_get_current_worker_index()
    return tf.constant(-1)


def main(ctx):
    model, optimizer = make(ctx)
    loader = ctx.setup_dataloader(data())
    replicas = ctx.native.num_replicas_in_sync

    def step(batch):
        x, y, ids = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
            shared = loss / replicas
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(shared, variables), variables, strict=True))
        return {"loss": loss, "ids": ids, "worker": worker_index(ctx.native)}

    progress = trainkit.Progress()
    checkpoints = ctx.checkpoints(
        save=JOB["every"], model=model, optimizer=optimizer, loader=loader, progress=progress
    )
    restored = checkpoints.restore_latest()
    tell(
        restored=restored,
        digest=digest(model),
        rank=ctx.rank,
        keras=getattr(tf.keras, "__version__", "2"),
        total=ctx.all_reduce(1 + ctx.rank, "sum"),
        mean=np.array(ctx.all_reduce(tf.constant([1.0, 2.0]) * (1 + ctx.rank), "mean")).tolist(),
        devices=sorted({getattr(v, "value", v).device for v in model.variables})
        if hasattr(model.variables[0], "path")
        else [],
    )
    for done, results in loader.steps(
        step, start=progress.step, stop=JOB["stop"], steps_per_execution=JOB["execution"]
    ):
        progress.step = done
        tell(step=done, **{name: value.numpy().tolist() for name, value in results.items()})
        checkpoints.step(done)
        time.sleep(JOB["pause"])
    checkpoints.save_unsaved()
    if ctx.rank:
        time.sleep(JOB["after"])
    tell(
        done=progress.step,
        digest=digest(model),
        weights=[np.array(v).tolist() for v in model.variables],
        torch="torch" in sys.modules,
        at=time.time(),
    )


def evaluate(ctx):
    model, _ = make(ctx)
    checkpoints = ctx.checkpoints(model=model)
    for step in checkpoints.watch(poll=0.1, until=lambda: ctx.training_over):
        tell(evaluated=step, digest=digest(model), world_size=ctx.world_size)


if __name__ == "__main__":
    if JOB["dies"]:
        tf.distribute.MultiWorkerMirroredStrategy = die
    trainkit.run(main, evaluate=evaluate, strategy=JOB["strategy"])
