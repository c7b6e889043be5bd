"""torchrun's flags and ours, as ``--help`` shows them; needs nothing but argparse."""

import argparse
from collections.abc import Sequence
from typing import Any

__all__ = ["PLACE", "parse_flags"]

# Flags of torchrun that say who takes part. The topology reads them as PET_*.
PLACE = (
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


def parse_flags(argv: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Read a command line; what it does not say is None, False or empty.

    Args:
        argv: after ``trainkit launch``.
        parser: to be filled; makes usage errors and ``--help``.

    Raises:
        SystemExit: by argparse.
    """
    _add_flags(parser)
    return vars(parser.parse_args(list(argv)))


def _add_flags(parser: argparse.ArgumentParser) -> None:
    place = parser.add_argument_group("who takes part (torchrun's flags, and PET_* variables)")
    for name, metavar, text in PLACE:
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
