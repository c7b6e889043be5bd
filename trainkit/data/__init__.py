"""Data: positions, loaders, MNIST, images, downloads. Names are looked up when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainkit.data.images import scan_images as scan_images
    from trainkit.data.mnist import load_mnist as load_mnist
    from trainkit.data.position import EpochPlan as EpochPlan
    from trainkit.data.position import SamplePosition as SamplePosition
    from trainkit.data.position import Shard as Shard
    from trainkit.data.torch.images import ImageDataset as ImageDataset
    from trainkit.data.torch.images import SyntheticImages as SyntheticImages
    from trainkit.data.torch.loader import ShardedDataLoader as ShardedDataLoader
    from trainkit.data.torch.mnist import MnistDataset as MnistDataset

_HOMES = {
    "EpochPlan": "trainkit.data.position",
    "ImageDataset": "trainkit.data.torch.images",
    "MnistDataset": "trainkit.data.torch.mnist",
    "SamplePosition": "trainkit.data.position",
    "Shard": "trainkit.data.position",
    "ShardedDataLoader": "trainkit.data.torch.loader",
    "SyntheticImages": "trainkit.data.torch.images",
    "load_mnist": "trainkit.data.mnist",
    "scan_images": "trainkit.data.images",
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
