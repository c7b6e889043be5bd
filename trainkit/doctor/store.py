"""Whether checkpoints can be written, read and committed where they are to lie, and how fast."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from trainkit import config
from trainkit.doctor.finding import Finding, Question, Status
from trainkit.doctor.job import ranks_here, topology_or_none
from trainkit.doctor.sizes import size, speed
from trainkit.errors import DependencyError, InputMissingError, NoPermissionError, TrainkitError
from trainkit.resources.memory import memory_left
from trainkit.resources.space import Space, existing_parent, space_of
from trainkit.storage import LocalStorage, Storage, open_storage

__all__ = ["check_checkpoint", "check_local_tier", "examine"]

_FIRST, _LAST = 4 << 20, 64 << 20
"""Bytes that are written to measure a speed: more and more, until it takes long enough."""
_LONG = 0.5
_LONGEST = 10.0
"""Seconds that the next round may be expected to take."""
_OBJECTS = 4
_KEPT = 4
"""Checkpoints that lie there at once: 3 that are kept by default, and the one being written."""


def check_checkpoint(question: Question) -> Iterator[Finding]:
    """The place that --checkpoint-dir or TRAINKIT_CHECKPOINT_DIR names."""
    url = question.checkpoint_dir or config.settings().checkpoint_dir
    if url is None:
        advice = "Give --checkpoint-dir URL, or set TRAINKIT_CHECKPOINT_DIR as the job does."
        found = "no checkpoint folder is named"
        yield Finding("checkpoint", Status.NOT_CHECKED, found, advice)
        return
    yield from examine("checkpoint", url, question)


def check_local_tier(question: Question) -> Iterator[Finding]:
    """The folder that TRAINKIT_LOCAL_TIER names."""
    url = config.settings().local_tier
    if url is None:
        yield Finding("local-tier", Status.NOT_CHECKED, "TRAINKIT_LOCAL_TIER is not set")
        return
    yield from examine("local-tier", url, question)


def examine(name: str, url: str, question: Question) -> Iterator[Finding]:
    """Write, read and write again in a folder of its own below ``url``, and remove it.

    Args:
        name: of the check.
        url: where checkpoints are to lie.
        question: how large they are.
    """
    try:
        storage = open_storage(url)
    except TrainkitError as error:
        yield Finding(name, Status.BROKEN, str(error))
        return
    trial = f".doctor-{socket.gethostname()}-{uuid.uuid4().hex[:12]}"
    above = existing_parent(storage.url) if isinstance(storage, LocalStorage) else None
    works = False
    try:
        try:
            finding = _round_trip(name, storage, trial)
            works = finding.status is Status.OK
            yield finding
        except (OSError, TrainkitError) as error:
            yield _failed(name, storage, error)
        if works:
            yield from _room_and_speed(name, storage, trial, question)
    finally:
        left = _tidied(storage, trial, above)
    if left is not None and works:
        found = f"what was written to {storage.url} cannot be removed: {left}"
        advice = f"Old checkpoints could not be removed either: grant it, and remove {trial}."
        yield Finding(name, Status.WARNING, found, advice, {"left_behind": trial})


def _round_trip(name: str, storage: Storage, trial: str) -> Finding:
    """Create an object, refuse to create it again, and read it back."""
    first, second = os.urandom(1024), os.urandom(1024)
    values = {"url": storage.url, "storage": type(storage).__name__}
    storage.make_folder(trial)
    path = f"{trial}/object"
    storage.create(path, first)
    refused = False
    with contextlib.suppress(FileExistsError):
        storage.create(path, second)
        refused = True
    found = storage.read(path)
    if refused or found == second:
        text = f"{storage.url} wrote over an object that was to be created anew"
        advice = (
            "Its store does not honour conditional writes (If-None-Match), on which a commit "
            "stands: use a newer release of the store, or another one."
        )
        return Finding(name, Status.BROKEN, text, advice, values)
    if found != first:
        text = f"{storage.url} gives back other bytes than were written"
        return Finding(name, Status.BROKEN, text, "Use another store, or mend this one.", values)
    text = f"{storage.url} can be written, read, and refuses to write over"
    return Finding(name, Status.OK, text, values=values)


def _room_and_speed(
    name: str, storage: Storage, trial: str, question: Question
) -> Iterator[Finding]:
    room = None
    if isinstance(storage, LocalStorage):
        room = space_of(existing_parent(storage.url))
        yield _room(f"{name}-space", storage.url, room, question.state_size)
    try:
        yield _speed(f"{name}-speed", storage, trial, room, question)
    except (OSError, TrainkitError) as error:
        yield _failed(f"{name}-speed", storage, error)


def _room(name: str, url: str, room: Space, state_size: int | None) -> Finding:
    values = {"free": room.free, "total": room.total, "files": room.files}
    values["need"] = None if state_size is None else _KEPT * state_size
    found = f"{size(room.free)} of {size(room.total)} free at {url}"
    advice = "Make room, or use a larger volume."
    if room.files is not None and room.files < 100:
        found += f", room for {room.files} more files"
        return Finding(name, Status.BROKEN, found, advice, values)
    if state_size is None:
        status = Status.WARNING if room.free < 1 << 30 else Status.OK
        return Finding(name, status, found, advice if status is Status.WARNING else "", values)
    if room.free < state_size:
        found += f", and a checkpoint takes {size(state_size)}"
        return Finding(name, Status.BROKEN, found, advice, values)
    if room.free < _KEPT * state_size:
        found += f", and {_KEPT} checkpoints of {size(state_size)} lie there at once"
        return Finding(name, Status.WARNING, found, f"{advice[:-1]}, or keep fewer.", values)
    return Finding(name, Status.OK, found, values=values)


def _speed(
    name: str, storage: Storage, trial: str, room: Space | None, question: Question
) -> Finding:
    """Write as a save does: several new objects at once, durable on return."""
    most = min(_LAST, (memory_left() or _LAST) // 8, room.free // 4 if room else _LAST)
    if most < _OBJECTS * 4096:
        return Finding(name, Status.NOT_CHECKED, "too little room or memory to measure a speed")
    amount, number = min(_FIRST, most), 0
    while True:
        piece = amount // _OBJECTS
        files = {f"{trial}/speed-{number}-{n}": os.urandom(piece) for n in range(_OBJECTS)}
        begin = time.monotonic()
        storage.write_all(files)
        wrote = max(time.monotonic() - begin, 1e-6)
        if wrote >= _LONG or amount >= most or 4 * wrote > _LONGEST:
            break
        amount, number = min(4 * amount, most), number + 1
    begin = time.monotonic()
    buffer = memoryview(bytearray(piece))
    for path in files:
        storage.read_into(path, buffer)
    read = max(time.monotonic() - begin, 1e-6)
    done = _OBJECTS * piece
    values: dict[str, float | int | None] = {
        "write": done / wrote,
        "read": done / read,
        "amount": done,
        "save": None,
    }
    found = (
        f"{speed(done / wrote)} written and {speed(done / read)} read by one process, "
        f"with {size(done)} in {_OBJECTS} objects"
    )
    if question.state_size is None:
        return Finding(name, Status.OK, found, values=values)
    return _save_time(name, found, values, question.state_size)


def _save_time(
    name: str, found: str, values: dict[str, float | int | None], state_size: int
) -> Finding:
    """Compare the time of a save with that between a notice to stop and the kill."""
    topology = topology_or_none()
    ranks = (topology.world_size if topology is not None else None) or ranks_here()
    grace = config.settings().grace_period
    seconds = state_size / ranks / (values["write"] or 1)
    values["save"] = seconds
    found += f"; a rank's part of {size(state_size)} takes about {seconds:.0f} s of {grace:g} s"
    if seconds <= grace:
        return Finding(name, Status.OK, found, values=values)
    advice = (
        "A pre-emption leaves no time for a save: raise terminationGracePeriodSeconds and "
        "TRAINKIT_GRACE_PERIOD, or set TRAINKIT_LOCAL_TIER."
    )
    return Finding(name, Status.WARNING, found, advice, values)


def _failed(name: str, storage: Storage, error: BaseException) -> Finding:
    number = getattr(error, "errno", None)
    text = str(error)
    if isinstance(storage, LocalStorage):
        advice = "Mount a volume there, or correct the path."
    else:
        advice = "Is the endpoint right, and does the network reach it?"
    if "RequestTimeTooSkewed" in text:
        advice = "Set the node's clock by NTP: the store refuses requests of another time."
    elif isinstance(error, DependencyError):
        advice = ""  # its message says what to install
    elif number in (errno.ENOSPC, errno.EDQUOT):
        advice = "It is full: make room, or use a larger volume."
    elif number == errno.EROFS or (number in (errno.EACCES, errno.EPERM) and _is_file(storage)):
        advice = (
            "Mount it writable (no readOnly, no ReadOnlyMany), and let this user write: fsGroup "
            f"in the pod's securityContext (this is user {os.geteuid()})."
        )
    elif isinstance(error, NoPermissionError):
        advice = "Grant this pod's credentials get, put, list and delete there."
    elif isinstance(error, InputMissingError) and not _is_file(storage):
        advice = "Make the bucket, or correct its name."
    return Finding(name, Status.BROKEN, f"{storage.url}: {text}", advice, {"url": storage.url})


def _is_file(storage: Storage) -> bool:
    return isinstance(storage, LocalStorage)


def _tidied(storage: Storage, trial: str, above: str | None) -> str | None:
    """Remove what was made; why it could not be, or None."""
    problem = None
    try:
        storage.delete(trial)
    except (OSError, TrainkitError) as error:
        problem = str(error)
    if above is not None:
        # Folders that were not there before; a run makes them itself.
        folder = Path(storage.url)
        with contextlib.suppress(OSError):
            while str(folder) != above and folder != folder.parent:
                folder.rmdir()
                folder = folder.parent
    return problem
