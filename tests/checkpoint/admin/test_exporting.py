"""An export is whole or not there, verified, and readable without trainkit."""

import json
import os

import pytest

from tests.checkpoint.admin.checkpoints import Counting, f32, flip
from trainkit.checkpoint.admin.exporting import export
from trainkit.errors import CheckpointDamagedError, InputMissingError, UsageError

safetensors = pytest.importorskip("safetensors")


def tensors(path):
    return {name: bytes(t["data"]) for name, t in safetensors.deserialize(path.read_bytes())}


def test_a_module_of_one_file(root, tmp_path):
    folder = root.save(1, model={"a": f32(1, 2), "b": f32(3)})
    target = tmp_path / "new" / "model"
    assert export(root.storage, folder, target) == ["model.safetensors"]
    assert os.listdir(target) == ["model.safetensors"]
    assert tensors(target / "model.safetensors") == {"a": f32(1, 2).load(), "b": f32(3).load()}
    assert os.listdir(target.parent) == ["model"]


def test_a_module_of_several_files_gets_the_index_that_transformers_reads(root, tmp_path):
    model = {name: f32(ord(name)) for name in "abcde"}
    folder = root.save(1, model=model, parts=2)
    names = export(root.storage, folder, tmp_path / "out")
    assert names == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 20}
    for name, file in index["weight_map"].items():
        assert tensors(tmp_path / "out" / file)[name] == model[name].load()
    assert set(index["weight_map"]) == set(model)


def test_other_entries_are_their_files(root, tmp_path):
    folder = root.save(1, values={"step": 3})
    assert export(root.storage, folder, tmp_path / "out", entry="progress") == ["progress.json"]
    assert json.loads((tmp_path / "out" / "progress.json").read_text()) == {"step": 3}


def test_an_empty_folder_may_be_there_and_nothing_else(root, tmp_path):
    folder = root.save(1)
    (tmp_path / "empty").mkdir()
    export(root.storage, folder, tmp_path / "empty")
    (tmp_path / "file").write_bytes(b"")
    for used in ("empty", "file"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UsageError, match="is there already"):
            export(root.storage, folder, tmp_path / used)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("target", ["s3://bucket/model", "", "memory://x"])
def test_targets_are_local_folders(root, target):
    with pytest.raises(UsageError, match="expected a local folder"):
        export(root.storage, root.save(1), target)


def test_an_entry_that_is_not_there(root, tmp_path):
    with pytest.raises(InputMissingError, match="entries to export are model, progress"):
        export(root.storage, root.save(1), tmp_path / "out", entry="modle")
    assert not (tmp_path / "out").exists()


def test_damage_leaves_nothing(root, disk, tmp_path):
    folder = root.save(1, model={name: f32(1) for name in "ab"}, parts=2)
    flip(disk / folder.name / "model" / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointDamagedError, match="do not match their checksum"):
        export(root.storage, folder, tmp_path / "out")
    assert os.listdir(tmp_path) == ["root"]


def test_a_folder_that_somebody_fills_meanwhile_is_left_alone(root, tmp_path):
    folder, target = root.save(1), tmp_path / "out"

    class Late(Counting):
        def read_into(self, *args):
            target.mkdir(exist_ok=True)
            (target / "theirs").touch()
            return self._storage.read_into(*args)

    with pytest.raises(UsageError, match="is there already"):
        export(Late(root.storage), folder, target)
    assert os.listdir(target) == ["theirs"]
    assert sorted(os.listdir(tmp_path)) == ["out", "root"]


def test_the_final_name_is_never_seen_incomplete(root, tmp_path):
    folder = root.save(1, model={name: f32(1) for name in "abc"}, parts=3)
    target, seen = tmp_path / "out", []

    class Looking(Counting):
        def read_into(self, *args):
            seen.append(target.exists())
            return self._storage.read_into(*args)

    export(Looking(root.storage), folder, target)
    assert len(seen) >= 3
    assert not any(seen)
