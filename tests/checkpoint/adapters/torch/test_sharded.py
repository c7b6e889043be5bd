"""FSDP2 modules and their optimizers in a CheckpointManager, on any number of real ranks."""

import pytest

from tests.checkpoint.adapters.torch.fsdp import (
    HERE,
    PRELOAD,
    full_bits,
    net,
    optimizer_of,
    ranks_here,
    restored_bare,
    saving_ranks,
    sharded_run,
    train,
)
from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.checkpoint.load import parts
from trainkit.testing import run_ranks

torch = pytest.importorskip("torch")

SAMPLE = [(2, 3), (3, 2), (2, 0)]
MATRIX = [(w, v) for w in (0, 1, 2, 3, 4) for v in (0, 1, 2, 3, 4)]
"""Ranks that save and that restore; 0 is a bare run without FSDP."""


def restoring_ranks(folder):
    """Restore; then train beside a run to which the whole state was given by another way."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    with ranks_here() as communicator:
        model, optimizer = sharded_run(2, communicator.world_size)
        state = {"model": model, "optimizer": optimizer}
        manager = CheckpointManager(folder, state, communicator=communicator, options=HERE)
        assert manager.restore_latest() == 3
        manager.close()
        found = full_bits(model, optimizer)
        other, its_optimizer = sharded_run(3, communicator.world_size)
        plain, plain_optimizer = net(4), None
        plain_optimizer = optimizer_of(plain)
        CheckpointManager(
            folder,
            {"model": plain, "optimizer": plain_optimizer},
            options=CheckpointOptions(read_only=True),
        ).restore_latest()
        from torch.distributed.checkpoint.state_dict import get_state_dict

        of_model, of_optimizer = get_state_dict(plain, plain_optimizer)
        set_state_dict(
            other,
            its_optimizer,
            model_state_dict=of_model,
            optim_state_dict=of_optimizer,
            options=StateDictOptions(full_state_dict=True),
        )
        return found, train(model, optimizer, 5), train(other, its_optimizer, 5)


def save_bare(folder):
    model = net(1)
    optimizer = optimizer_of(model)
    train(model, optimizer, 3)
    CheckpointManager(folder, {"model": model, "optimizer": optimizer}, options=HERE).save(3)
    return full_bits(model, optimizer)


def beginning_ranks(folder, file):
    """Begin with the weights of a sharded run, and with those of a plain file."""
    with ranks_here() as communicator:
        found = []
        for url in (folder, file):
            model, optimizer = sharded_run(6, communicator.world_size)
            state = {"model": model, "optimizer": optimizer}
            manager = CheckpointManager(None, state, communicator=communicator)
            assert manager.restore_latest(init_from=url) is None
            found.append(full_bits(model, optimizer))
        return found


NAME = "T9 another number of ranks, sharded"


def check(folder, saved, loaded, replicas=1):
    folder = str(folder)
    if saved == 0:
        expected = save_bare(folder)
    else:
        results = run_ranks(saving_ranks, saved, folder, replicas, preload=PRELOAD)
        expected = results[0].value
    if loaded == 0:
        assert restored_bare(folder) == expected
        return
    for result in run_ranks(restoring_ranks, loaded, folder, preload=PRELOAD):
        found, losses, expected_losses = result.value
        assert found == expected
        assert losses == expected_losses


@pytest.mark.parametrize(("saved", "loaded"), SAMPLE)
@pytest.mark.world_size(4)
def test_on_another_number_of_ranks(tmp_path, tally, saved, loaded):
    check(tmp_path, saved, loaded)
    tally.passed(NAME, 1)


@pytest.mark.world_size(2)
def test_control(tmp_path, monkeypatch):
    """Rows of a part in another order: the comparison finds them."""
    results = run_ranks(saving_ranks, 2, str(tmp_path), 1, preload=PRELOAD)
    assert restored_bare(str(tmp_path)) == results[0].value
    real = parts.copy_box

    def confused(source, shape, offsets, target, *rest):
        real(source, shape, offsets, target, *rest)
        target[:] = bytes(target)[::-1]

    monkeypatch.setattr(parts, "copy_box", confused)
    assert restored_bare(str(tmp_path)) != results[0].value


@pytest.mark.world_size(3)
def test_the_weights_alone(tmp_path):
    from safetensors.torch import save_file

    saved = run_ranks(saving_ranks, 3, str(tmp_path), 1, preload=PRELOAD)[0].value
    weights = saved[:4]
    plain = net(2)
    CheckpointManager(None, {"model": plain}).restore_latest(init_from=tmp_path)
    assert full_bits(plain, optimizer_of(plain)) == weights
    file = tmp_path / "plain.safetensors"
    save_file(plain.state_dict(), file)
    for result in run_ranks(beginning_ranks, 2, str(tmp_path), str(file), preload=PRELOAD):
        assert result.value == [weights, weights]


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "loaded"), sorted(set(MATRIX) - set(SAMPLE) - {(0, 0)}))
@pytest.mark.world_size(4)
def test_on_any_number_of_ranks(tmp_path, tally, saved, loaded):
    check(tmp_path, saved, loaded)
    tally.passed(NAME, 1)


@pytest.mark.slow
@pytest.mark.world_size(4)
def test_replicas_of_shards_are_saved_once(tmp_path):
    check(tmp_path, 4, 3, replicas=2)
