"""What is checked of TensorFlow's objects in checkpoints; run by test_trackables.py elsewhere."""

import contextlib
import gc
import io
import json
import logging
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainkit.checkpoint import AnyOf, CheckpointManager, CheckpointOptions, KeepLast
from trainkit.checkpoint.adapters.tensorflow import trackables
from trainkit.cli import main
from trainkit.errors import EnvironmentFaultError, UsageError

DATA = np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5)


def model(units=(3, 2)):
    return keras.Sequential([keras.layers.Dense(unit) for unit in units])


def built(units=(3, 2)):
    net, optimizer = model(units), keras.optimizers.Adam(0.1)
    net.build((None, 5))
    optimizer.build(net.trainable_variables)
    return net, optimizer


def train(net, optimizer, steps):
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((net(DATA) - 1) ** 2)
        variables = net.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))


def values(*objects):
    return [np.array(v).tolist() for one in objects for v in one.variables]


def save(url, state, step=1, **options):
    manager = CheckpointManager(url, state, **options)
    manager.save(step, blocking=True)
    manager.close()
    if isinstance(url, Path):
        (found,) = url.glob(f"step-{step:010d}.*")
        return found
    return None


def restore(url, state):
    options = CheckpointOptions(read_only=True)
    return CheckpointManager(url, state, options=options).restore_latest()


def left():
    return list(Path(tempfile.gettempdir()).iterdir())


def check_training_goes_on_as_if_nothing_had_been(folder, url=None):
    url = url or folder / "run"
    net, optimizer = built()
    generator = tf.random.Generator.from_seed(3)
    generator.normal([2])
    counter = tf.Variable(7, dtype=tf.int64)
    train(net, optimizer, 3)
    state = {"model": net, "optimizer": optimizer, "generator": generator, "counter": counter}
    save(url, {**state, "notes": {"epoch": 1}})
    drawn = generator.normal([2]).numpy()
    train(net, optimizer, 4)

    again, other = built()
    fresh = tf.random.Generator.from_seed(99)
    count, notes = tf.Variable(0, dtype=tf.int64), {}
    kernel = again.layers[0].kernel
    assert (
        restore(
            url,
            {
                "model": again,
                "optimizer": other,
                "generator": fresh,
                "counter": count,
                "notes": notes,
            },
        )
        == 1
    )
    assert not left()
    assert again.layers[0].kernel is kernel  # the same objects, filled
    assert (int(count), int(other.iterations), notes) == (7, 3, {"epoch": 1})
    assert np.array_equal(fresh.normal([2]).numpy(), drawn)
    train(again, other, 4)
    assert values(again, other) == values(net, optimizer)


def check_its_own_tools_read_it_where_it_lies(folder):
    net, optimizer = built()
    train(net, optimizer, 2)
    step = save(folder / "run", {"model": net, "optimizer": optimizer})
    names = sorted(path.name for path in (step / "tensorflow").iterdir())
    assert names == ["ckpt.data-00000-of-00001", "ckpt.index"]
    reader = tf.train.load_checkpoint(str(step / "tensorflow/ckpt"))
    key = "optimizer/_iterations/.ATTRIBUTES/VARIABLE_VALUE"
    assert reader.get_tensor(key) == 2
    again, other = built()
    status = tf.train.Checkpoint(model=again, optimizer=other).read(str(step / "tensorflow/ckpt"))
    status.assert_consumed()
    assert values(again, other) == values(net, optimizer)


def check_what_is_not_built_yet_takes_its_values_later(folder):
    net, optimizer = built()
    train(net, optimizer, 2)
    save(folder / "run", {"model": net, "optimizer": optimizer})
    # the optimizer alone is lazy, as is usual; and all of it is
    for again in (built()[0], model()):
        other = keras.optimizers.Adam(0.1)
        assert restore(folder / "run", {"model": again, "optimizer": other}) == 1
        train(again, other, 1)
        gc.collect()
        assert not left(), "files that nobody reads any more"
        expected, optimizer_of_all = built()
        restore(folder / "run", {"model": expected, "optimizer": optimizer_of_all})
        train(expected, optimizer_of_all, 1)
        assert values(again, other) == values(expected, optimizer_of_all)


def check_what_waits_for_its_values_is_not_saved_without_them(folder):
    net, optimizer = built()
    train(net, optimizer, 2)
    save(folder / "run", {"model": net, "optimizer": optimizer})
    again, other = built()[0], keras.optimizers.Adam(0.1)
    manager = CheckpointManager(folder / "run", {"model": again, "optimizer": other})
    assert manager.restore_latest() == 1
    with pytest.raises(UsageError, match=r"optimizer: adam\S* was restored and has not"):
        manager.save(2)
    assert manager.all_steps() == [1]
    other.build(again.trainable_variables)
    manager.save(2, blocking=True)
    manager.close()
    assert values(again, other) == values(net, optimizer)
    # one that was never restored may be saved as it is
    save(folder / "new", {"optimizer": keras.optimizers.Adam(0.1)})


def check_modules_and_checkpoints_of_its_own(folder):
    class Net(tf.Module):
        def __init__(self):
            super().__init__()
            self.layers = [tf.Variable(tf.zeros([2, 2])) for _ in range(2)]
            self.table = {"bias": tf.Variable([0.0, 0.0])}
            self.halves = tf.Variable(tf.zeros([3], tf.bfloat16))
            self.words = tf.Variable(["a", "b"])

    def make():
        net = Net()
        return net, tf.train.Checkpoint(net=net, extra=tf.Variable(0.0))

    net, own = make()
    net.layers[1].assign([[1, 2], [3, 4]])
    net.table["bias"].assign([5, 6])
    net.halves.assign([0.5, 1.5, 2.5])
    net.words.assign(["c", "d"])
    own.extra.assign(8.0)
    own.save(str(folder / "own"))  # adds a counter to it, which a fresh one has not
    save(folder / "run", {"net": net, "own": own})
    net, own = make()
    restore(folder / "run", {"net": net, "own": own})
    assert net.layers[1].numpy().tolist() == [[1, 2], [3, 4]]
    assert net.table["bias"].numpy().tolist() == [5, 6]
    assert net.halves.numpy().astype(float).tolist() == [0.5, 1.5, 2.5]
    assert net.words.numpy().tolist() == [b"c", b"d"]
    assert float(own.extra) == 8.0
    assert int(own.save_counter) == 1
    # and the other way round
    save(folder / "uncounted", {"own": make()[1]})
    own.save(str(folder / "own"))
    restore(folder / "uncounted", {"own": own})
    assert (float(own.extra), int(own.save_counter)) == (0.0, 2)


def check_slots_of_older_optimizers(folder):
    def make():
        return tf.Variable([1.0, 2.0]), tf.compat.v1.train.MomentumOptimizer(0.1, 0.9)

    def step(variable, optimizer):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(variable**2)
        optimizer.apply_gradients([(tape.gradient(loss, variable), variable)])

    variable, optimizer = make()
    for _ in range(2):
        step(variable, optimizer)
    save(folder / "run", {"weights": variable, "optimizer": optimizer})
    step(variable, optimizer)
    again, other = make()
    restore(folder / "run", {"weights": again, "optimizer": other})
    step(again, other)
    assert again.numpy().tolist() == variable.numpy().tolist()


def check_some_entries_alone(folder):
    net, optimizer = built()
    train(net, optimizer, 2)
    save(folder / "run", {"optimizer": optimizer, "model": net})
    again = built()[0]
    restore(folder / "run", {"model": again})  # as an evaluator does
    assert values(again) == values(net)


def check_what_does_not_fit_is_named_and_nothing_changes(folder):
    net, optimizer = built()
    save(folder / "run", {"notes": {"a": 1}, "model": net, "optimizer": optimizer})
    wide, narrow = tf.Variable(tf.zeros([2])), tf.Variable(tf.zeros([2], tf.float64))
    save(folder / "plain", {"v": wide})

    def refused(url, words, **state):
        notes = {"untouched": True}
        before = {name: values(one) for name, one in state.items() if hasattr(one, "variables")}
        entries = {"notes": notes, **state} if "model" in state else state
        with pytest.raises(EnvironmentFaultError, match=words):
            restore(url, entries)
        assert notes == {"untouched": True}
        assert before == {n: values(o) for n, o in state.items() if hasattr(o, "variables")}
        assert not left()

    run = folder / "run"
    refused(run, r"dense_\d+/kernel\): the run expects float32 \(3, 4\), the checkpoint holds "
            r"float32 \(3, 2\)", model=built((3, 4))[0])  # fmt: skip
    refused(run, r"In the run and not in the checkpoint: model\.\S+ \(sequential_\d+/dense_\d+/",
            model=built((3, 2, 2))[0])  # fmt: skip
    refused(run, r"in the checkpoint and not in the run: model\.\S+ \(sequential_?\d*/dense_?\d*/",
            model=built((3,))[0])  # fmt: skip
    refused(folder / "plain", r"v \(\S+\): the run expects float64 \(2,\), .* float32 \(2,\)",
            v=narrow)  # fmt: skip
    refused(folder / "plain", "v: the run expects a value, the checkpoint holds trackable", v={})
    sgd = keras.optimizers.SGD(0.1, momentum=0.9)
    again = built()[0]
    sgd.build(again.trainable_variables)
    refused(run, r"optimizer\._variables\.\d \(sgd/\S+_momentum\): the run expects float32 \(3,\)",
            model=again, optimizer=sgd)  # fmt: skip


def check_damage_is_found_before_tensorflow_reads(folder):
    variable = tf.Variable(tf.range(1000.0))
    save(folder / "run", {"v": variable}, 1)
    variable.assign(variable * 2)
    for name in ("ckpt.data-00000-of-00001", "ckpt.index"):
        file = save(folder / "run", {"v": variable}, 2) / "tensorflow" / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
        again = tf.Variable(tf.zeros([1000]))
        assert restore(folder / "run", {"v": again}) == 1
        assert np.array_equal(again.numpy(), np.arange(1000.0))
        assert not left()
        for quarantined in (folder / "run").glob("step-0000000002*"):
            quarantined.rename(folder / f"away-{name}")


def check_what_is_saved_is_the_state_at_the_call(folder):
    variable = tf.Variable(tf.fill([300_000], 1.0))
    manager = CheckpointManager(folder / "run", {"v": variable}, keep=KeepLast(2))
    for step in range(1, 5):
        variable.assign(tf.fill([300_000], float(step)))
        manager.save(step)
        assert not left()  # taken, and gone from the disk
        variable.assign(tf.zeros([300_000]))
    manager.close()
    again = tf.Variable(tf.zeros([300_000]))
    assert restore(folder / "run", {"v": again}) == 4
    assert (again.numpy() == 4).all()
    assert len(list((folder / "run").glob("step-*"))) == 2


def check_the_first_step_writes_nothing(folder):
    variable = tf.Variable(tf.zeros([1000, 10]))
    manager = CheckpointManager(folder / "run", {"v": variable, "w": variable}, save=AnyOf())
    patch = pytest.MonkeyPatch()
    patch.setattr(trackables, "write", lambda entries: pytest.fail("a whole checkpoint"))
    manager.step(1)
    assert manager._saver._writer._process.arena.size >= 40_000
    patch.undo()
    manager.save(1, blocking=True)
    manager.close()


def check_where_there_are_no_values_it_is_said(folder):
    variable = tf.Variable(1.0)
    manager = CheckpointManager(folder / "run", {"v": variable})

    @tf.function
    def graph():
        manager.save(1)

    strategy = tf.distribute.MirroredStrategy()
    for call in (graph, lambda: strategy.run(lambda: manager.save(1))):
        # what is raised in a tf.function becomes an error of TensorFlow's own
        with pytest.raises(Exception, match=r"outside of tf\.function and strategy\.run"):
            call()
    manager.close()


def check_names_that_it_has_itself_are_refused(folder):
    for name in ("save", "root", "restore"):
        manager = CheckpointManager(folder / name, {name: tf.Variable(1.0)})
        with pytest.raises(UsageError, match=f"entry '{name}', a name of tf.train.Checkpoint"):
            manager.save(1)
        manager.close()


def check_a_full_local_folder_is_named(folder, small):
    tempfile.tempdir = small
    variable = tf.Variable(tf.zeros([3_000_000]))
    manager = CheckpointManager(folder / "run", {"v": variable})
    with pytest.raises(OSError, match=f"local folder {small}, which failed: .*TMPDIR"):
        manager.save(1)
    assert not left()
    variable = tf.Variable(tf.zeros([10]))
    manager.replace("v", variable)
    manager.save(2, blocking=True)
    manager.close()
    assert not left()
    tempfile.tempdir = str(folder / "tmp")


def check_the_commands(folder):
    net, optimizer = built()
    state = {"model": net, "optimizer": optimizer, "notes": {"a": 1}}
    manager = CheckpointManager(folder / "run", state)
    for step in (1, 2):
        manager.save(step, blocking=True)
        train(net, optimizer, 1)
    manager.save(3, blocking=True)
    manager.close()

    def call(*argv):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = main(["checkpoint", *map(str, argv), "--json"])
        return code, json.loads(printed.getvalue())

    code, found = call("inspect", folder / "run")
    names = ["tensorflow/ckpt.data-00000-of-00001", "tensorflow/ckpt.index"]
    assert code == 0
    for entry in ("model", "optimizer"):
        assert found["entries"][entry]["kind"] == "trackable"
        assert [d["path"] for d in found["entries"][entry]["documents"]] == names
    assert call("verify", folder / "run")[0] == 0
    code, found = call("diff", folder / "run", "--from", "1", "--to", "2")
    changed = {(c["entry"], c["name"]) for c in found["changes"] if c["what"] == "file"}
    assert code == 1
    # all that TensorFlow tracks is in the same files
    assert changed == {
        (e, f"ckpt.{n}") for e in ("model", "optimizer") for n in ("data-00000-of-00001", "index")
    }
    code, found = call("export", folder / "run", folder / "out")
    assert (code, found["files"]) == (0, ["ckpt.data-00000-of-00001", "ckpt.index"])
    again, other = built()
    exported = tf.train.Checkpoint(model=again, optimizer=other)
    exported.read(str(folder / "out/ckpt")).assert_consumed()
    assert values(again, other) == values(net, optimizer)


def check_two_replicas(folder):
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2

    def make():
        with strategy.scope():
            net, optimizer = built()
            seen = tf.Variable(
                0.0,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )
        return net, optimizer, seen

    @tf.function
    def step(net, optimizer, seen):
        def replica():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((net(DATA) - 1) ** 2)
            variables = net.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            seen.assign_add(1.0)

        strategy.run(replica)

    net, optimizer, seen = make()
    for _ in range(3):
        step(net, optimizer, seen)
    state = {"model": net, "optimizer": optimizer, "seen": seen}
    save(folder / "run", state)
    for _ in range(2):
        step(net, optimizer, seen)
    again, other, count = make()
    assert restore(folder / "run", {"model": again, "optimizer": other, "seen": count}) == 1
    assert float(count.read_value()) == 6
    for replica in again.layers[0].kernel.value.values:
        assert np.array_equal(replica, again.layers[0].kernel.value.values[0])
    step_again = step.python_function
    for _ in range(2):
        tf.function(step_again)(again, other, count)
    assert values(again, other) == values(net, optimizer)
    assert float(count.read_value()) == float(seen.read_value()) == 10
    # and without any strategy: names are the same
    alone, plain = built()
    restore(folder / "run", {"model": alone, "optimizer": plain})
    assert int(plain.iterations) == 3


logging.getLogger("trainkit").setLevel(logging.ERROR)
