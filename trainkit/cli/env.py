"""``trainkit env``: the detected topology, and why it is that."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

from trainkit.cli.entry import HelpFormatter
from trainkit.redaction import without_secrets
from trainkit.topology import Sight, Topology, detect

TYPE_CHECKING = False  # typing itself is a tenth of what `trainkit env` imports
if TYPE_CHECKING:
    from typing import Any

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Print the topology of this process, or of one that is written down in a file.

    Raises:
        TopologyError: what is seen is malformed or contradicts itself.
        InputMissingError: the file is not there.
        DataError: the file is neither lines of NAME=value nor JSON.
    """
    options = _parser().parse_args(argv)
    sight = Sight.here() if options.file is None else Sight.from_file(options.file)
    topology = detect(sight)
    if options.json:
        print(json.dumps(_without_secrets(_as_json(topology, explain=options.explain)), indent=2))
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a C locale, or bytes that are no text
    for line in _table(topology, explain=options.explain):
        print(without_secrets(line))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainkit env",
        description="Show who this process is in its job: platform, role, rank, where to meet.",
        epilog="Exit codes: 0; 78 if the variables contradict each other; 66 and 65 if FILE is "
        "missing\nor neither form; 77 if it may not be read; 2 for wrong usage.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--from",
        dest="file",
        metavar="FILE",
        help="what another process sees, instead of this one: lines of NAME=value as `env` "
        "prints them, or a JSON object with environ and optionally files, hostname, "
        "visible_gpus; - is standard input",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="name the variable that decided each field, and what was seen and not used",
    )
    return parser


def _as_json(topology: Topology, *, explain: bool) -> dict[str, Any]:
    values = topology.to_json()
    if explain:
        values["sources"] = dict(topology.sources)
        values["notes"] = list(topology.notes)
        values["unused"] = list(topology.unused)
    return values


def _without_secrets(value: Any) -> Any:
    """``value`` as it may be shown: an address may be a URL with a password in it."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {name: _without_secrets(one) for name, one in value.items()}
    return [_without_secrets(one) for one in value] if isinstance(value, list | tuple) else value


def _table(topology: Topology, *, explain: bool) -> Iterator[str]:
    rows = [(name, _shown(value)) for name, value in topology.to_json().items()]
    names = max(len(name) for name, _ in rows)
    values = max(len(value) for _, value in rows if len(value) <= 40)
    for name, value in rows:
        # A field without a value and without a source is one that this platform does not have.
        source = topology.sources.get(name, "" if value == "-" else "default") if explain else ""
        yield f"{name:<{names}}  {value:<{values}}  {source}".rstrip()
    if topology.notes:
        yield ""
    for note in topology.notes:
        yield f"note: {note}"
    if explain and topology.unused:
        yield ""
        for unused in topology.unused:
            yield f"not used: {unused}"


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)
