"""What a reader can do about a failure, told from its words or from the signal that ended it."""

import re
import signal
from collections.abc import Callable

from trainkit.resources.memory import memory_use, oom_kills, shared_memory

__all__ = [
    "CRASHES",
    "PEER_GONE",
    "describe_signal",
    "hint_of_exit_code",
    "hint_of_signal",
    "hint_of_text",
    "small_shared_memory",
]

CRASHES = frozenset(
    {
        signal.SIGKILL,
        signal.SIGBUS,
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGSYS,
    }
)
"""Signals of which nobody ends in order."""

PEER_GONE = "another rank ended first: its log has the cause"


def _memory() -> str:
    return f"the memory of the pod is used up ({_memory_numbers(oom_kills() or 0)})"


def _memory_numbers(killed: int) -> str:
    used = memory_use()
    parts = ["no limit is seen from here" if used is None else f"limit {_size(used[1])}"]
    if used is not None:
        parts.append(f"{_size(used[0])} in use now")
    parts.append(f"{killed} process{'es' * (killed != 1)} killed for memory")
    return ", ".join(parts) + "; raise resources.limits.memory, or use fewer loader workers"


_RUNTIMES_DEFAULT = 64 << 20
"""Bytes of /dev/shm that a container gets where nobody asks for more."""
_MORE_SHARED_MEMORY = (
    "give the pod `volumes: [{name: shm, emptyDir: {medium: Memory}}]` and the container "
    "`volumeMounts: [{name: shm, mountPath: /dev/shm}]`"
)


def small_shared_memory() -> str:
    """A warning that loaders' workers may die of too little of it; empty where there is more."""
    found = shared_memory()
    if found is None or found[0] > _RUNTIMES_DEFAULT:
        return ""
    return (
        f"shared memory, /dev/shm, has {_size(found[0])}: too little for most loaders with "
        f"workers, which then die of SIGBUS, and for NCCL among several GPUs. If you use them, "
        f"{_MORE_SHARED_MEMORY}"
    )


def _shared_memory() -> str:
    found = shared_memory()
    size = "" if found is None else f" ({_size(found[0])}, {_size(found[1])} free now)"
    return f"shared memory, /dev/shm{size}, is too small: {_MORE_SHARED_MEMORY}"


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.4g} {unit}"


_WORDS: tuple[tuple[str, str | Callable[[], str]], ...] = (
    (r"duplicate gpu", "two ranks were given one GPU: start as many ranks as the pod has GPUs"),
    (
        r"(cuda|hip) out of memory|\boutofmemoryerror\b|cuda_error_out_of_memory",
        "the GPU's memory is full: a smaller batch, bf16, or activation checkpointing",
    ),
    (
        r"uncorrectable (ecc|nvlink) error|fallen off the bus|gpu is lost|nvrm: xid",
        "the GPU is broken: run on another node, and have this one drained and looked at",
    ),
    (r"killed by signal: killed", _memory),
    (r"\bbus error|shared memory|/dev/shm|\bshm\b", _shared_memory),
    (
        r"no space left on device|disk quota exceeded|\[errno (28|122)\]",
        "the disk is full: a larger volume, or fewer checkpoints (keep=)",
    ),
    (
        r"too many open files|\[errno 24\]",
        "the limit of open files is reached: raise ulimit -n, or use fewer loader workers",
    ),
    (r"\bmemoryerror\b|cannot allocate memory|can't allocate memory", _memory),
    (
        r"address already in use|eaddrinuse",
        "another process has this port: a leftover of an earlier run, or a second job on this "
        "host with the same MASTER_PORT",
    ),
    (
        r"name or service not known|temporary failure in name resolution|rendezvous\w*error"
        r"|timed out after .*clients joined|failed to connect to.*master",
        "the ranks did not meet: are all pods running, and do MASTER_ADDR and MASTER_PORT name the "
        "first one?",
    ),
    (
        r"invalid device ordinal|no cuda-capable device|found no nvidia driver",
        "more ranks than GPUs, or no GPU was granted: compare nproc-per-node with the pod's "
        "nvidia.com/gpu",
    ),
    (
        r"illegal memory access|device-side assert|unspecified launch failure",
        "a kernel failed on the GPU, often an index out of range: CUDA_LAUNCH_BLOCKING=1 shows "
        "which line",
    ),
    (
        r"unhandled (system|cuda) error|nccl.*(internal error|invalid usage)|nccl version",
        "NCCL failed: NCCL_DEBUG=INFO tells more (network interface, driver, versions)",
    ),
    (
        r"watchdog caught collective|watchdog got stuck|nccl operations have failed or timed out",
        "a collective did not end in time: another rank ended, hangs, or calls other collectives",
    ),
)


def hint_of_text(text: str) -> str:
    """What to do about an error whose class, message or output is ``text``; empty if unknown."""
    lowered = text.lower()
    for pattern, hint in _WORDS:
        if re.search(pattern, lowered):
            return hint if isinstance(hint, str) else hint()
    return ""


def hint_of_signal(number: int, *, oom_kills: int = 0, asked: bool = False) -> str:
    """What to do about a process that ended by signal ``number``.

    Args:
        number: of the signal.
        oom_kills: how many processes the kernel killed for memory meanwhile.
        asked: the process had been told to end.
    """
    if number == signal.SIGKILL and oom_kills:
        return f"killed by the kernel: memory limit of the container ({_memory_numbers(oom_kills)})"
    if number == signal.SIGKILL and asked:
        return "it did not end within the grace period (TRAINKIT_GRACE_PERIOD), so it was killed"
    if number == signal.SIGKILL:
        return (
            "killed from outside: the kernel counts no kill for memory in this container's cgroup. "
            "A person, another program, or the node itself (its events and dmesg tell)"
        )
    if number == signal.SIGBUS:
        return _shared_memory()
    return _SIGNALS.get(number, "")


_SIGNALS: dict[int, str] = {
    signal.SIGSEGV: "a crash in native code: faulthandler's lines in its output say where",
    signal.SIGABRT: "native code gave up: the last lines of its output say why",
    signal.SIGILL: "an instruction that this CPU does not have: a build for another CPU",
    signal.SIGTERM: "something ended this process alone: trainkit did not ask it to",
    signal.SIGHUP: "its terminal or its parent went away",
}


def hint_of_exit_code(code: int) -> str:
    """What to do about a process that ended with ``code`` and said nothing."""
    return {
        126: "the command is there but cannot be executed: is it a program, with the right to run?",
        127: "the command was not found: is it in the image, and on PATH?",
    }.get(code, "")


def describe_signal(number: int) -> str:
    """Name and number: ``SIGKILL (9)``."""
    try:
        return f"{signal.Signals(number).name} ({number})"
    except ValueError:
        return f"signal {number}"
