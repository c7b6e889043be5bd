"""Data for torch: the sharded loader, and the datasets of the recipes."""

from trainkit.data.torch.loader import ShardedDataLoader

__all__ = ["ShardedDataLoader"]
