"""Find the command that is meant, run it, and turn its errors into exit codes.

This file is all that ``trainkit --help`` loads; a command's own file is imported when it is
called, so that one that needs torch does not slow the others down.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from trainkit import __version__
from trainkit.errors import ExitCode, TrainkitError

__all__ = ["COMMANDS", "HelpFormatter", "command_list", "dispatch", "main"]

# Name → "module:function" and a line of help. A function takes the arguments after its name
# and returns the exit code.
COMMANDS = {
    "env": ("trainkit.cli.env:main", "show who this process is in its job"),
    "launch": ("trainkit.cli.launch:main", "run what this pod of a job is for"),
    "signal": ("trainkit.cli.signal:main", "send a signal to the launcher of this container"),
    "doctor": ("trainkit.cli.doctor:main", "say what would break this job, before it starts"),
    "checkpoint": ("trainkit.cli.checkpoint:main", "look at checkpoints, check and tidy them"),
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
            return dispatch(sys.argv[1:] if argv is None else argv, COMMANDS, _parser)
        finally:
            # A reader that has gone away shows here, and not at the interpreter's end.
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
    except TrainkitError as error:
        from trainkit.redaction import redacted

        print(f"trainkit: {redacted(str(error))}", file=sys.stderr)
        return int(getattr(error, "code", error.exit_code))  # a Preempted has one of its own
    except BrokenPipeError:
        _give_up_stdout()
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)


def dispatch(
    argv: Sequence[str],
    commands: Mapping[str, tuple[str, str]],
    parser: Callable[[], argparse.ArgumentParser],
) -> int:
    """Call the function of the command that ``argv`` begins with.

    Args:
        argv: a command and its arguments; anything else is for ``parser`` to answer.
        commands: as ``COMMANDS``.
        parser: makes the parser of what stands before a command, where that is needed.

    Returns:
        The exit code.
    """
    if not argv or argv[0] not in commands:
        asked = parser()
        if argv and not argv[0].startswith("-"):
            asked.error(f"unknown command {argv[0]!r}; known are {', '.join(commands)}")
        asked.parse_args(argv)
        asked.error("a command is needed")
    module, _, function = commands[argv[0]][0].partition(":")
    run: Callable[[Sequence[str]], int] = getattr(import_module(module), function)
    return run(argv[1:])


def command_list(commands: Mapping[str, tuple[str, str]]) -> str:
    """The commands and their lines of help, to stand in a help text."""
    lines = "\n".join(f"  {name:<12} {text}" for name, (_, text) in commands.items())
    return f"commands:\n{lines}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainkit",
        usage="trainkit [--help] [--version] COMMAND ...",
        description="The runtime inside the container of a distributed training job.",
        epilog=f"{command_list(COMMANDS)}\n\n`trainkit COMMAND --help` tells more.",
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
