"""Batches that a dataset fetched in one piece, and that still look like lists of samples."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch.utils.data import default_collate

__all__ = ["Batched", "collate_batched"]


class Batched(Sequence[tuple[Any, ...]]):
    """What ``__getitems__`` of trainkit's own datasets returns: B samples of stacked tensors.

    To any ``collate_fn`` it is a sequence of samples, as torch promises. A sharded loader with
    torch's default collation takes the stacked tensors as they are, which saves taking them
    apart and stacking them again.
    """

    __slots__ = ("stacked",)

    def __init__(self, *stacked: torch.Tensor) -> None:
        """Hold the fields of B samples; each tensor has B rows."""
        self.stacked = stacked

    def __len__(self) -> int:
        return len(self.stacked[0])

    @overload
    def __getitem__(self, index: int) -> tuple[Any, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> "Batched": ...
    def __getitem__(self, index: int | slice) -> "tuple[Any, ...] | Batched":
        if isinstance(index, slice):
            return Batched(*(part[index] for part in self.stacked))
        rows = (part[index] for part in self.stacked)
        return tuple(row if row.ndim else row.item() for row in rows)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        # All rows at once: torch's collation goes over a batch several times.
        columns = (p.unbind() if p.ndim > 1 else p.tolist() for p in self.stacked)
        return zip(*columns, strict=True)


def collate_batched(samples: Any) -> Any:
    """Torch's default collation, but for ``Batched``, which is stacked already."""
    if type(samples) is Batched:
        return list(samples.stacked)
    return default_collate(samples)
