"""MNIST in memory, as a dataset for torch.

Shape letters: N images, B images of a batch.
"""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from trainkit.data.mnist import MEAN, STD, MnistArrays, load_mnist
from trainkit.data.torch.batched import Batched

__all__ = ["MnistDataset"]

_FLOATS_UP_TO = 64 * 2**20
"""Bytes up to which images are kept as floats, which makes a batch twice as fast. That is the
case for the embedded digits (25 MB) and any test set (31 MB); 60,000 images would take 188 MB
in each rank, so they stay bytes (47 MB) and become floats batch by batch."""


class MnistDataset(Dataset[tuple[Any, ...]]):
    """Images as floats [1, 28, 28], normalised, and labels as integers.

    ``dataset[i]`` is ``(image, label)``, or ``(image, label, i)`` with ids. A whole batch is
    fetched at once, under a sharded loader and under torch's own.
    """

    def __init__(self, arrays: MnistArrays, *, with_ids: bool = False) -> None:
        """Hold one split in memory.

        Args:
            arrays: as ``load_mnist`` gives it; its bytes are shared, not copied, where they
                stay bytes.
            with_ids: whether samples carry their index, so that a run can be traced.
        """
        count = arrays.images.shape[0]
        self.source = arrays.source
        self.embedded = arrays.embedded
        self.with_ids = with_ids
        self.labels = torch.frombuffer(arrays.labels.data, dtype=torch.uint8).long()
        images = torch.frombuffer(arrays.images.data, dtype=torch.uint8).view(count, 1, 28, 28)
        self._floats = images.numel() * 4 <= _FLOATS_UP_TO
        self._images = _normalised(images) if self._floats else images

    @classmethod
    def load(
        cls,
        *,
        train: bool,
        data_dir: Path | str | None = None,
        data_url: str | None = None,
        with_ids: bool = False,
    ) -> "MnistDataset":
        """Find, read and hold one split; see ``trainkit.data.mnist`` for where it comes from.

        Raises:
            InputMissingError: the files are in none of the places.
            DataError: a file is damaged, or images and labels do not belong together.
        """
        arrays = load_mnist(train=train, data_dir=data_dir, data_url=data_url)
        return cls(arrays, with_ids=with_ids)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image = self._images[index]
        if not self._floats:
            image = _normalised(image)
        sample = (image, int(self.labels[index]))
        return (*sample, index) if self.with_ids else sample

    def __getitems__(self, indices: list[int]) -> Batched:
        """Fetch B samples in one piece: images [B, 1, 28, 28], labels [B], and ids [B]."""
        rows = torch.tensor(indices)
        images = self._images.index_select(0, rows)
        if not self._floats:
            images = _normalised(images)
        labels = self.labels.index_select(0, rows)
        return Batched(images, labels, rows) if self.with_ids else Batched(images, labels)


def _normalised(images: torch.Tensor) -> torch.Tensor:
    """Floats with mean 0 and deviation 1 from bytes; two passes over memory instead of four."""
    return torch.sub(images, 255 * MEAN).mul_(1 / (255 * STD))
