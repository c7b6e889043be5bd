"""The language model recipe: beats counting, trains alike under all strategies, survives kills."""

import json
import os
import signal

import pytest

from tests.distributed.pods import PYTHON
from tests.distributed.test_environments import pytorchjob
from tests.distributed.test_mnist import trace, wait_for_step
from tests.launch.conftest import Launched
from trainkit.testing import free_port
from trainkit.waiting import Deadline, wait_until

pytest.importorskip("torch")

RECIPE = ["-m", "trainkit.recipes.lm"]
BARE = [PYTHON, *RECIPE]
LAUNCH = [PYTHON, "-m", "trainkit", "launch"]
SMALL = ["--layers", "2", "--width", "64", "--context", "64", "--lr", "5e-3"]
SMALL += ["--test-windows", "500"]
TINY = ["--layers", "2", "--width", "32", "--heads", "2", "--context", "32", "--test-windows", "50"]

STEPS, BATCH = 250, 32
BOUND = 0.93
"""Of the bits that counting pairs of bytes needs; 250 steps of one rank come to 0.87."""


def result(output):
    """What rank 0 said last; a launcher puts its name before each line."""
    lines = [line for line in output.splitlines() if '{"event"' in line]
    return json.loads(lines[-1][lines[-1].index("{") :])


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """What one process trains, for all that compare with it."""
    from tests.distributed.pods import Cluster

    cluster = Cluster(tmp_path_factory.mktemp("one"))
    try:
        flags = [*SMALL, "--max-steps", str(STEPS), "--batch-size", str(BATCH)]
        pod = cluster.start([*BARE, *flags, "--trace", "trace", "--output-dir", "model"])
        cluster.end()
        return result(pod.output), trace(cluster.folder / "trace"), cluster.folder / "model"
    finally:
        cluster.stop()


def assert_same_losses(folder, expected, steps):
    """To 2e-4, as for MNIST: the order of additions differs, and Adam divides by small numbers."""
    ranks = [trace(folder, rank) for rank in range(2)]
    for step in range(1, steps + 1):
        _, samples, loss = expected[step]
        assert sorted(samples) == sorted(ranks[0][step][1] + ranks[1][step][1])
        assert (ranks[0][step][2] + ranks[1][step][2]) / 2 == pytest.approx(loss, rel=2e-4)


def test_it_needs_fewer_bits_than_counting_does(one_rank):
    done, steps, _ = one_rank
    assert sorted(steps) == list(range(1, STEPS + 1))
    assert done["steps_run"] == done["step"] == STEPS
    assert done["bits_per_byte"] <= BOUND * done["bigram_bits_per_byte"]
    assert done["trigram_bits_per_byte"] < done["bigram_bits_per_byte"] < 4
    assert 0.3 < done["test_accuracy"] < 1


@pytest.mark.world_size(2)
def test_pods_of_a_pytorchjob_train_it_sharded(cluster, one_rank):
    """The command of recipes/lm/pytorchjob.yaml, in two pods; the same result, whole in a file."""
    load_file = pytest.importorskip("safetensors.torch").load_file
    expected, steps, model = one_rank
    port = free_port()
    flags = [*SMALL, "--max-steps", str(STEPS), "--batch-size", str(BATCH // 2)]
    flags += ["--strategy", "fsdp", "--activation-checkpointing"]
    flags += ["--trace", "trace", "--output-dir", "model"]
    for pod in range(2):
        cluster.start(
            [*LAUNCH, *RECIPE, *flags],
            **pytorchjob(pod, 2, 1, port),
        )
    cluster.end()
    done = result(cluster.pods[0].output)
    assert done["bits_per_byte"] <= BOUND * done["bigram_bits_per_byte"]
    assert done["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=0.02)
    assert done["bigram_bits_per_byte"] == expected["bigram_bits_per_byte"]
    assert_same_losses(cluster.folder / "trace", steps, 40)
    found, alone = (load_file(m / "model.safetensors") for m in (cluster.folder / "model", model))
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in alone.items()}


@pytest.mark.world_size(2)
def test_ddp_trains_the_same(cluster, one_rank):
    flags = [*SMALL, "--max-steps", str(STEPS), "--batch-size", str(BATCH // 2)]
    pod = cluster.start(
        [*LAUNCH, "--nproc-per-node=2", *RECIPE, "--strategy", "ddp", *flags, "--trace", "trace"]
    )
    wait_for_step(cluster.folder / "trace" / "rank-1.jsonl", 41, pod)
    os.killpg(pod.process.pid, signal.SIGKILL)  # the rest would show nothing new
    pod.stop()
    assert_same_losses(cluster.folder / "trace", one_rank[1], 40)


FLAGS = [*TINY, "--max-steps", "120", "--checkpoint-every", "7", "--batch-size", "8"]


def unbroken(cluster):
    flags = [*FLAGS, "--strategy", "fsdp", "--trace", "unbroken"]
    pod = cluster.start([*LAUNCH, "--nproc-per-node=2", *RECIPE, *flags])
    cluster.end()
    return result(pod.output), [trace(cluster.folder / "unbroken", rank) for rank in range(2)]


def last_step(folder):
    return max(trace(folder), default=0) if (folder / "rank-0.jsonl").exists() else 0


def kill_ranks_in_place(folder, kills):
    """Launch two ranks, kill one after each of these steps, and return how it ended."""
    flags = [*FLAGS, "--trace", "broken", "--checkpoint-dir", "checkpoints"]
    argv = ["--nproc-per-node", "2", "--max-restarts", len(kills), *RECIPE]
    one = Launched([*argv, "--strategy", "fsdp", *flags], {}, folder)
    try:
        for number, (step, rank) in enumerate(kills):
            wait_until(
                lambda step=step, number=number: (
                    one.err.count("starting again in place") == number
                    and last_step(folder / "broken") >= step
                ),
                what=f"step {step}",
                deadline=Deadline(120),
            )
            os.kill(one.ranks()[rank].pid, signal.SIGKILL)
        return one.wait(), one.out, one.err
    finally:
        one.kill()


@pytest.mark.slow
@pytest.mark.world_size(2)
def test_a_rank_that_is_killed_starts_again_in_place_and_nothing_changes(cluster):
    """kill -9 of each rank once: samples and losses of all steps are those of an unbroken run."""
    done, expected = unbroken(cluster)
    code, out, err = kill_ranks_in_place(cluster.folder, [(25, 1), (60, 0)])
    assert code == 0, err
    again = result(out)
    assert 0 < again["steps_run"] < again["step"] == 120
    assert again["bits_per_byte"] == done["bits_per_byte"]
    for rank in range(2):
        assert trace(cluster.folder / "broken", rank) == expected[rank]


@pytest.mark.world_size(2)
def test_a_killed_run_goes_on_with_another_number_of_ranks(cluster):
    """Two ranks, kill -9 of all; then one at the same global batch: each step has its samples."""
    _, expected = unbroken(cluster)
    cluster.pods.clear()
    common = ["--strategy", "fsdp", "--trace", "broken", "--checkpoint-dir", "checkpoints"]
    pod = cluster.start([*LAUNCH, "--nproc-per-node=2", *RECIPE, *FLAGS, *common])
    wait_for_step(cluster.folder / "broken" / "rank-0.jsonl", 40, pod)
    os.killpg(pod.process.pid, signal.SIGKILL)
    pod.stop()
    cluster.pods.clear()
    pod = cluster.start([*BARE, *FLAGS, *common, "--batch-size", "16"])
    cluster.end()
    last = trace(cluster.folder / "broken")
    first_alone = 120 - result(pod.output)["steps_run"] + 1
    # Whatever was committed when the kill came; saves are written beside the training.
    assert 1 < first_alone < 120
    assert sorted(last) == list(range(1, 121))
    for step in range(first_alone, 121):
        both = sorted(expected[0][step][1] + expected[1][step][1])
        assert sorted(last[step][1]) == both
        loss = (expected[0][step][2] + expected[1][step][2]) / 2
        assert last[step][2] == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--width", "30"], 2, ["--width 30", "--heads 4"]),
        (["--clip", "0"], 2, ["--clip 0", "above 0"]),
        (["--data-dir", "nowhere"], 66, ["nowhere", "no such folder"]),
        (["--data-dir", "tmp"], 65, ["two text files or more", "found 0"]),
    ],
)
def test_what_cannot_be_is_one_message(cluster, flags, code, words):
    pod = cluster.start([*BARE, *flags])
    cluster.end(codes=[code])
    assert all(word in pod.output for word in words), pod.output
    assert "Traceback" not in pod.output
