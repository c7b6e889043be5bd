"""Data: positions, loaders, MNIST, images, downloads. Names are looked up when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainkit.data.position import EpochPlan as EpochPlan
    from trainkit.data.position import SamplePosition as SamplePosition
    from trainkit.data.position import Shard as Shard
    from trainkit.data.torch.loader import ShardedDataLoader as ShardedDataLoader

_HOMES = {
    "EpochPlan": "trainkit.data.position",
    "SamplePosition": "trainkit.data.position",
    "Shard": "trainkit.data.position",
    "ShardedDataLoader": "trainkit.data.torch.loader",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'trainkit.data' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
