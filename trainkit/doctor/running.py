"""Runs checks, each in a process of its own with a deadline, those that only wait together.

A check may meet a driver that hangs, a mount that never answers, or a library that crashes. A
thread could not be ended then; a process can, with all that it started.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from trainkit.doctor.checks import CHECKS, Entry, seconds_of
from trainkit.doctor.child import python
from trainkit.doctor.finding import Finding, Question, Status
from trainkit.doctor.secrets import without_secrets_of
from trainkit.waiting import Deadline

__all__ = ["Progress", "diagnose"]

Progress = Callable[[Sequence[tuple[str, float, float]]], None]
"""Told again and again which checks run: name, seconds since their start, and their deadline."""

_TICK = 0.1
_LAST_WORDS = 300
"""Characters of what a check that died wrote last."""


def diagnose(
    question: Question, *, checks: Iterable[Entry] = CHECKS, progress: Progress | None = None
) -> list[Finding]:
    """Run ``checks`` and return what they find, in the order of the table.

    Those that wait run at the same time, and after them those that measure, one at a time. No
    check is waited for beyond its deadline, and none of its processes is left.
    """
    entries = list(checks)
    found: dict[str, list[Finding]] = {}
    rounds = [[entry for entry in entries if not entry.measures]]
    rounds += [[entry] for entry in entries if entry.measures]
    for together in rounds:
        running: list[_Running] = []
        try:
            for entry in together:
                try:
                    running.append(_Running(entry, question))
                except OSError as error:
                    found[entry.name] = [_not_started(entry, error)]
            _await(running, progress)
        finally:
            for one in running:
                found[one.entry.name] = one.end()
    return [without_secrets_of(one) for entry in entries for one in found[entry.name]]


def _await(running: list[_Running], progress: Progress | None) -> None:
    """Read what the checks say until each has ended or its deadline is over."""
    with selectors.DefaultSelector() as selector:
        for one in running:
            for stream in (one.process.stdout, one.process.stderr):
                assert stream is not None  # noqa: S101 - made with pipes below
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ, one)
        pending = list(running)
        while pending:
            for key, _ in selector.select(_TICK):
                if not key.data.read(key.fileobj):
                    selector.unregister(key.fileobj)
            pending = [one for one in pending if not one.is_over()]
            if progress is not None:
                progress([(o.entry.name, o.deadline.elapsed, o.deadline.seconds) for o in pending])


class _Running:
    """One check's process."""

    def __init__(self, entry: Entry, question: Question) -> None:
        self.entry = entry
        self.deadline = Deadline(seconds_of(entry, question))
        self.exited = False
        self._said = {"out": bytearray(), "err": bytearray()}
        # The child finds modules where this process does, whatever folder it is started in.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; import trainkit.doctor.child as c; c.main()"
        )
        self.process = subprocess.Popen(  # noqa: S603 - this very Python
            [python(), "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a group of its own, to be ended with all that it starts
        )
        request = json.dumps({"where": entry.where, "question": asdict(question)})
        assert self.process.stdin is not None  # noqa: S101 - made with a pipe above
        with contextlib.suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(request.encode())

    def read(self, stream: Any) -> bool:
        """Take what has arrived; False at the end of the stream."""
        name = "out" if stream is self.process.stdout else "err"
        while True:
            try:
                piece = os.read(stream.fileno(), 65536)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self._said[name] += piece

    def is_over(self) -> bool:
        """Whether it has ended, or its deadline is over. What has ended is not reaped yet."""
        # Its pipes say less: a process that it left behind holds them open.
        ended = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        self.exited = ended is not None
        return self.exited or self.deadline.passed

    def end(self) -> list[Finding]:
        """End its processes and return what it found, or what became of it."""
        process = self.process
        if not self.exited:
            self.is_over()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # not reaped, so the number is still its own
        with contextlib.suppress(subprocess.TimeoutExpired):  # in the kernel, on a dead mount
            process.wait(5 if not self.exited else None)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                self.read(stream)
                stream.close()
        findings = list(_parsed(bytes(self._said["out"])))
        if not self.exited:
            findings.append(self._unfinished())
        elif process.returncode != 0:
            findings.append(self._died(process.returncode))
        elif not findings:
            text = "the check found nothing to say"
            findings.append(Finding(self.entry.name, Status.NOT_CHECKED, text))
        return findings

    def _unfinished(self) -> Finding:
        seconds = self.deadline.seconds
        return Finding(
            self.entry.name,
            self.entry.hang,
            f"the check {self.entry.name} did not end within {seconds:g} s and was stopped",
            self.entry.advice or "Run it again with a longer --timeout.",
            {"timeout": seconds},
        )

    def _died(self, code: int) -> Finding:
        how = f"exit code {code}"
        if code < 0:
            how = signal.Signals(-code).name
        words = self._said["err"].decode(errors="replace").strip()
        last = " ".join(words.splitlines()[-1:])[-_LAST_WORDS:]
        return Finding(
            self.entry.name,
            self.entry.hang,
            f"the check {self.entry.name} died ({how})" + (f": {last}" if last else ""),
            self.entry.advice,
            {"exit_code": code},
        )


def _parsed(said: bytes) -> Iterable[Finding]:
    for line in said.decode(errors="replace").splitlines():
        try:
            yield Finding.from_json(json.loads(line))
        except (ValueError, TypeError, KeyError):
            continue  # cut off by its end


def _not_started(entry: Entry, error: OSError) -> Finding:
    advice = "Ranks could not start either: can this user run this Python?"
    if error.errno in (errno.EAGAIN, errno.ENOMEM):
        advice = "Raise the pod's limit of processes or of memory: ranks could not start either."
    elif error.errno == errno.EMFILE:
        advice = "Raise the limit of open files (ulimit -n)."
    found = f"no process can be started for the check {entry.name}: {error}"
    return Finding(entry.name, Status.BROKEN, found, advice)
