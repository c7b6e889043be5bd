"""torchrun's flags and ours, each also as ``PET_<NAME>``: one source for all that follows."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainkit.errors import UsageError
from trainkit.launch.entry import Entry
from trainkit.launch.output import OutputOptions, Streams

__all__ = ["LaunchOptions", "parse"]

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


# Flags of torchrun that say who takes part. The topology reads them as PET_*.
_PLACE = (
    ("nnodes", "N|MIN:MAX", "nodes of the job, or an elastic range (default: what the pod says)"),
    ("nproc-per-node", "N|auto|gpu|cpu", "ranks of this node; auto: one a GPU, or 1"),
    ("node-rank", "N", "index of this node, for the static rendezvous"),
    ("master-addr", "HOST", "name or address of node 0, for the static rendezvous"),
    ("master-port", "PORT", "port at node 0, for the static rendezvous"),
    ("rdzv-backend", "NAME", "static, c10d, etcd or etcd-v2"),
    ("rdzv-endpoint", "HOST:PORT", "where nodes of an elastic job meet"),
    ("rdzv-id", "ID", "name of the job, the same on all nodes"),
    ("rdzv-conf", "K=V,…", "further options of the rendezvous"),
)


def parse(
    argv: Sequence[str], environ: Mapping[str, str], parser: argparse.ArgumentParser
) -> LaunchOptions:
    """Read ``argv``; what it does not say is read from ``PET_*``.

    Args:
        argv: after ``trainkit launch``.
        environ: of this process.
        parser: to be filled; makes usage errors and ``--help``.

    Raises:
        UsageError: a value cannot be used.
        InputMissingError: there is no such script.
        SystemExit: by argparse.
    """
    _add_flags(parser)
    given = vars(parser.parse_args(list(argv)))
    pet = {
        "PET_" + name.upper().replace("-", "_"): given[name.replace("-", "_")]
        for name, _, _ in _PLACE
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


def _add_flags(parser: argparse.ArgumentParser) -> None:
    place = parser.add_argument_group("who takes part (torchrun's flags, and PET_* variables)")
    for name, metavar, text in _PLACE:
        place.add_argument(*_spellings(name), metavar=metavar, help=text)
    place.add_argument("--standalone", action="store_true", help="a job of this node alone")
    place.add_argument(
        *_spellings("local-addr"), metavar="HOST", help="address of this node for others"
    )
    ranks = parser.add_argument_group("ranks")
    ranks.add_argument(
        *_spellings("max-restarts"),
        metavar="N",
        help="restarts in place after a failure that may pass (default: 0)",
    )
    ranks.add_argument(
        *_spellings("num-ranks"),
        metavar="N",
        help="ranks of an MPI job, started by its launcher (default: one a slot)",
    )
    ranks.add_argument(
        *_spellings("grace-period"),
        metavar="S",
        type=_seconds,
        help="seconds between SIGTERM and SIGKILL (default: TRAINKIT_GRACE_PERIOD, or 30)",
    )
    ranks.add_argument(*_spellings("shutdown-timeout"), metavar="S", help="torchrun's name for it")
    ranks.add_argument(
        *_spellings("monitor-interval"),
        metavar="S",
        help="seconds between two looks for new nodes (default: 0.1); ends are seen at once",
    )
    ranks.add_argument(
        "--preload",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="import torch once and fork the ranks (default: if the program imports torch); "
        "--no-preload gives each an interpreter of its own",
    )
    ranks.add_argument(*_spellings("role"), metavar="NAME", help="ROLE_NAME of the ranks")
    ranks.add_argument(
        *_spellings("virtual-local-rank"),
        action="store_true",
        help="LOCAL_RANK is 0 for all, and each sees one GPU",
    )
    shown = parser.add_argument_group("output")
    shown.add_argument(
        "--prefix",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="begin each line with the rank it is from (default: if there are several here)",
    )
    shown.add_argument(*_spellings("log-json"), action="store_true", help="one JSON object a line")
    shown.add_argument(*_spellings("log-dir"), metavar="DIR", help="keep files of each rank here")
    shown.add_argument(
        *_spellings("redirects", "-r"),
        metavar="STREAMS",
        help="streams that go to files alone: 1 stdout, 2 stderr, 3 both; or RANK:STREAMS,…",
    )
    shown.add_argument(
        *_spellings("tee", "-t"), metavar="STREAMS", help="streams that go to files as well"
    )
    shown.add_argument(
        *_spellings("local-ranks-filter"), metavar="RANKS", help="show these local ranks alone"
    )
    parser.add_argument(
        *_spellings("wait-for"),
        metavar="THING",
        action="append",
        default=[],
        help="start once this is there: /path, mount:/path, host:port or host; may be repeated "
        "(and TRAINKIT_WAIT_FOR); at most TRAINKIT_TIMEOUT seconds",
    )
    parser.add_argument(
        *_spellings("dry-run"), action="store_true", help="print what would be run, and exit"
    )
    parser.add_argument("-m", "--module", action="store_true", help="program is a module")
    parser.add_argument(
        *_spellings("no-python"), action="store_true", help="program is not run by Python"
    )
    parser.add_argument("program", help="script, module or program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="args", help="its arguments")


def _spellings(name: str, *short: str) -> list[str]:
    """torchrun takes dashes and underscores alike."""
    return [*short, *dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}"))]


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value
