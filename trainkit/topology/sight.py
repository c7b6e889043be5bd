"""All that a process can see of the job around it, as one value."""

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainkit import config
from trainkit.errors import DataError, InputMissingError

__all__ = ["Sight"]


@dataclass(frozen=True, slots=True)
class Sight:
    """Environment, files, host name and GPUs: the whole input of topology detection.

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
    """GPUs that this process may use; a function is asked at most when it matters."""

    @classmethod
    def here(cls) -> "Sight":
        """What this process sees now."""
        from trainkit.resources.gpus import visible_gpu_count

        return cls(
            environ=config.environ(),
            files=None,
            hostname=socket.gethostname(),
            visible_gpus=visible_gpu_count,
        )

    @classmethod
    def from_file(cls, path: str) -> "Sight":
        """Read a written-down sight: lines of ``NAME=value``, or a JSON object.

        Args:
            path: what ``env`` printed, or JSON with ``environ`` and optionally ``files``,
                ``hostname``, ``visible_gpus``. In lines, one that does not look like
                ``NAME=`` goes on with the value before it.

        Raises:
            InputMissingError: there is no such file.
            DataError: the file is neither.
        """
        try:
            text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as reason:
            raise InputMissingError(f"cannot read {path}: {reason.strerror}") from None
        if text.lstrip().startswith("{"):
            return cls._from_json(path, text)
        return cls(environ=_from_lines(path, text), files={})

    @classmethod
    def _from_json(cls, path: str, text: str) -> "Sight":
        try:
            value: Any = json.loads(text)
        except json.JSONDecodeError as reason:
            raise DataError(f"{path} begins like JSON but is none: {reason}") from None
        environ = value.get("environ") if isinstance(value, dict) else None
        if not isinstance(environ, dict):
            raise DataError(
                f'{path}: expected an object with "environ", a mapping of names to values'
            )
        return cls(
            environ={str(name): str(text) for name, text in environ.items()},
            files={str(name): str(text) for name, text in (value.get("files") or {}).items()},
            hostname=str(value.get("hostname") or ""),
            visible_gpus=int(value.get("visible_gpus") or 0),
        )

    def get(self, name: str) -> str | None:
        """The value of a variable; an empty one is unset, as is a service link.

        Kubernetes gives each Service of the namespace variables such as
        ``MASTER_PORT=tcp://10.0.0.1:23456``; a port of that form is not ours.
        """
        value = self.environ.get(name, "").strip()
        if not value or (name.endswith("_PORT") and value.startswith(("tcp://", "udp://"))):
            return None
        return value

    def gpus(self) -> int:
        """GPUs that this process may use."""
        return self.visible_gpus() if callable(self.visible_gpus) else self.visible_gpus

    def read(self, path: str) -> str | None:
        """The text of a file, or None where it cannot be read."""
        if self.files is not None:
            return self.files.get(path)
        try:
            return Path(path).read_text(encoding="utf-8")
        except OSError:
            return None


def _from_lines(path: str, text: str) -> dict[str, str]:
    environ: dict[str, str] = {}
    name = None
    for number, line in enumerate(text.split("\n"), start=1):
        head, equals, value = line.partition("=")
        if equals and _is_name(head):
            name = head
            environ[name] = value
        elif name is not None:
            environ[name] += "\n" + line
        elif line.strip():
            raise DataError(f"{path}, line {number}: expected NAME=value, found {line[:40]!r}")
    return {key: value.rstrip("\n") if key == name else value for key, value in environ.items()}


def _is_name(text: str) -> bool:
    return text.isidentifier() or (
        bool(text) and text.replace(".", "_").replace("-", "_").isidentifier()
    )
