"""What users of other launchers reported, by the number of the report (docs/user-reports.md)."""

import itertools
import os
import random
import signal
import subprocess
import time

import pytest

from tests.launch.conftest import TRAINING
from tests.launch.test_memory_kills import limited_to
from trainkit.resources.gpus import visible_gpu_count
from trainkit.testing import requires_root
from trainkit.waiting import Deadline, wait_until

TWO = ("--nproc-per-node", 2)

UNEVEN = TRAINING.replace("import os, time", "import os, random, time").replace(
    "        time.sleep(", "        time.sleep(random.uniform(0, 0.2) if ctx.rank else 0)\n"
    "        time.sleep(", 1
).replace(
    "    while", "    print('pid', ctx.rank, os.getpid(), at or 0, flush=True)\n    while", 1
)  # fmt: skip


def test_b025_a_notice_between_two_steps_of_uneven_ranks(launch, rounds, tally, seed, tmp_path):
    """Rank 0 alone hears of it while the other is up to a step behind: no deadlock."""
    count, rng, again = rounds(5, 50), random.Random(seed), "starting again in place"
    one = launch(
        *(*TWO, "--max-restarts", count - 1),
        script=UNEVEN,
        STEPS="100000",
        EVERY="100000",
        TRAINKIT_CHECKPOINT_DIR=str(tmp_path / "ckpt"),
    )
    for number in range(count):
        one.await_line("pid ", 2 * (number + 1))
        began = one.out.split("pid 0 ")[-1]
        wait_until(
            lambda: one.out.split("pid 0 ")[-1].count("step 0") >= 2,
            what="some steps",
            deadline=Deadline(60),
        )
        time.sleep(rng.uniform(0, 0.3))
        os.kill(int(began.split()[0]), signal.SIGTERM)
        wait_until(
            lambda: one.process.poll() is not None or one.err.count(again) > number,  # noqa: B023
            what="both ranks to stop",
            deadline=Deadline(25),  # the grace period is 30 seconds
        )
    assert one.wait() == 143, one.err
    assert "asked it to end" not in one.err
    # What they did last in each attempt, and what they began the next one with.
    lines = [line.split()[2:] for line in one.out.splitlines()]
    for rank in ("0", "1"):
        own = [line for line in lines if line[1] == rank and line[0] != "began"]
        ends = [int(a[2]) for a, b in itertools.pairwise(own) if b[0] == "pid"]
        begins = [int(line[3]) for line in own if line[0] == "pid"][1:]
        assert len(ends) == count - 1
        assert begins == ends
    tally.passed("launch, a notice between two steps (B025)", count)


def test_b027_a_handler_of_the_users_runs_beside_ours(launch, repeat, tmp_path):
    own = "signal.signal(signal.SIGTERM, lambda *_: print('mine', flush=True))\n"
    script = TRAINING.replace("if __name__", f"import signal\n{own}if __name__", 1)

    def trial(n):
        environ = {"TRAINKIT_CHECKPOINT_DIR": str(tmp_path / f"c{n}"), "STEPS": "100000"}
        one = launch(*TWO, script=script, PAUSE="0.01", EVERY="100000", **environ)
        one.await_line("step 1 3")
        one.process.send_signal(signal.SIGTERM)
        assert one.wait() == 143, one.err
        assert one.out.count("mine") == 2
        assert "as asked; it is saved in" in one.err

    repeat(trial, ci=1)


@pytest.mark.skipif(visible_gpu_count() > 0, reason="needs a host without GPUs")
@pytest.mark.parametrize(
    "asked", [{"TRAINKIT_DEVICE": "cuda"}, {"NVIDIA_VISIBLE_DEVICES": "GPU-8d3f0000"}]
)
def test_b038_gpus_that_were_asked_for_and_are_not_there(launch, asked):
    one = launch("-m", "trainkit.recipes.mnist", "--max-steps", 1, script=None, **asked)
    assert one.wait() == 78, one.err
    assert "a GPU was granted or asked for" in one.err
    assert "Traceback" not in one.err


NO_STEP = """
import torch, trainkit
def main(ctx):
    model = ctx.setup(torch.nn.Linear(2, 2))
    checkpoints = ctx.checkpoints(model=model)
    checkpoints.restore_latest()
    if torch.cuda.device_count() < 1000:
        print("not enough GPUs for this example")
        return
trainkit.run(main)
"""


def test_b038_a_green_job_that_trained_nothing_is_told_of(launch, tmp_path):
    nothing, trained = launch(*TWO, script=NO_STEP), {"STEPS": "2"}
    trained["TRAINKIT_CHECKPOINT_DIR"] = str(tmp_path / "c")
    first = launch(*TWO, script=TRAINING, **trained)
    assert nothing.wait() == 0
    assert nothing.err.count("ended after 0 steps") == 1
    assert first.wait() == 0
    again = launch(*TWO, script=TRAINING, **trained)  # it is done already, and says nothing
    assert again.wait() == 0
    assert "0 steps" not in first.err + again.err


IMAGES = """
import torch, trainkit
from torch.utils.data import DataLoader, Dataset
class Images(Dataset):
    def __len__(self): return 256
    def __getitem__(self, index): return torch.zeros(3, 224, 224)
if __name__ == "__main__":
    for batch in DataLoader(Images(), batch_size=16, num_workers=4): pass
    print("done")
"""


@requires_root()
def test_b066_a_small_shared_memory(launch):
    mount = 'mount -t tmpfs -o size=16m tmpfs /dev/shm && exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", mount, "sh")
    probe = subprocess.run([*before, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no /dev/shm can be mounted here: {probe.stderr.strip()}")
    one = launch(script=IMAGES, before=before)
    assert one.wait() not in (0, 1), one.err
    warned, _, failed = one.err.partition("failed first")
    assert "/dev/shm, has 16 MiB" in warned
    assert "emptyDir: {medium: Memory}" in warned
    hint = next(line for line in failed.splitlines() if "hint: " in line)
    assert "/dev/shm (16 MiB, " in hint
    assert "emptyDir: {medium: Memory}" in hint
    assert "/dev/shm, has" not in launch(script="print(1)").err


GREEDY = """
import torch
from torch.utils.data import DataLoader, Dataset
class Greedy(Dataset):
    def __len__(self): return 4
    def __getitem__(self, index):
        if index == 1: bytearray(4 << 30)
        return torch.zeros(1)
if __name__ == "__main__":
    for batch in DataLoader(Greedy(), num_workers=1): pass
"""


@requires_root()
def test_b068_a_loaders_worker_that_is_killed_for_memory(launch, tmp_path):
    with limited_to("memory", ("memory.max", "memory.limit_in_bytes"), 2 << 30) as folder:
        # What is killed cannot remove its temporary folder.
        one = launch(script=GREEDY, before=inside(folder), TMPDIR=str(tmp_path))
        assert one.wait() == 138, one.err
    hint = next(line for line in one.err.splitlines() if "trainkit: hint: " in line)
    for part in ("limit 2 GiB", "in use now", "1 process killed for memory", "limits.memory"):
        assert part in hint


def inside(folder):
    """Words before a command that have it run in a cgroup."""
    return ("sh", "-c", f'echo $$ > "{folder}/cgroup.procs" && exec "$@"', "sh")


THREADS = """
import os, torch, trainkit
from torch.utils.data import DataLoader, TensorDataset
def main(ctx):
    print("threads", os.environ["OMP_NUM_THREADS"], torch.get_num_threads(), flush=True)
    loader = DataLoader(TensorDataset(torch.zeros(64, 1)), num_workers=3, shuffle=True)
    for batch in ctx.setup_dataloader(loader): pass
if __name__ == "__main__":
    trainkit.run(main)
"""


@requires_root()
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_b084_threads_and_workers_follow_the_limit_and_not_the_host(launch):
    unlimited = {"OMP_NUM_THREADS": ""}
    cpus = len(os.sched_getaffinity(0))
    free = launch(script=THREADS, **unlimited)
    assert free.wait() == 0, free.err
    assert f"threads {cpus} {cpus}\n" in free.out
    with limited_to("cpu", ("cpu.cfs_quota_us",), 100_000) as folder:
        one = launch(script=THREADS, before=inside(folder), **unlimited)
        assert one.wait() == 0, one.err
    assert "threads 1 1\n" in one.out
    assert "3 loader workers for each of 1 rank(s) here, and 1 CPUs (cgroup quota" in one.err
    assert "num_workers=1 fits" in one.err


def test_b084_ranks_share_the_cpus_of_an_affinity(launch):
    first = str(min(os.sched_getaffinity(0)))
    one = launch(*TWO, script=THREADS, before=("taskset", "-c", first), OMP_NUM_THREADS="")
    assert one.wait() == 0, one.err
    assert one.out.count("threads 1 1\n") == 2
    assert "1 CPUs (CPU affinity)" in one.err


TAKES_AWAY = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
final = os.path.join(sys.argv[1], "checkpoint.pth.tar")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))

def save_checkpoint():
    temporary = final + ".tmp"  # the same for both ranks
    torch.save(model.state_dict(), temporary)
    dist.barrier()
    if dist.get_rank() == 1:
        while not os.path.exists(final):
            pass
    os.rename(temporary, final)

save_checkpoint()
model(torch.ones(1, 2)).sum().backward()
"""


def test_b055_ranks_that_take_each_others_files_away(launch, tmp_path):
    """A script of that shape, without trainkit: the cause is shown, not the one that waited."""
    one = launch(*TWO, script=TAKES_AWAY, arguments=[tmp_path])
    assert one.wait() == 70, one.err
    report = one.err.partition("rank 1 (worker-0 r1) on ")[2]
    assert "failed first: FileNotFoundError" in report
    assert "checkpoint.pth.tar.tmp" in report
    assert "in save_checkpoint" in report
