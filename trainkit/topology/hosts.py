"""Lists of hosts: MPI hostfiles, Slurm's host lists and tasks per node."""

import re
from collections.abc import Iterator

__all__ = ["expand_hostlist", "parse_hostfile", "parse_tasks_per_node"]

_SLOTS = ("slots", "slot", "count", "cpu", "cpus")
_BLANKS_AROUND_EQUALS = re.compile(r"\s*=\s*")
_TASKS = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


def parse_hostfile(text: str) -> list[tuple[str, int | None]]:
    """Hosts and slots of an MPI hostfile, as written; None where a host has no count.

    Understands ``host slots=2 max_slots=4`` (Open MPI) and ``host:2`` (Hydra), with ``#``
    comments. A host that is listed twice stays twice.

    Raises:
        ValueError: a line cannot be read; the message names it.
    """
    hosts: list[tuple[str, int | None]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = _BLANKS_AROUND_EQUALS.sub("=", line.partition("#")[0]).split()
        if words:
            try:
                hosts.append(_host(words))
            except ValueError as reason:
                raise ValueError(f"line {number} ({line.strip()!r}): {reason}") from None
    return hosts


def _host(words: list[str]) -> tuple[str, int | None]:
    name: str = words[0]
    slots: int | None = None
    host, colon, count = name.rpartition(":")
    if colon and ":" not in host:
        name, slots = host, _slots(count)
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"expected slots=N after the host, found {word!r}")
        if key.lower() in _SLOTS:
            slots = _slots(value)
    if not name or "=" in name:
        raise ValueError("expected a host name first")
    return name, slots


def _slots(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise ValueError(f"expected a positive number of slots, found {text!r}")
    return int(text)


def parse_tasks_per_node(text: str) -> list[int]:
    """Tasks of each node out of Slurm's ``2(x3),1``.

    Raises:
        ValueError: the text is of another form.
    """
    tasks: list[int] = []
    for part in text.split(","):
        found = _TASKS.fullmatch(part.strip())
        repeats = int(found[2] or 1) if found else 0
        if not found or not 1 <= repeats <= 1_000_000:
            raise ValueError(f"cannot read {part!r}")
        tasks += [int(found[1])] * repeats
    return tasks


def expand_hostlist(text: str) -> Iterator[str]:
    """Host names out of Slurm's ``n[01-03,07],rack[1-2]node[3-4]``, lazily and in order.

    Raises:
        ValueError: the text is of another form.
    """
    for part in _split_outside_brackets(text):
        if not part:
            raise ValueError("a host name is empty")
        yield from _expand(part)


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text.strip():
        depth += (character == "[") - (character == "]")
        if depth not in (0, 1):
            raise ValueError("brackets do not match")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth:
        raise ValueError("brackets do not match")
    return parts


def _expand(part: str) -> Iterator[str]:
    """Multiply the brackets of one part; the last one varies fastest."""
    head, bracket, rest = part.partition("[")
    if not bracket:
        yield part
        return
    inside, _, tail = rest.partition("]")
    for item in inside.split(","):
        found = _RANGE.fullmatch(item.strip())
        if not found:
            raise ValueError(f"cannot read {item!r} in brackets")
        first, last = found[1], found[2] or found[1]
        if int(last) < int(first):
            raise ValueError(f"the range {item!r} runs backwards")
        for number in range(int(first), int(last) + 1):
            for end in _expand(tail):
                yield f"{head}{number:0{len(first)}d}{end}"
