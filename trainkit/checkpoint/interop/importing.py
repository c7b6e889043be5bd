"""Checkpoints of other tools, taken over as if a CheckpointManager had saved them."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainkit.checkpoint.adapters.base import Document
from trainkit.checkpoint.format.layout import RESERVED, StepFolder, check_entry_name
from trainkit.checkpoint.format.manifest import Entry
from trainkit.checkpoint.format.tensors import TensorSource
from trainkit.checkpoint.interop.committing import commit, discard, hold
from trainkit.checkpoint.interop.files import FileWriter
from trainkit.checkpoint.load.safetensors_files import is_folder_of_tensors
from trainkit.checkpoint.options import CheckpointOptions
from trainkit.errors import DataError, DependencyError, InputMissingError, UsageError
from trainkit.storage import open_storage, refuse_credentials

__all__ = ["import_checkpoint"]

_WRAPPERS = ("module.", "_orig_mod.")
_REST = "imported"
"""Entry for single values, which no entry of a CheckpointManager can be by itself."""


def import_checkpoint(
    source: str | os.PathLike[str],
    url: str | os.PathLike[str],
    *,
    step: int | None = None,
    name: str = "model",
    options: CheckpointOptions | None = None,
) -> str:
    """Take over a checkpoint of another tool; no pickle in it is run.

    A dictionary of tensors becomes a module, an optimizer's state an optimizer, anything else
    a value; tensors at the top become the module ``name``. One tensor at a time is in memory,
    but for files of ``torch.save`` of before torch 1.6, and for object stores.

    Args:
        source: a folder of torch.distributed.checkpoint, a file of ``torch.save``, a safetensors
            file, or a folder with such files and their index.
        url: root of checkpoints to import into.
        step: of the new checkpoint; the number at the end of the source's name, or else 0.
        name: of the module that tensors at the top are.
        options: attempts and time limits.

    Returns:
        The folder of the new checkpoint, in full.

    Raises:
        InputMissingError: there is no such source.
        DataError: it is damaged, of no known kind, or would have to run code to be read.
        UsageError: something in it has no place in a checkpoint.
        EnvironmentFaultError: ``url`` is another kind of folder, or a run saves to it.
    """
    refuse_credentials(source)
    refuse_credentials(url)
    text = os.fspath(source).rstrip("/")
    check_entry_name(name)
    entries = list(_entries(_read(text), name))
    storage = open_storage(url)
    number = _number(text) if step is None else step
    options = options or CheckpointOptions()
    lease = hold(storage, options)
    try:
        folder = StepFolder(number, lease.claim.generation, 0)
        _write(FileWriter(storage, folder.name, options), folder, entries)
    finally:
        lease.release()
    return f"{storage.url}/{folder.name}"


def _write(
    writer: FileWriter, folder: StepFolder, entries: list[tuple[str, Entry, list[Document]]]
) -> None:
    try:
        for _, _, documents in entries:
            for document in documents:
                writer.write_document(document)
        named = {name: entry for name, entry, _ in entries}
        commit(writer.storage, folder, writer.files, named, world_size=0)
    except BaseException:
        discard(writer.storage, folder)
        raise


def _number(source: str) -> int:
    stem = os.path.basename(source).partition(".")[0]
    found = re.search(r"(\d{1,18})$", stem)
    return int(found[1]) if found else 0


def _read(source: str) -> Any:
    from trainkit.checkpoint.load import safetensors_files

    if source.endswith(".safetensors"):
        return safetensors_files.read_tree(source)
    if os.path.isfile(source):
        return _torch_reader("torch_files")(source)
    names = open_storage(source).names()
    if not names:
        raise InputMissingError(f"{source} is not there, or empty")
    if ".metadata" in names:
        return _torch_reader("dcp.foreign")(source)
    if is_folder_of_tensors(names):
        return safetensors_files.read_tree(source)
    raise DataError(
        f"{source} is no checkpoint that can be imported: expected a folder of "
        f"torch.distributed.checkpoint (with .metadata), safetensors, or a file of torch.save"
    )


def _torch_reader(module: str) -> Callable[[str], Any]:
    from importlib import import_module

    try:
        found = import_module(f"trainkit.checkpoint.interop.{module}")
    except ImportError as error:
        if error.name != "torch":
            raise
        raise DependencyError("reading this needs torch: pip install trainkit[torch]") from None
    reader: Callable[[str], Any] = found.read_tree
    return reader


def _entries(tree: Any, name: str) -> Iterator[tuple[str, Entry, list[Document]]]:
    """What becomes of each part of the state."""
    if not isinstance(tree, Mapping) or not tree:
        raise DataError(f"a state is expected to be a dictionary; this is a {type(tree).__name__}")
    parts = {str(key): value for key, value in tree.items() if isinstance(value, Mapping)}
    tensors = {str(key): v for key, v in tree.items() if isinstance(v, TensorSource)}
    if tensors:
        if name in parts:
            raise UsageError(f"there are tensors at the top and {name!r} too: give another name=")
        parts[name] = tensors
    rest = {key: v for key, v in tree.items() if not isinstance(v, (Mapping, TensorSource))}
    if rest:
        parts[_REST if _REST not in parts else f"{_REST}-values"] = rest
    modules = [key for key, value in parts.items() if _is_module(value)]
    for key, value in parts.items():
        check_entry_name(key)
        if key in modules:
            yield _module(key, value)
        elif _is_optimizer(value):
            yield _optimizer(key, value, parts[modules[0]] if len(modules) == 1 else {}, modules)
        else:
            document = Document.of(f"state/{key}", key, dict(value))
            yield key, Entry("value", (document.path,)), [document]


def _is_module(value: Mapping[Any, Any]) -> bool:
    others = [k for k, v in value.items() if not isinstance(v, TensorSource)]
    return len(others) < len(value) and all(str(key).endswith("_extra_state") for key in others)


def _is_optimizer(value: Mapping[Any, Any]) -> bool:
    return set(value) == {"state", "param_groups"} and isinstance(value["param_groups"], list)


def _unwrapped(value: Mapping[Any, Any]) -> dict[str, Any]:
    """Names without what DistributedDataParallel and torch.compile put before all of them."""
    names = {str(key): item for key, item in value.items()}
    for wrapper in _WRAPPERS * 2:
        if all(key.startswith(wrapper) for key in names):
            names = {key.removeprefix(wrapper): item for key, item in names.items()}
    return names


def _module(name: str, value: Mapping[Any, Any]) -> tuple[str, Entry, list[Document]]:
    if name in RESERVED:
        raise UsageError(f"a module cannot be the checkpoint entry {name!r}")
    named = _unwrapped(value)
    tensors = {key: v for key, v in named.items() if isinstance(v, TensorSource)}
    documents = [Document(f"{name}/model", tensors)]
    extra = {key: v for key, v in named.items() if key not in tensors}
    if extra:
        documents.append(Document.of(f"{name}/extra", name, extra))
    return name, Entry("module", tuple(d.path for d in documents)), documents


def _optimizer(
    name: str, value: Mapping[str, Any], module: Mapping[Any, Any], modules: list[str]
) -> tuple[str, Entry, list[Document]]:
    """An optimizer by numbers of parameters, or by names where these are the one module's."""
    groups = [dict(group) for group in value["param_groups"]]
    of_parameters: dict[Any, Any] = dict(value["state"])
    keyed_by = "index"
    if all(parameter in module for group in groups for parameter in group["params"]) and module:
        keyed_by = "name"
        of_parameters = {f"{modules[0]}.{key}": item for key, item in of_parameters.items()}
        for group in groups:
            group["params"] = [f"{modules[0]}.{key}" for key in group["params"]]
    own = {"state": of_parameters, "param_groups": groups, "keyed_by": keyed_by}
    document = Document.of(f"optim/{name}", name, own)
    return name, Entry("optimizer", (document.path,)), [document]
