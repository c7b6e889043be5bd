"""The process of one check: asked on standard input, it answers with a line of JSON a finding."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any

from trainkit.doctor.checks import CHECKS
from trainkit.doctor.finding import Check, Finding, Question, Status
from trainkit.errors import TrainkitError
from trainkit.lifecycle.parent import die_with_parent

__all__ = ["main", "private_stdout", "python"]


def main() -> None:
    """Run the check that is asked for."""
    die_with_parent()
    request = json.load(sys.stdin)
    answers = private_stdout()
    for finding in _findings(request["where"], Question(**request["question"])):
        # At once: what was found before a crash counts.
        answers.write(json.dumps(finding.to_json()) + "\n")
        answers.flush()
    answers.flush()
    # Threads and clients of libraries that hang at the interpreter's end would cost the deadline.
    os._exit(0)


def python() -> str:
    """This very Python, to be started once more."""
    return sys.executable or os.path.realpath("/proc/self/exe")


def private_stdout() -> Any:
    """A file that writes to standard output, which nobody else reaches from now on.

    What libraries print goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _findings(where: str, question: Question) -> Any:
    name = next((entry.name for entry in CHECKS if entry.where == where), where)
    module, _, function = where.partition(":")
    try:
        check: Check = getattr(import_module(module), function)
        yield from check(question)
    except TrainkitError as error:
        yield Finding(name, Status.BROKEN, str(error))
    except Exception as error:
        yield Finding(
            name,
            Status.NOT_CHECKED,
            f"the check {name} failed itself: {type(error).__name__}: {error}",
            "Report it, with this line, as a bug of trainkit.",
        )
