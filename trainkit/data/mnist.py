"""MNIST, and whatever comes in its files (Fashion-MNIST): where it is found, and reading it.

Looked for, in this order:

1. ``data_dir``, in any of the usual layouts and names, plain or gzipped;
2. ``data_url`` or TRAINKIT_MNIST_URL: mirrors separated by commas, fetched once per node, into
   ``data_dir`` if there is one;
3. without both, 10,000 digits that come with trainkit. It needs no network.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

from trainkit.config import settings
from trainkit.data.download import download
from trainkit.data.idx import IdxArray, read_idx
from trainkit.errors import DataError, InputMissingError, UsageError

__all__ = ["MEAN", "STD", "MnistArrays", "load_mnist"]

log = logging.getLogger(__name__)

MEAN, STD = 0.1307, 0.3081
"""Of the pixels of MNIST's training images, on a scale from 0 to 1."""

_FOLDERS = ("", "MNIST/raw", "FashionMNIST/raw", "raw")
"""Where the files may be under ``data_dir``; the second and third are torchvision's."""

_ADVICE = (
    "Give a folder that has the files with --data-dir, other mirrors with --data-url or "
    "TRAINKIT_MNIST_URL, or none of them for the 10,000 digits that come with trainkit."
)


@dataclass(frozen=True, slots=True)
class MnistArrays:
    """One split, as unsigned bytes."""

    images: IdxArray
    """Shape [N, 28, 28]; 0 is background."""
    labels: IdxArray
    """Shape [N]; from 0 to 9."""
    source: str
    """Where it came from, for the log."""
    embedded: bool
    """Whether this is the small part of MNIST that comes with trainkit."""


def load_mnist(
    *,
    train: bool,
    data_dir: Path | str | None = None,
    data_url: str | None = None,
    timeout: float | None = None,
) -> MnistArrays:
    """Find and read one split of MNIST.

    Args:
        train: the training images (60,000; embedded 8,000), or the test images (10,000; 2,000).
        data_dir: folder with the files, a mounted volume say.
        data_url: folder URLs of mirrors, separated by commas; TRAINKIT_MNIST_URL by default.
        timeout: seconds to wait for another process of this node that downloads.

    Raises:
        InputMissingError: the files are in none of the places; the message lists them.
        DataError: a file is damaged, or images and labels do not belong together.
        DeadlineError: another process of this node took too long to download.
    """
    data_dir = Path(data_dir) if data_dir else None
    data_url = data_url or settings().mnist_url
    found = _find(data_dir, train) if data_dir else None
    if found is None and data_url:
        found = _fetch(data_url, data_dir or _cache_folder(data_url), train, timeout)
    if found is None and data_dir is not None:
        raise InputMissingError(_not_in(data_dir, train))
    embedded = found is None
    if found is None:
        found = _find(Path(str(files("trainkit.data") / "mnist-10k")), train)
        if found is None:
            raise InputMissingError("trainkit/data/mnist-10k is missing: install trainkit again")
    images, labels = found
    arrays = MnistArrays(
        read_idx(images, dimensions=3),
        read_idx(labels, dimensions=1),
        "the digits that come with trainkit" if embedded else str(images.parent),
        embedded,
    )
    _check(arrays, images, labels)
    log.info(
        "MNIST: %d %s images from %s%s",
        arrays.images.shape[0],
        "training" if train else "test",
        arrays.source,
        ", a subset of MNIST: accuracies do not compare with those of all 70,000" * embedded,
    )
    return arrays


def _names(train: bool) -> tuple[str, str]:
    split = "train" if train else "t10k"
    return f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"


def _spellings(name: str) -> Iterator[str]:
    """The names that a file has in the wild; a plain one is the fastest to read."""
    dotted = name.replace("-idx", ".idx")
    for plain in (name, dotted):
        yield plain
    for plain in (name, dotted):
        yield f"{plain}.gz"


def _find(folder: Path, train: bool) -> tuple[Path, Path] | None:
    """Images and labels under ``folder``, if both are in one place."""
    for place in _FOLDERS:
        pair = [_spelled(folder / place, name) for name in _names(train)]
        if pair[0] is not None and pair[1] is not None:
            return pair[0], pair[1]
    return None


def _spelled(folder: Path, name: str) -> Path | None:
    return next((folder / s for s in _spellings(name) if (folder / s).is_file()), None)


def _not_in(folder: Path, train: bool) -> str:
    """What is missing where, and what is there instead."""
    names = " and ".join(f"{name}[.gz]" for name in _names(train))
    if not folder.is_dir():
        there = "there is no such folder; is the volume mounted?"
    else:
        seen = sorted(path.name for path in folder.iterdir())
        there = "found " + (", ".join(seen[:8]) + (", …" if len(seen) > 8 else "") or "nothing")
    places = ", ".join(place for place in _FOLDERS if place)
    return f"expected {names} in {folder} (or in {places} below it): {there}. {_ADVICE}"


def _fetch(urls: str, folder: Path, train: bool, timeout: float | None) -> tuple[Path, Path]:
    """Download images and labels into ``folder``, unless they are there already."""
    mirrors = [url.strip().rstrip("/") for url in urls.split(",") if url.strip()]
    for mirror in mirrors:
        if "#" in mirror:
            raise UsageError(
                f"expected URLs of folders for MNIST, found the fragment "
                f"#{mirror.partition('#')[2]}: a checksum belongs to one file"
            )
    images, labels = _names(train)
    paths = []
    for name, dimensions in ((images, 3), (labels, 1)):
        paths.append(
            download(
                [f"{mirror}/{name}.gz" for mirror in mirrors],
                folder / f"{name}.gz",
                check=partial(read_idx, dimensions=dimensions),
                timeout=timeout,
                advice=_ADVICE,
            )
        )
    return paths[0], paths[1]


def _cache_folder(urls: str) -> Path:
    """A folder of this node for what these URLs give: files of other URLs have the same names."""
    name = f"mnist-{hashlib.sha256(urls.encode()).hexdigest()[:16]}"
    try:
        folder = Path.home() / ".cache" / "trainkit" / name
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # no home, or a read-only one, as in many containers
        pass
    return Path(tempfile.gettempdir()) / f"trainkit-{os.getuid()}" / name


def _check(arrays: MnistArrays, images: Path, labels: Path) -> None:
    count, *size = arrays.images.shape
    if size != [28, 28]:
        raise DataError(f"expected images of 28 x 28 pixels in {images}, found {size}")
    if arrays.labels.shape[0] != count or not count:
        raise DataError(
            f"expected as many images as labels, and some: {images} has {count}, {labels} has "
            f"{arrays.labels.shape[0]}. Do they come from the same data set?"
        )
    if max(arrays.labels.data) > 9:
        raise DataError(
            f"expected labels from 0 to 9 in {labels}, found {max(arrays.labels.data)}. EMNIST "
            f"and others have more classes than MNIST's recipe has outputs."
        )
