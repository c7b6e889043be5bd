"""Hearing that a process dies when it begins to, and not when the kernel is done with it.

A process of a large program is torn down for 10 to 20 ms before its parent hears of it. Before
that the kernel releases the robust mutexes that it holds (get_robust_list(2)) and wakes those
who wait for them. So a child takes a mutex in memory that it shares with whoever watches, and
keeps it; when it is let go, /proc tells whether the child is ending, and with which code.

Where that cannot be had (futex_waitv(2) came with Linux 5.16) nothing is heard: whoever uses
this waits for the end as well.
"""

import ctypes
import mmap
import os
import platform
import struct
import threading
from pathlib import Path

__all__ = ["DyingWatch"]

_SLOTS = 1024
_SLOT = 64  # bytes; a pthread_mutex_t has 40 on x86-64 and 48 on ARM
_WATCHED = 127
"""Futexes that one futex_waitv takes, less the bell's."""
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
_FUTEX_WAITV = 449
_FUTEX_WAKE = 1
_FUTEX_32 = 2
_WAITERS, _OWNER_DIED = 0x80000000, 0x40000000
_EXITING = 0x4  # PF_EXITING, among a task's flags in /proc/PID/stat
_ENTRY = struct.Struct("=QQII")  # struct futex_waitv

_libc = ctypes.CDLL(None, use_errno=True)


class DyingWatch:
    """Shared by a process that watches, and by its descendants that are watched.

    Make it before they are forked. ``held`` is for the watched, everything else for the one
    that watches, which runs a thread from the first ``watch`` on.
    """

    def __init__(self) -> None:
        """Map the memory; raises OSError where the system has none of it."""
        if _FUTEX is None or not hasattr(_libc, "pthread_mutexattr_setrobust"):
            raise OSError("no robust futexes are known of this machine")
        self._memory = mmap.mmap(-1, _SLOTS * _SLOT)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._kind = ctypes.create_string_buffer(_SLOT)
        _libc.pthread_mutexattr_init(self._kind)
        _libc.pthread_mutexattr_setrobust(self._kind, 1)
        _libc.pthread_mutexattr_setpshared(self._kind, 1)
        self._last = 0  # the first slot is the bell
        self._watched: dict[int, int] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pipe: tuple[int, int] | None = None
        self._found: list[tuple[int, int]] = []

    def fileno(self) -> int:
        """Readable when there is something to ``take``; opened here, so that no fork has it."""
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        return self._pipe[0]

    def slot(self) -> int:
        """A place for a process that is about to be started."""
        self._last = self._last % (_SLOTS - 1) + 1
        _libc.pthread_mutex_init(self._address(self._last), self._kind)
        return self._last

    def hold(self, slot: int) -> None:
        """In the process that is watched, on a thread that lives as long as it does."""
        _libc.pthread_mutex_lock(self._address(slot))
        word = self._word(slot)
        word.value |= _WAITERS  # else nobody is woken; it is this thread's, so nobody else writes
        self._wake(slot)

    def watch(self, slot: int, pid: int) -> None:
        """Listen for the end of ``pid``, which holds ``slot`` or will soon."""
        with self._lock:
            if len(self._watched) == _WATCHED:
                return  # its end is seen later
            self._watched[slot] = pid
        if self._thread is None:
            self._thread = threading.Thread(target=self._listen, name="dying", daemon=True)
            self._thread.start()
        self._ring()

    def take(self) -> list[tuple[int, int]]:
        """(pid, exit code) of those that have begun to die; the code as in subprocess.

        Only those that end otherwise than with 0: who ends with 0 may take its time.
        """
        try:
            os.read(self.fileno(), 4096)
        except BlockingIOError:
            return []
        with self._lock:
            found, self._found = self._found, []
        return found

    def close(self) -> None:
        """Listen no more."""
        if self._thread is not None:
            with self._lock:
                self._watched = {-1: 0}
            self._ring()
            self._thread.join()
            self._thread = None
        for descriptor in self._pipe or ():
            os.close(descriptor)
        self._pipe = None

    def _listen(self) -> None:
        while True:
            bell = self._word(0).value
            with self._lock:
                watched = dict(self._watched)
            if -1 in watched:
                return
            seen = {slot: self._word(slot).value for slot in watched}
            if any(value & _OWNER_DIED for value in seen.values()):
                self._note({s: watched[s] for s, value in seen.items() if value & _OWNER_DIED})
                continue
            words = [(bell, self._address(0)), *((seen[s], self._address(s)) for s in watched)]
            waiters = b"".join(_ENTRY.pack(value, a.value or 0, _FUTEX_32, 0) for value, a in words)
            code = _libc.syscall(_FUTEX_WAITV, waiters, len(words), 0, None, 0)
            if code < 0 and ctypes.get_errno() not in (11, 4):  # EAGAIN: it has changed; EINTR
                return  # an older kernel, or a sandbox that forbids it

    def _note(self, released: dict[int, int]) -> None:
        found = [(pid, code) for pid in released.values() if (code := _code_of(pid))]
        with self._lock:
            for slot in released:
                self._watched.pop(slot, None)
            self._found += found
        if found and self._pipe is not None:
            os.write(self._pipe[1], b"x")

    def _ring(self) -> None:
        bell = self._word(0)
        bell.value = (bell.value + 1) & 0xFFFF
        self._wake(0)

    def _wake(self, slot: int) -> None:
        _libc.syscall(_FUTEX, self._address(slot), _FUTEX_WAKE, 1 << 30, None, None, 0)

    def _address(self, slot: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._base + slot * _SLOT)

    def _word(self, slot: int) -> ctypes.c_uint32:
        return ctypes.c_uint32.from_address(self._base + slot * _SLOT)


def _code_of(pid: int) -> int:
    """Exit code of a process that is ending, as in subprocess; 0 too where it is not.

    A mutex is also let go by execve(2), after which a process lives on.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()  # from the third on; see proc(5)
    if not int(fields[6]) & _EXITING:
        return 0
    status = int(fields[49])
    number = status & 0x7F
    return -number if number else status >> 8
