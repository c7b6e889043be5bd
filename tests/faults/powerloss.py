"""What a disk may hold after power is lost: a log of operations, and the states it allows.

The model is as harsh as POSIX: what was not flushed may be there or not, in any combination
and order; a write may be there in part, or as zeros; a name is safe only once its folder was
flushed, and a file's bytes once the file was. Operations on one name stay in order.
"""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from tests.faults.oslayer import Layer

SECTOR = 512
TOP = 0
"""The folder that is there from the beginning, and flushed."""


@dataclass(frozen=True)
class Effect:
    """One change, or one flush, of an object: a file or a folder, known by a number.

    ``kind`` is "name" (``names`` holds folder, name, and the object or None), "data", "cut",
    "sync" or "note" (what the test has to remember, such as an acknowledgement).
    """

    kind: str
    target: int = -1
    names: tuple = ()
    offset: int = 0
    data: bytes = b""
    note: object = None


@dataclass
class Log:
    """All effects below one folder, recorded while it is entered."""

    top: Path
    effects: list = field(default_factory=list)
    refuse_links: bool = False

    def __post_init__(self):
        self._folders = {TOP: {}}
        self._next = 1
        self._layer = Layer(self._before, self._after)

    def __enter__(self):
        self._layer.__enter__()
        return self

    def __exit__(self, *_):
        self._layer.__exit__()

    def note(self, *what):
        """Remember that something happened by now."""
        self.effects.append(Effect("note", note=what))

    def _before(self, operation):
        if operation.name == "link" and self.refuse_links:
            raise PermissionError(1, "Operation not permitted", operation.path)

    def _after(self, operation):
        path = operation.path
        if not path or (not path.startswith(f"{self.top}/") and path != str(self.top)):
            return
        getattr(self, f"_on_{operation.name}")(operation)

    def _on_open(self, operation):
        folder, name = self._place(operation.path)
        known = self._folders[folder].get(name)
        if known is None:
            self._put((folder, name, self._new()))
        elif operation.flags & os.O_TRUNC:
            self.effects.append(Effect("cut", known, offset=0))

    def _on_write(self, operation):
        data = operation.data[: operation.result]
        target = self._object(operation.path)
        self.effects.append(Effect("data", target, offset=operation.offset, data=data))

    def _on_fsync(self, operation):
        self.effects.append(Effect("sync", self._object(operation.path)))

    def _on_truncate(self, operation):
        target = self._object(operation.path)
        self.effects.append(Effect("cut", target, offset=operation.length))

    def _on_allocate(self, operation):
        """Space alone is no content; the size comes with the writes, or with a truncation."""

    def _on_link(self, operation):
        self._put((*self._place(operation.second), self._object(operation.path)))

    def _on_rename(self, operation):
        target = self._object(operation.path)
        self._put((*self._place(operation.path), None), (*self._place(operation.second), target))

    _on_replace = _on_rename

    def _on_unlink(self, operation):
        self._put((*self._place(operation.path), None))

    _on_rmdir = _on_unlink

    def _on_mkdir(self, operation):
        new = self._new()
        self._folders[new] = {}
        self._put((*self._place(operation.path), new))

    def _new(self):
        self._next += 1
        return self._next

    def _put(self, *names):
        for folder, name, target in names:
            self._folders[folder][name] = target
        self.effects.append(Effect("name", names=names))

    def _place(self, path):
        folder, name = os.path.split(path)
        return self._object(folder), name

    def _object(self, path):
        found = TOP
        for name in Path(path).relative_to(self.top).parts:
            found = self._folders[found][name]
        return found


@dataclass(frozen=True)
class Crash:
    """A state after power was lost."""

    prefix: int
    """How many effects had happened."""
    lost: frozenset
    """Those of them that are not there."""
    torn: tuple = ()
    """Pairs of a write and the bytes of it that are there; the others are zeros or missing."""
    zeros: bool = False
    """Whether the missing bytes of torn writes are zeros; else the file ends before them."""


def pending(effects, prefix):
    """The effects before ``prefix`` that nothing has made durable."""
    flushed, left = set(), []
    for place in range(prefix - 1, -1, -1):
        effect = effects[place]
        if effect.kind == "sync":
            flushed.add(effect.target)
        elif effect.kind == "name":
            if not all(folder in flushed for folder, _, _ in effect.names):
                left.append(place)
        elif effect.kind in ("data", "cut") and effect.target not in flushed:
            left.append(place)
    return left[::-1]


def prefix_crashes(effects):
    """Of each prefix: all of it there, and all that was not flushed lost."""
    for prefix in range(len(effects) + 1):
        yield Crash(prefix, frozenset())
        yield Crash(prefix, frozenset(pending(effects, prefix)))


def single_crashes(effects):
    """Of each prefix: each change that was not flushed lost, or there, alone."""
    for prefix in range(len(effects) + 1):
        left = frozenset(pending(effects, prefix))
        for one in left:
            yield Crash(prefix, frozenset({one}))
            yield Crash(prefix, left - {one})


def random_crashes(effects, seed):
    """Any prefix, any of what was not flushed lost, and writes torn; without end."""
    rng = random.Random(seed)
    while True:
        prefix = rng.randrange(1, len(effects) + 1)
        left = pending(effects, prefix)
        share = rng.choice([0.1, 0.5, 0.9])
        lost = frozenset(place for place in left if rng.random() < share)
        torn = tuple(
            (place, rng.randrange(len(effects[place].data) // SECTOR + 1) * SECTOR)
            for place in left
            if place not in lost and effects[place].kind == "data" and rng.random() < 0.5
        )
        yield Crash(prefix, lost, torn, rng.random() < 0.5)


def tree_after(effects, crash):
    """Bytes of the files, by path, and None for folders, that are there after a crash."""
    folders, files, torn = {TOP: {}}, {}, dict(crash.torn)
    for place in range(crash.prefix):
        effect = effects[place]
        if place in crash.lost or effect.kind in ("sync", "note"):
            continue
        if effect.kind == "name":
            for folder, name, target in effect.names:
                folders.setdefault(folder, {})[name] = target
        elif effect.kind == "cut":
            content = files.setdefault(effect.target, bytearray())
            del content[effect.offset :]
            content.extend(bytes(effect.offset - len(content)))
        else:
            data = effect.data
            if place in torn:
                kept = data[: torn[place]]
                data = kept + bytes(len(data) - len(kept)) if crash.zeros else kept
            content = files.setdefault(effect.target, bytearray())
            content.extend(bytes(max(0, effect.offset + len(data) - len(content))))
            content[effect.offset : effect.offset + len(data)] = data
    made = {names[2] for e in effects if e.kind == "name" for names in e.names}
    are_folders = {folder for e in effects if e.kind == "name" for folder, _, _ in e.names}
    tree = {}

    def walk(folder, path):
        for name, target in folders.get(folder, {}).items():
            if target is None:
                continue
            below = f"{path}/{name}" if path else name
            if target in are_folders or target in folders:
                tree[below] = None
                walk(target, below)
            else:
                tree[below] = bytes(files.get(target, b""))

    assert made  # a log of nothing would pass each test
    walk(TOP, "")
    return tree


def fingerprint(tree):
    """Equal for equal trees."""
    hasher = xxhash.xxh3_128()
    for path in sorted(tree):
        hasher.update(f"{path}\0{tree[path] is None}\0".encode())
        hasher.update(tree[path] or b"")
    return hasher.digest()


def lay_out(tree, top):
    """Make the files and folders of ``tree`` below ``top``."""
    top.mkdir()
    for path in sorted(tree):
        if tree[path] is None:
            (top / path).mkdir()
        else:
            (top / path).write_bytes(tree[path])
