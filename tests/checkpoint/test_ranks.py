"""Real rank processes: bare and distributed runs take over from each other; one rank dies."""

import os
import signal

import pytest

from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.coordination import Communicator

torch = pytest.importorskip("torch")


def communicator_here(timeout=60.0):
    import torch.distributed as dist

    from trainkit.coordination.torch import TorchStore

    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=os.environ["RANK"] == "0",
    )
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Communicator(TorchStore(store), rank, world_size, timeout=timeout)


def leave(communicator, num_left):
    """Rank 0, which serves the store, goes last of ``num_left`` ranks."""
    if communicator.store.add("left", 1) == num_left:
        communicator.store.set("all left", b"1")
    if communicator.rank == 0:
        assert communicator.store.wait("all left", 30.0)


def net():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))


def run_of(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return {"model": model, "optimizer": optimizer}


def train(state, num_steps):
    for step in range(num_steps):
        state["optimizer"].zero_grad()
        inputs = torch.linspace(-1, 1, 12).reshape(4, 3) + step
        state["model"](inputs).square().mean().backward()
        state["optimizer"].step()


def bits(model):
    return [p.detach().numpy().tobytes() for p in model.parameters()]


def ddp_ranks(folder):
    """Take over from a bare run, train and save."""
    import torch.distributed as dist

    communicator = communicator_here()
    dist.init_process_group(
        "gloo",
        store=communicator.store.store,
        rank=communicator.rank,
        world_size=communicator.world_size,
    )
    model = net()
    state = run_of(torch.nn.parallel.DistributedDataParallel(model))
    manager = CheckpointManager(folder, state, communicator=communicator)
    restored = manager.restore_latest()
    train(state, 3)
    manager.save(restored + 3, blocking=True)
    dist.destroy_process_group()
    leave(communicator, num_left=2)
    return restored, bits(model)


@pytest.mark.world_size(2)
def test_bare_to_ddp_and_back(ranks, tmp_path):
    unbroken = run_of(net())
    train(unbroken, 2)
    before = CheckpointManager(tmp_path, unbroken)
    before.save(2)
    before.close()

    results = ranks(ddp_ranks, str(tmp_path))
    train(unbroken, 3)
    assert [result.value for result in results] == [(2, bits(unbroken["model"]))] * 2

    bare = run_of(net())
    assert CheckpointManager(tmp_path, bare).restore_latest() == 5
    train(bare, 2)
    train(unbroken, 2)
    assert bits(bare["model"]) == bits(unbroken["model"])


def dying_ranks(folder):
    """Rank 1 is killed while it writes its part of step 2."""

    class Deadly:
        armed = False

        def state_dict(self):
            if self.armed:
                os.kill(os.getpid(), signal.SIGKILL)
            return {"rank": os.environ["RANK"]}

        def load_state_dict(self, state_dict):
            pass

    from trainkit.errors import DeadlineError
    from trainkit.state import PerRank

    communicator = communicator_here()
    deadly = Deadly()
    manager = CheckpointManager(
        folder,
        {"table": {"step": 1}, "deadly": PerRank(deadly)},
        communicator=communicator,
        options=CheckpointOptions(timeout=2.0),
    )
    manager.save(1, blocking=True)
    deadly.armed = communicator.rank == 1
    try:
        manager.save(2, blocking=True)
    except DeadlineError as error:
        leave(communicator, num_left=2)
        return str(error)


@pytest.mark.world_size(3)
def test_a_rank_that_is_killed_in_a_save_is_named_and_nothing_is_committed(ranks, tmp_path):
    results = ranks(dying_ranks, str(tmp_path), check=False)
    assert [result.exit_code for result in results] == [0, -signal.SIGKILL, 0]
    for result in (results[0], results[2]):
        assert "rank(s) 1 of 3" in result.value
    manager = CheckpointManager(tmp_path, {"table": (table := {})})
    assert manager.restore_latest() == 1
    assert table == {"step": 1}
