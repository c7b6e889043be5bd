"""As ``strategies.link``, over torch's own store, which its process groups need."""

import torch.distributed as dist

from trainkit.coordination import torch as of_torch
from trainkit.coordination.torch import TorchStore
from trainkit.strategies.link import RankLink, Stores
from trainkit.topology import Topology

__all__ = ["TorchLink"]


class TorchLink(RankLink):
    """A link whose store torch knows as well."""

    @property
    def tcp(self) -> dist.Store:
        """The store, as torch's."""
        if not isinstance(self.store, TorchStore):
            raise AssertionError(f"a link over {type(self.store).__name__}")
        return self.store.store

    @staticmethod
    def _kind_of_store(topology: Topology) -> Stores:
        return of_torch
