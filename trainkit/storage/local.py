"""Storage in a folder of a mounted file system."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainkit.errors import InputMissingError, NoPermissionError
from trainkit.storage.base import Bytes, parts_of

__all__ = ["LocalStorage"]

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}
"""What file systems without hard links answer: FAT, SMB, several FUSE mounts."""

_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_BUFFER = 1 << 20


class LocalStorage:
    """Files under one folder, flushed to disk together with the folders that name them."""

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
                _write_new(temporary, [data])
                self._publish(temporary, final, data)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
            _flush_folder(final.parent)

    def write(self, path: str, parts: Iterable[Bytes]) -> None:
        """See ``Storage.write``."""
        final = self._local(path)
        with _telling(final):
            self.make_folder(os.path.dirname(path))
            _write_new(final, parts)
            _flush_folder(final.parent)

    def read(self, path: str) -> bytes:
        """See ``Storage.read``."""
        local = self._local(path)
        with _telling(local):
            return local.read_bytes()

    def read_into(self, path: str, buffer: memoryview, offset: int = 0) -> int:
        """See ``Storage.read_into``."""
        local = self._local(path)
        done = 0
        with _telling(local), local.open("rb", buffering=0) as file:
            file.seek(offset)
            while done < len(buffer) and (count := file.readinto(buffer[done:])):
                done += count
        return done

    def names(self, folder: str = "") -> list[str]:
        """See ``Storage.names``."""
        local = self._local(folder)
        with _telling(local):
            try:
                return sorted(os.listdir(local))
            except FileNotFoundError:
                return []

    def size(self, path: str) -> int | None:
        """See ``Storage.size``."""
        local = self._local(path)
        with _telling(local):
            try:
                return local.stat().st_size if local.is_file() else None
            except FileNotFoundError:
                return None

    def make_folder(self, path: str = "") -> None:
        """See ``Storage.make_folder``."""
        missing: list[Path] = []
        folder = self._local(path)
        with _telling(folder):
            while not folder.is_dir():
                missing.append(folder)
                folder = folder.parent
            for new in reversed(missing):
                new.mkdir(exist_ok=True)  # another rank may have been faster
                _flush_folder(new.parent)

    def delete(self, path: str) -> None:
        """See ``Storage.delete``."""
        local = self._local(path)
        with _telling(local), contextlib.suppress(FileNotFoundError):
            if local.is_dir() and not local.is_symlink():
                shutil.rmtree(local)
            else:
                local.unlink()
            _flush_folder(local.parent)

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
            _write_new(final, [data])

    def _local(self, path: str) -> Path:
        return self._root.joinpath(*parts_of(path, self.url))


def _write_new(path: Path, parts: Iterable[Bytes]) -> None:
    """Write a file that must not exist, and flush it; on an error it is taken away again."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb", buffering=_BUFFER) as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder durable; a file's own fsync does not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # FUSE and SMB mounts have none
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
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
