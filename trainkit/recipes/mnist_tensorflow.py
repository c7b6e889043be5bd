"""MNIST digits with TensorFlow: one process, workers in step, or parameter servers.

    python -m trainkit.recipes.mnist_tensorflow                          # one process
    kubectl apply -f recipes/mnist-tensorflow/tfjob.yaml                 # workers in step
    kubectl apply -f recipes/mnist-tensorflow/tfjob-ps.yaml              # parameter servers

The same lines run under Keras 3 and, with TF_USE_LEGACY_KERAS=1, under Keras 2. Without
--data-dir and --data-url it trains on 8,000 digits that come with the package.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import trainkit
from trainkit.data import load_mnist
from trainkit.recipes._config import RecipeConfig, run_recipe
from trainkit.recipes._trace import StepTrace

__all__ = ["Config", "evaluate", "main"]


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    """Flags of the TensorFlow recipe."""

    epochs: int = 6
    """Passes over the training data."""
    lr: float = 0.01
    """Peak learning rate of Adam, reached after a quarter of the steps; never scaled by the
    number of ranks."""
    data_dir: str | None = None
    """Folder with MNIST's four IDX files, plain or gzipped."""
    data_url: str | None = None
    """Mirrors to download the files from, separated by commas; downloaded once a host."""
    strategy: str = "auto"
    """How processes train together: auto, single, multi_worker or parameter_server."""
    compile: bool = False
    """Compile the gradients with XLA: slower to start, faster to run."""
    steps_per_execution: int = 10
    """Steps that run without coming back to Python; checkpoints lie between two executions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("steps_per_execution")


def main(ctx: trainkit.Context, config: Config) -> float:
    """Train and test; returns the test accuracy, the same on all ranks."""
    data, length, source = _load(config, train=True)
    steps_an_epoch = length // (config.batch_size * _batches_a_step(ctx))
    steps = config.epochs * steps_an_epoch
    steps = steps if config.max_steps is None else min(steps, config.max_steps)
    with ctx.native.scope():
        net = _net()
        optimizer = tf.keras.optimizers.Adam(_one_cycle(config.lr, steps))
        optimizer.build(net.trainable_variables)
    model = ctx.setup(net)
    loader = ctx.setup_dataloader(data)
    progress = trainkit.Progress()
    checkpoints = ctx.checkpoints(
        save=config.checkpoint_every,
        model=model,
        optimizer=optimizer,
        loader=loader,
        progress=progress,
    )
    checkpoints.restore_latest(init_from=config.init_from)
    first = progress.step
    _introduce(ctx, config, f"{length:,} images ({source})", first, steps)
    step = _step(ctx, config, model, optimizer)
    with StepTrace(config.trace, ctx.rank) as trace:
        run = loader.steps(
            step, start=first, stop=steps, steps_per_execution=config.steps_per_execution
        )
        for done, results in run:
            progress.epoch = (done - 1) // steps_an_epoch
            if trace.enabled:
                _write(trace, progress.step, steps_an_epoch, results)
            progress.step = done
            ctx.log(done, steps=steps, epoch=progress.epoch, loss=results["loss"][-1])
            checkpoints.step(done)
    checkpoints.save_unsaved()  # a kill during the test then repeats the test alone
    accuracy, tested = _accuracy(ctx, config, model)
    _export(ctx, net, config.output_dir)
    _say(ctx, f"test accuracy {accuracy:.2%} on {tested:,} images")
    done_line = {"event": "done", "step": progress.step, "steps_run": progress.step - first}
    _say(ctx, json.dumps({**done_line, "test_accuracy": accuracy}))
    return accuracy


def evaluate(ctx: trainkit.Context, config: Config) -> None:
    """In an evaluator pod: test each newest checkpoint, until the job is done."""
    net = _net()
    checkpoints = ctx.checkpoints(model=net)
    for step in checkpoints.watch(poll=1.0, until=lambda: ctx.training_over):
        accuracy, _ = _accuracy(ctx, config, net)
        _say(ctx, json.dumps({"event": "evaluated", "step": step, "test_accuracy": accuracy}))


def _net() -> Any:
    """Two strided convolutions and two linear layers, [N, 28, 28, 1] → [N, 10]."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(8, 5, strides=2, padding="same", activation="relu"),
            layers.Conv2D(16, 5, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def _step(ctx: trainkit.Context, config: Config, model: Any, optimizer: Any) -> Any:
    replicas = ctx.native.num_replicas_in_sync

    @tf.function(jit_compile=config.compile or None)  # type: ignore[untyped-decorator]
    def gradients(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            scores = model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=scores)
            loss = tf.reduce_mean(losses)
            shared = loss / replicas  # Keras sums gradients over replicas
        return loss, tape.gradient(shared, model.trainable_variables)

    def step(batch: Any) -> Any:
        images, labels, ids = batch
        loss, found = gradients(images, labels)
        optimizer.apply_gradients(zip(found, model.trainable_variables, strict=True))
        return {"loss": loss, "samples": ids}

    return step


def _one_cycle(peak: float, steps: int) -> Any:
    """Up over a quarter of the run, then down along a cosine; a function of the step alone."""

    class OneCycle(tf.keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Any) -> Any:
            done = tf.cast(step, tf.float32) / max(steps, 1)
            rise = tf.minimum(1.0, 0.04 + done / 0.25)
            fall = 0.5 * (1 + tf.cos(math.pi * tf.maximum(0.0, done - 0.25) / 0.75))
            return peak * rise * fall

        def get_config(self) -> dict[str, Any]:
            return {"peak": peak, "steps": steps}

    return OneCycle()


def _load(config: Config, *, train: bool) -> tuple[Any, int, str]:
    """Batches of images [B, 28, 28, 1], labels [B] and sample ids [B]; how many; from where."""
    arrays = load_mnist(train=train, data_dir=config.data_dir, data_url=config.data_url)
    pixels = np.frombuffer(arrays.images.data, np.uint8).reshape(-1, 28, 28, 1)
    classes = np.frombuffer(arrays.labels.data, np.uint8).astype(np.int64)
    images, labels = tf.constant(pixels), tf.constant(classes)

    def gather(ids: Any) -> Any:
        scaled = (tf.cast(tf.gather(images, ids), tf.float32) / 255 - 0.1307) / 0.3081
        return scaled, tf.gather(labels, ids), ids

    order = tf.data.Dataset.range(len(classes))
    if train:
        order = order.shuffle(len(classes), seed=config.seed)
    batches = order.batch(config.batch_size if train else 1000, drop_remainder=train)
    return batches.map(gather).prefetch(2), len(classes), arrays.source


def _batches_a_step(ctx: trainkit.Context) -> int:
    """Batches that one step takes: of each device, where they work in step."""
    return int(ctx.native.num_replicas_in_sync)


def _accuracy(ctx: trainkit.Context, config: Config, model: Any) -> tuple[float, int]:
    """Share of test images told right, each counted once, and how many there are."""
    data, length, _ = _load(config, train=False)
    right = 0.0
    for images, labels, _ in ctx.setup_dataloader(data, train=False):
        best = tf.argmax(model(images, training=False), axis=1)
        right += float(tf.reduce_sum(tf.cast(best == labels, tf.float32)))
    return ctx.all_reduce(right, "sum") / length, length


def _write(trace: StepTrace, before: int, steps_an_epoch: int, results: Any) -> None:
    for index, loss in enumerate(results["loss"].numpy().reshape(len(results["loss"]), -1)):
        samples = results["samples"][index].numpy().reshape(-1).tolist()
        trace.step(
            before + index + 1, (before + index) // steps_an_epoch, samples, float(loss.mean())
        )


def _introduce(ctx: trainkit.Context, config: Config, data: str, first: int, steps: int) -> None:
    if first >= steps:
        _say(ctx, f"nothing left: step {first} of {steps}")
        return
    batches = _batches_a_step(ctx)
    _say(
        ctx,
        f"{data}: {steps - first} steps of {config.batch_size} x {batches} = "
        f"{config.batch_size * batches} images on {ctx.device}",
    )


def _export(ctx: trainkit.Context, net: Any, folder: str | None) -> None:
    if folder is None or ctx.rank != 0:
        return
    from safetensors.numpy import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    weights = {getattr(v, "path", v.name): np.array(v) for v in net.variables}
    save_file(weights, Path(folder) / "model.safetensors")


def _say(ctx: trainkit.Context, text: str) -> None:
    if ctx.rank == 0:
        print(text, flush=True)


if __name__ == "__main__":
    run_recipe(main, Config, __doc__, evaluate=evaluate)
