"""Checkpoints written file by file, so that a test decides what each of them holds."""

import datetime
import json
import struct
from collections import Counter
from pathlib import Path

from trainkit.checkpoint.adapters.values import to_json_bytes
from trainkit.checkpoint.format.catalog import quarantine
from trainkit.checkpoint.format.checksums import ChunkHasher
from trainkit.checkpoint.format.layout import MANIFEST, StepFolder, index_path, piece_path
from trainkit.checkpoint.format.manifest import Entry, Manifest
from trainkit.checkpoint.format.tensors import TensorSource, lay_out
from trainkit.storage import LocalStorage


def f32(*values, shape=None):
    """A tensor of 32-bit floats."""
    data = struct.pack(f"<{len(values)}f", *values)
    return TensorSource("F32", (len(values),) if shape is None else tuple(shape), lambda: data)


def zeros(num_bytes, dtype="U8"):
    """A large tensor."""
    return TensorSource(dtype, (num_bytes,), lambda: bytes(num_bytes))


def file_of(tensors):
    """The bytes of a safetensors file."""
    head, order, _ = lay_out(tensors, framework="pt")
    return head + b"".join(tensors[name].load() for name in order)


class Root:
    """A root of checkpoints; ``save`` adds one."""

    def __init__(self, path_or_storage):
        local = hasattr(path_or_storage, "url")
        self.storage = path_or_storage if local else LocalStorage(path_or_storage)
        self._attempts = Counter()

    def save(
        self,
        step,
        *,
        generation=1,
        model=None,
        values=None,
        metrics=None,
        world_size=1,
        parts=1,
        commit=True,
        age=0.0,
    ):
        """Write a checkpoint with a module ``model``, split into ``parts`` files, and a value
        ``progress``; without ``commit`` it has no manifest. ``age`` is in seconds."""
        folder = StepFolder(step, generation, self._attempts[generation])
        self._attempts[generation] += 1
        model = {"a": f32(1, 2), "b": f32(step)} if model is None else model
        files = self._model_files(model, parts)
        files["state/progress.json"] = to_json_bytes({"step": step} if values is None else values)
        for rank in range(world_size):
            files[f"ranks/rank{rank:05d}.state.json"] = to_json_bytes({"entries": {}, "random": {}})
        records = {}
        for path, data in files.items():
            self._put(f"{folder.name}/{path}", data)
            hasher = ChunkHasher()
            hasher.update(data)
            records[path] = hasher.record
        if commit:
            created = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)
            manifest = Manifest(
                step=step,
                generation=folder.generation,
                attempt=folder.attempt,
                world_size=world_size,
                created=created.isoformat(timespec="seconds"),
                written_by="trainkit of a test",
                files=records,
                entries={
                    "model": Entry("module", ("model/model",)),
                    "progress": Entry("value", ("state/progress",)),
                },
                metrics=metrics or {},
            )
            self._put(f"{folder.name}/{MANIFEST}", manifest.to_bytes())
        return folder

    def _put(self, path, data):
        if isinstance(self.storage, LocalStorage):  # nobody waits for the disk here
            local = Path(self.storage.url) / path
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(data)
        else:
            self.storage.create(path, data)

    @staticmethod
    def _model_files(model, parts):
        if parts == 1:
            return {"model/model.safetensors": file_of(model)}
        names, files, index = sorted(model), {}, {}
        for part in range(parts):
            path = piece_path("model/model", part + 1, parts)
            files[path] = file_of({name: model[name] for name in names[part::parts]})
            index.update(dict.fromkeys(names[part::parts], path.rpartition("/")[2]))
        files[index_path("model/model")] = json.dumps({"weight_map": index}).encode()
        return files


class Counting:
    """A storage that counts its operations, and the bytes that were read of data files."""

    def __init__(self, storage):
        self._storage = storage
        self.calls = Counter()
        self.bytes_read = Counter()
        self.url = storage.url

    def __getattr__(self, name):
        method = getattr(self._storage, name)

        def counted(*args, **kwargs):
            self.calls[name] += 1
            result = method(*args, **kwargs)
            if name == "read_into":
                self.bytes_read[args[0]] += result
            return result

        return counted


def flip(path, position=-1):
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def aside(storage, folder, reason="a bad disk"):
    """Put a checkpoint into quarantine."""
    quarantine(storage, folder, reason)
