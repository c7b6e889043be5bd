"""Checkpoints that DCP itself has written, read without running what is pickled in them."""

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata
from torch.distributed.checkpoint.planner import ReadItem

from trainkit.checkpoint.adapters.torch.tensors import DTYPES
from trainkit.checkpoint.format.layout import is_safe_path
from trainkit.checkpoint.interop.dcp.tensors import as_source
from trainkit.errors import DataError, InputMissingError

__all__ = ["ForeignReader", "insert", "read_tree", "safe_metadata", "with_lists"]

_ALLOWED = {
    metadata.__name__: (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    filesystem.__name__: ("_StorageInfo",),
    "collections": ("OrderedDict",),
    "pathlib": ("Path", "PosixPath", "PurePath", "PurePosixPath"),
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
}
"""All that DCP's metadata is made of, apart from torch's element types."""


class _MetadataUnpickler(pickle.Unpickler):
    """Makes the classes of DCP's metadata, and nothing else."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if global_name in _ALLOWED.get(module_name, ()):
            return super().find_class(module_name, global_name)
        if module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype):
            return getattr(torch, global_name)
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def safe_metadata(data: bytes, where: str) -> Metadata:
    """DCP's metadata from its pickle; no code in it is run.

    Args:
        data: content of a ``.metadata``.
        where: for messages.

    Raises:
        DataError: it is damaged, or holds more than metadata.
    """
    try:
        found = _MetadataUnpickler(io.BytesIO(data)).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError(f"it is a {type(found).__name__}")
        for info in found.storage_data.values():
            if not is_safe_path(str(info.relative_path)):
                raise pickle.UnpicklingError(f"it names the file {info.relative_path!r}")
    except Exception as reason:  # a damaged pickle can raise anything
        raise DataError(
            f"{where} is no metadata of torch.distributed.checkpoint, or not only that, and was "
            f"not read: {reason}"
        ) from None
    return found


class ForeignReader(dcp.FileSystemReader):
    """DCP's own reader, but for its metadata."""

    _found: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """See ``StorageReader``.

        Raises:
            InputMissingError: there is none.
            DataError: it is damaged, or holds more than metadata.
        """
        if self._found is None:
            path = Path(self.path) / ".metadata"
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                raise InputMissingError(
                    f"{path} is not there: no whole checkpoint of DCP"
                ) from None
            self._found = safe_metadata(data, str(path))
        return self._found


class _SafePlanner(DefaultLoadPlanner):
    """Loads values as ``torch.load(weights_only=True)`` does."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        try:
            self.state_dict[name] = torch.load(value, weights_only=True)
        except Exception as reason:
            raise DataError(
                f"{name} is an object that only unpickling could make, which may run any code; it "
                f"was not read: {str(reason).partition(chr(10))[0]}"
            ) from None


def read_tree(folder: str) -> dict[str, Any]:
    """The state that DCP saved to ``folder``; tensors are read when their turn comes.

    Raises:
        InputMissingError: there is no metadata.
        DataError: metadata or values are damaged, or would have to run code to be read.
    """
    reader = ForeignReader(folder)
    found = reader.read_metadata()
    tree: dict[Any, Any] = {}
    paths = found.planner_data if isinstance(found.planner_data, dict) else {}
    for name, item in found.state_dict_metadata.items():
        insert(tree, tuple(paths.get(name, (name,))), _leaf(reader, name, item))
    result: dict[str, Any] = with_lists(tree)
    return result


def _leaf(reader: ForeignReader, name: str, item: Any) -> Any:
    if isinstance(item, BytesStorageMetadata):
        return _load(reader, name, None)
    dtype, size = item.properties.dtype, item.size
    if dtype not in DTYPES:
        raise DataError(f"{name} is a tensor of {dtype}, which safetensors does not have")

    def resolve() -> torch.Tensor:
        tensor: torch.Tensor = _load(reader, name, torch.empty(size, dtype=dtype))
        return tensor

    return as_source(name, dtype, size, resolve)


def _load(reader: ForeignReader, name: str, target: Any) -> Any:
    state = {name: target}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that no process group is there
            dcp.load(state, storage_reader=reader, planner=_SafePlanner(), no_dist=True)
    except dcp.CheckpointException as error:
        for reason, _ in error.failures.values():
            if isinstance(reason, DataError):
                raise reason from None
            raise DataError(f"{reader.path}: {name} cannot be read: {reason}") from None
    return state[name]


def insert(tree: dict[Any, Any], path: tuple[Any, ...], value: Any) -> None:
    """Put a value into nested dictionaries, which ``with_lists`` makes a state of."""
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


def with_lists(value: Any) -> Any:
    """DCP's paths lead into lists by numbers, and into dictionaries by strings."""
    if not isinstance(value, dict):
        return value
    if value and all(type(key) is int for key in value):
        return [with_lists(value[key]) for key in sorted(value)]
    return {key: with_lists(item) for key, item in value.items()}
