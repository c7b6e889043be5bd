"""Numbers, ports and addresses out of variables, with errors that say what to do."""

import re

from trainkit import config
from trainkit.errors import TopologyError
from trainkit.topology.sight import Sight

__all__ = [
    "TORCHRUN_PORT",
    "address",
    "integer",
    "malformed",
    "missing",
    "name_index",
    "port",
    "require_at_most",
    "require_below",
    "required_integer",
    "seen",
    "shown",
]

TORCHRUN_PORT = 29500
"""The port that torchrun takes where none is given."""

_LONGEST_SHOWN = 160


def shown(sight: Sight, name: str) -> str:
    """``NAME='value'`` for a message; a long value is cut, a secret one hidden."""
    if config.is_secret(name):
        return f"{name}=<hidden>"
    value = sight.environ.get(name, "")
    if len(value) > _LONGEST_SHOWN:
        value = value[:_LONGEST_SHOWN] + "…"
    return f"{name}={value!r}"


def seen(sight: Sight, *names: str) -> list[str]:
    """``NAME='value'`` of those variables that are set."""
    return [shown(sight, name) for name in names if sight.get(name) is not None]


def malformed(sight: Sight, name: str, expected: str) -> TopologyError:
    """The error for a value that cannot be read."""
    if "$(" in (sight.get(name) or ""):
        cause = (
            "The reference was not expanded: Kubernetes expands $(NAME) only for variables that "
            "come earlier in the container's env list, and no shell ran here."
        )
    else:
        cause = "A wrapper script or the pod's env probably wrote it."
    return TopologyError(
        f"{shown(sight, name)}: expected {expected}. {cause} "
        f"Correct {name}, or remove it if nothing needs it."
    )


def missing(sight: Sight, name: str, *beside: str) -> TopologyError:
    """The error for half a topology: ``name`` is not set while others are."""
    others = ", ".join(seen(sight, *beside))
    empty = "is empty" if name in sight.environ else "is not set"
    although = f", although {others} {'are' if ', ' in others else 'is'} set" if others else ""
    return TopologyError(
        f"{name} {empty}{although}. "
        f"A wrapper script or the pod's env probably passed on half of the variables, and half "
        f"a topology must not train alone. Set {name}, or remove the others."
    )


def integer(sight: Sight, name: str, *, least: int = 0) -> int | None:
    """The whole number in ``name``, or None where it is unset.

    Raises:
        TopologyError: it is no whole number, or less than ``least``.
    """
    text = sight.get(name)
    if text is None:
        return None
    if not re.fullmatch("[+-]?[0-9]{1,18}", text) or int(text) < least:
        raise malformed(sight, name, f"a whole number, {least} or more")
    return int(text)


def required_integer(sight: Sight, name: str, *beside: str, least: int = 0) -> int:
    """The whole number in ``name``, which has to be there because ``beside`` are.

    Raises:
        TopologyError: it is missing, no whole number, or less than ``least``.
    """
    value = integer(sight, name, least=least)
    if value is None:
        raise missing(sight, name, *beside)
    return value


def require_below(sight: Sight, name: str, index: int, size_name: str, size: int) -> None:
    """Check that an index lies within its size.

    Raises:
        TopologyError: it does not; both variables are named.
    """
    if index >= size:
        raise TopologyError(
            f"{shown(sight, name)} is outside of {shown(sight, size_name)}: {size} of them count "
            f"from 0 to {size - 1}. Probably one of the two comes from another job or launcher, "
            f"or counts something else (pods, processes). Correct {name} or {size_name}."
        )


def require_at_most(sight: Sight, name: str, part: int, whole_name: str, whole: int) -> None:
    """Check that a part is not larger than the whole.

    Raises:
        TopologyError: it is; both variables are named.
    """
    if part > whole:
        raise TopologyError(
            f"{shown(sight, name)} is more than {shown(sight, whole_name)}, which counts all of "
            f"them. Probably one of the two comes from another job or launcher. "
            f"Correct {name} or {whole_name}."
        )


def port(sight: Sight, name: str) -> int | None:
    """The TCP port in ``name``, or None where it is unset.

    Raises:
        TopologyError: it is no port.
    """
    number = integer(sight, name)
    if number is not None and not 1 <= number <= 65535:
        raise malformed(sight, name, "a TCP port, 1 to 65535")
    return number


def address(name: str, text: str, *, default_port: int | None = None) -> tuple[str, int]:
    """Split ``host:port``; an IPv6 address needs brackets to have a port.

    Args:
        name: the variable that holds the address, for the error.
        text: the address.
        default_port: what counts where the address has no port; None makes that an error.

    Raises:
        TopologyError: host or port is missing, or the port is none.
    """
    host, colon, number = text.rpartition(":")
    if not colon or text.endswith("]") or (":" in host and not host.startswith("[")):
        host, number = text, "" if default_port is None else str(default_port)
    if not host or not re.fullmatch("[0-9]{1,5}", number) or not 1 <= int(number) <= 65535:
        example = f"{host or 'host'}:{default_port or TORCHRUN_PORT}"
        raise TopologyError(
            f"{name}: expected host:port, found {text!r}. The pod's env probably overrides what "
            f"the operator writes, and its port is missing or is none. Write {example!r}."
        )
    return host.removeprefix("[").removesuffix("]"), int(number)


def name_index(hostname: str, role: str) -> tuple[str, int] | None:
    """Job and index out of a pod's host name ``<job>-<role>-<index>``."""
    found = re.fullmatch(rf"(.+)-{role}-([0-9]+)", hostname.partition(".")[0])
    return (found[1], int(found[2])) if found else None
