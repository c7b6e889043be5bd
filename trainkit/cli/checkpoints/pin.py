"""``trainkit checkpoint pin`` and ``unpin``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from trainkit.checkpoint.admin.locating import open_root
from trainkit.checkpoint.admin.pinning import pin_step, unpin_step
from trainkit.cli.checkpoints import arguments
from trainkit.errors import UsageError

__all__ = ["pin", "unpin"]

_CODES = (
    "0, also if nothing had to be done; 66 if there is no such checkpoint; 77 if access is "
    "refused; 2 for wrong usage."
)


def pin(argv: Sequence[str]) -> int:
    """Pin a checkpoint.

    Raises:
        InputMissingError: there is no such checkpoint.
        NoPermissionError: nothing can be written there.
    """
    options = _options(
        "pin",
        "Keep a checkpoint until it is unpinned: no policy of a run and no `prune` removes it.",
        argv,
    )
    storage, named = open_root(options.url)
    if options.step is None and named is None:
        raise UsageError("which step? give --step N, or the URL of a step-… folder")
    print(f"pinned: {pin_step(storage, options.step, named).name}")
    return 0


def unpin(argv: Sequence[str]) -> int:
    """Take the pin from a checkpoint.

    Raises:
        InputMissingError: there is no such checkpoint.
        NoPermissionError: nothing can be written there.
    """
    options = _options(
        "unpin",
        "Leave a pinned checkpoint to the policy of its run again, which may remove it after the "
        "next save.",
        argv,
    )
    storage, named = open_root(options.url)
    step = options.step if named is None else named.step
    if step is None:
        raise UsageError("which step? give --step N, or the URL of a step-… folder")
    folders = unpin_step(storage, step)
    for folder in folders:
        print(f"unpinned: {folder.name}")
    if not folders:
        print(f"step {step} was not pinned")
    return 0


def _options(command: str, description: str, argv: Sequence[str]) -> argparse.Namespace:
    parser = arguments.parser(command, description, _CODES, json=False)
    parser.add_argument(
        "--step",
        type=arguments.step,
        help="step that is meant (default: the one that URL names)",
    )
    return parser.parse_args(argv)
