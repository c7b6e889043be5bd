"""Files of ``torch.save``, read without running what is pickled in them."""

import os
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from trainkit.checkpoint.adapters.torch.tensors import is_tensor, source
from trainkit.errors import DataError, InputMissingError

__all__ = ["read_tree"]


def read_tree(path: str) -> Any:
    """What is in the file; tensors stay there until their turn comes.

    Raises:
        InputMissingError: there is no such file.
        DataError: it is damaged, or holds objects that only unpickling could make.
    """
    if not os.path.isfile(path):
        raise InputMissingError(f"{path} is no file")
    try:
        # Files of before torch 1.6 are no zip archives, and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as reason:
        raise DataError(
            f"{path} is no file of torch.save, or holds objects that only unpickling could make, "
            f"which may run any code; it was not read: {str(reason).strip().splitlines()[0]}"
        ) from None
    return _sources(value, os.path.basename(path))


def _sources(value: Any, where: str) -> Any:
    if is_tensor(value):
        return source(value, where)
    if isinstance(value, Mapping):
        return {key: _sources(item, f"{where}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_sources(item, f"{where}[{i}]") for i, item in enumerate(value))
    return value
