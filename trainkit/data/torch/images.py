"""Images for torch: from folders, or made up.

Shape letters: B images of a batch, S pixels of a side, P images in a pool.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from trainkit.data.images import ImageFolder, scan_images
from trainkit.data.seeds import derive_seed
from trainkit.data.torch.batched import Batched
from trainkit.errors import DataError, DependencyError, InputMissingError, UsageError

__all__ = ["ImageDataset", "SyntheticImages", "image_transform"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, red, green and blue, on a scale from 0 to 1."""

_RESIZED = 256 / 224
"""Evaluation crops the middle out of an image this much larger than the crop."""


class ImageDataset(Dataset[tuple[Any, ...]]):
    """Images of a folder with one sub-folder per class, decoded when asked for."""

    def __init__(
        self,
        folder: ImageFolder,
        transform: Callable[[Any], Any] | None = None,
        *,
        with_ids: bool = False,
    ) -> None:
        """Read the images of ``folder``.

        Args:
            folder: as ``scan_images`` lists it.
            transform: given an RGB image of Pillow; what it returns is the sample's first part.
            with_ids: whether samples carry their index, so that a run can be traced.

        Raises:
            DependencyError: Pillow is not installed.
        """
        _pillow()
        self.folder = folder
        self.transform = transform
        self.with_ids = with_ids

    @classmethod
    def load(
        cls,
        data_dir: Path | str,
        *,
        train: bool,
        image_size: int = 224,
        classes: Sequence[str] | None = None,
        with_ids: bool = False,
    ) -> "ImageDataset":
        """The ``train`` or ``val`` images of ``data_dir``, with the usual transform of each.

        Args:
            data_dir: has the folders train and val.
            train: which of them.
            image_size: S, pixels of a side after cropping.
            classes: of the training images, for ``train=False``.
            with_ids: whether samples carry their index.

        Raises:
            InputMissingError: a folder is missing, or has no images.
            DataError: there are no classes, or others than ``classes``.
            DependencyError: torchvision is not installed.
        """
        transform = image_transform(train=train, image_size=image_size)
        folder = scan_images(data_dir, "train" if train else "val", classes=classes)
        return cls(folder, transform, with_ids=with_ids)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return self.folder.classes

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image = self._open(self.folder.root / self.folder.paths[index])
        if self.transform is not None:
            image = self.transform(image)
        sample = (image, self.folder.labels[index])
        return (*sample, index) if self.with_ids else sample

    def _open(self, path: Path) -> Any:
        try:
            with path.open("rb") as file:
                # Converting decodes all of it, also CMYK and grey images, while it is open.
                return _pillow().open(file).convert("RGB")
        except FileNotFoundError:
            raise InputMissingError(f"{path} was there at the start and is gone") from None
        except (OSError, SyntaxError, ValueError) as damage:  # Pillow raises all of these
            size = path.stat().st_size
            raise DataError(
                f"{path} cannot be decoded ({damage}; {size:,} bytes). Replace or remove it."
            ) from None


class SyntheticImages(Dataset[tuple[Any, ...]]):
    """Random images with labels, to run without data or to measure without decoding.

    A pool of P images is made once; sample i is image i % P, which always has the same label,
    so a model can learn them. Normally distributed like normalised photos.
    """

    def __init__(
        self,
        length: int,
        *,
        image_size: int = 224,
        num_classes: int = 1000,
        seed: int = 0,
        pool: int = 64,
        with_ids: bool = False,
    ) -> None:
        """Make the pool: P*3*S*S floats, 39 MB by default.

        Args:
            length: number of samples.
            image_size: S, pixels of a side.
            num_classes: labels are from 0 to ``num_classes`` - 1.
            seed: the same seed makes the same images.
            pool: P, number of different images.
            with_ids: whether samples carry their index.

        Raises:
            UsageError: a number is smaller than 1.
        """
        if min(length, image_size, num_classes, pool) < 1:
            raise UsageError(
                f"expected numbers of 1 or more, found length={length}, image_size={image_size}, "
                f"num_classes={num_classes}, pool={pool}"
            )
        generator = torch.Generator().manual_seed(derive_seed(seed, "images"))
        pool = min(pool, length)
        self.length = length
        self.with_ids = with_ids
        self.images = torch.randn(pool, 3, image_size, image_size, generator=generator)
        self.labels = torch.randint(num_classes, (pool,), generator=generator)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        place = index % len(self.images)
        sample = (self.images[place], int(self.labels[place]))
        return (*sample, index) if self.with_ids else sample

    def __getitems__(self, indices: list[int]) -> Batched:
        """Fetch B samples in one piece: images [B, 3, S, S], labels [B], and ids [B]."""
        rows = torch.tensor(indices)
        places = rows % len(self.images)
        stacked = (self.images.index_select(0, places), self.labels.index_select(0, places))
        return Batched(*stacked, rows) if self.with_ids else Batched(*stacked)


def image_transform(*, train: bool, image_size: int = 224) -> Callable[[Any], torch.Tensor]:
    """The usual transform of ImageNet, from an image of Pillow to floats [3, S, S].

    Args:
        train: a random crop and flip, or the middle.
        image_size: S, pixels of a side.

    Raises:
        DependencyError: torchvision is not installed.
    """
    try:
        from torchvision.transforms import v2
    except ImportError:
        raise DependencyError(_INSTALL.format("torchvision")) from None
    if train:
        geometry = [v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip()]
    else:
        resized = round(image_size * _RESIZED)
        geometry = [v2.Resize(resized, antialias=True), v2.CenterCrop(image_size)]
    to_floats = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    composed: Callable[[Any], torch.Tensor] = v2.Compose([*geometry, *to_floats])
    return composed


_INSTALL = 'reading images needs {}, which is not here: pip install "trainkit[imagenet]"'


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise DependencyError(_INSTALL.format("Pillow")) from None
    return Image
