"""A worker's copy of what the servers hold, and the model that it is laid into."""

from collections.abc import Mapping

import torch

from trainkit.strategies.torch.local_sgd.layout import FlatLayout, Mirror
from trainkit.strategies.torch.local_sgd.shard import WIRES, as_bytes, as_tensor

__all__ = ["Replica"]


class Replica:
    """The parameters at the start of the round, and at the chief the outer momentum too.

    So whatever is on a server is also in the chief, and the other way: either may be lost, and
    nothing but the steps since the last round is lost with it.
    """

    def __init__(self, layout: FlatLayout, num_servers: int) -> None:
        """Make room for the tensors of ``layout``, divided over ``num_servers``."""
        self.layout = layout
        self.spans = layout.spans(num_servers)
        self._mirror = Mirror(layout)
        self._base = torch.empty(layout.size)
        # What the model had at the round's start. Where its numbers are shorter than the servers'
        # that is not the same: what rounding took away is nothing that a worker has learnt.
        exact = all(tensor.dtype is torch.float32 for tensor in layout.tensors)
        self._start = self._base if exact else torch.empty(layout.size)
        self._momentum = torch.empty(0)

    @property
    def momentum(self) -> dict[str, torch.Tensor]:
        """The outer momentum at the start of the round, by parameter; of the chief alone."""
        return self.layout.named_outer(self._momentum) if self._momentum.numel() else {}

    def take_model(self, momentum: Mapping[str, torch.Tensor], *, moving: bool) -> None:
        """Begin with the model as it is now.

        Args:
            momentum: of the outer optimizer, by parameter; what is not there is 0.
            moving: whether that optimizer has a momentum.
        """
        self._base.copy_(self._mirror.gather())
        self._start.copy_(self._base)
        self._momentum = torch.zeros(self.layout.num_outer if moving else 0)
        for name, view in self.momentum.items():
            if name in momentum and momentum[name].shape == view.shape:
                view.copy_(momentum[name])

    def give_model(self) -> None:
        """Give the model the parameters of the round's start."""
        self._mirror.scatter(self._base)
        if self._start is not self._base:
            self._start.copy_(self._mirror.gather())

    def has_learnt(self) -> bool:
        """Whether a trained parameter is another one than at the round's start."""
        trained = slice(self.layout.num_outer)
        return not torch.equal(self._start[trained], self._mirror.gather()[trained])

    def delta(self, wire: str) -> list[memoryview]:
        """How far the model came since the round's start, for each server."""
        now = self._mirror.gather()
        delta = torch.sub(self._start, now)
        rest = slice(self.layout.num_outer, None)
        # Buffers may hold infinities, a mask of attention for one: inf - inf would be NaN.
        delta[rest].masked_fill_(self._start[rest] == now[rest], 0)
        if wire == "bf16":
            delta = delta.to(torch.bfloat16)
        return [as_bytes(delta[begin:end]) for begin, end in self.spans]

    def part(self, server: int) -> tuple[int, int, tuple[memoryview, ...]]:
        """What a server holds: numbers, trained ones among them, and the bytes of all."""
        begin, end = self.spans[server]
        outer = self.layout.outer_part((begin, end))
        payloads = [as_bytes(self._base[begin:end])]
        if self._momentum.numel():
            payloads.append(as_bytes(self._momentum[begin : begin + outer]))
        return end - begin, outer, tuple(payloads)

    def take_round(self, server: int, payload: memoryview, wire: str) -> None:
        """Take what a server made of a round."""
        begin, end = self.spans[server]
        split = (end - begin) * WIRES[wire].itemsize
        news = as_tensor(payload[:split], wire)
        if wire == "bf16":
            self._base[begin:end].add_(news)
        else:
            self._base[begin:end].copy_(news)
        self._keep_momentum(server, payload[split:])

    def take_state(self, server: int, payload: memoryview) -> None:
        """Take all that a server holds."""
        begin, end = self.spans[server]
        split = (end - begin) * 4
        self._base[begin:end].copy_(as_tensor(payload[:split]))
        self._keep_momentum(server, payload[split:])

    def _keep_momentum(self, server: int, payload: memoryview) -> None:
        """Of the chief, whom the servers send it."""
        if not len(payload):
            return
        if not self._momentum.numel():
            self._momentum = torch.zeros(self.layout.num_outer)
        begin, end = self.spans[server]
        outer = self.layout.outer_part((begin, end))
        self._momentum[begin : begin + outer].copy_(as_tensor(payload))
