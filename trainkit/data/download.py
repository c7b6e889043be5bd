"""Downloads that happen once per node: one process fetches, the others wait for the file.

The file appears under its name only when it is whole and checked, by an atomic rename; a
process that is killed on the way leaves nothing under that name. Works before any process
group exists, since all it needs is the node's file system.
"""

import contextlib
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from trainkit.config import settings
from trainkit.data.lock import node_lock
from trainkit.data.remote import RefusedError, open_url
from trainkit.errors import (
    DataError,
    EnvironmentFaultError,
    InputMissingError,
    NoPermissionError,
    TrainkitError,
)
from trainkit.waiting import Deadline, backoff

__all__ = ["download"]

log = logging.getLogger(__name__)

_ROUNDS = 3
"""How often all mirrors are asked, as long as one of them may yet come back."""
_STALE_AFTER = 3600.0
"""Seconds without a write after which a partial file is taken to be left by a dead process."""
PROGRESS_EVERY = 10.0
"""Seconds between two log lines about a download under way."""


@dataclass(frozen=True, slots=True)
class _Mirror:
    """One place to fetch from."""

    url: str
    sha256: str | None

    @classmethod
    def parse(cls, text: str) -> "_Mirror":
        """Take a ``#sha256=…`` fragment off a URL.

        Raises:
            DataError: the checksum is not one.
        """
        url, _, fragment = text.strip().partition("#")
        if not fragment:
            return cls(url, None)
        found = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
        if found is None:
            raise DataError(
                f"expected #sha256= and 64 hexadecimal digits after {shown(url)}, found #{fragment}"
            )
        return cls(url, found.group(1).lower())


def shown(url: str) -> str:
    """A URL as it may be shown: without a password or a signature."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else url


def download(
    urls: Iterable[str],
    target: Path,
    *,
    check: Callable[[Path], object] | None = None,
    timeout: float | None = None,
    advice: str = "",
) -> Path:
    """Make sure that ``target`` is there, fetching it from the first mirror that has it.

    Args:
        urls: mirrors of one file, asked in turn: http(s), and whatever fsspec knows (s3, gs,
            file, memory, …). ``#sha256=<hex>`` at the end of one is checked.
        target: where the file is to be. If it is there, nothing is done.
        check: looks at the complete file before it gets its name; raises DataError.
        timeout: seconds to wait for another process of this node that is fetching it;
            TRAINKIT_TIMEOUT by default.
        advice: what a reader could do instead, for the error.

    Returns:
        ``target``.

    Raises:
        InputMissingError: no mirror gave the file; every reason is in the message.
        DataError: what they gave was damaged, everywhere.
        DeadlineError: another process held the lock too long; the message names it.
        NoPermissionError: the folder cannot be written.
        EnvironmentFaultError: the disk is full, or broken in another way.
    """
    mirrors = [_Mirror.parse(url) for url in urls]
    if target.exists():
        return target
    seconds = settings().timeout if timeout is None else timeout
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with node_lock(target, Deadline(seconds)):
            if not target.exists():  # a process that was here first may have brought it
                _remove_stale(target)
                _fetch(mirrors, target, check, advice)
    return target


def _fetch(
    mirrors: list[_Mirror], target: Path, check: Callable[[Path], object] | None, advice: str
) -> None:
    reasons: dict[str, str] = {}
    damaged = 0
    pauses = backoff(first=0.5, last=5.0, factor=3.0)
    for round_number in range(_ROUNDS):
        worth_another = damaged = 0
        for mirror in mirrors:
            try:
                _fetch_one(mirror, target, check)
                return
            except RefusedError as refusal:
                reasons[shown(mirror.url)] = str(refusal)
                worth_another += refusal.may_pass
            except DataError as damage:
                reasons[shown(mirror.url)] = f"damaged: {damage}"
                damaged += 1
            log.warning("%s: %s", shown(mirror.url), reasons[shown(mirror.url)])
        if not worth_another or round_number == _ROUNDS - 1:
            break
        time.sleep(next(pauses))
    listed = "; ".join(f"{url}: {reason}" for url, reason in reasons.items()) or "no URL given"
    kind = DataError if damaged and damaged == len(mirrors) else InputMissingError
    raise kind(f"{target.name} could not be fetched ({listed})." + (f" {advice}" if advice else ""))


def _fetch_one(mirror: _Mirror, target: Path, check: Callable[[Path], object] | None) -> None:
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        digest = hashlib.sha256()
        begin = time.monotonic()
        with open_url(mirror.url) as (size, chunks), partial.open("xb") as file:
            written = 0
            for chunk in _with_progress(chunks, mirror.url, size):
                file.write(chunk)
                digest.update(chunk)
                written += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        if size is not None and written != size:
            raise RefusedError(f"sent {written:,} of {size:,} bytes", may_pass=True)
        if mirror.sha256 is not None and digest.hexdigest() != mirror.sha256:
            raise DataError(f"expected sha256 {mirror.sha256}, found {digest.hexdigest()}")
        if check is not None:
            check(partial)
        os.replace(partial, target)
        seconds = time.monotonic() - begin
        log.info("fetched %s (%s) in %.1f s", shown(mirror.url), _megabytes(written), seconds)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _with_progress(chunks: Iterator[bytes], url: str, size: int | None) -> Iterator[bytes]:
    """Pass chunks on, and say every few seconds how far the download is."""
    begin = last = time.monotonic()
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        now = time.monotonic()
        if now - last >= PROGRESS_EVERY:
            last = now
            whole = f" of {_megabytes(size)} ({100 * done / size:.0f} %)" if size else ""
            speed = _megabytes(int(done / (now - begin)))
            log.info("fetching %s: %s%s, %s/s", shown(url), _megabytes(done), whole, speed)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _remove_stale(target: Path) -> None:
    """Remove partial files that killed processes left behind.

    Only old ones: on a volume that several nodes share, another node may be fetching.
    """
    for partial in target.parent.glob(f".{target.name}.*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - partial.stat().st_mtime > _STALE_AFTER:
                partial.unlink()


@contextlib.contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """Errors of this node's disk as trainkit's, with the path that they are about."""
    try:
        yield
    except TrainkitError:
        raise
    except PermissionError as refusal:
        raise NoPermissionError(
            f"{target.parent} cannot be written ({refusal.strerror}), so {target.name} cannot "
            f"be put there. Mount a writable volume, or choose another folder."
        ) from None
    except OSError as fault:
        raise EnvironmentFaultError(
            f"{target.name} cannot be put into {target.parent}: {fault.strerror or fault}. "
            f"Mount a larger volume, or choose another folder."
        ) from None
