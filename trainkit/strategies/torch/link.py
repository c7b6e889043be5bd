"""As ``strategies.link``, over torch's own store, which its process groups need."""

import torch.distributed as dist

from trainkit.coordination.torch import TorchStore, connect_store, serve_store
from trainkit.strategies.link import Endpoint, RankLink
from trainkit.topology import Topology
from trainkit.waiting import Deadline

__all__ = ["TorchLink"]


class TorchLink(RankLink):
    """A link whose store torch knows as well."""

    @classmethod
    def open(
        cls, topology: Topology, timeout: float, *, address: tuple[str, int] | None = None
    ) -> "TorchLink":
        """See ``RankLink.open``."""
        link = super().open(topology, timeout, address=address)
        if not isinstance(link, cls):
            raise AssertionError(f"a {type(link).__name__}")
        return link

    @property
    def tcp(self) -> dist.Store:
        """The store, as torch's."""
        if not isinstance(self.store, TorchStore):
            raise AssertionError(f"a link over {type(self.store).__name__}")
        return self.store.store

    @staticmethod
    def _serve(port: int, deadline: Deadline) -> Endpoint:
        return serve_store(port, deadline)

    @staticmethod
    def _connect(host: str, port: int, who: str, deadline: Deadline) -> Endpoint:
        return connect_store(host, port, who, deadline)
