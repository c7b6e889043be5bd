"""Programs of torch, in processes of their own: a driver may hang or crash one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from trainkit.doctor.child import private_stdout, python
from trainkit.lifecycle.parent import die_with_parent
from trainkit.waiting import Deadline

__all__ = ["Program", "serve"]

_LAST_WORDS = 300


class Program:
    """A process that runs ``module``'s ``main(request) -> answer``."""

    def __init__(
        self, module: str, request: Mapping[str, Any], environ: Mapping[str, str] | None = None
    ) -> None:
        """Start it.

        Args:
            module: dotted name.
            request: plain JSON values.
            environ: its environment; this process's by default.
        """
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; import trainkit.doctor.devices.program as p; "
            f"p.serve({module!r})"
        )
        # In this process's group, which is ended as a whole.
        self._process = subprocess.Popen(  # noqa: S603 - this very Python
            [python(), "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if environ is None else dict(environ),
        )
        self._request = json.dumps(request).encode()
        assert self._process.stdin is not None  # noqa: S101 - made with a pipe above
        with suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(self._request)
        self._process.stdin = None  # so that communicate leaves it alone

    def answer(self, deadline: Deadline) -> dict[str, Any]:
        """What it answers; ``{"error": …}`` where it raised, died, or hung."""
        try:
            out, err = self._process.communicate(timeout=max(deadline.left, 0.1))
        except subprocess.TimeoutExpired:
            self.kill()
            return {"error": f"it did not end within {deadline.seconds:g} s", "hung": True}
        with suppress(ValueError, IndexError):
            found = json.loads(out.decode().splitlines()[-1])
            if isinstance(found, dict):
                return found
        words = " ".join(err.decode(errors="replace").strip().splitlines()[-1:])[-_LAST_WORDS:]
        code = self._process.returncode
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        return {"error": f"it died ({how})" + (f": {words}" if words else "")}

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # in the driver, where no signal reaches it
            self._process.communicate(timeout=5)


def serve(module: str) -> None:
    """The program's side: run ``main``, print its answer as a line of JSON, and end at once."""
    die_with_parent()
    request = json.load(sys.stdin)
    answers = private_stdout()
    try:
        answer = import_module(module).main(request)
    except BaseException as error:
        text = " ".join(str(error).split()) or type(error).__name__
        # A bug of ours would be a riddle without its class; trainkit's own messages say it all.
        known = type(error).__module__.startswith("trainkit")
        answer = {"error": text if known else f"{type(error).__name__}: {text}"}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    os._exit(0)
