"""``trainkit checkpoint export``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from trainkit.checkpoint.admin.exporting import FORMATS, export
from trainkit.checkpoint.admin.locating import find_step, open_root
from trainkit.cli.checkpoints import arguments, shown
from trainkit.errors import UsageError

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Write one entry of a checkpoint as a folder of its own.

    Raises:
        InputMissingError: there is no such checkpoint or entry.
        UsageError: the target has something in it.
        CheckpointDamagedError: bytes are not those that were saved.
    """
    parser = arguments.parser(
        "export",
        "Write one entry of a checkpoint to a local folder that needs no trainkit. Every byte is "
        "checked on the way, and the folder appears when all is in it.",
        "0; 2 if DIR has something in it, or for wrong usage; 65 if the checkpoint is damaged; "
        "66 if there is no such checkpoint or entry; 77 if access is refused; 78 if torch is "
        "missing.",
    )
    parser.add_argument("dir", metavar="DIR", help="new or empty local folder to write to")
    parser.add_argument(
        "--step",
        type=arguments.step,
        help="step to export (default: the one that URL names, or else the newest that is whole)",
    )
    parser.add_argument("--entry", metavar="NAME", help="entry to export (default: model)")
    parser.add_argument(
        "--format",
        choices=(*FORMATS, "dcp"),
        default=FORMATS[0],
        help="safetensors: the files as they are, or put together from what each rank saved, "
        "with the index that transformers reads if they are several; torch: one file for "
        "torch.load(weights_only=True), read into memory as a whole (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    storage, named = open_root(options.url)
    folder = find_step(storage, options.step, named)
    if options.format == "dcp":
        return _export_all(options, f"{storage.url}/{folder.name}")
    options.entry = options.entry or "model"
    names = export(storage, folder, options.dir, entry=options.entry, format=options.format)
    if options.json:
        shown.print_json(
            {
                "from": f"{storage.url}/{folder.name}",
                "entry": options.entry,
                "to": os.path.abspath(options.dir),
                "files": names,
            }
        )
        return 0
    print(f"exported {options.entry!r} of {folder.name} to {options.dir}: {', '.join(names)}")
    return 0


def _export_all(options: argparse.Namespace, source: str) -> int:
    if options.entry is not None:
        raise UsageError("--entry is not for --format dcp, which writes all entries")
    from trainkit.checkpoint.interop import export_dcp

    export_dcp(source, None, options.dir)
    if options.json:
        shown.print_json({"from": source, "to": os.path.abspath(options.dir)})
    else:
        print(f"exported all of {source} to {options.dir}")
    return 0
