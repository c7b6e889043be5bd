"""Find the command that is meant, run it, and turn its errors into exit codes.

This file is all that ``trainkit --help`` loads; a command's own file is imported when it is
called, so that one that needs torch does not slow the others down.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from trainkit import __version__
from trainkit.errors import ExitCode, TrainkitError

__all__ = ["COMMANDS", "HelpFormatter", "main"]

# Name → "module:function" and a line of help. A function takes the arguments after its name
# and returns the exit code.
COMMANDS = {
    "env": ("trainkit.cli.env:main", "show who this process is in its job"),
}

_BROKEN_PIPE = 141  # as the shell reports a command that SIGPIPE has ended


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of a fixed width: asking for the terminal's makes argparse import shutil, 4 ms."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=90)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``, by default that of this process.

    Returns:
        The exit code. An error of trainkit is one message on stderr and its own code.

    Raises:
        SystemExit: by argparse, after ``--help``, ``--version`` and wrong usage (2).
    """
    try:
        try:
            return _command(sys.argv[1:] if argv is None else argv)
        finally:
            # A reader that has gone away shows here, and not at the interpreter's end.
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
    except TrainkitError as error:
        print(f"trainkit: {error}", file=sys.stderr)
        return int(error.exit_code)
    except BrokenPipeError:
        _give_up_stdout()
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)


def _command(argv: Sequence[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        parser = _parser()
        if argv and not argv[0].startswith("-"):
            parser.error(f"unknown command {argv[0]!r}; known are {', '.join(COMMANDS)}")
        parser.parse_args(argv)
        parser.error("a command is needed")
    module, _, function = COMMANDS[argv[0]][0].partition(":")
    run: Callable[[Sequence[str]], int] = getattr(import_module(module), function)
    return run(argv[1:])


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="trainkit",
        usage="trainkit [--help] [--version] COMMAND ...",
        description="The runtime inside the container of a distributed training job.",
        epilog=f"commands:\n{lines}\n\n`trainkit COMMAND --help` tells more.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"trainkit {__version__}",
        help="print the version and exit",
    )
    return parser


def _give_up_stdout() -> None:
    """Let the interpreter flush into nothing, so that it does not complain once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
