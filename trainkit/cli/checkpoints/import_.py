"""``trainkit checkpoint import``."""

from __future__ import annotations

from collections.abc import Sequence

from trainkit.checkpoint.interop.importing import import_checkpoint
from trainkit.cli.checkpoints import arguments, shown

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Take over a checkpoint of another tool.

    Raises:
        InputMissingError: there is no such source.
        DataError: it is damaged, of no known kind, or would have to run code to be read.
        UsageError: something in it has no place in a checkpoint.
        EnvironmentFaultError: the folder is of another kind, or a run saves to it.
    """
    parser = arguments.parser(
        "import",
        "Take over a checkpoint of another tool as a step of URL, from where a run restores it. No "
        "pickle in it is run: what would need that is refused.",
        "0; 2 if something in it has no place in a checkpoint, or for wrong usage; 65 if SOURCE is "
        "damaged, of no known kind, or would have to run code; 66 if there is no SOURCE; 77 if "
        "access is refused; 78 if a run saves to URL, URL is another kind of folder, or torch is "
        "missing.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder of torch.distributed.checkpoint, file of torch.save, safetensors file, or "
        "folder of safetensors files with their index",
    )
    parser.add_argument(
        "--step",
        type=arguments.step,
        help="step to import as (default: the number at the end of SOURCE, or else 0)",
    )
    parser.add_argument(
        "--entry",
        default="model",
        metavar="NAME",
        help="entry that tensors at the top of SOURCE become (default: model)",
    )
    options = parser.parse_args(argv)
    folder = import_checkpoint(options.source, options.url, step=options.step, name=options.entry)
    if options.json:
        shown.print_json({"from": options.source, "to": folder})
        return 0
    print(f"imported {options.source} as {folder}")
    return 0
