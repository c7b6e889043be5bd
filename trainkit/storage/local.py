"""Storage in a folder of a mounted file system."""

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from trainkit.errors import InputMissingError, NoPermissionError
from trainkit.storage.base import Bytes, Likeness, ObjectInfo, Upload, parts_of
from trainkit.storage.disk import NewFile, flush_folder, flush_folders, write_files, write_new
from trainkit.storage.gradual import Ready
from trainkit.storage.scattering import Scatter

__all__ = ["LocalStorage"]

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}
"""What file systems without hard links answer: FAT, SMB, several FUSE mounts."""

_PIECE_BYTES = 1 << 20
"""Of which a reader of many buffers is told: as much as stays in one core's cache."""
_PIECE_BUFFERS = 1024
"""As many as Linux fills by one call (IOV_MAX)."""

_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


class LocalStorage:
    """Files under one folder, flushed to disk together with the folders that name them."""

    reopenable = True

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Use the folder ``root``; a relative one is pinned to the current folder now."""
        self._root = Path(os.path.abspath(os.path.expanduser(root)))
        self.url = str(self._root)

    def create(self, path: str, data: Bytes) -> None:
        """See ``Storage.create``."""
        final = self._local(path)
        # The name is unique, or two ranks of one node would take each other's file away.
        temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
        with _telling(final):
            try:
                write_new(temporary, [data])
                self._publish(temporary, final, data)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
            flush_folder(final.parent)

    def write(self, path: str, parts: Iterable[Bytes]) -> None:
        """See ``Storage.write``."""
        final = self._local(path)
        with _telling(final):
            self.make_folder(os.path.dirname(path))
            write_new(final, parts)
            flush_folder(final.parent)

    def write_all(
        self, files: Mapping[str, Bytes], alike: Mapping[str, Likeness] | None = None
    ) -> None:
        """See ``Storage.write_all``; a disk takes all bytes as fast as it would copy them."""
        self.write_gradually({path: memoryview(data) for path, data in files.items()})

    def write_gradually(
        self, files: Mapping[str, memoryview], ready: Ready = lambda *_: None
    ) -> None:
        """See ``GradualStorage.write_gradually``."""
        final = [
            NewFile(self._local(path), data, partial(ready, path)) for path, data in files.items()
        ]
        folders = sorted({file.path.parent for file in final})
        with _telling(self._root):
            changed = {parent for folder in folders for parent in self._make(folder)}
            write_files(final)
            flush_folders(sorted({*folders, *changed}))

    def read(self, path: str) -> bytes:
        """See ``Storage.read``."""
        local = self._text(path)
        with _telling(local), open(local, "rb") as file:
            return file.read()

    def read_into(self, path: str, buffer: memoryview, offset: int = 0) -> int:
        """See ``Storage.read_into``."""
        local = self._local(path)
        done = 0
        with _telling(local), local.open("rb", buffering=0) as file:
            file.seek(offset)
            while done < len(buffer) and (count := file.readinto(buffer[done:])):
                done += count
        return done

    @contextlib.contextmanager
    def scatter_from(self, path: str) -> Iterator[Scatter]:
        """See ``ScatteringStorage.scatter_from``."""
        local = self._text(path)
        with _telling(local):
            descriptor = os.open(local, os.O_RDONLY | os.O_CLOEXEC)

        def scatter(buffers: Sequence[memoryview], offset: int) -> Iterator[int]:
            for begin, end, size in _pieces(buffers):
                with _telling(local):
                    if not _fill(descriptor, buffers[begin:end], offset, size):
                        return
                offset += size
                yield end

        try:
            yield scatter
        finally:
            os.close(descriptor)

    def names(self, folder: str = "") -> list[str]:
        """See ``Storage.names``."""
        local = self._local(folder)
        with _telling(local):
            try:
                return sorted(os.listdir(local))
            except FileNotFoundError:
                return []

    def tree(self, folder: str = "") -> dict[str, ObjectInfo]:
        """See ``Storage.tree``."""
        local = self._local(folder)
        with _telling(local):
            return dict(_walk(str(local), ""))

    def size(self, path: str) -> int | None:
        """See ``Storage.size``."""
        local = self._text(path)
        with _telling(local):
            try:
                found = os.stat(local)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def make_folder(self, path: str = "") -> None:
        """See ``Storage.make_folder``."""
        folder = self._local(path)
        with _telling(folder):
            for changed in self._make(folder):
                flush_folder(changed)

    def delete(self, path: str) -> None:
        """See ``Storage.delete``."""
        local = self._local(path)
        with _telling(local), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if local.is_dir() and not local.is_symlink():
                _remove_tree(local)
            else:
                local.unlink()
            flush_folder(local.parent)

    def uploads(self) -> list[Upload]:
        """See ``Storage.uploads``: a disk has none."""
        return []

    def abort_upload(self, upload: Upload) -> bool:
        """See ``Storage.abort_upload``."""
        return False

    def _make(self, folder: Path) -> list[Path]:
        """Make a folder and those above it; which folders have to be flushed for that, in order."""
        missing: list[Path] = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        missing.reverse()
        for new in missing:
            # Another rank may have been faster, which a network file system may hide from a
            # second look.
            with contextlib.suppress(FileExistsError):
                new.mkdir()
        return [new.parent for new in missing]

    def _publish(self, temporary: Path, final: Path, data: Bytes) -> None:
        try:
            os.link(temporary, final)
        except OSError as error:
            # NFS may do the link and lose the answer; the retry then finds it "existing".
            if os.stat(temporary).st_nlink > 1:
                return
            if error.errno not in _NO_LINKS:
                raise
            # Torn by a crash, this file is there but incomplete: its reader has to tell,
            # which is why a manifest carries a hash of itself.
            write_new(final, [data])

    def _local(self, path: str) -> Path:
        return self._root.joinpath(*parts_of(path, self.url))

    def _text(self, path: str) -> str:
        # For what is called once for each of thousands of ranks, where a Path takes its time.
        return "/".join((self.url, *parts_of(path, self.url)))


def _pieces(buffers: Sequence[memoryview]) -> Iterator[tuple[int, int, int]]:
    """Runs of buffers to fill by one call: the first, the one after the last, and their bytes."""
    begin = size = 0
    for end, buffer in enumerate(buffers, start=1):
        size += len(buffer)
        if size >= _PIECE_BYTES or end - begin == _PIECE_BUFFERS or end == len(buffers):
            yield begin, end, size
            begin, size = end, 0


def _fill(descriptor: int, buffers: Sequence[memoryview], offset: int, size: int) -> bool:
    """Fill buffers of ``size`` bytes in all from ``offset`` on; False where the file ends."""
    left, done = list(buffers), 0
    while (count := os.preadv(descriptor, left, offset + done)) or not size:
        done += count
        if done == size:
            return True
        while count >= len(left[0]):
            count -= len(left.pop(0))
        left[0] = left[0][count:]
    return False


def _walk(folder: str, before: str) -> Iterator[tuple[str, ObjectInfo]]:
    """Files below ``folder``; what another process removes in the meantime is left out."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        changed = os.stat(folder).st_mtime
    except FileNotFoundError:
        return
    if before and not entries:
        yield before, ObjectInfo(0, changed)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{before}{entry.name}/")
            continue
        with contextlib.suppress(FileNotFoundError):
            info = entry.stat()
            yield before + entry.name, ObjectInfo(info.st_size, info.st_mtime)


def _remove_tree(folder: Path) -> None:
    """Remove a folder, also where another process is removing it: neither may stop half-way."""
    while folder.is_dir():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)


@contextlib.contextmanager
def _telling(path: Path | str) -> Iterator[None]:
    """Name the path in errors, and raise refusals and absences as trainkit's own."""
    try:
        yield
    except (NoPermissionError, InputMissingError):
        raise
    except OSError as error:
        number = error.errno or 0
        text = error.strerror or str(error)
        where = str(error.filename or path)
        if number in _REFUSED:
            raise NoPermissionError(number, text, where) from error
        if number == errno.ENOENT:
            raise InputMissingError(number, text, where) from error
        if error.filename is None:
            raise OSError(number, text, where) from error
        raise
