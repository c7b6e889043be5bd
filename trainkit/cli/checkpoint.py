"""``trainkit checkpoint``: the table of its commands, and what they have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from trainkit.cli.entry import HelpFormatter, command_list, dispatch
from trainkit.errors import RetryableError, TrainkitError
from trainkit.storage import refuse_credentials

__all__ = ["COMMANDS", "main"]

# As the table of `trainkit` itself: name → "module:function" and a line of help.
COMMANDS = {
    "ls": ("trainkit.cli.checkpoints.ls:main", "list the checkpoints of a folder, newest first"),
    "inspect": ("trainkit.cli.checkpoints.inspect:main", "show what one checkpoint holds"),
    "verify": ("trainkit.cli.checkpoints.verify:main", "check every byte against its checksum"),
    "diff": ("trainkit.cli.checkpoints.diff:main", "show what differs between two checkpoints"),
    "prune": ("trainkit.cli.checkpoints.prune:main", "remove all but the newest"),
    "pin": ("trainkit.cli.checkpoints.pin:pin", "keep a checkpoint, whatever the policy says"),
    "unpin": ("trainkit.cli.checkpoints.pin:unpin", "leave it to the policy again"),
    "gc": ("trainkit.cli.checkpoints.gc:main", "remove what is left of saves that were cut off"),
    "import": (
        "trainkit.cli.checkpoints.import_:main",
        "take over a checkpoint of torch or safetensors",
    ),
    "export": ("trainkit.cli.checkpoints.export:main", "write one entry as a folder of its own"),
}


def main(argv: Sequence[str]) -> int:
    """Run one of the commands.

    Raises:
        TrainkitError: as each command says.
        RetryableError: the disk or the network failed.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of entries are any text
    for argument in argv:  # before one is shown, in whatever place it stands
        refuse_credentials(argument)
    try:
        return int(dispatch(argv, COMMANDS, _parser))
    except (TrainkitError, BrokenPipeError):
        raise
    except OSError as error:
        raise RetryableError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="trainkit checkpoint",
        usage="trainkit checkpoint [--help] COMMAND URL ...",
        description="Look at checkpoints, check, compare and tidy them. URL is what a run saved "
        "to: a local path,\nfile:///path, s3://bucket/folder, gs://…, az://…. A run that is under "
        "way there goes on.",
        epilog=f"{command_list(COMMANDS)}\n\n`trainkit checkpoint COMMAND --help` tells more.\n\n"
        "Exit codes: 0; 65 if a checkpoint is damaged; 66 if there is none; 77 if access is "
        "refused;\n78 if a library is missing; 138 if disk or network failed; 2 for wrong usage.",
        formatter_class=HelpFormatter,
    )
