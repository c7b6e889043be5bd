"""Checkpoints of other tools: torch.distributed.checkpoint, ``torch.save``, safetensors.

Loads no framework; the names below are looked up when first used.
"""

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from trainkit.checkpoint.interop.dcp import TrainkitReader as TrainkitReader
    from trainkit.checkpoint.interop.dcp import TrainkitWriter as TrainkitWriter
    from trainkit.checkpoint.interop.dcp.exporting import export_dcp as export_dcp
    from trainkit.checkpoint.interop.dcp.exporting import export_torch as export_torch
    from trainkit.checkpoint.interop.importing import import_checkpoint as import_checkpoint

_HOMES = {
    "TrainkitReader": "trainkit.checkpoint.interop.dcp",
    "TrainkitWriter": "trainkit.checkpoint.interop.dcp",
    "export_dcp": "trainkit.checkpoint.interop.dcp.exporting",
    "export_torch": "trainkit.checkpoint.interop.dcp.exporting",
    "import_checkpoint": "trainkit.checkpoint.interop.importing",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> "Any":
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return list(__all__)
