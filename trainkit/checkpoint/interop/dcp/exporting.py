"""Checkpoints given to other tools: a folder of DCP, or a file of ``torch.save``."""

import os
import shutil
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import WriteItem

from trainkit.checkpoint.adapters.torch.tensors import BY_NAME, restored
from trainkit.checkpoint.format.tensors import StoredTensor, TensorSource
from trainkit.checkpoint.interop.dcp.stored import read_state
from trainkit.errors import UsageError
from trainkit.storage import refuse_credentials

__all__ = ["export_dcp", "export_torch"]


def export_dcp(
    url: str | os.PathLike[str], step: int | None, target: str | os.PathLike[str]
) -> None:
    """Write a checkpoint as torch.distributed.checkpoint does; one tensor at a time is in memory.

    Random generators and what each rank has of its own are left out.

    Args:
        url: root of checkpoints, or the folder of one step.
        step: to export; None for the newest.
        target: a local folder that does not exist yet; it appears whole or not at all.

    Raises:
        UsageError: the target exists, or something cannot be exported.
        InputMissingError: there is no such checkpoint.
        CheckpointDamagedError: it is damaged.
    """
    final = _free(target)
    with read_state(url, step) as state:
        planner = _LazyPlanner()
        temporary = _temporary(final)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that no process group is there
                dcp.save(
                    planner.placeholders(state),
                    storage_writer=dcp.FileSystemWriter(temporary),
                    planner=planner,
                    no_dist=True,
                )
            os.rename(temporary, final)
        except dcp.CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def export_torch(
    url: str | os.PathLike[str], step: int | None, target: str | os.PathLike[str]
) -> None:
    """Write a checkpoint with ``torch.save``: all of it is in memory for that.

    ``torch.load(target, weights_only=True)`` reads it, if it holds no numpy arrays. Arguments
    and errors are those of ``export_dcp``, but ``target`` is a file.
    """
    final = _free(target)
    temporary = _temporary(final)
    with read_state(url, step) as state:
        try:
            with temporary.open("xb") as file:
                torch.save(_loaded(state), file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)


class _LazyPlanner(DefaultSavePlanner):
    """Plans with tensors that have no bytes, and reads each when its turn comes."""

    def __init__(self) -> None:
        super().__init__()
        self._sources: dict[int, TensorSource] = {}
        self._kept: list[torch.Tensor] = []

    def placeholders(self, value: Any) -> Any:
        """The state with a placeholder for each tensor that DCP plans for by itself."""
        if isinstance(value, TensorSource):
            placeholder = torch.empty(value.shape, dtype=BY_NAME[value.dtype], device="meta")
            self._sources[id(placeholder)] = value
            self._kept.append(placeholder)
            return placeholder
        if type(value) is dict:
            return {key: self.placeholders(item) for key, item in value.items()}
        if type(value) is list:
            return [self.placeholders(item) for item in value]
        return _loaded(value)

    def resolve_data(self, write_item: WriteItem) -> Any:
        """See ``SavePlanner``."""
        if write_item.tensor_data is None:
            return super().resolve_data(write_item)
        return _tensor(self._sources[id(self.lookup_object(write_item.index))])


def _loaded(value: Any) -> Any:
    """The same with its tensors in memory."""
    if isinstance(value, TensorSource):
        return _tensor(value)
    if isinstance(value, Mapping):
        return type(value)({key: _loaded(item) for key, item in value.items()})  # type: ignore[call-arg]
    if type(value) in (list, tuple):
        return type(value)(_loaded(item) for item in value)
    return value


def _tensor(source: TensorSource) -> torch.Tensor:
    return restored(StoredTensor(source.dtype, source.shape, memoryview(source.load())))


def _free(target: str | os.PathLike[str]) -> Path:
    refuse_credentials(target)
    if "://" in os.fspath(target):
        raise UsageError(f"{os.fspath(target)!r}: expected a local path to export to")
    final = Path(os.path.abspath(target))
    if final.exists():
        raise UsageError(f"{final} exists; expected a path where nothing is yet")
    final.parent.mkdir(parents=True, exist_ok=True)
    return final


def _temporary(final: Path) -> Path:
    return final.with_name(f".{final.name}.{uuid.uuid4().hex}.partial")
