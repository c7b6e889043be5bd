"""Several ranks in one process, small options, and storage that fails on demand."""

import threading

import pytest

from trainkit.checkpoint import CheckpointOptions
from trainkit.checkpoint.save.hold import release_all
from trainkit.coordination import Communicator, MemoryStore


@pytest.fixture(autouse=True)
def _compiler_cache(tmp_path, monkeypatch):
    """torch's compiler, which optimizers import too, writes its cache's place into the
    environment unless it is there."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / ".inductor"))


@pytest.fixture(autouse=True)
def _leases_end():
    """A storage that fails on demand keeps what it raised, and so the manager with its lease."""
    yield
    release_all()


@pytest.fixture
def quick():
    """Options that wait for seconds where a job would wait for minutes, and that save in this
    process, where a test can put its own storage in place."""
    return CheckpointOptions(
        background=False, timeout=30.0, attempts=1, pause=0.01, visible_within=0.2
    )


@pytest.fixture
def on_ranks():
    """Run a function on n ranks, which are threads; give back what each returned or raised."""

    def run(world_size, function):
        store = MemoryStore()
        results = [None] * world_size

        def rank(number):
            communicator = Communicator(store, number, world_size, timeout=60.0)
            try:
                results[number] = function(communicator)
            except BaseException as error:  # what a rank raises is the test's to judge
                results[number] = error

        threads = [threading.Thread(target=rank, args=(n,)) for n in range(world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
        assert not any(thread.is_alive() for thread in threads), "a rank hangs"
        return results

    return run


class Box:
    """A Stateful with one value in it."""

    def __init__(self, value=None):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


@pytest.fixture
def box():
    return Box
