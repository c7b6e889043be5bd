"""Every byte of every checkpoint against its checksum, with a few threads and bounded memory."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from trainkit.checkpoint.admin.chunks import chunk_length, chunk_problem
from trainkit.checkpoint.admin.survey import (
    Listing,
    State,
    StepFiles,
    quarantine_reason,
    size_problems,
    without_place,
)
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.checksums import CHUNK_BYTES, FileRecord
from trainkit.checkpoint.format.layout import MANIFEST, StepFolder
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.errors import (
    CheckpointDamagedError,
    EnvironmentFaultError,
    ExitCode,
    NoPermissionError,
    RetryableError,
)
from trainkit.storage import Storage

__all__ = ["Verdict", "bytes_to_check", "exit_code", "verify"]

Progress = Callable[[int], None]
"""Told of each number of bytes that has been checked; by one thread at a time."""


@dataclass(slots=True)
class Verdict:
    """What was found out about one step folder."""

    folder: StepFolder
    state: State
    problems: list[str] = field(default_factory=list)
    """Paths below the root, each with what is wrong there."""
    unlisted: list[str] = field(default_factory=list)
    """Files in the folder that no manifest lists, and that nobody reads."""
    reason: str = ""
    """Why it is in quarantine, or cannot be read."""
    num_files: int = 0
    num_bytes: int = 0
    quarantined: bool = False
    code: ExitCode = ExitCode.DONE
    """What a command that found this alone ends with."""

    def damaged(self, path: str, problem: str) -> None:
        """Note that a file is not what was saved."""
        self.state, self.code = State.DAMAGED, ExitCode.DATA_INVALID
        self.problems.append(f"{self.folder.name}/{path}{problem}")

    def unreadable(self, reason: str, code: ExitCode) -> None:
        """Note that nobody can tell whether it is whole."""
        if self.state is not State.DAMAGED:
            self.state, self.reason, self.code = State.UNREADABLE, reason, code


@dataclass(frozen=True, slots=True)
class _Chunk:
    verdict: Verdict
    path: str
    record: FileRecord
    number: int


def bytes_to_check(listing: Listing, chosen: Sequence[StepFolder] | None = None) -> int:
    """Bytes that ``verify`` is going to read, for a progress bar."""
    return sum(f.size for f in listing.steps if _is_read(f, listing, chosen))


def verify(
    storage: Storage,
    listing: Listing,
    chosen: Sequence[StepFolder] | None = None,
    *,
    quick: bool = False,
    threads: int = 4,
    progress: Progress = lambda count: None,
) -> list[Verdict]:
    """Check committed checkpoints; nothing is changed, and a run may go on meanwhile.

    Args:
        storage: of the root.
        listing: of the root, as ``list_root`` returned it.
        chosen: the folders to check, in quarantine or not; by default all, of which those in
            quarantine are reported and not read.
        quick: check manifests and sizes of files, and read no data.
        threads: that read and hash; each holds one chunk of 8 MiB.
        progress: told of bytes that were checked.

    Returns:
        A verdict a folder, newest first. One that was removed meanwhile has none.

    Raises:
        RetryableError: all of them were removed meanwhile.
        NoPermissionError: one may not be read.
    """
    verdicts: list[Verdict] = []
    work = _work(storage, listing, chosen, verdicts, quick=quick)
    lock, stop = threading.Lock(), threading.Event()

    def check() -> None:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        while not stop.is_set():
            with lock:
                chunk = next(work, None)
            if chunk is None:
                return
            problem, fault = "", None
            try:
                where = f"{chunk.verdict.folder.name}/{chunk.path}"
                problem = chunk_problem(storage, where, chunk.record, chunk.number, buffer)
            except NoPermissionError:
                raise
            except OSError as error:  # of a disk or a network: the bytes may be whole
                fault = error
            with lock:
                if problem:
                    chunk.verdict.damaged(chunk.path, problem)
                if fault is not None:
                    chunk.verdict.unreadable(str(fault), ExitCode.RETRYABLE)
                progress(chunk_length(chunk.record, chunk.number))

    with ThreadPoolExecutor(threads, thread_name_prefix="trainkit-verify") as pool:
        try:
            for crew in [pool.submit(check) for _ in range(threads)]:
                crew.result()
        finally:  # an interrupt or a refusal ends the others after the chunk they are at
            stop.set()
    found = [verdict for verdict in verdicts if not _has_gone(storage, verdict)]
    if len(found) < len(verdicts) and all(v.state is State.UNCOMMITTED for v in found):
        raise RetryableError(
            f"all checkpoints of {storage.url} were removed while they were read: a run saves more "
            f"often than one is read. Verify again, with --quick, or while the run is at rest."
        )
    return found


def exit_code(verdicts: Sequence[Verdict]) -> ExitCode:
    """0 if all that count are whole; else the code of the worst that was found."""
    found = {verdict.code for verdict in verdicts}
    for code in (ExitCode.DATA_INVALID, ExitCode.RETRYABLE, ExitCode.ENVIRONMENT):
        if code in found:
            return code
    states = {verdict.state for verdict in verdicts}
    if State.COMMITTED in states:
        return ExitCode.DONE
    # Nothing but damaged ones that were set aside is nothing that a run could restore.
    return ExitCode.DATA_INVALID if State.QUARANTINED in states else ExitCode.INPUT_MISSING


def _work(
    storage: Storage,
    listing: Listing,
    chosen: Sequence[StepFolder] | None,
    verdicts: list[Verdict],
    *,
    quick: bool,
) -> Iterator[_Chunk]:
    """Chunks to be read, found as they are needed; a verdict a folder is added on the way."""
    for files in listing.steps:
        if chosen is not None and files.folder not in chosen:
            continue
        verdict = Verdict(files.folder, State.COMMITTED)
        verdict.quarantined = files.folder.name in listing.marks
        verdicts.append(verdict)
        if verdict.quarantined:
            verdict.reason = quarantine_reason(storage, files.folder)
        if not files.has_manifest:
            verdict.state = State.UNCOMMITTED
        elif not _is_read(files, listing, chosen):
            verdict.state = State.QUARANTINED
        else:
            manifest = _manifest(storage, files, verdict)
            if manifest is not None and not quick:
                yield from _chunks(verdict, manifest, files)


def _is_read(files: StepFiles, listing: Listing, chosen: Sequence[StepFolder] | None) -> bool:
    if chosen is not None:
        return files.folder in chosen and files.has_manifest
    return files.has_manifest and files.folder.name not in listing.marks


def _manifest(storage: Storage, files: StepFiles, verdict: Verdict) -> Manifest | None:
    try:
        manifest = catalog.read_own_manifest(storage, files.folder)
    except CheckpointDamagedError as error:
        verdict.damaged(MANIFEST, f": {without_place(error, storage, files.folder)}")
        return None
    except EnvironmentFaultError as error:
        reason = without_place(error, storage, files.folder)
        verdict.unreadable(reason, ExitCode.ENVIRONMENT)
        return None
    verdict.num_files = len(manifest.files) + 1
    verdict.num_bytes = sum(record.size for record in manifest.files.values())
    verdict.num_bytes += files.files[MANIFEST].size
    verdict.unlisted = sorted(set(files.files) - set(manifest.files) - {MANIFEST})
    for problem in size_problems(files, manifest):
        verdict.damaged(problem, "")
    return manifest


def _chunks(verdict: Verdict, manifest: Manifest, files: StepFiles) -> Iterator[_Chunk]:
    for path, record in manifest.files.items():
        info = files.files.get(path)
        if info is not None and info.size == record.size:
            for number in range(len(record.chunks)):
                if verdict.state is State.UNREADABLE:
                    return
                yield _Chunk(verdict, path, record, number)


def _has_gone(storage: Storage, verdict: Verdict) -> bool:
    """Whether a folder seems damaged because it was removed meanwhile: the manifest goes first."""
    if verdict.state is not State.DAMAGED:
        return False
    return storage.size(f"{verdict.folder.name}/{MANIFEST}") is None
