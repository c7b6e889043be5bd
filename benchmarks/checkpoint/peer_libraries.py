"""The libraries that ``peer_faults`` tries, each used as its documentation says.

What is imported here is imported before the first fork; nothing is set up before it.
"""

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.checkpoint.format.checksums import FileRecord, digest
from trainkit.checkpoint.format.layout import MANIFEST
from trainkit.checkpoint.format.manifest import Manifest

__all__ = ["LIBRARIES", "Library"]


@dataclass(frozen=True, slots=True)
class Library:
    """How one library saves a module and loads it again."""

    name: str
    distribution: str
    save: Callable[[Path, torch.nn.Module, int], None]
    """Into a folder, the module, at a step; committed on return."""
    load: Callable[[Path, torch.nn.Module], None]
    """From the same folder, the newest there."""
    modules: tuple[str, ...] = ()
    keeps_steps: bool = False
    """Whether saves into one folder lie beside each other."""

    @property
    def version(self) -> str | None:
        """Of what is installed; None if it is not."""
        try:
            return importlib.metadata.version(self.distribution).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            return None

    def import_modules(self) -> None:
        """Import what ``save`` and ``load`` will need."""
        for name in self.modules:
            importlib.import_module(name)

    def newest(self, folder: Path) -> Path:
        """The folder of the newest checkpoint that was saved to ``folder``."""
        return max(folder.glob("step-*")) if self.keeps_steps else folder

    def forge(self, file: Path) -> None:
        """Make up for a changed file as somebody would who means harm: checksums fit again."""
        if self.keeps_steps and file.name != MANIFEST:
            folder = next(p for p in file.parents if p.name.startswith("step-"))
            manifest = Manifest.from_bytes((folder / MANIFEST).read_bytes())
            fields = {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}
            data = file.read_bytes()
            record = FileRecord(len(data), (digest(data),))
            files = {**manifest.files, str(file.relative_to(folder)): record}
            (folder / MANIFEST).write_bytes(Manifest(**{**fields, "files": files}).to_bytes())


def _save_trainkit(folder: Path, model: torch.nn.Module, step: int) -> None:
    manager = CheckpointManager(folder, {"model": model})
    manager.save(step, blocking=True)
    manager.close()


def _load_trainkit(folder: Path, model: torch.nn.Module) -> None:
    options = CheckpointOptions(read_only=True)
    if CheckpointManager(folder, {"model": model}, options=options).restore_latest() is None:
        raise FileNotFoundError("no checkpoint was found")


def _save_torch(folder: Path, model: torch.nn.Module, step: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / "model.pt")


def _load_torch(folder: Path, model: torch.nn.Module) -> None:
    model.load_state_dict(torch.load(folder / "model.pt"))


def _save_dcp(threads: int) -> Callable[[Path, torch.nn.Module, int], None]:
    def save(folder: Path, model: torch.nn.Module, step: int) -> None:
        writer = dcp.FileSystemWriter(folder, thread_count=threads)
        state = {"model": model.state_dict(), "step": step}
        dcp.save(state, storage_writer=writer, no_dist=True)

    return save


def _load_dcp(folder: Path, model: torch.nn.Module) -> None:
    state: dict[str, Any] = {"model": model.state_dict(), "step": 0}
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    model.load_state_dict(state["model"])


def _fabric() -> Any:
    return importlib.import_module("lightning_fabric").Fabric(accelerator="cpu", devices=1)


def _save_fabric(folder: Path, model: torch.nn.Module, step: int) -> None:
    _fabric().save(folder / "model.ckpt", {"model": model, "step": step})


def _load_fabric(folder: Path, model: torch.nn.Module) -> None:
    _fabric().load(folder / "model.ckpt", {"model": model, "step": 0})


def _accelerator(model: torch.nn.Module) -> Any:
    accelerator = importlib.import_module("accelerate").Accelerator(cpu=True)
    accelerator.prepare(model)
    return accelerator


def _save_accelerate(folder: Path, model: torch.nn.Module, step: int) -> None:
    _accelerator(model).save_state(str(folder))


def _load_accelerate(folder: Path, model: torch.nn.Module) -> None:
    _accelerator(model).load_state(str(folder))


def _torch_checkpointing() -> Any:
    # Its default, direct I/O, fails with EINVAL on ext4 and others; and asynchronous saves need
    # CUDA by default.
    module = importlib.import_module("torch_checkpointing.checkpoint_manager")
    config = module.CheckpointManager.Config(
        save=module.SyncCheckpointSaverConfig(),
        storage_config=module.LocalFileSystemStorageConfig(use_direct_io=False),
    )
    return module.CheckpointManager(config)


def _save_torch_checkpointing(folder: Path, model: torch.nn.Module, step: int) -> None:
    _torch_checkpointing().save(str(folder), {"model": model.state_dict(), "step": step})


def _load_torch_checkpointing(folder: Path, model: torch.nn.Module) -> None:
    state = _torch_checkpointing().load(str(folder), into={"model": model.state_dict(), "step": 0})
    model.load_state_dict(state["model"])


LIBRARIES = (
    Library("trainkit", "trainkit", _save_trainkit, _load_trainkit, keeps_steps=True),
    Library("torch.save", "torch", _save_torch, _load_torch),
    Library("DCP, 1 thread", "torch", _save_dcp(1), _load_dcp),
    Library("DCP, 2 threads", "torch", _save_dcp(2), _load_dcp),
    Library(
        "Lightning Fabric", "lightning-fabric", _save_fabric, _load_fabric, ("lightning_fabric",)
    ),
    Library("Accelerate", "accelerate", _save_accelerate, _load_accelerate, ("accelerate",)),
    Library(
        "torch_checkpointing",
        "torch_checkpointing",
        _save_torch_checkpointing,
        _load_torch_checkpointing,
        ("torch_checkpointing.checkpoint_manager",),
    ),
)
