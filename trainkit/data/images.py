"""Folders of images, one sub-folder a class, as ImageNet comes: finding and naming, no pixels."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainkit.errors import DataError, InputMissingError, NoPermissionError

__all__ = ["ImageFolder", "scan_images"]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """The images of one split."""

    root: Path
    """Folder of the split."""
    classes: tuple[str, ...]
    """Names of the sub-folders, sorted; a label is a place in here."""
    paths: tuple[str, ...]
    """Images, relative to ``root``, sorted: the same on every node."""
    labels: tuple[int, ...]
    """Label of each image."""

    def __len__(self) -> int:
        return len(self.paths)


def scan_images(
    data_dir: Path | str, split: str, *, classes: Sequence[str] | None = None
) -> ImageFolder:
    """List the images of ``data_dir/split``.

    Args:
        data_dir: has a folder for each split, ``train`` and ``val``.
        split: the folder to list.
        classes: classes of the training split, whose labels another split has to share; the
            folder's own by default.

    Raises:
        InputMissingError: there is no such folder, or no image in it.
        DataError: the folder has no classes, or a class that ``classes`` lacks.
        NoPermissionError: the folder may not be read.
    """
    root = Path(data_dir) / split
    try:
        found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        raise InputMissingError(_no_folder(Path(data_dir), split)) from None
    except PermissionError as refusal:
        raise NoPermissionError(f"{root} may not be read: {refusal.strerror}") from None
    if not found:
        raise DataError(
            f"expected one folder per class in {root}, found none. ImageNet's validation images "
            f"come in one flat folder: sort them into folders named as those of train."
        )
    unknown = sorted(set(found) - set(classes)) if classes is not None else []
    if classes is not None and unknown:
        raise DataError(
            f"expected the {len(classes)} classes of training in {root}, found others too: "
            f"{', '.join(unknown[:5])}{', …' if len(unknown) > 5 else ''}"
        )
    names = tuple(classes if classes is not None else found)
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        images = sorted(_images_below(root / name, name)) if name in set(found) else []
        paths += images
        labels += [label] * len(images)
    if not paths:
        raise InputMissingError(
            f"expected images ({', '.join(_SUFFIXES)}) in the {len(found)} folder(s) of {root}, "
            f"found none"
        )
    return ImageFolder(root, names, tuple(paths), tuple(labels))


def _images_below(folder: Path, name: str) -> Iterator[str]:
    """Images under ``folder``, however deep; paths begin with ``name``."""
    for entry in os.scandir(folder):
        below = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from _images_below(folder / entry.name, below)
        elif entry.name.lower().endswith(_SUFFIXES):
            yield below


def _no_folder(data_dir: Path, split: str) -> str:
    if not data_dir.is_dir():
        there = f"there is no folder {data_dir}; is the volume mounted?"
    else:
        seen = sorted(path.name for path in data_dir.iterdir())
        there = "found " + (", ".join(seen[:8]) + (", …" if len(seen) > 8 else "") or "nothing")
    return (
        f"expected a folder {split} in {data_dir}, with one folder per class: {there}. "
        f"Point --data-dir at the folder that has train and val, or use the synthetic images."
    )
