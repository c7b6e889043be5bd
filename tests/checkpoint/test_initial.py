"""A run that begins with the weights of another one, and with nothing else of it."""

import logging

import numpy as np
import pytest

from trainkit import Progress
from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.errors import (
    CheckpointDamagedError,
    DataError,
    EnvironmentFaultError,
    InputMissingError,
    UsageError,
)

torch = pytest.importorskip("torch")

HERE = CheckpointOptions(background=False)


def net(width=4, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width))


def bits(model):
    return [value.numpy().tobytes() for value in model.state_dict().values()]


def state(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return {"model": model, "optimizer": optimizer, "progress": Progress()}


@pytest.fixture
def trained(tmp_path):
    """A run of two checkpoints; what it holds, and its model at each step."""
    root, models = tmp_path / "pretrained", {}
    model = net(seed=1)
    run = state(model)
    manager = CheckpointManager(root, run, options=HERE)
    for step in (10, 20):
        model(torch.ones(2, 3)).sum().backward()
        run["optimizer"].step()
        run["progress"].step = step
        manager.save(step)
        models[step] = bits(model)
    manager.close()
    return root, models


def files_below(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_only_the_weights_are_taken_and_nothing_is_written(trained, tmp_path, caplog):
    root, models = trained
    before = files_below(root)
    run = state(net())
    manager = CheckpointManager(tmp_path / "tuned", run, options=HERE)
    random = torch.get_rng_state()
    with caplog.at_level(logging.INFO, logger="trainkit"):
        assert manager.restore_latest(init_from=root) is None
    assert bits(run["model"]) == models[20]
    assert run["progress"].step == 0
    assert run["optimizer"].state_dict()["state"] == {}
    assert torch.equal(torch.get_rng_state(), random)
    assert manager.last_saved_step is None
    assert files_below(root) == before
    assert f"begun with the weights (model) of {root}/step-0000000020" in caplog.text
    assert "not restored" not in caplog.text


def test_once_the_run_has_a_checkpoint_its_own_counts(tmp_path):
    run = state(net())
    CheckpointManager(tmp_path / "tuned", run, options=HERE).save(1)
    again = state(net(seed=5))
    manager = CheckpointManager(tmp_path / "tuned", again, options=HERE)
    assert manager.restore_latest(init_from=tmp_path / "gone") == 1
    assert bits(again["model"]) == bits(run["model"])


def test_one_step_and_no_folder_of_its_own(trained):
    root, models = trained
    (step,) = root.glob("step-0000000010.*")
    run = state(net())
    assert CheckpointManager(None, run).restore_latest(init_from=step) is None
    assert bits(run["model"]) == models[10]


def test_a_damaged_one_is_passed_over_and_not_marked(trained, caplog):
    root, models = trained
    (file,) = root.glob("step-0000000020.*/model/model.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    before = files_below(root)
    run = state(net())
    CheckpointManager(None, run).restore_latest(init_from=root)
    assert bits(run["model"]) == models[10]
    assert "is passed over" in caplog.text
    assert files_below(root) == before
    for file in root.glob("step-*/model/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointDamagedError, match="holds nothing that is whole"):
        CheckpointManager(None, run).restore_latest(init_from=root)


def test_another_shape_changes_nothing_and_is_named(trained):
    root, _ = trained
    run = state(net(width=5))
    before = bits(run["model"])
    with pytest.raises(EnvironmentFaultError, match=r"init_from=.*model\.0\.weight: the run expec"):
        CheckpointManager(None, run).restore_latest(init_from=root)
    assert bits(run["model"]) == before


def test_every_module_needs_its_entry(trained):
    root, _ = trained
    with pytest.raises(EnvironmentFaultError, match=r"no entry 'ema', .* \(it has model, opt"):
        CheckpointManager(None, {"model": net(), "ema": net()}).restore_latest(init_from=root)


def test_all_ranks_take_the_same(trained, tmp_path, on_ranks):
    root, models = trained

    def rank(communicator):
        run = state(net(seed=communicator.rank))
        manager = CheckpointManager(
            tmp_path / "tuned", run, communicator=communicator, options=HERE
        )
        manager.restore_latest(init_from=root if communicator.rank == 0 else f"{root}/")
        return bits(run["model"])

    assert on_ranks(3, rank) == [models[20]] * 3


def test_ranks_hear_of_one_that_does_not_fit(trained, on_ranks):
    root, _ = trained

    def rank(communicator):
        run = state(net(width=5 if communicator.rank == 1 else 4))
        before = bits(run["model"])
        try:
            CheckpointManager(None, run, communicator=communicator).restore_latest(init_from=root)
        except EnvironmentFaultError as error:
            return bits(run["model"]) == before, "the run expects the shape" in str(error)

    assert on_ranks(2, rank) == [(True, True)] * 2


def test_safetensors_files_and_folders(tmp_path):
    from safetensors.torch import save_file

    model = net(seed=3)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    for place in (tmp_path / "model.safetensors", tmp_path):
        run = state(net())
        CheckpointManager(None, run).restore_latest(init_from=place)
        assert bits(run["model"]) == bits(model)
    with pytest.raises(UsageError, match="is one model, and the state has model, ema"):
        CheckpointManager(None, {"model": net(), "ema": net()}).restore_latest(init_from=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"model\.safetensors"):
        CheckpointManager(None, state(net())).restore_latest(init_from=tmp_path)


def test_tied_weights_may_be_in_the_file_under_one_name(tmp_path):
    from safetensors.torch import save_file

    class Tied(torch.nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.embedding = torch.nn.Embedding(7, 3)
            self.head = torch.nn.Linear(3, 7, bias=False)
            self.head.weight = self.embedding.weight

    model, back = Tied(1), Tied(2)
    save_file({"embedding.weight": model.embedding.weight}, tmp_path / "model.safetensors")
    CheckpointManager(None, {"model": back}).restore_latest(init_from=tmp_path)
    assert torch.equal(back.head.weight, model.embedding.weight)
    assert back.head.weight is back.embedding.weight


def test_without_modules_arrays_are_the_weights(tmp_path):
    saved = {"weights": np.arange(4.0), "table": {"epoch": 3}, "progress": Progress(1, 9)}
    CheckpointManager(tmp_path, saved, options=HERE).save(9)
    run = {"weights": np.zeros(4), "table": {"epoch": 0}, "progress": Progress()}
    CheckpointManager(None, run).restore_latest(init_from=tmp_path)
    assert run["weights"].tolist() == [0, 1, 2, 3]
    assert run["table"] == {"epoch": 0}
    assert run["progress"] == Progress()
    with pytest.raises(UsageError, match=r"nothing in it is known to be weights"):
        CheckpointManager(None, {"table": {}}).restore_latest(init_from=tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(InputMissingError, match=r"init_from=.*/gone holds no checkpoint"):
        CheckpointManager(None, state(net())).restore_latest(init_from=tmp_path / "gone")


def test_a_step_that_was_renamed_is_refused(trained, tmp_path):
    root, _ = trained
    (step,) = root.glob("step-0000000010.*")
    best = step.rename(tmp_path / "best")
    with pytest.raises(UsageError, match="was renamed: expected a name such as step-"):
        CheckpointManager(None, state(net())).restore_latest(init_from=best)
