"""The hooks see what strace sees: nothing that changes a file passes them by."""

import collections
import re

import pytest

from tests.faults import tracing
from tests.faults.group import Group
from tests.faults.oslayer import Layer
from tests.faults.trials import Report, beginning, next_step, saver, serve

_CALL = re.compile(r"^\d+ +(\w+)\((.*)", re.MULTILINE)
_NAMES = {"openat": "open", "pwrite64": "write", "fdatasync": "fsync", "unlinkat": "unlink"}


def both(share):
    """How often each kind of change is seen by the hooks, and by strace."""
    begin = beginning(share.folder, "retention")
    with share.root(begin) as oracle:
        token, step = next_step(oracle, "retention")

        def main(side):
            seen = collections.Counter()
            # A removed folder is one name in os, and another at the system call.
            layer = Layer(after=lambda op: seen.update([op.name.replace("rmdir", "unlink")]))
            saver(side, oracle, token, step, armed=layer)
            return dict(seen)

        log = share.folder / "trace"
        with Group(1, main, held=True) as group, tracing.Strace(group.members[0].pid, log):
            group.let_go()
            (member,) = group.finish()
    traced = collections.Counter()
    for name, arguments in _CALL.findall(log.read_text()):
        name = "unlink" if name == "rmdir" else _NAMES.get(name, name)
        if "ENOENT" in arguments or (name == "open" and "O_CREAT" not in arguments):
            continue
        traced[name] += 1
    report = Report()
    report.notes.append((member.heard("value")[0], dict(traced)))
    return report


def test_the_hooks_miss_nothing():
    if reason := tracing.why_not():
        pytest.skip(reason)
    ((hooked, traced),) = serve(both, shards=1).notes
    assert sum(hooked.values()) > 40
    # Signs of life of the lease may fall between the two looks.
    assert {name: hooked.get(name, 0) >= count for name, count in traced.items()} == dict.fromkeys(
        traced, True
    ), (hooked, traced)
