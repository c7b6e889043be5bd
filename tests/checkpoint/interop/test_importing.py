"""Checkpoints of other tools come in, go out again, and run no code on the way."""

import json
import os
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import get_state_dict

from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.checkpoint.interop import (
    TrainkitReader,
    TrainkitWriter,
    export_dcp,
    export_torch,
    import_checkpoint,
)
from trainkit.errors import (
    CheckpointDamagedError,
    DataError,
    EnvironmentFaultError,
    InputMissingError,
    UsageError,
)

HERE = CheckpointOptions(background=False)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def run(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(model, optimizer, steps):
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(torch.linspace(-1, 1, 12).reshape(4, 3) + step).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained():
    model, optimizer = run()
    train(model, optimizer, 3)
    return model, optimizer


def bits(state):
    return {name: value.numpy().tobytes() for name, value in state.items()}


def restored(root, **state):
    return CheckpointManager(root, state, options=HERE).restore_latest()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def test_a_safetensors_file(tmp_path, root):
    model, _ = trained()
    save_file(model.state_dict(), tmp_path / "net-00012.safetensors")
    folder = import_checkpoint(tmp_path / "net-00012.safetensors", root)
    assert folder == f"{root}/step-0000000012.g01-0000"
    other, _ = run(seed=1)
    assert restored(root, model=other) == 12
    assert bits(other.state_dict()) == bits(model.state_dict())
    assert bits(load_file(f"{folder}/model/model.safetensors")) == bits(model.state_dict())


def hf_folder(folder, model):
    folder.mkdir()
    state = model.state_dict()
    names = list(state)
    files = {
        "model-00001-of-00002.safetensors": names[:3],
        "model-00002-of-00002.safetensors": names[3:],
    }
    for file, part in files.items():
        save_file({name: state[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")


def test_a_hugging_face_folder(tmp_path, root):
    model, _ = trained()
    hf_folder(tmp_path / "hf", model)
    import_checkpoint(tmp_path / "hf", root, step=7, name="net")
    other, _ = run(seed=1)
    assert restored(root, net=other) == 7
    assert bits(other.state_dict()) == bits(model.state_dict())


def test_folders_that_are_not_whole(tmp_path, root):
    model, _ = trained()
    hf_folder(tmp_path / "hf", model)
    (tmp_path / "hf/model-00002-of-00002.safetensors").rename(tmp_path / "aside.safetensors")
    with pytest.raises(InputMissingError, match=r"00002\.safetensors is listed in the index"):
        import_checkpoint(tmp_path / "hf", root)
    (tmp_path / "hf/model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "../aside.safetensors"}}'
    )
    with pytest.raises(DataError, match="outside its folder"):
        import_checkpoint(tmp_path / "hf", root)
    data = (tmp_path / "aside.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"cut.safetensors.*not a safetensors file"):
        import_checkpoint(tmp_path / "cut.safetensors", root)
    (tmp_path / "short.safetensors").write_bytes(b"\xff" * 9)
    with pytest.raises(DataError, match="not a safetensors file"):
        import_checkpoint(tmp_path / "short.safetensors", root)
    assert not root.exists()


@pytest.mark.parametrize("source", ["none", "none.safetensors", "empty", "other"])
def test_what_is_no_checkpoint(tmp_path, root, source):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/readme.txt").write_text("hello")
    with pytest.raises((InputMissingError, DataError), match=r"not there|empty|no checkpoint"):
        import_checkpoint(tmp_path / source, root)
    assert not root.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_of_torch_save(tmp_path, root, legacy):
    model, optimizer = trained()
    state = {
        "net": torch.nn.parallel.DataParallel(model).state_dict(),  # module.…
        "optimizer": optimizer.state_dict(),
        "scheduler": {"last_epoch": 4, "lrs": [0.1, (1, 2)]},
        "epoch": 4,
        "history": [1.0, 2.0],
    }
    path = tmp_path / "checkpoint-5.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    import_checkpoint(path, root)
    other, _ = run(seed=1)
    scheduler, imported = {}, {}
    step = restored(root, net=other, scheduler=scheduler, imported=imported)
    assert step == 5
    assert bits(other.state_dict()) == bits(model.state_dict())
    assert scheduler == state["scheduler"]
    assert imported == {"epoch": 4, "history": [1.0, 2.0]}
    again, its_optimizer = run(seed=2)
    again.load_state_dict(other.state_dict())
    restored(root, optimizer=its_optimizer)  # by torch's numbers, so without its module
    assert train(again, its_optimizer, 5) == train(model, optimizer, 5)


def test_a_bare_state_dict_of_torch_save(tmp_path, root):
    model, _ = trained()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    import_checkpoint(tmp_path / "model.pt", root)
    other, _ = run(seed=1)
    assert restored(root, model=other) == 0
    assert bits(other.state_dict()) == bits(model.state_dict())


def test_a_hostile_file_of_torch_save_runs_no_code(tmp_path, root):
    mark = tmp_path / "mark"
    torch.save({"model": {"w": torch.ones(2)}, "bad": Hostile(mark)}, tmp_path / "bad.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Hostile(mark)))
    (tmp_path / "torn.pt").write_bytes((tmp_path / "bad.pt").read_bytes()[:300])
    for name in ("bad.pt", "raw.pt", "torn.pt"):
        with pytest.raises(DataError, match="was not read"):
            import_checkpoint(tmp_path / name, root)
    assert not mark.exists()
    assert not root.exists()


def test_a_folder_of_dcp_goes_on_as_if_unbroken(tmp_path, root):
    model, optimizer = trained()
    of_model, of_optimizer = get_state_dict(model, optimizer)
    state = {"model": of_model, "optimizer": of_optimizer, "table": {"step": 3, "t": (1, 2)}}
    dcp.save(state, checkpoint_id=tmp_path / "step-3")
    import_checkpoint(tmp_path / "step-3", root)
    other, its_optimizer = run(seed=1)
    table = {}
    assert restored(root, model=other, optimizer=its_optimizer, table=table) == 3
    assert table == {"step": 3, "t": (1, 2)}
    assert train(other, its_optimizer, 5) == train(model, optimizer, 5)


def test_a_hostile_metadata_runs_no_code(tmp_path, root):
    mark = tmp_path / "mark"
    source = tmp_path / "source"
    dcp.save({"w": torch.ones(2)}, checkpoint_id=source)
    found = pickle.loads((source / ".metadata").read_bytes())
    found.planner_data = Hostile(mark)
    for content in (
        pickle.dumps(found),
        pickle.dumps(Hostile(mark)),
        pickle.dumps({"a": 1}),
        b"ctorch\nload\n.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x05torch\x8c\x0bhub.os.mkdir\x93.",
        b"",
    ):
        (source / ".metadata").write_bytes(content)
        with pytest.raises(DataError, match="was not read"):
            import_checkpoint(source, root)
    assert not mark.exists()
    assert not root.exists()


def test_metadata_that_points_outside_its_folder(tmp_path, root):
    source = tmp_path / "source"
    dcp.save({"w": torch.ones(2)}, checkpoint_id=source)
    found = pickle.loads((source / ".metadata").read_bytes())
    for info in found.storage_data.values():
        object.__setattr__(info, "relative_path", "../secret")
    (source / ".metadata").write_bytes(pickle.dumps(found))
    with pytest.raises(DataError, match=r"it names the file '\.\./secret'"):
        import_checkpoint(source, root)


def test_a_hostile_value_of_dcp_runs_no_code(tmp_path, root):
    mark = tmp_path / "mark"
    dcp.save({"w": torch.ones(2), "bad": Hostile(mark)}, checkpoint_id=tmp_path / "source")
    with pytest.raises(DataError, match="bad is an object that only unpickling could make"):
        import_checkpoint(tmp_path / "source", root)
    assert not mark.exists()


def test_a_damaged_folder_of_dcp(tmp_path, root):
    dcp.save({"w": torch.ones(2)}, checkpoint_id=tmp_path / "source")
    (tmp_path / "source/__0_0.distcp").write_bytes(b"short")
    with pytest.raises(DataError, match="w cannot be read"):
        import_checkpoint(tmp_path / "source", root)
    assert list(root.glob("step-*")) == []


@pytest.mark.parametrize("kind", ["manager", "writer"])
def test_exports_are_what_was_saved(tmp_path, root, kind):
    model, optimizer = trained()
    of_model, of_optimizer = get_state_dict(model, optimizer)
    table = {"step": 3, "t": (1, 2), "deep": [{"x": torch.arange(3)}]}
    if kind == "manager":
        state = {"model": model, "optimizer": optimizer, "table": table}
        CheckpointManager(root, state, options=HERE).save(3)
    else:
        state = {"model": of_model, "optimizer": of_optimizer, "table": table}
        dcp.save(state, storage_writer=TrainkitWriter(root, step=3))

    export_dcp(root, 3, tmp_path / "dcp")
    other, its_optimizer = run(seed=1)
    target = dict(zip(("model", "optimizer"), get_state_dict(other, its_optimizer), strict=True))
    target["table"] = {"step": 0, "t": None, "deep": [{"x": torch.zeros(3, dtype=int)}]}
    dcp.load(target, checkpoint_id=tmp_path / "dcp")
    assert bits(target["model"]) == bits(of_model)
    assert target["table"]["t"] == (1, 2)
    assert target["table"]["deep"][0]["x"].tolist() == [0, 1, 2]
    moment = target["optimizer"]["state"]["0.weight"]["exp_avg"]
    assert torch.equal(moment, of_optimizer["state"]["0.weight"]["exp_avg"])

    export_torch(root, None, tmp_path / "all.pt")
    found = torch.load(tmp_path / "all.pt", weights_only=True)
    assert bits(found["model"]) == bits(of_model)
    assert found["table"]["t"] == (1, 2)
    again, its_optimizer = run(seed=2)
    again.load_state_dict(found["model"])
    its_optimizer.load_state_dict(found["optimizer"])
    assert train(again, its_optimizer, 5) == train(model, optimizer, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.pt", "dcp", "root"]


def test_dcp_to_trainkit_and_back_is_the_same(tmp_path, root):
    state = {"model": {"w": torch.randn(4, 3), "b": torch.randn(0, 3)}, "n": 1}
    dcp.save(state, checkpoint_id=tmp_path / "step-1")
    import_checkpoint(tmp_path / "step-1", root)
    export_dcp(root, None, tmp_path / "back")
    target = {"model": {"w": torch.zeros(4, 3), "b": torch.zeros(0, 3)}, "imported": {"n": 0}}
    dcp.load(target, checkpoint_id=tmp_path / "back")
    assert bits(target["model"]) == bits(state["model"])
    assert target["imported"] == {"n": 1}


def test_exports_refuse_what_is_damaged_and_leave_nothing(tmp_path, root):
    state = {"weights": np.arange(9.0), "t": {"w": torch.ones(100)}}
    CheckpointManager(root, state, options=HERE).save(1)
    (file,) = root.glob("step-*/state/t.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointDamagedError, match=r"t.safetensors: bytes .* do not match"):
        export_dcp(root, 1, tmp_path / "out")
    with pytest.raises(CheckpointDamagedError, match="do not match"):
        export_torch(root, 1, tmp_path / "out.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_exports_write_over_nothing(tmp_path, root):
    CheckpointManager(root, {"t": {"w": torch.ones(3)}}, options=HERE).save(1)
    (tmp_path / "there").mkdir()
    for export in (export_dcp, export_torch):
        with pytest.raises(UsageError, match="there exists"):
            export(root, 1, tmp_path / "there")
    with pytest.raises(InputMissingError, match="no committed checkpoint of step 2"):
        export_dcp(root, 2, tmp_path / "out")


def test_pickles_are_not_exported(tmp_path, root):
    writer = TrainkitWriter(root, step=1, allow_pickle=True)
    dcp.save({"bad": Hostile(tmp_path / "mark")}, storage_writer=writer)
    with pytest.raises(UsageError, match="bad is a pickle"):
        export_dcp(root, None, tmp_path / "out")
    assert not (tmp_path / "mark").exists()


def test_an_import_is_no_checkpoint_of_dcp_and_none_of_another_state(tmp_path, root):
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    import_checkpoint(tmp_path / "a.safetensors", root, step=5)
    with pytest.raises(EnvironmentFaultError, match="the run expects a value"):
        restored(root, model={"w": torch.zeros(2)})
    with pytest.raises(dcp.CheckpointException, match="was not saved by a TrainkitWriter"):
        dcp.load({"w": torch.zeros(2)}, storage_reader=TrainkitReader(root))


HOLDER = """
import sys
from trainkit.checkpoint import CheckpointManager, CheckpointOptions

options = CheckpointOptions(background=False, lease=600.0, renewal=0.2)
manager = CheckpointManager(sys.argv[1], {"table": {}}, options=options)
print("open", flush=True)
sys.stdin.read()
manager.save(1)
manager.close()
"""


def test_a_run_that_is_alive_is_left_alone(tmp_path, root):
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    impatient = CheckpointOptions(patience=0.2, background=False)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(EnvironmentFaultError, match=str(holder.pid)):
            import_checkpoint(tmp_path / "a.safetensors", root, step=5, options=impatient)
        writer = TrainkitWriter(root, step=6, options=impatient)
        with pytest.raises(dcp.CheckpointException, match=str(holder.pid)):
            dcp.save({"w": torch.ones(2)}, storage_writer=writer)
        holder.stdin.close()
        assert holder.wait(60) == 0  # its save went well
    import_checkpoint(tmp_path / "a.safetensors", root, step=7, options=impatient)
    model = {"table": {}}
    assert CheckpointManager(root, model, options=HERE).all_steps() == [1, 7]


def test_one_tensor_at_a_time_is_in_memory(tmp_path, root):
    save_file({f"w{i}": torch.zeros(1 << 20) for i in range(32)}, tmp_path / "a.safetensors")
    tracemalloc.start()
    import_checkpoint(tmp_path / "a.safetensors", root)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 << 20  # of 128 MiB
