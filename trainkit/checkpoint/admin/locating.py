"""From a URL and a step to the folder that is meant, with errors that say what is there."""

import os

from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.layout import MANIFEST, QUARANTINE, StepFolder
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError, InputMissingError
from trainkit.storage import Storage, open_storage

__all__ = ["find_step", "newest_whole", "no_checkpoints", "of_step", "open_root", "step_folders"]


def open_root(url: str | os.PathLike[str]) -> tuple[Storage, StepFolder | None]:
    """Open a root, and say which step folder of it ``url`` names, if it names one.

    Raises:
        UsageError: no URL that can be meant.
        DependencyError: the library for its scheme is not installed.
        EnvironmentFaultError: its scheme cannot hold checkpoints.
    """
    text = os.fspath(url)
    above, _, last = text.rstrip("/").rpartition("/")
    folder = StepFolder.parse(last)
    if folder is None:
        return open_storage(text), None
    return open_storage(above or ("/" if text.startswith("/") else ".")), folder


def find_step(storage: Storage, step: int | None, named: StepFolder | None = None) -> StepFolder:
    """The committed folder that is meant.

    Args:
        storage: of the root.
        step: its step, of which the folder saved last is taken, in quarantine or not; None is
            the newest checkpoint that is whole as far as sizes tell.
        named: the folder that the URL named.

    Raises:
        InputMissingError: there is none; the message says what there is.
    """
    if named is not None:
        if step is not None and step != named.step:
            raise InputMissingError(f"{named.name} is not of step {step}; leave one of them out")
        return _checked(storage, named)
    return newest_whole(storage) if step is None else of_step(storage, step)[0]


def step_folders(storage: Storage) -> list[StepFolder]:
    """All step folders of a root, newest save first; at least one.

    Raises:
        InputMissingError: there is none; the message says what there is instead.
    """
    try:
        folders = catalog.step_folders(storage)
    except NotADirectoryError:
        folders = []
    if not folders:
        raise no_checkpoints(storage)
    return folders


def newest_whole(storage: Storage) -> StepFolder:
    """The checkpoint that a run would restore, as far as sizes tell.

    Raises:
        InputMissingError: there is none.
    """
    folders = step_folders(storage)
    marks = storage.names(QUARANTINE)
    problems = []
    for folder in folders:
        if folder.name in marks:
            problems.append(f"{folder.name} is in quarantine")
            continue
        try:
            catalog.read_manifest(storage, folder)
        except (CheckpointDamagedError, EnvironmentFaultError) as reason:
            problems.append(str(reason))
            continue
        return folder
    raise InputMissingError(
        f"{storage.url} holds no checkpoint that is whole: {'; '.join(problems[:3])}"
        + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
    )


def of_step(storage: Storage, step: int) -> list[StepFolder]:
    """All committed folders of ``step``, that saved last first; at least one.

    Raises:
        InputMissingError: there is none; the message names the steps that are there.
    """
    folders = step_folders(storage)
    of_this = [folder for folder in folders if folder.step == step]
    found = [f for f in of_this if storage.size(f"{f.name}/{MANIFEST}") is not None]
    if found:
        return found
    if of_this:
        raise _not_committed(storage, of_this[0])
    steps = sorted({folder.step for folder in folders}, reverse=True)
    shown = ", ".join(map(str, steps[:10])) + (", …" if len(steps) > 10 else "")
    raise InputMissingError(f"{storage.url} has no checkpoint of step {step}; it has {shown}")


def no_checkpoints(storage: Storage) -> InputMissingError:
    """What to raise for a root without any step folder: it may be another kind of folder."""
    try:
        catalog.refuse_foreign(storage)
    except EnvironmentFaultError as reason:
        return InputMissingError(str(reason))
    return InputMissingError(
        f"{storage.url} holds no checkpoints: expected step-… folders in it. Give the folder or "
        f"URL that a run saved to, or one of its step-… folders."
    )


def _checked(storage: Storage, folder: StepFolder) -> StepFolder:
    if storage.size(f"{folder.name}/{MANIFEST}") is not None:
        return folder
    if not storage.names(folder.name):
        raise InputMissingError(f"{storage.url} has no {folder.name}")
    raise _not_committed(storage, folder)


def _not_committed(storage: Storage, folder: StepFolder) -> InputMissingError:
    return InputMissingError(
        f"{storage.url}/{folder.name} is no checkpoint: it has no {MANIFEST}, which is written "
        f"last. Its save is under way, or was cut off."
    )
