"""The MNIST recipe: learns, is the same on any number of ranks, and survives kills exactly."""

import json
import os
import random
import signal
import time

import pytest

from tests.distributed.pods import PYTHON, TORCHRUN

pytest.importorskip("torch")

RECIPE = ["-m", "trainkit.recipes.mnist"]
BARE = [PYTHON, *RECIPE]
TWO_RANKS = [*TORCHRUN, "--nproc-per-node=2", *RECIPE]


def done_line(pod):
    """The last line of rank 0's standard output that is JSON."""
    lines = [line for line in pod.output.splitlines() if line.startswith('{"event"')]
    return json.loads(lines[-1])


def trace(folder, rank=0):
    """step → (epoch, samples, loss); a repeated step counts as it was last."""
    steps = {}
    for text in (folder / f"rank-{rank}.jsonl").read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # cut by a kill; the rank that followed wrote it again
        steps[line["step"]] = (line["epoch"], line["samples"], line["loss"])
    return steps


SHARDED = [*TWO_RANKS, "--strategy", "fsdp"]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(BARE, marks=pytest.mark.slow, id="1-rank"),
        pytest.param(TWO_RANKS, id="2-ranks"),
        pytest.param(SHARDED, id="2-ranks-fsdp"),
    ],
)
def test_learns_the_embedded_digits(cluster, command):
    pod = cluster.start([*command, "--output-dir", "model"])
    cluster.end()
    done = done_line(pod)
    assert done["event"] == "done"
    assert done["test_accuracy"] >= 0.97
    assert done["steps_run"] == done["step"] > 0
    assert "subset" in pod.output
    weights = pytest.importorskip("safetensors.torch").load_file(
        cluster.folder / "model" / "model.safetensors"
    )
    assert weights["conv1.weight"].shape == (8, 1, 5, 5)


@pytest.mark.parametrize(
    "two_ranks",
    [pytest.param(TWO_RANKS, id="ddp"), pytest.param(SHARDED, marks=pytest.mark.slow, id="fsdp")],
)
def test_one_and_two_ranks_have_equal_losses_at_the_same_global_batch(cluster, two_ranks):
    """To the tolerance that the docs state: only the order of additions differs."""
    common = ["--max-steps", "40", "--seed", "3"]
    cluster.start([*BARE, *common, "--batch-size", "64", "--trace", "one"])
    cluster.end()
    cluster.start([*two_ranks, *common, "--batch-size", "32", "--trace", "two"])
    cluster.end()
    one = trace(cluster.folder / "one")
    two = [trace(cluster.folder / "two", rank) for rank in range(2)]
    assert len(one) == 40
    for step, (_, samples, loss) in one.items():
        assert sorted(samples) == sorted(two[0][step][1] + two[1][step][1])
        mean = (two[0][step][2] + two[1][step][2]) / 2
        assert mean == pytest.approx(loss, rel=2e-4)


def test_a_seed_gives_the_same_run_again(cluster):
    for name in ("first", "second"):
        cluster.start([*BARE, "--max-steps", "15", "--seed", "5", "--trace", name])
    cluster.end()
    assert trace(cluster.folder / "first") == trace(cluster.folder / "second")


@pytest.mark.parametrize("command", [BARE, TWO_RANKS], ids=["1-rank", "2-ranks"])
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kills_change_nothing_in_what_was_trained(cluster, command, seed):
    """kill -9 at random steps, start again: samples and losses are those of an unbroken run."""
    chance = random.Random(seed)
    flags = ["--max-steps", "150", "--checkpoint-every", "7", "--batch-size", "64"]
    cluster.start([*command, *flags, "--trace", "unbroken"])
    cluster.end()
    path = cluster.folder / "broken" / "rank-0.jsonl"
    broken = [*command, *flags, "--trace", "broken", "--checkpoint-dir", "checkpoints"]
    for kill_at in sorted(chance.sample(range(5, 140), 2)):
        cluster.pods.clear()
        pod = cluster.start(broken)
        wait_for_step(path, kill_at, pod)
        os.killpg(pod.process.pid, signal.SIGKILL)
        pod.stop()
    cluster.pods.clear()
    pod = cluster.start(broken)
    cluster.end()
    assert done_line(pod)["step"] == 150
    assert 0 < done_line(pod)["steps_run"] < 150
    for rank in range(2 if command is TWO_RANKS else 1):
        expected = trace(cluster.folder / "unbroken", rank)
        assert trace(cluster.folder / "broken", rank) == expected
        assert sorted(expected) == list(range(1, 151))


def wait_for_step(path, step, pod, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and pod.process.poll() is None:
        if path.exists() and any(f'"step": {s},' in path.read_text() for s in range(step, 151)):
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached\n{pod.process.communicate()[0]}")


def test_a_finished_run_has_nothing_left(cluster):
    command = [*BARE, "--max-steps", "10", "--checkpoint-dir", "checkpoints"]
    cluster.start(command)
    cluster.end()
    cluster.pods.clear()
    pod = cluster.start(command)
    cluster.end()
    assert "nothing left: step 10 of 10" in pod.output
    assert done_line(pod)["steps_run"] == 0


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(BARE, marks=pytest.mark.slow, id="1-rank"),
        pytest.param(TWO_RANKS, id="2-ranks"),
    ],
)
def test_a_notice_to_stop_saves_and_the_run_goes_on(cluster, command):
    """SIGTERM in the middle: saved after one step on all ranks, and nothing is repeated."""
    command = [*command, "--max-steps", "300", "--trace", "trace", "--checkpoint-dir", "ckpt"]
    pod = cluster.start(command)
    path = cluster.folder / "trace" / "rank-0.jsonl"
    wait_for_step(path, 10, pod)
    os.kill(pod.process.pid, signal.SIGTERM)
    returned = pod.end(time.monotonic() + 120)
    # torchrun has an exit code of its own for a job that was asked to stop
    assert returned == 143 if command[1:2] == ["-m"] and command[2] == RECIPE[1] else returned != 0
    assert "stop" in pod.output
    last = max(trace(cluster.folder / "trace"))
    assert last < 300
    cluster.pods.clear()
    pod = cluster.start(command)
    cluster.end()
    assert done_line(pod)["step"] == 300
    assert done_line(pod)["steps_run"] == 300 - last


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "0"], ["--epochs 0", "1 or more"]),
        (["--lr", "-1"], ["--lr -1", "positive"]),
        (["--batch-size", "many"], ["many"]),
        (["--no-such-flag"], ["no-such-flag"]),
    ],
)
def test_wrong_flags_are_one_message_and_code_2(cluster, flags, words):
    pod = cluster.start([*BARE, *flags])
    cluster.end(codes=[2])
    assert all(word in pod.output for word in words)
    assert "Traceback" not in pod.output


def test_help_shows_units_and_defaults(cluster):
    pod = cluster.start([*BARE, "--help"])
    cluster.end()
    assert "Samples a rank and step" in " ".join(pod.output.split())
    assert "default: 64" in pod.output


def test_a_missing_data_folder_is_said_without_a_traceback(cluster):
    pod = cluster.start([*BARE, "--data-dir", "nowhere"])
    cluster.end(codes=[66])
    assert "nowhere" in pod.output
    assert "Traceback" not in pod.output
