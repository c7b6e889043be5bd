"""All that a process can see of the job around it, as one value."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from trainkit import config
from trainkit.errors import DataError, InputMissingError, NoPermissionError

TYPE_CHECKING = False  # typing itself is a tenth of what `trainkit env` imports
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Sight"]

# "BASH_FUNC_module%%" is what bash exports a function as; its body follows in lines.
_NAME = r"[A-Za-z_][\w.\-]*|BASH_FUNC_.*(%%|\(\))"
_SERVICE_LINKS = ("tcp://", "udp://", "sctp://")


@dataclass(frozen=True, slots=True)
class Sight:
    """Environment, files, host name, GPUs and CPUs: the whole input of topology detection.

    Detection is a pure function of a ``Sight``, so that a case can be written down, sent
    with a bug report and replayed.
    """

    environ: Mapping[str, str] = field(default_factory=dict)
    """Variables by name."""
    files: Mapping[str, str] | None = None
    """Text of files by path; None means the real file system."""
    hostname: str = ""
    """This host's name, without a domain in a pod."""
    visible_gpus: int | Callable[[], int] = 0
    """GPUs that this process may use; a function is asked only when it matters."""
    cpus: tuple[float, str] | Callable[[], tuple[float, str]] | None = None
    """CPUs that this process may use, and which limit says so; None where it is not known."""

    @classmethod
    def here(cls) -> Sight:
        """What this process sees now."""
        return cls(
            environ=config.environ(),
            files=None,
            hostname=os.uname().nodename,
            visible_gpus=cache(_count_gpus),
            cpus=cache(_limit_cpus),
        )

    @classmethod
    def from_file(cls, path: str) -> Sight:
        """Read a written-down sight: lines of ``NAME=value``, or a JSON object.

        Args:
            path: what ``env`` printed, or JSON with ``environ`` and optionally ``files``,
                ``hostname``, ``visible_gpus``; ``-`` is standard input. In lines, one that
                does not look like ``NAME=`` goes on with the value before it; NUL bytes
                between variables (``env -0``, ``/proc/1/environ``) are understood too.

        Raises:
            InputMissingError: there is no such file.
            NoPermissionError: the file may not be read.
            DataError: the file is neither of both.
        """
        text = _read(path)
        if text.lstrip().startswith("{"):
            return cls._from_json(path, text)
        environ = _from_lines(path, text)
        return cls(environ=environ, files={}, hostname=environ.get("HOSTNAME", ""))

    @classmethod
    def _from_json(cls, path: str, text: str) -> Sight:
        try:
            value: Any = json.loads(text)
        except json.JSONDecodeError as reason:
            raise DataError(f"{path} begins like JSON but is none: {reason}") from None
        environ = value.get("environ")
        if not isinstance(environ, dict):
            raise DataError(
                f'{path}: expected an object with "environ", a mapping of names to values'
            )
        files = value.get("files") or {}
        if not isinstance(files, dict):
            raise DataError(f'{path}: expected "files" to be a mapping of paths to texts')
        visible_gpus = value.get("visible_gpus") or 0
        if not isinstance(visible_gpus, int) or visible_gpus < 0:
            raise DataError(f'{path}: "visible_gpus" is {visible_gpus!r}, expected a count')
        return cls(
            environ={str(name): str(text) for name, text in environ.items() if text is not None},
            files={str(name): str(text) for name, text in files.items()},
            hostname=str(value.get("hostname") or environ.get("HOSTNAME") or ""),
            visible_gpus=visible_gpus,
        )

    def get(self, name: str) -> str | None:
        """The value of a variable; an empty one is unset, as is a service link.

        Kubernetes gives each Service of the namespace variables such as
        ``MASTER_PORT=tcp://10.0.0.1:23456``; a port of that form is not ours.
        """
        value = self.environ.get(name, "").strip()
        if not value or (name.endswith("_PORT") and value.startswith(_SERVICE_LINKS)):
            return None
        return value

    def gpus(self) -> int:
        """GPUs that this process may use."""
        return self.visible_gpus() if callable(self.visible_gpus) else self.visible_gpus

    def cpu_limit(self) -> tuple[float, str] | None:
        """CPUs that this process may use, and which limit says so."""
        return self.cpus() if callable(self.cpus) else self.cpus

    def read(self, path: str) -> str | None:
        """The text of a file, or None where it cannot be read."""
        if self.files is not None:
            return self.files.get(path)
        try:
            with open(path, encoding="utf-8") as file:
                return file.read()
        except (OSError, UnicodeDecodeError):
            return None


def _count_gpus() -> int:
    from trainkit.resources.gpus import visible_gpu_count

    return visible_gpu_count()


def _limit_cpus() -> tuple[float, str]:
    from trainkit.resources.cpus import cpu_limit

    return cpu_limit()


def _read(path: str) -> str:
    try:
        # An environment may hold any bytes; none of them is a reason to fail.
        with open(
            0 if path == "-" else path,
            encoding="utf-8-sig",
            errors="surrogateescape",
            closefd=path != "-",
        ) as file:
            return file.read()
    except PermissionError:
        raise NoPermissionError(f"cannot read {path}: permission denied") from None
    except OSError as reason:
        raise InputMissingError(f"cannot read {path}: {reason.strerror}") from None


def _from_lines(path: str, text: str) -> dict[str, str]:
    environ: dict[str, str] = {}
    name = None
    if "\0" in text:
        pairs = (variable.partition("=") for variable in text.split("\0") if variable.strip())
        return {name: value for name, _, value in pairs}
    for number, line in enumerate(text.split("\n"), start=1):
        head, equals, value = line.partition("=")
        if equals and re.fullmatch(_NAME, head):
            name = head
            environ[name] = value
        elif name is not None:
            environ[name] += "\n" + line
        elif line.strip():
            raise DataError(f"{path}, line {number}: expected NAME=value, found {line[:40]!r}")
    return {key: value.rstrip("\n") if key == name else value for key, value in environ.items()}
