"""What the commands make of a checkpoint of which each rank saved a part."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.checkpoint.adapters.torch.fsdp import (
    HERE,
    PRELOAD,
    flip,
    net,
    optimizer_of,
    saving_ranks,
    two_steps,
)
from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.checkpoint.admin import exporting
from trainkit.checkpoint.admin.comparison import Side, compare
from trainkit.checkpoint.admin.exporting import export
from trainkit.checkpoint.admin.inspection import inspect
from trainkit.checkpoint.admin.locating import find_step, open_root
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.errors import CheckpointDamagedError
from trainkit.testing import run_ranks

torch = pytest.importorskip("torch")


def newest_of(folder):
    storage, named = open_root(str(folder))
    return storage, find_step(storage, None, named)


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same state as three ranks saved it, in parts, and as a bare run did."""
    folder = tmp_path_factory.mktemp("pair")
    run_ranks(saving_ranks, 3, str(folder / "sharded"), 1, preload=PRELOAD)
    model = net(2)
    state = {"model": model, "optimizer": optimizer_of(model)}
    reading = CheckpointOptions(read_only=True)
    assert CheckpointManager(str(folder / "sharded"), state, options=reading).restore_latest() == 3
    CheckpointManager(str(folder / "bare"), state, options=HERE).save(3, blocking=True)
    return folder


@pytest.mark.parametrize("entry", ["model", "optimizer"])
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_an_export_is_that_of_a_run_without_shards(pair, tmp_path, entry, form):
    for name in ("sharded", "bare"):
        export(*newest_of(pair / name), tmp_path / name, entry=entry, format=form)
    found, expected = files_in(tmp_path / "sharded"), files_in(tmp_path / "bare")
    assert found.keys() == expected.keys()
    if form == "safetensors":
        assert found == expected
        return
    (file,) = found
    found, expected = (
        torch.load(tmp_path / n / file, weights_only=True) for n in ("sharded", "bare")
    )
    flat, expected_flat = flattened(found), flattened(expected)
    assert flat == expected_flat


def flattened(value, place=""):
    if isinstance(value, dict):
        return [leaf for k, v in sorted(value.items()) for leaf in flattened(v, f"{place}.{k}")]
    if isinstance(value, (list, tuple)):
        return [leaf for i, v in enumerate(value) for leaf in flattened(v, f"{place}.{i}")]
    if isinstance(value, torch.Tensor):
        return [(place, value.dtype, tuple(value.shape), value.numpy().tobytes())]
    return [(place, value)]


def test_an_export_in_several_files(pair, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    monkeypatch.setattr(exporting, "FILE_BYTES", 150)
    names = export(*newest_of(pair / "sharded"), tmp_path / "split")
    monkeypatch.undo()
    index = json.loads((tmp_path / "split" / "model.safetensors.index.json").read_text())
    assert sorted({*index["weight_map"].values(), "model.safetensors.index.json"}) == names
    assert len(names) == 4
    export(*newest_of(pair / "bare"), tmp_path / "whole")
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    found = {
        key: load_file(tmp_path / "split" / file)[key] for key, file in index["weight_map"].items()
    }
    assert flattened(found) == flattened(expected)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())


def test_other_tools_get_the_whole(pair, tmp_path):
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    from trainkit.checkpoint.interop import export_dcp, export_torch

    for name in ("sharded", "bare"):
        export_torch(pair / name, 3, tmp_path / f"{name}.pt")
        export_dcp(pair / name, 3, tmp_path / name)
        dcp_to_torch_save(tmp_path / name, tmp_path / f"{name}-dcp.pt")
    for form in (".pt", "-dcp.pt"):
        sharded, bare = (
            torch.load(tmp_path / f"{name}{form}", weights_only=True)
            for name in ("sharded", "bare")
        )
        assert flattened(sharded) == flattened(bare)


def test_an_export_needs_no_torch(pair, tmp_path):
    for entry in ("model", "optimizer"):
        program = (
            "import sys; from trainkit.cli import main; code = main(sys.argv[1:]); "
            "sys.exit(code or 'torch' in sys.modules)"
        )
        arguments = ("checkpoint", "export", pair / "sharded", tmp_path / entry, "--entry", entry)
        subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=120)


def test_inspect_shows_the_whole(pair):
    found = inspect(*newest_of(pair / "sharded"))
    shown = {}
    for entry in found.entries:
        for document in entry.documents:
            for name, tensor in document.tensors.items():
                shown[entry.name, name] = (tensor.dtype, tensor.shape, tensor.num_bytes)
    assert shown["model", "0.weight"] == ("F32", (7, 5), 140)
    assert shown["optimizer", '["model.2.weight", "exp_avg"]'] == ("F32", (3, 7), 84)
    assert not found.problems


def test_the_same_state_in_parts_and_whole_does_not_differ(pair, tmp_path):
    sharded, bare = (Side.open(*newest_of(pair / name)) for name in ("sharded", "bare"))
    assert [*compare(sharded, bare, ("model", "optimizer"))] == []
    assert [*compare(sharded, sharded)] == []
    run_ranks(two_steps, 2, str(tmp_path), preload=PRELOAD)
    steps = [Side.open(sharded.storage.__class__(tmp_path), folder) for folder in folders(tmp_path)]
    changes = [*compare(*steps)]
    parameters = {change.name for change in changes if change.entry == "model"}
    assert parameters == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert {(c.what, c.how) for c in changes} == {("tensor", "values")}
    assert len([c for c in changes if c.entry == "optimizer"]) == 12  # step and moments of four
    assert not [c for c in changes if c.name.startswith("parts")]


def folders(root):
    return [StepFolder.parse(path.name) for path in sorted(root.glob("step-*"))]


def test_an_export_of_damage_leaves_nothing(pair, tmp_path):
    shutil.copytree(pair / "sharded", tmp_path / "sharded")
    name = flip(*(tmp_path / "sharded").glob("step-*"), 1)
    with pytest.raises(CheckpointDamagedError, match=name):
        export(*newest_of(tmp_path / "sharded"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
