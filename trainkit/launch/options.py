"""A command line and its variables, each flag also as ``PET_<NAME>``: one source for the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainkit.errors import UsageError
from trainkit.launch.entry import Entry
from trainkit.launch.flags import PLACE
from trainkit.launch.output import OutputOptions, Streams

__all__ = ["LaunchOptions", "read_options"]

_YES, _NO = ("", "1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """A command line of ``trainkit launch``, with what the environment adds to it."""

    entry: Entry
    pet: Mapping[str, str]
    """Flags that say who takes part, as ``PET_*``: laid over the environment before the
    topology is detected."""
    max_restarts: int | None
    num_ranks: int | None
    """Of an MPI job; None is one a slot."""
    monitor_interval: float
    role: str
    grace_period: float | None
    preload: bool | None
    """None lets the program decide: yes if it imports torch."""
    output: OutputOptions
    prefix: bool | None
    """None: if there are several ranks here."""
    wait_for: tuple[str, ...]
    """Things that must be there before anything starts."""
    dry_run: bool
    local_addr: str | None
    virtual_local_rank: bool


def read_options(given: Mapping[str, Any], environ: Mapping[str, str]) -> LaunchOptions:
    """What the flags of a command line mean; what they do not say is read from ``PET_*``.

    Args:
        given: as ``parse_flags`` returns them.
        environ: of this process.

    Raises:
        UsageError: a value cannot be used.
        InputMissingError: there is no such script.
    """
    pet = {
        "PET_" + name.upper().replace("-", "_"): given[name.replace("-", "_")]
        for name, _, _ in PLACE
        if given[name.replace("-", "_")] is not None
    }
    if given["standalone"]:
        pet["PET_STANDALONE"] = "1"
    read = _Reader(given, environ)
    output = OutputOptions(
        json=given["log_json"],
        log_dir=read.text("log_dir"),
        redirects=Streams.parse(read.text("redirects") or "0", "--redirects"),
        tee=Streams.parse(read.text("tee") or "0", "--tee"),
        shown=read.ranks("local_ranks_filter"),
    )
    entry = Entry.of(
        given["program"],
        given["arguments"],
        module=read.yes("module"),
        python=not read.yes("no_python"),
    )
    return LaunchOptions(
        entry=entry,
        pet=pet,
        max_restarts=read.number("max_restarts", int, 0),
        num_ranks=read.number("num_ranks", int, 1),
        monitor_interval=read.number("monitor_interval", float, 0) or 0.1,
        role=read.text("role") or "default",
        grace_period=given["grace_period"] or read.number("shutdown_timeout", float, 0),
        preload=given["preload"],
        output=output,
        prefix=given["prefix"],
        wait_for=tuple(given["wait_for"]),
        dry_run=given["dry_run"],
        local_addr=read.text("local_addr"),
        virtual_local_rank=read.yes("virtual_local_rank"),
    )


class _Reader:
    """A flag, or its variable; an empty variable is unset but for switches, where it is yes."""

    def __init__(self, given: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self._given, self._environ = given, environ

    def _found(self, name: str) -> tuple[Any, str]:
        if self._given[name] not in (None, False):
            return self._given[name], "--" + name.replace("_", "-")
        variable = f"PET_{name.upper()}"
        return self._environ.get(variable), variable

    def text(self, name: str) -> str | None:
        return self._found(name)[0] or None

    def yes(self, name: str) -> bool:
        value, where = self._found(name)
        if value is None or value is True:
            return bool(value)
        word = str(value).strip().lower()
        if word not in _YES + _NO:
            raise UsageError(
                f"{where}={value!r}: expected 1, 0, or the empty string, which means 1"
            )
        return word in _YES

    def number(self, name: str, kind: Any, least: float) -> Any:
        value, where = self._found(name)
        if value is None or value == "":
            return None
        try:
            found = kind(value)
            if not least <= found < float("inf"):
                raise ValueError
        except ValueError:
            noun = "whole number" if kind is int else "number"
            raise UsageError(f"{where}={value!r}: expected a {noun}, {least:g} or more") from None
        return found

    def ranks(self, name: str) -> frozenset[int] | None:
        value, where = self._found(name)
        if not value:
            return None
        try:
            return frozenset(int(part) for part in str(value).split(","))
        except ValueError:
            raise UsageError(
                f"{where}={value!r}: expected local ranks separated by commas, such as 0,2"
            ) from None
