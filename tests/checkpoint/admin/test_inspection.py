"""What a checkpoint holds is told from manifests and heads of files; no value is read."""

import pytest

from tests.checkpoint.admin.checkpoints import Counting, aside, f32, flip, zeros
from trainkit.checkpoint import CheckpointManager
from trainkit.checkpoint.admin.inspection import inspect
from trainkit.checkpoint.admin.locating import newest_whole
from trainkit.checkpoint.format import pins
from trainkit.errors import CheckpointDamagedError


def test_entries_documents_and_tensors(root):
    folder = root.save(7, model={"w": f32(1, 2, 3, 4, 5, 6, shape=(2, 3)), "b": f32(1)})
    found = inspect(root.storage, folder)
    model, progress = found.entries
    assert (model.name, model.kind) == ("model", "module")
    (document,) = model.documents
    assert document.path == "model/model"
    assert {name: (t.dtype, t.shape, t.num_bytes) for name, t in document.tensors.items()} == {
        "w": ("F32", (2, 3), 24),
        "b": ("F32", (1,), 4),
    }
    assert list(progress.documents[0].files) == ["state/progress.json"]
    assert [rank.name for rank in found.ranks] == ["rank 0"]
    assert (found.problems, found.pinned, found.quarantine, found.writer) == ((), False, "", {})


def test_tensors_lie_where_it_says(root, disk):
    folder = root.save(1, model={"a": f32(1, 2), "b": f32(3)})
    tensor = inspect(root.storage, folder).entries[0].documents[0].tensors["b"]
    data = (disk / folder.name / tensor.file).read_bytes()
    assert data[tensor.begin : tensor.end] == f32(3).load()


def test_a_document_of_several_files(root):
    folder = root.save(1, model={name: f32(1) for name in "abcde"}, parts=2)
    (document,) = inspect(root.storage, folder).entries[0].documents
    assert len(document.files) == 2
    assert {name: tensor.file[12:17] for name, tensor in document.tensors.items()} == {
        "a": "00001", "c": "00001", "e": "00001", "b": "00002", "d": "00002",
    }  # fmt: skip


def test_no_data_is_read(root):
    folder = root.save(1, model={"w": zeros(50_000_000)})
    storage = Counting(root.storage)
    inspect(storage, folder)
    assert 0 < sum(storage.bytes_read.values()) <= 16 * 1024


def test_a_header_longer_than_the_first_read(root):
    folder = root.save(1, model={f"layer.{n}.weight": f32(n) for n in range(1000)})
    (document,) = inspect(root.storage, folder).entries[0].documents
    assert len(document.tensors) == 1000


def test_damage_is_named_and_the_rest_is_shown(root, disk):
    folder = root.save(1, model={name: f32(1) for name in "abc"}, parts=3)
    lost = "model/model-00002-of-00003.safetensors"
    (disk / folder.name / lost).unlink()
    flip(disk / folder.name / "ranks" / "rank00000.state.json")
    found = inspect(root.storage, folder)
    assert [problem.partition(" ")[0] for problem in found.problems] == [lost]
    assert len(found.entries) == 2


def test_a_header_that_makes_no_sense(root, disk):
    folder = root.save(1)
    flip(disk / folder.name / "model" / "model.safetensors", 8)
    (problem,) = inspect(root.storage, folder).problems
    assert problem.startswith("model/model.safetensors: not a safetensors file")


def test_marks_of_a_checkpoint(root, disk):
    folder = root.save(1)
    aside(root.storage, folder)
    pins.pin(root.storage, folder)
    found = inspect(root.storage, folder)
    assert (found.quarantine, found.pinned) == ("a bad disk", True)
    flip(disk / folder.name / "MANIFEST.json", 5)
    with pytest.raises(CheckpointDamagedError):
        inspect(root.storage, folder)


def test_who_wrote_it(tmp_path, box):
    import os
    import socket

    manager = CheckpointManager(tmp_path, {"box": box(1)})
    manager.save(1)
    manager.close()
    storage = manager._root.storage
    found = inspect(storage, newest_whole(storage))
    assert found.writer == {"host": socket.gethostname(), "pid": os.getpid()}
    assert found.manifest.written_by.startswith("trainkit ")
