"""Data for torch: the sharded loader, and the datasets of the recipes."""

from trainkit.data.torch.images import ImageDataset, SyntheticImages
from trainkit.data.torch.loader import ShardedDataLoader
from trainkit.data.torch.mnist import MnistDataset

__all__ = ["ImageDataset", "MnistDataset", "ShardedDataLoader", "SyntheticImages"]
