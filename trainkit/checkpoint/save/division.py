"""Which rank writes which bytes of what is the same on all of them."""

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainkit.checkpoint.adapters.base import Document
from trainkit.checkpoint.format.checksums import digest
from trainkit.checkpoint.format.layout import index_path, piece_path
from trainkit.checkpoint.format.tensors import TensorSource
from trainkit.checkpoint.save.files import FileImage, Layouts

__all__ = ["SPLIT_BYTES", "Division", "divide"]

SPLIT_BYTES = 64 << 20
"""Documents are divided among ranks into pieces of at least this many bytes."""

Tensors = Mapping[str, TensorSource]


@dataclass(frozen=True, slots=True)
class Division:
    """What one rank writes, and a checksum of the plan that is the same on all ranks."""

    images: list[FileImage]
    checksum: str


def divide(documents: Sequence[Document], rank: int, world_size: int, layouts: Layouts) -> Division:
    """Plan the files of ``rank``; no rank asks another.

    Every rank holds the same tensors, so each comes to the same plan by itself: the largest
    tensor goes to the rank with the least to write. Rank 0 writes all values and all documents
    that are too small to divide. Whole tensors only, so that any reader of safetensors finds
    each in one file, through the index that Hugging Face's libraries know.

    Args:
        documents: of the shared state.
        rank: whose files to plan.
        world_size: number of ranks.
        layouts: of the files, as far as they are known from the save before.
    """
    images: list[FileImage] = []
    plan = []
    loads = [0] * world_size
    divided = []
    for document in documents:
        if rank == 0 and document.raw is not None:
            # Not counted: how large it is may differ from rank to rank, and plans must not.
            images.append(FileImage.of_raw(document.path, document.raw))
        if rank == 0 and document.has_json:
            images.append(FileImage.of_json(document))
        if document.tensors is None:
            continue
        if world_size > 1:
            size = sum(tensor.num_bytes for tensor in document.tensors.values())
            if size >= 2 * SPLIT_BYTES:
                divided.append((document.path, document.tensors, size))
                continue
            loads[0] += size
        if rank == 0:
            images.append(layouts.image(f"{document.path}.safetensors", document.tensors))
    for path, tensors, size in divided:
        pieces = _pieces(tensors, loads, min(world_size, size // SPLIT_BYTES))
        plan.append([path, [[n, t.dtype, list(t.shape)] for n, t in tensors.items()]])
        images += _files(path, pieces, rank, layouts)
    return Division(images, digest(json.dumps(plan).encode()) if plan else "")


def _pieces(
    tensors: Tensors, loads: list[int], num_pieces: int
) -> dict[int, dict[str, TensorSource]]:
    """Tensors by the rank that writes them, ascending; ``loads`` grows by their bytes."""
    writers = heapq.nsmallest(num_pieces, range(len(loads)), key=lambda rank: (loads[rank], rank))
    heap = [(loads[rank], rank) for rank in writers]
    heapq.heapify(heap)
    pieces: dict[int, dict[str, TensorSource]] = {}
    for name in sorted(tensors, key=lambda name: (-tensors[name].num_bytes, name)):
        load, rank = heap[0]
        load += tensors[name].num_bytes
        heapq.heapreplace(heap, (load, rank))
        loads[rank] = load
        pieces.setdefault(rank, {})[name] = tensors[name]
    return {rank: pieces[rank] for rank in sorted(pieces)}


def _files(
    path: str, pieces: Mapping[int, Tensors], rank: int, layouts: Layouts
) -> Iterator[FileImage]:
    if len(pieces) == 1:  # one tensor that holds all of the bytes
        if rank in pieces:
            yield layouts.image(f"{path}.safetensors", pieces[rank])
        return
    names = {writer: piece_path(path, i + 1, len(pieces)) for i, writer in enumerate(pieces)}
    if rank in pieces:
        yield layouts.image(names[rank], pieces[rank])
    if rank == 0:
        placed = {
            name: names[writer].rpartition("/")[2]
            for writer, tensors in pieces.items()
            for name in tensors
        }
        total = sum(t.num_bytes for tensors in pieces.values() for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        yield FileImage.of_bytes(index_path(path), json.dumps(index, indent=1).encode() + b"\n")
