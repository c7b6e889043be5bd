"""What the kernel's log says of the GPUs, where a container may read it."""

import os
import re
import time

__all__ = ["gpu_faults"]

_LOG = "/dev/kmsg"
_FAULT = re.compile(r"NVRM: (Xid .*|GPU .*fallen off the bus.*)")
_MOST_RECORDS = 100_000


def gpu_faults(since: float, path: str = _LOG) -> list[str]:
    """What the GPU's driver reported (its Xid messages), oldest first; empty where unreadable.

    Args:
        since: seconds since the epoch; what was reported before is left out.
        path: of the log, one record a line: ``priority,number,microseconds since boot,…;text``.
    """
    booted = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    found = []
    for record in _records(path):
        head, _, text = record.partition(";")
        fault = _FAULT.search(text)
        microseconds = [*head.split(","), "", ""][2]
        if fault and microseconds.isdecimal() and booted + int(microseconds) / 1e6 >= since:
            found.append(fault[1].splitlines()[0].strip())
    return found


def _records(path: str) -> list[str]:
    """All records that are there now; the device gives one a read, and would wait at its end."""
    records: list[str] = []
    try:
        log = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return records
    try:
        while len(records) < _MOST_RECORDS:
            try:
                data = os.read(log, 8192)
            except BrokenPipeError:  # records were overwritten meanwhile: go on at the next
                continue
            if not data:
                break
            records.append(data.decode(errors="replace"))
    except OSError:  # nothing more for now, or nothing for us
        pass
    finally:
        os.close(log)
    return "".join(records).splitlines()
