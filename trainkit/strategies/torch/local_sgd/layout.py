"""One vector for all parameters of the models of a run, and its division over servers."""

import hashlib
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch

from trainkit.errors import StrategyError

__all__ = ["FlatLayout", "Mirror", "Span"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Span = tuple[int, int]
"""Half-open range of elements."""


class FlatLayout:
    """Trained parameters first, then what is averaged: others, and buffers of floating point.

    On the wire and on the servers all of it is fp32, whatever it is in the model.
    """

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        """Lay out ``modules`` one after the other; a shared parameter counts once.

        Raises:
            StrategyError: something that fp32 cannot hold.
        """
        trained: dict[str, torch.Tensor] = {}
        averaged: dict[str, torch.Tensor] = {}
        buffers: dict[str, tuple[torch.nn.Module, str]] = {}
        seen: set[int] = set()
        for number, module in enumerate(modules):
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if id(tensor) in seen or not tensor.is_floating_point():
                    if tensor.is_complex():
                        raise _unfit(name, tensor)
                    continue
                seen.add(id(tensor))
                if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided:
                    raise _unfit(name, tensor)
                group = trained if tensor.requires_grad else averaged
                group[f"{number}.{name}"] = tensor
                if not isinstance(tensor, torch.nn.Parameter):
                    path, _, key = name.rpartition(".")
                    buffers[f"{number}.{name}"] = (module.get_submodule(path), key)
        self.names = [*trained, *averaged]
        self.tensors = [*trained.values(), *averaged.values()]
        self.num_outer = sum(tensor.numel() for tensor in trained.values())
        self.size = sum(tensor.numel() for tensor in self.tensors)
        self.trained = {id(tensor) for tensor in trained.values()}
        """Ids of the parameters that an optimizer changes."""
        self._buffers = [
            (place, *buffers[name]) for place, name in enumerate(self.names) if name in buffers
        ]

    def refresh(self) -> None:
        """Take the buffers that the model has now: ``self.average = …`` makes another tensor.

        Raises:
            StrategyError: one is gone, or has another shape.
        """
        for place, module, key in self._buffers:
            before, now = self.tensors[place], module._buffers.get(key)
            if now is before:
                continue
            if now is None or now.shape != before.shape:
                raise StrategyError(
                    f"strategy='parameter_server': the buffer {self.names[place]} had the shape "
                    f"{tuple(before.shape)} when training began and now has "
                    f"{None if now is None else tuple(now.shape)}: what is averaged cannot change"
                )
            self.tensors[place] = now

    @property
    def fingerprint(self) -> str:
        """The same for the same names and shapes in the same order."""
        shapes = [(n, tuple(t.shape)) for n, t in zip(self.names, self.tensors, strict=True)]
        return hashlib.sha256(repr((shapes, self.num_outer)).encode()).hexdigest()[:16]

    def spans(self, count: int) -> list[Span]:
        """The parts of ``count`` servers, in their order: as equal as can be."""
        cuts = [self.size * i // count for i in range(count + 1)]
        return list(pairwise(cuts))

    def outer_part(self, span: Span) -> int:
        """How many elements at the beginning of ``span`` are of trained parameters."""
        return max(0, min(span[1], self.num_outer) - span[0])

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of a flat vector, shaped as the tensors are."""
        ends = accumulate(tensor.numel() for tensor in self.tensors)
        return [
            flat[end - tensor.numel() : end].view(tensor.shape)
            for end, tensor in zip(ends, self.tensors, strict=True)
        ]

    def named_outer(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """A flat vector of the trained part, by name; for a checkpoint."""
        named, begin = {}, 0
        for name, tensor in zip(self.names, self.tensors, strict=True):
            if begin >= self.num_outer:
                break
            named[name] = flat[begin : begin + tensor.numel()].view(tensor.shape)
            begin += tensor.numel()
        return named


class Mirror:
    """The model's tensors as one flat vector on the CPU, and back."""

    def __init__(self, layout: FlatLayout) -> None:
        """Make room; on a GPU also there, so that one copy crosses the bus."""
        device = layout.tensors[0].device if layout.tensors else torch.device("cpu")
        self._layout = layout
        self._tensors = layout.tensors
        self._staging = None
        if device.type != "cpu":
            self._staging = torch.empty(layout.size, device=device)
        self.flat = torch.empty(layout.size, pin_memory=device.type == "cuda")
        self._views = layout.views(self.flat if self._staging is None else self._staging)

    @torch.no_grad()
    def gather(self) -> torch.Tensor:
        """The model as it is now, in ``flat``."""
        self._layout.refresh()
        if self._tensors:
            torch._foreach_copy_(self._views, self._tensors)
        if self._staging is not None:
            self.flat.copy_(self._staging)
        return self.flat

    @torch.no_grad()
    def scatter(self, flat: torch.Tensor) -> None:
        """Give ``flat`` to the model."""
        self._layout.refresh()
        if self._staging is not None:
            self._staging.copy_(flat)
        else:
            self.flat.copy_(flat)
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._views)


def _unfit(name: str, tensor: Any) -> StrategyError:
    return StrategyError(
        f"strategy='parameter_server' cannot train {name}, a {tensor.layout} tensor of "
        f"{tensor.dtype}: it holds parameters in fp32 and takes dense fp32, bf16 and fp16. Convert "
        f"the model (model.float()), or use strategy='ddp'."
    )
