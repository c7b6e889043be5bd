import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap

import fsspec
import numpy as np
import pytest
import torch
from fsspec.asyn import AsyncFileSystem, sync
from torch.utils.data import DataLoader, Dataset, TensorDataset

from trainkit.data.torch import ShardedDataLoader

HANGS_AFTER = 60.0
"""Seconds; far more than any of this takes."""


class Augmented(Dataset):
    """Draws from all three global generators, as augmentations do."""

    def __len__(self):
        return 48

    def __getitem__(self, index):
        drawn = [random.random(), np.random.rand(), float(torch.rand((), dtype=torch.float64))]
        return torch.tensor(drawn, dtype=torch.float64)


# Torch says so where a machine has fewer cores; here the number of workers is the point.
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("persistent_workers", [False, True])
def test_random_augmentation_differs_everywhere_and_repeats_with_the_seed(
    shards, persistent_workers
):
    def draw(seed):  # B074
        arguments = {"num_workers": 4, "persistent_workers": persistent_workers}
        loaders = shards(2, Augmented(), 3, seed=seed, shuffle=True, **arguments)
        drawn = [torch.cat(list(loader)) for loader in loaders for _epoch in range(2)]
        return torch.cat(drawn)

    first, again, other = draw(1), draw(1), draw(2)
    for kind in range(3):
        assert len(set(first[:, kind].tolist())) == 2 * 48
    assert torch.equal(first, again)
    assert not set(first.flatten().tolist()) & set(other.flatten().tolist())


def test_without_workers_samples_draw_from_the_users_generators(shards):
    (loader,) = shards(1, Augmented(), 48)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = torch.stack([Augmented()[0] for _ in range(48)])
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    assert torch.equal(next(iter(loader)), expected)


def test_a_resumed_epoch_does_not_repeat_the_random_numbers_of_its_beginning(shards):
    (loader,) = shards(1, Augmented(), 3, train=True, num_workers=1)
    iterator = iter(loader)
    first = next(iterator)
    (again,) = shards(1, Augmented(), 3, train=True, num_workers=1)
    again.load_state_dict(loader.state_dict())
    assert not torch.equal(next(iter(again)), first)


def test_the_users_generator_varies_the_workers_numbers(shards):
    def draw(**arguments):
        (loader,) = shards(1, Augmented(), 48, num_workers=1, **arguments)
        return next(iter(loader))

    one, two = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    assert not torch.equal(draw(generator=one), draw(generator=two))


def _mark(worker):
    Marked.mark = 100 + worker


class Marked(Dataset):
    mark = 0

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.mark


def test_the_users_worker_init_fn_is_called(shards, batches):
    (loader,) = shards(1, Marked(), 2, num_workers=2, worker_init_fn=_mark)
    assert batches(loader) == [[100, 100], [101, 101]]


def test_workers_can_be_spawned(shards):
    data = TensorDataset(torch.arange(4))  # a spawned process could not import this file
    (loader,) = shards(1, data, 2, num_workers=1, multiprocessing_context="spawn")
    assert [batch[0].tolist() for batch in loader] == [[0, 1], [2, 3]]


class Remote(AsyncFileSystem):
    """Stands for an object store's client: every call goes through the event loop's thread."""

    protocol = "remote"

    async def _answer(self):
        return os.getpid()

    def ask(self):
        return sync(self.loop, self._answer, timeout=HANGS_AFTER)


class FromStore(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        text = fsspec.filesystem("memory").cat("/workers/sample")
        return torch.tensor([int(text), Remote().ask(), os.getpid()])


@pytest.fixture
def touched_stores():
    """A memory store and a remote one, both used in this process before anything forks."""
    memory = fsspec.filesystem("memory")
    memory.pipe("/workers/sample", b"7")
    assert Remote().ask() == os.getpid()
    yield
    memory.rm("/workers", recursive=True)
    Remote.clear_instance_cache()


def _read(results):
    loader = ShardedDataLoader(DataLoader(FromStore(), 2, num_workers=2, timeout=HANGS_AFTER))
    results.put(torch.cat(list(loader)).tolist())


def test_stores_used_before_the_fork_work_in_workers_and_in_forked_ranks(touched_stores):
    context = multiprocessing.get_context("fork")  # B083
    results = context.Queue()
    ranks = [context.Process(target=_read, args=(results,)) for _ in range(2)]
    for rank in ranks:
        rank.start()
    rows = [results.get(timeout=HANGS_AFTER) for _ in ranks]
    for rank in ranks:
        rank.join(timeout=HANGS_AFTER)
        assert rank.exitcode == 0
    results.close()
    _read(local := context.SimpleQueue())
    rows.append(local.get())
    local.close()
    for text, answered_by, worker in (row for part in rows for row in part):
        assert text == 7
        assert answered_by == worker != os.getpid()


RANK = """
import os, signal, sys
from torch.utils.data import DataLoader, Dataset
from trainkit.data.torch import ShardedDataLoader

class Numbers(Dataset):
    def __len__(self): return 40
    def __getitem__(self, index): return index

if __name__ == "__main__":
    notices = []
    signal.signal(signal.SIGTERM, lambda number, frame: notices.append(number))
    signal.signal(signal.SIGINT, lambda number, frame: notices.append(number))
    loader = ShardedDataLoader(DataLoader(Numbers(), 1, num_workers=2))
    batches = iter(loader)
    next(batches)
    print("first", flush=True)
    sys.stdin.readline()
    count = 1 + sum(1 for _ in batches)
    print(count, sorted(set(notices)), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_outlive_a_notice_to_the_whole_job(tmp_path, number):
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout.readline() == "first\n", process.stderr.read()
        os.killpg(process.pid, number)
        out, err = process.communicate("go on\n", timeout=HANGS_AFTER)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert out == f"40 [{int(number)}]\n", err
