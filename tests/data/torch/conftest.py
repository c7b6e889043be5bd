import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from trainkit.data.torch import ShardedDataLoader

# Fixtures that hand out functions have the scope of the session, so that hypothesis may use
# them for many examples.


class Numbers(Dataset):
    """Sample i is the number i."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        return torch.tensor(index)


@pytest.fixture(scope="session", autouse=True)
def _child_handler():
    """Torch's handler for dead workers, which stays for the process once a loader had some."""
    before = signal.getsignal(signal.SIGCHLD)
    signal_handling._set_SIGCHLD_handler()
    yield
    signal.signal(signal.SIGCHLD, before)
    signal_handling._SIGCHLD_handler_set = False


@pytest.fixture(scope="session")
def numbers():
    return Numbers


@pytest.fixture(scope="session")
def shards():
    """Make the loaders of all ranks; each gets a DataLoader of its own."""

    def make(world, dataset, batch_size=2, *, seed=0, train=None, **arguments):
        return [
            ShardedDataLoader(
                DataLoader(dataset, batch_size, **arguments),
                shard=(rank, world),
                seed=seed,
                train=train,
            )
            for rank in range(world)
        ]

    return make


def values(loader):
    return [batch.tolist() for batch in loader]


@pytest.fixture(scope="session")
def batches():
    """The batches of one iteration, as lists of numbers."""
    return values


@pytest.fixture(scope="session")
def samples():
    """All samples that some loaders give in one iteration each, in one sorted list."""

    def collect(loaders):
        return sorted(number for loader in loaders for batch in values(loader) for number in batch)

    return collect
