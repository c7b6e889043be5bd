"""One process of a TensorFlow cluster: a parameter server, a worker, or the chief that trains.

The chief prints a JSON line for what it has restored, for each step and for its end. Its first
start also trains without any checkpoint, to tell what an unbroken run ends in.
"""

import hashlib
import json
import os
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

from trainkit.checkpoint import AnyOf, CheckpointManager
from trainkit.lifecycle.monitor import RankMonitor

ROLE = json.loads(os.environ["TF_CONFIG"])["task"]["type"]


def tell(**what):
    print(json.dumps(what), flush=True)


def digest(*objects):
    data = b"".join(np.array(v).tobytes() for one in objects for v in one.variables)
    return hashlib.sha256(data).hexdigest()


def serve(resolver):
    server = tf.distribute.Server(
        resolver.cluster_spec(), job_name=ROLE, task_index=resolver.task_id, protocol="grpc"
    )
    tell(role=ROLE, sees=os.listdir(sys.argv[2]))
    server.join()


def cut(shape, dtype):
    """In two where it is the table: Keras cannot train variables that are cut."""
    return [2 if shape[0] == 64 else 1, *[1] * (shape.rank - 1)]


def make(strategy):
    keras.utils.set_random_seed(5)
    with strategy.scope():
        net = keras.Sequential(
            [keras.layers.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(1)]
        )
        optimizer = keras.optimizers.Adam(0.05)
        optimizer.build(net.trainable_variables)
        table = tf.Variable(tf.zeros([64, 2]))  # cut over the parameter servers
    return net, optimizer, table


def stepper(strategy, coordinator, net, optimizer, table):
    def replica(number):
        x = tf.cos(tf.reshape(tf.range(64.0), [8, 8]) * tf.cast(number + 1, tf.float32))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((net(x) - 1) ** 2)
        variables = net.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        for part in table.variables:
            part.assign_add(tf.fill(tf.shape(part), tf.cast(number, tf.float32)))

    @tf.function
    def worker(number):
        strategy.run(replica, args=(number,))

    def step(number):
        coordinator.schedule(worker, args=(tf.constant(number),))
        coordinator.join()

    return step


def train(resolver, url, rounds, first):
    strategy = tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=cut)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    if first:
        net, optimizer, table = make(strategy)
        step = stepper(strategy, coordinator, net, optimizer, table)
        for number in range(rounds):
            step(number)
        tell(unbroken=digest(net, optimizer, table))
    net, optimizer, table = make(strategy)
    places = sorted({variable.value.device for variable in net.variables})
    monitor = RankMonitor(grace_period=60)
    monitor.start()
    progress = {"step": 0}
    state = {"model": net, "optimizer": optimizer, "table": table, "progress": progress}
    manager = CheckpointManager(url, state, save=AnyOf(), monitor=monitor)
    restored = manager.restore_latest()
    tell(restored=restored, digest=digest(net, optimizer, table), places=places)
    step = stepper(strategy, coordinator, net, optimizer, table)
    while progress["step"] < rounds:
        step(progress["step"])
        progress["step"] += 1
        tell(step=progress["step"], digest=digest(net, optimizer, table))
        if first and progress["step"] == 3:
            sys.stdin.readline()  # the notice comes while it waits here
        manager.step(progress["step"])
    manager.close()
    tell(done=digest(net, optimizer, table))


def main():
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if ROLE != "chief":
        serve(resolver)
    else:
        tempfile.tempdir = sys.argv[2]
        train(resolver, sys.argv[1], int(sys.argv[3]), sys.argv[4] == "first")


main()
