"""Starting a new run from the weights of another one, and from nothing else of it."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainkit.checkpoint.adapters.base import Saved
from trainkit.checkpoint.adapters.state import Restoration, weights_of
from trainkit.checkpoint.agreement import give_back_together, on_all_ranks
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.layout import MANIFEST, StepFolder
from trainkit.checkpoint.format.manifest import Entry
from trainkit.checkpoint.format.tensors import StoredTensor
from trainkit.checkpoint.load.reader import StepReader
from trainkit.checkpoint.load.safetensors_files import is_folder_of_tensors, read_tree
from trainkit.coordination import Communicator
from trainkit.errors import (
    CheckpointDamagedError,
    EnvironmentFaultError,
    InputMissingError,
    UsageError,
)
from trainkit.storage import open_storage, refuse_credentials

__all__ = ["load_weights"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where weights lie: a step below the root ``url``, or safetensors at ``url`` itself."""

    url: str
    folder: StepFolder | None

    def __str__(self) -> str:
        return self.url if self.folder is None else f"{self.url}/{self.folder.name}"


def load_weights(
    url: str | os.PathLike[str],
    state: Mapping[str, Any],
    communicator: Communicator,
    *,
    timeout: float,
) -> None:
    """Load the weights of ``state`` from elsewhere; every rank calls it. Nothing is written.

    Weights are the torch modules in the state; in a state without any, its arrays and tensors.
    Each is taken from the entry of the same name, and all names and shapes have to be the same.

    Args:
        url: a root of checkpoints, of which the newest whole one is taken; the folder of one
            step; a safetensors file, or a folder with one or with an index, for the one module.
        state: of this run.
        communicator: of the ranks.
        timeout: seconds for the slowest rank to read.

    Raises:
        UsageError: nothing in the state is known to be weights, or a file of tensors is given for
            several modules.
        InputMissingError: there is nothing at ``url``.
        CheckpointDamagedError: all that is there is damaged.
        EnvironmentFaultError: it does not fit; the message names the first difference, and it has
            changed nothing.
    """
    refuse_credentials(url)
    weights = weights_of(state)
    if not weights:
        raise UsageError(
            f"init_from={os.fspath(url)}: the state has neither a torch module nor an array or "
            f"tensor as an entry of its own (it has {', '.join(state) or 'nothing'}), so nothing "
            f"in it is known to be weights"
        )

    def look() -> list[_Source]:
        return _sources(os.fspath(url).rstrip("/")) if communicator.rank == 0 else []

    damaged = []
    for source in on_all_ranks(communicator, look, timeout=timeout).check()[0]:

        def prepare(source: _Source = source) -> Restoration:
            return _prepared(source, weights, communicator.rank)

        outcome = give_back_together(communicator, prepare, timeout=timeout)
        kinds = {failure.kind for failure in outcome.failures}
        if kinds == {CheckpointDamagedError.__name__}:
            damaged.append(f"{source} ({outcome.failures[0].text})")
            if communicator.rank == 0:
                log.warning("%s is passed over: %s", source, outcome.failures[0].text)
            continue
        outcome.check()
        if communicator.rank == 0:
            log.info("begun with the weights (%s) of %s", ", ".join(weights), source)
        return
    raise CheckpointDamagedError(
        f"init_from={os.fspath(url)} holds nothing that is whole: {'; '.join(damaged)}"
    )


def _sources(url: str) -> list[_Source]:
    """What to try, best first."""
    if url.endswith(".safetensors"):
        return [_Source(url, None)]
    storage = open_storage(url)
    names = storage.names()
    if MANIFEST in names:
        root, _, name = storage.url.rpartition("/")
        folder = StepFolder.parse(name)
        if folder is None:
            raise UsageError(
                f"init_from={storage.url} is the folder of one step, and was renamed: expected a "
                f"name such as step-0000000100.g01-0000, which {MANIFEST} tells"
            )
        return [_Source(root or "/", folder)]
    folders = catalog.committed(storage)
    if folders:
        return [_Source(storage.url, folder) for folder in folders]
    if is_folder_of_tensors(names):
        return [_Source(storage.url, None)]
    raise InputMissingError(
        f"init_from={storage.url} holds no checkpoint: expected a folder of checkpoints, the "
        f"folder of one step, a safetensors file, or a folder with one"
    )


def _prepared(source: _Source, weights: Mapping[str, Any], rank: int) -> Restoration:
    try:
        if source.folder is None:
            return _of_tensors(source, weights)
        return _of_step(source, source.folder, weights, rank)
    except EnvironmentFaultError as error:
        raise type(error)(f"init_from={source}: {error}") from None


def _of_step(
    source: _Source, folder: StepFolder, weights: Mapping[str, Any], rank: int
) -> Restoration:
    reader = StepReader(open_storage(source.url), folder)
    entries = reader.manifest.entries
    missing = [name for name in weights if name not in entries]
    if missing:
        raise EnvironmentFaultError(
            f"it has no entry {missing[0]!r}, which this run would begin with (it has "
            f"{', '.join(sorted(entries)) or 'nothing'}). Name the entry as it was saved."
        )
    return reader.prepare_shared(weights, rank)


def _of_tensors(source: _Source, weights: Mapping[str, Any]) -> Restoration:
    entries = {name: Entry("module", (f"{name}/model",)) for name in weights}
    restoration = Restoration(weights, entries)
    if len(weights) != 1:
        raise UsageError(
            f"init_from={source} is one model, and the state has {', '.join(weights)}: expected "
            f"one torch module, or a folder of checkpoints that has them all"
        )
    (name,) = weights
    # What is not a module was refused above, so torch is there.
    from trainkit.checkpoint.adapters.torch.modules import with_tied

    tensors = {
        key: StoredTensor(tensor.dtype, tensor.shape, memoryview(tensor.load()))
        for key, tensor in read_tree(source.url).items()
    }
    restoration.prepare(name, {f"{name}/model": Saved(with_tied(weights[name], tensors))})
    return restoration
