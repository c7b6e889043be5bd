"""The state of a run as documents: which adapter serves which entry."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainkit.checkpoint.adapters import rng
from trainkit.checkpoint.adapters.base import (
    Apply,
    Document,
    LateAdapter,
    Reading,
    Saved,
    ShardedAdapter,
    SketchingAdapter,
    StateAdapter,
)
from trainkit.checkpoint.adapters.plain import (
    PlainAdapter,
    check_restorable,
    give_back,
    is_weights,
    state_of,
)
from trainkit.checkpoint.format.layout import check_entry_name, rank_state_path
from trainkit.checkpoint.format.manifest import Entry
from trainkit.checkpoint.torn import mark_torn, mend
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError, UsageError
from trainkit.frameworks import loaded, of_object
from trainkit.state import PerRank

__all__ = [
    "Restoration",
    "capture_rank",
    "capture_shared",
    "check_state",
    "not_begun",
    "weights_of",
]

log = logging.getLogger(__name__)

_PER_RANK = "per_rank"


def check_state(state: Mapping[str, Any]) -> None:
    """Refuse a state that can never be saved or given back, before training begins.

    Raises:
        UsageError: the message names the entry.
    """
    for name, value in state.items():
        check_entry_name(name)
        if isinstance(value, PerRank) or isinstance(_adapter(value), PlainAdapter):
            check_restorable(name, value.value if isinstance(value, PerRank) else value)
    folded = {name.casefold() for name in state}
    if len(folded) != len(state):  # one file for two entries, on some mounts
        raise UsageError(f"entries that differ only in case: {', '.join(sorted(state))}")


def not_begun(state: Mapping[str, Any]) -> list[str]:
    """Entries that cannot be saved yet, since nothing was trained; for when training is over."""
    found = []
    for name, value in state.items():
        adapter = _adapter(value)
        if isinstance(adapter, LateAdapter) and not adapter.has_begun(value):
            found.append(name)
    return found


def weights_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What another run can begin with: modules, or else arrays and tensors; none of one rank's."""
    shared = {name: value for name, value in state.items() if not isinstance(value, PerRank)}
    modules = {name: value for name, value in shared.items() if _adapter(value).kind == "module"}
    return modules or {name: value for name, value in shared.items() if is_weights(value)}


def capture_shared(
    state: Mapping[str, Any], *, sketch: bool = False
) -> Iterator[tuple[str, Entry, list[Document]]]:
    """Entries that are the same on all ranks, one after the other: name, record, documents.

    Args:
        state: of the run.
        sketch: whether documents of about the right sizes will do, since none is written.

    Raises:
        UsageError: something cannot be saved; the message names its place.
    """
    adapters: dict[str, StateAdapter] = {}
    for name, value in state.items():
        if isinstance(value, PerRank):
            yield name, Entry(_PER_RANK, ()), []
            continue
        adapter = _adapter(value)
        adapter = adapters.setdefault(adapter.kind, adapter)
        if sketch and isinstance(adapter, SketchingAdapter):
            documents = adapter.sketch(name, state)
        else:
            documents = adapter.capture(name, state)
        yield name, Entry(adapter.kind, tuple(d.path for d in documents)), documents


def capture_rank(state: Mapping[str, Any], rank: int, sharded: Iterable[str]) -> Document:
    """What only this rank has: ``PerRank`` entries, random generators, parts of sharded tensors.

    Args:
        state: of the run.
        rank: of this process.
        sharded: names of entries that have such tensors, as ``capture_shared`` found them.
    """
    entries = {n: state_of(v.value) for n, v in state.items() if isinstance(v, PerRank)}
    value = {"entries": entries, "random": rng.capture()}
    parts = {name: _own_parts(name, state) for name in sharded}
    if any(parts.values()):
        value["parts"] = {name: own for name, own in parts.items() if own}
    return Document.of(rank_state_path(rank), f"rank {rank}", value)


def _own_parts(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    adapter = _adapter(state[name])
    return adapter.own_parts(name, state) if isinstance(adapter, ShardedAdapter) else {}


class Restoration:
    """Gives a checkpoint back to a state, in three steps, each done once all ranks did the last.

    ``prepare`` checks all but the bytes of large files, ``read`` reads these straight into torch
    modules and verifies them on the way, ``apply`` changes all else.
    """

    def __init__(self, state: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
        """Compare the names and kinds of entries.

        Raises:
            EnvironmentFaultError: the run has an entry that the checkpoint lacks, or that was
                saved as something else.
        """
        self._state = state
        self._adapters: dict[str, StateAdapter] = {}
        self._reads: dict[str, Reading] = {}
        self._applies: list[Apply] = []
        self._random: dict[str, Any] | None = None
        for name, value in state.items():
            expected = _PER_RANK if isinstance(value, PerRank) else _adapter(value).kind
            found = entries[name].kind if name in entries else "no such entry"
            if expected != found:
                raise EnvironmentFaultError(
                    f"{name}: the run expects a {expected}, the checkpoint holds {found} (it has "
                    f"{', '.join(sorted(entries)) or 'nothing'}). Restore with the entries that "
                    f"were saved, or start with another checkpoint folder."
                )
        left = sorted(set(entries) - set(state))
        if left:
            log.warning("not restored, since this run does not name them: %s", ", ".join(left))

    def prepare(self, name: str, saved: Mapping[str, Saved]) -> None:
        """Check one entry that is the same on all ranks.

        Raises:
            CheckpointDamagedError: a document of it is not among those of the entry.
            EnvironmentFaultError: it does not fit; the message names the first difference.
        """
        adapter = _adapter(self._state[name])
        adapter = self._adapters.setdefault(adapter.kind, adapter)
        prepared = adapter.prepare(name, self._state, _Documents(saved))
        if isinstance(prepared, Reading):
            self._reads[name] = prepared
        else:
            self._applies.append(prepared)

    def prepare_rank(self, saved: Saved, *, same_world: bool) -> None:
        """Check what was saved by the rank of the same number.

        Args:
            saved: the document of that rank.
            same_world: whether there are as many ranks as there were; otherwise the random
                generators are left as they are.

        Raises:
            CheckpointDamagedError: it is no such document.
            EnvironmentFaultError: something in it does not fit; the message names it.
        """
        value = saved.value()
        if not isinstance(value, dict) or not isinstance(value.get("entries"), dict):
            raise CheckpointDamagedError("the document of a rank without entries")
        for name, entry in value["entries"].items():
            if isinstance(self._state.get(name), PerRank):
                self._applies.append(give_back(name, self._state[name].value, entry))
        if same_world:
            rng.check(value.get("random"))
            self._random = value["random"]

    @property
    def reads(self) -> bool:
        """Whether there is something to ``read``."""
        return bool(self._reads)

    def read(self) -> None:
        """Read large files into the modules that they are of, which are torn until ``apply``.

        Raises:
            CheckpointDamagedError: bytes are not those that were saved.
            OSError: they cannot be read.
        """
        mark_torn(self._state[name] for name in self._reads)
        for reading in self._reads.values():
            reading.read()

    def apply(self) -> None:
        """Change the rest of the state; random generators last, since loading may draw numbers."""
        for apply in self._applies:
            apply()
        if self._random is not None:
            rng.give_back(self._random)
        mend(self._state.values())


class _Documents(dict[str, Saved]):
    """Documents by path; one that is not there is damage, and no bug."""

    def __missing__(self, path: str) -> Saved:
        raise CheckpointDamagedError(f"the checkpoint's entry has no document {path}")


def _adapter(value: Any) -> StateAdapter:
    """The adapter for one value. One serves all entries of its kind in one save or restore."""
    framework = of_object(value)
    if framework is None or not loaded(framework):
        return PlainAdapter()
    return _of_framework(framework, value) or PlainAdapter()


def _of_framework(framework: str, value: Any) -> StateAdapter | None:
    if framework == "torch":
        from trainkit.checkpoint.adapters.torch import adapter_for as for_torch

        return for_torch(value)
    if framework == "tensorflow":
        from trainkit.checkpoint.adapters.tensorflow import adapter_for as for_tensorflow

        return for_tensorflow(value)
    from trainkit.checkpoint.adapters.xgboost import adapter_for as for_xgboost

    return for_xgboost(value)
