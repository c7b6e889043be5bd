"""One server's part of the parameters, and the outer step on it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from trainkit.errors import UsageError

__all__ = ["WIRES", "OuterOptions", "Shard", "as_bytes", "as_tensor"]

WIRES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterOptions:
    """What the servers do at the end of a round."""

    lr: float = 0.7
    """Of the outer optimizer."""
    momentum: float = 0.9
    nesterov: bool = True
    """Nesterov's momentum, where there is any."""
    wire: str = "fp32"
    """Numbers on the wire: fp32 or bf16. The servers compute in fp32."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise UsageError(f"outer_lr={self.lr}: expected a positive number")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"outer_momentum={self.momentum}: expected 0 or more, below 1")
        if self.wire not in WIRES:
            raise UsageError(f"wire={self.wire!r}: expected fp32 or bf16")

    def dump(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def as_tensor(data: memoryview, wire: str = "fp32") -> torch.Tensor:
    """The numbers in ``data``, not copied."""
    dtype = WIRES[wire]
    return torch.frombuffer(data, dtype=dtype) if len(data) else torch.empty(0, dtype=dtype)


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, not copied."""
    return tensor.view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


class Shard:
    """A contiguous part of the flattened parameters, in fp32.

    Its first ``num_outer`` elements get the outer optimizer's step; the others (buffers, such as
    batch norm's, and parameters that are not trained) are averaged.
    """

    def __init__(
        self,
        parameters: torch.Tensor,
        num_outer: int,
        options: OuterOptions,
        momentum: torch.Tensor | None = None,
    ) -> None:
        """Take over ``parameters`` (fp32 [N]) and ``momentum`` (fp32 [num_outer])."""
        self.options = options
        self._all = parameters
        self._outer, self._rest = parameters[:num_outer], parameters[num_outer:]
        size = num_outer if options.momentum else 0
        self._momentum = torch.zeros(size) if momentum is None or not size else momentum
        # With bf16 on the wire, what the workers have: the sum of all that was sent. What rounding
        # keeps from them in one round is in the difference of the next.
        self._known = parameters.clone() if options.wire == "bf16" else parameters

    @property
    def size(self) -> int:
        """Elements of the shard."""
        return self._all.numel()

    @property
    def parameters(self) -> torch.Tensor:
        """As the workers have them at the start of a round: fp32 [N]."""
        return self._known

    @property
    def momentum(self) -> torch.Tensor:
        """Of the outer optimizer: fp32 [num_outer]; empty where it has none."""
        return self._momentum

    @torch.no_grad()
    def step(self, deltas: Sequence[memoryview]) -> torch.Tensor:
        """Take the outer step on the mean of ``deltas``, in their order; the first is overwritten.

        Returns:
            What members are sent: the parameters (fp32), or with bf16 their change.
        """
        wire = self.options.wire
        mean = as_tensor(deltas[0], wire).float()
        for delta in deltas[1:]:
            mean.add_(as_tensor(delta, wire))
        mean.div_(len(deltas))
        split = self._outer.numel()
        self._step_outer(mean[:split])
        self._rest.sub_(mean[split:])
        if wire == "fp32":
            return self._all
        change = (self._all - self._known).to(torch.bfloat16)
        change[split:].masked_fill_(self._rest == self._known[split:], 0)  # of infinities too
        self._known.add_(change)
        return change

    def _step_outer(self, gradient: torch.Tensor) -> None:
        """SGD's step, as torch.optim has it, in place; importing that would take a second.

        ``gradient`` is overwritten.
        """
        momentum, lr = self.options.momentum, self.options.lr
        if momentum:
            self._momentum.mul_(momentum).add_(gradient)
            if self.options.nesterov:
                gradient.add_(self._momentum, alpha=momentum)
            else:
                gradient = self._momentum
        self._outer.sub_(gradient, alpha=lr)


def options_from(values: Mapping[str, Any]) -> OuterOptions:
    """From the values of ``OuterOptions.dump``."""
    return OuterOptions(**values)
