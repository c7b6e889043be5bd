"""safetensors files, alone or as a Hugging Face folder with an index; loads no framework."""

import functools
import json
import os

from trainkit.checkpoint.format.tensors import TensorSource, header_length, places
from trainkit.errors import DataError, InputMissingError, TrainkitError
from trainkit.storage import Bytes, Storage, open_storage

__all__ = ["INDEX", "is_folder_of_tensors", "read_tree"]

INDEX = ".safetensors.index.json"
_SUFFIX = ".safetensors"


def is_folder_of_tensors(names: list[str]) -> bool:
    """Whether a folder with these names holds safetensors files."""
    return any(name.endswith((INDEX, _SUFFIX)) for name in names)


def read_tree(url: str) -> dict[str, TensorSource]:
    """All tensors of a file, or of a folder with one file or an index, read when needed.

    Raises:
        InputMissingError: a file is not there.
        DataError: a file is damaged, or it cannot be told which files are meant.
    """
    if url.endswith(_SUFFIX):
        head, _, tail = url.rpartition("/")
        storage, files = open_storage(head or "."), [tail]
    else:
        storage = open_storage(url)
        files = _files(storage)
    tensors: dict[str, TensorSource] = {}
    for file in files:
        tensors.update(_tensors(storage, file))
    return tensors


def _files(storage: Storage) -> list[str]:
    names = storage.names()
    indexes = [name for name in names if name.endswith(INDEX)]
    files = [name for name in names if name.endswith(_SUFFIX)]
    if not indexes and len(files) == 1:
        return files
    if len(indexes) != 1:
        raise DataError(
            f"{storage.url} holds {len(files)} safetensors files and {len(indexes)} indexes; "
            f"expected one file, or one *{INDEX} that says what belongs together"
        )
    try:
        listed = set(json.loads(storage.read(indexes[0]))["weight_map"].values())
        if any(os.path.basename(file) != file for file in listed):
            raise ValueError("it names files outside its folder")
    except (ValueError, KeyError, TypeError, AttributeError) as reason:
        raise DataError(f"{storage.url}/{indexes[0]} is no index: {reason}") from None
    missing = sorted(listed - set(names))
    if missing:
        raise InputMissingError(f"{storage.url}/{missing[0]} is listed in the index and not there")
    return sorted(listed)


def _tensors(storage: Storage, file: str) -> dict[str, TensorSource]:
    where = f"{storage.url}/{file}"
    size = storage.size(file)
    if size is None:
        raise InputMissingError(f"{where} is not there")
    try:
        start = 8 + header_length(_read(storage, file, 0, min(8, size)), size)
        found = places(_read(storage, file, 8, start), size - start)
    except TrainkitError as reason:
        raise DataError(f"{where}: {reason}") from None
    sources = {}
    for name, place in found.items():
        load = functools.partial(_read, storage, file, start + place.begin, start + place.end)
        sources[name] = TensorSource(place.dtype, place.shape, load)
    return sources


def _read(storage: Storage, file: str, begin: int, end: int) -> Bytes:
    data = bytearray(end - begin)
    count = storage.read_into(file, memoryview(data), begin) if data else 0
    if count != len(data):
        raise DataError(f"{storage.url}/{file} ends at byte {begin + count}, before {end}")
    return data
