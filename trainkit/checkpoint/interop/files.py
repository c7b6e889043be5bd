"""Files of one rank, streamed to the storage in several threads."""

import heapq
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from trainkit.checkpoint.adapters.base import Document
from trainkit.checkpoint.adapters.values import to_json_bytes
from trainkit.checkpoint.format.checksums import ChunkHasher, FileRecord
from trainkit.checkpoint.format.tensors import TensorSource, lay_out
from trainkit.checkpoint.options import CheckpointOptions
from trainkit.errors import TrainkitError
from trainkit.storage import Bytes, Storage

__all__ = ["FileWriter", "spread"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_SMALL = 64 << 20
_LARGE = 1 << 30
"""Bytes: states below the one are not split, and files get little larger than the other."""


def spread(sizes: Mapping[T, int], threads: int) -> list[list[T]]:
    """Distribute items over files of like sizes: one a thread, more where they get very large."""
    total = sum(sizes.values())
    count = max(1 if total < _SMALL else threads, -(-total // _LARGE))
    filled = [(0, number) for number in range(count)]
    files: list[list[T]] = [[] for _ in filled]
    for item in sorted(sizes, key=lambda item: -sizes[item]):
        size, number = heapq.heappop(filled)
        files[number].append(item)
        heapq.heappush(filled, (size + sizes[item], number))
    return [file for file in files if file]


@dataclass(slots=True)
class FileWriter:
    """Writes files below one step folder, and keeps their checksums."""

    storage: Storage
    folder: str
    options: CheckpointOptions
    files: dict[str, FileRecord] = field(default_factory=dict, init=False)

    def in_threads(self, jobs: Iterable[Callable[[], T]], threads: int) -> list[T]:
        """Run all jobs; what any of them raised is raised here, the first with notes of others.

        DCP's own writer loses the errors of all threads but one, and commits all the same.
        """
        with ThreadPoolExecutor(threads, thread_name_prefix="trainkit-write") as pool:
            futures = [pool.submit(job) for job in jobs]
        errors = [error for error in map(Future.exception, futures) if error is not None]
        if errors:
            for other in errors[1:]:
                errors[0].add_note(f"another thread: {type(other).__name__}: {other}")
            raise errors[0]
        return [future.result() for future in futures]

    def write_tensors(
        self, path: str, tensors: Mapping[str, TensorSource]
    ) -> dict[str, tuple[int, int]]:
        """Write a safetensors file, one tensor after the other.

        Returns:
            From and to which byte of the file each tensor lies.
        """
        header, order, _ = lay_out(tensors, framework="pt")

        def parts() -> Iterator[Bytes]:
            yield header
            for name in order:
                data = tensors[name].load()
                if len(data) != tensors[name].num_bytes:
                    raise ValueError(f"{name}: {len(data)} bytes, not {tensors[name].num_bytes}")
                yield data

        self.write(path, parts)
        found, begin = {}, len(header)
        for name in order:
            found[name] = (begin, begin + tensors[name].num_bytes)
            begin = found[name][1]
        return found

    def write_document(self, document: Document) -> None:
        """Write the values and the tensors of a document."""
        if document.has_json:
            self.write(f"{document.path}.json", lambda: [to_json_bytes(document.json)])
        if document.tensors is not None:
            self.write_tensors(f"{document.path}.safetensors", document.tensors)

    def write(self, path: str, parts: Callable[[], Iterable[Bytes]]) -> None:
        """Write a file, again while the storage answers with I/O errors.

        Raises:
            OSError: it did so at each attempt.
        """
        for attempt in range(self.options.attempts):
            hasher = ChunkHasher()
            try:
                self.storage.write(f"{self.folder}/{path}", hasher.passing(parts()))
            except TrainkitError:
                raise
            except FileExistsError:
                raise
            except OSError as error:
                if attempt + 1 == self.options.attempts:
                    raise
                pause = self.options.pause * 2**attempt
                log.warning("writing %s failed (%s); trying again in %.0f s", path, error, pause)
                time.sleep(pause)
            else:
                self.files[path] = hasher.record
                return

    def discard(self) -> None:
        """Remove what was written: the save has failed, and the disk may be full."""
        for path in self.files:
            try:
                self.storage.delete(f"{self.folder}/{path}")
            except (OSError, TrainkitError) as error:
                log.warning("%s/%s could not be removed: %s", self.folder, path, error)
