"""Values are JSON; a pickle is written and run only where both sides have asked for it."""

import io
import json
import os

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.checksums import ChunkHasher
from trainkit.checkpoint.format.layout import MANIFEST
from trainkit.checkpoint.interop import TrainkitReader, TrainkitWriter
from trainkit.checkpoint.interop.dcp.metadata import decode_metadata
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError, UsageError
from trainkit.storage import LocalStorage


class Foo:
    """A value that JSON does not have."""

    def __init__(self, x):
        self.x = x


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def reason(caught):
    ((error, _),) = caught.value.failures.values()
    return error


def save(root, state, **options):
    dcp.save(state, storage_writer=TrainkitWriter(root, step=1, **options))


def load(root, state, **options):
    dcp.load(state, storage_reader=TrainkitReader(root, **options))
    return state


def test_what_json_lacks_is_an_error_that_names_it_and_the_way_out(tmp_path):
    with pytest.raises(dcp.CheckpointException) as caught:
        save(tmp_path, {"a": {"foo": Foo(1)}})
    assert isinstance(reason(caught), UsageError)
    assert "a.foo is a" in str(reason(caught))
    assert "allow_pickle=True" in str(reason(caught))
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_objects_come_back_where_both_sides_allow_it(tmp_path):
    save(tmp_path, {"foo": Foo(3), "n": 1, "set": {1, 2}}, allow_pickle=True)
    back = load(tmp_path, {"foo": None, "n": 0, "set": None}, allow_pickle=True)
    assert (back["foo"].x, back["n"], back["set"]) == (3, 1, {1, 2})


def test_pickles_are_refused_before_anything_is_changed(tmp_path):
    save(tmp_path, {"w": torch.ones(2), "foo": Foo(3), "n": 1}, allow_pickle=True)
    state = {"w": torch.zeros(2), "foo": None, "n": 0}
    with pytest.raises(dcp.CheckpointException) as caught:
        load(tmp_path, state)
    assert isinstance(reason(caught), EnvironmentFaultError)
    assert "holds pickles, which may run any code when they are loaded: foo" in str(reason(caught))
    assert state["w"].tolist() == [0, 0]
    back = load(tmp_path, {"w": torch.zeros(2), "n": 0})  # whoever does not ask for it
    assert back["n"] == 1


def test_a_hostile_pickle_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    save(tmp_path / "root", {"bad": Hostile(str(mark)), "n": 1}, allow_pickle=True)
    with pytest.raises(dcp.CheckpointException, match="holds pickles"):
        load(tmp_path / "root", {"bad": None, "n": 0})
    assert not mark.exists()
    load(tmp_path / "root", {"bad": None, "n": 0}, allow_pickle=True)
    assert mark.exists()  # the pickle was one


def rewrite(root, path, change):
    """Change a file as somebody would who computes all checksums anew."""
    storage = LocalStorage(root)
    (folder,) = catalog.committed(storage)
    manifest = catalog.read_manifest(storage, folder)
    file = root / folder.name / path
    data = change(file.read_bytes())
    file.write_bytes(data)
    hasher = ChunkHasher()
    hasher.update(data)
    manifest.files[path] = hasher.record
    (root / folder.name / MANIFEST).write_bytes(manifest.to_bytes())


def test_a_pickle_that_is_called_a_value_is_not_run(tmp_path):
    """Whoever can write to the folder can at most make the load fail."""
    mark = tmp_path / "mark"
    root = tmp_path / "root"
    save(root, {"bad": Hostile(str(mark))}, allow_pickle=True)
    rewrite(root, "dcp/metadata.json", lambda data: data.replace(b'"pickle"', b'"value"'))
    with pytest.raises(dcp.CheckpointException, match="lacks the value bad"):
        load(root, {"bad": None})

    def as_value(data):
        document = json.loads(data)
        document["values"], document["pickles"] = document["pickles"], {}
        return json.dumps(document).encode()

    rewrite(root, "dcp/rank00000-values.json", as_value)
    back = load(root, {"bad": None})
    assert isinstance(back["bad"], torch.Tensor)  # its bytes, as a tensor
    assert not mark.exists()


def test_planners_that_make_bytes_themselves(tmp_path):
    class Own(DefaultSavePlanner):
        def transform_object(self, write_item, object):
            if write_item.tensor_data is None:
                return io.BytesIO(b"my own format")
            return object

    state = {"n": 1, "w": torch.ones(2)}
    writer = TrainkitWriter(tmp_path, step=1)
    with pytest.raises(dcp.CheckpointException, match="n was turned into bytes by Own itself"):
        dcp.save(state, storage_writer=writer, planner=Own())
    writer = TrainkitWriter(tmp_path, step=1, allow_pickle=True)
    dcp.save(state, storage_writer=writer, planner=Own())

    class OwnReading(dcp.DefaultLoadPlanner):
        def load_bytes(self, read_item, value):
            self.original_state_dict[read_item.dest_index.fqn] = value.getvalue()

    back = {"n": None}
    reader = TrainkitReader(tmp_path, allow_pickle=True)
    dcp.load(back, storage_reader=reader, planner=OwnReading())
    assert back["n"] == b"my own format"


def test_planners_that_serialize_like_dcp_need_no_pickle(tmp_path):
    class Wrapping(DefaultSavePlanner):
        def resolve_data(self, write_item):
            return super().resolve_data(write_item)

    writer = TrainkitWriter(tmp_path, step=1)
    dcp.save({"n": (1, "a")}, storage_writer=writer, planner=Wrapping())
    assert load(tmp_path, {"n": None})["n"] == (1, "a")


GOOD = {
    "torch": "2",
    "version": None,
    "planner_data": None,
    "items": {
        "w": {
            "kind": "tensor", "dtype": "float32", "layout": "strided",
            "memory_format": "contiguous_format", "requires_grad": False, "pin_memory": False,
            "size": [2],
            "chunks": [{"offsets": [0], "sizes": [2], "file": "dcp/a.safetensors", "key": "w",
                        "begin": 8, "end": 16}],
        },
        "n": {"kind": "value", "file": "dcp/v"},
    },
}  # fmt: skip


def changed(*path_and_value):
    *path, last, value = path_and_value
    document = json.loads(json.dumps(GOOD))
    inner = document
    for name in path:
        inner = inner[name]
    inner[last] = value
    return json.dumps(document).encode()


def test_metadata_that_is_right():
    assert set(decode_metadata(json.dumps(GOOD).encode()).state_dict_metadata) == {"w", "n"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\x80\x04.",
        changed("items", []),
        changed("items", "n", "file", "../../etc/passwd"),
        changed("items", "n", "kind", "module"),
        changed("items", "w", "dtype", "load"),
        changed("items", "w", "dtype", "hub"),
        changed("items", "w", "layout", "float32"),
        changed("items", "w", "size", [-2]),
        changed("items", "w", "size", [2, 2]),
        changed("items", "w", "chunks", 0, "file", "/etc/passwd"),
        changed("items", "w", "chunks", 0, "begin", 0),
        changed("items", "w", "chunks", 0, "begin", "8"),
        changed("items", "w", "chunks", 0, "sizes", [10**30]),
        changed("planner_data", {"$kind": "tensor", "key": "x"}),
    ],
    ids=range(16),
)
def test_metadata_that_nobody_wrote(data):
    with pytest.raises(CheckpointDamagedError):
        decode_metadata(data)
