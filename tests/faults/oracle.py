"""Knows what was acknowledged and what each save must hold bit by bit; judges a root after it.

A save is known by its token, a number that grows with every attempt. All of the state is a
function of the token, so that a restored state tells which save it is of, and one that mixes
two saves is of none. By default the token is the step.
"""

import bisect
import hashlib
import json
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.coordination import Communicator, MemoryStore
from trainkit.errors import TrainkitError
from trainkit.state import PerRank

SAMPLES_PER_STEP = 8
"""How many samples each step consumes; `Position` holds a hash over all of them, in order."""

QUICK = CheckpointOptions(
    background=False,
    timeout=60.0,
    attempts=1,
    pause=0.001,
    visible_within=5.0,
    lease=1.0,
    renewal=0.3,
)


class Box:
    """A Stateful with one value in it."""

    def __init__(self, value=None):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


class Position:
    """A place in the data: how many samples were consumed, and a hash that chains them all.

    One that is consumed twice, or left out, or out of order, changes the hash for good.
    """

    def __init__(self):
        self.samples, self.chain = 0, ""

    def consume(self, count):
        for sample in range(self.samples, self.samples + count):
            text = f"{self.chain}:{sample}".encode()
            self.chain = hashlib.blake2b(text, digest_size=8).hexdigest()
        self.samples += count

    def state_dict(self):
        return {"samples": self.samples, "chain": self.chain}

    def load_state_dict(self, state_dict):
        self.samples, self.chain = state_dict["samples"], state_dict["chain"]


@lru_cache(maxsize=4096)
def position_after(step):
    """The position after ``step`` steps that were not broken off."""
    position = Position()
    if step > 0:
        position.load_state_dict(dict(position_after(step - 1)))
        position.consume(SAMPLES_PER_STEP)
    return tuple(position.state_dict().items())


def empty_state(size):
    """A state to restore into; ``size`` is the number of 8-byte weights."""
    return {
        "weights": np.zeros(size, np.int64),
        "table": {},
        "position": Position(),
        "own": PerRank(Box()),
    }


def fill(state, token, rank=0, *, position=True):
    """Make ``state`` what it is at ``token``; the position may be the caller's to make."""
    generator = np.random.default_rng(token)
    state["weights"][:] = generator.integers(0, 2**62, len(state["weights"]))
    state["table"].clear()
    state["table"].update(token=token, words=[f"word {token}.{n}" for n in range(5)])
    state["own"].value.value = f"rank {rank} at {token}"
    if position:
        state["position"].load_state_dict(dict(position_after(token)))
    return state


def bits(state):
    """All of a state as bytes, so that equal means equal in each bit."""
    rest = [state["table"], state["position"].state_dict(), state["own"].value.value]
    return state["weights"].tobytes() + json.dumps(rest, sort_keys=True).encode()


@lru_cache(maxsize=512)
def _expected(token, rank, size):
    return bits(fill(empty_state(size), token, rank))


def restore(root, world, size, steps=(), near=None):
    """Restore the newest checkpoint and then those of ``steps``, on ranks which are threads.

    ``near`` tells the local tier of a rank; there is none by default.

    Returns:
        For the newest and each of ``steps``: what each rank has, which is a pair of the step and
        the state's bits and token, or the error.
    """
    store = MemoryStore()
    wanted = (None, *steps)
    results = [[None] * world for _ in wanted]

    def rank_main(rank):
        communicator = Communicator(store, rank, world, timeout=60.0) if world > 1 else None
        state = empty_state(size)
        try:
            manager = CheckpointManager(
                root,
                state,
                keep=1000,
                communicator=communicator,
                local_tier=near and near(rank),
                options=QUICK,
            )
        except (Exception, TrainkitError) as error:
            for result in results:
                result[rank] = error
            return
        for step, result in zip(wanted, results, strict=True):
            try:
                found = manager.restore_latest() if step is None else manager.restore(step)
                result[rank] = (found, state["table"].get("token"), bits(state))
            except (Exception, TrainkitError) as error:
                result[rank] = error
        manager.close()

    on_threads(world, rank_main)
    return results


def on_threads(world, rank_main):
    """Run ``rank_main(rank)`` on each rank, as threads where there are several."""
    if world == 1:
        rank_main(0)
        return
    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        if thread.is_alive():
            raise AssertionError("I5: a rank hangs")


class Oracle:
    """What is known of the saves to one root, and whether the root keeps to it."""

    def __init__(self, root, *, keep, world=1, size=2048, near=None):
        """Know nothing yet.

        Args:
            root: local path of the checkpoints.
            keep: how many the saving manager keeps.
            world: number of ranks that save, and that restore here.
            size: number of weights.
            near: tells the local tier of a rank, if there is one.
        """
        self.root, self.keep, self.world, self.size = Path(root), keep, world, size
        self.near = near
        self.steps = {}  # step by token, of all attempts
        self.acknowledged = []
        self.restored = None  # token that the last look found

    def copy(self, root):
        """The same knowledge about a copy of the root."""
        other = Oracle(root, keep=self.keep, world=self.world, size=self.size)
        other.steps, other.acknowledged = dict(self.steps), list(self.acknowledged)
        return other

    def attempt(self, token, step=None):
        """A save of ``token`` begins."""
        self.steps[token] = token if step is None else step

    def acknowledge(self, token):
        """The save of ``token`` has returned on a rank, so it is committed for all."""
        if token not in self.acknowledged:
            bisect.insort(self.acknowledged, token)

    def save(self, token, *, step=None):
        """Open the root, save ``token`` on all ranks, which are threads, and acknowledge."""
        self.attempt(token, step)
        store, errors = MemoryStore(), []

        def rank_main(rank):
            communicator = Communicator(store, rank, self.world, timeout=60.0)
            state = fill(empty_state(self.size), token, rank)
            try:
                manager = CheckpointManager(
                    self.root,
                    state,
                    keep=self.keep,
                    options=QUICK,
                    communicator=communicator,
                    local_tier=self.near and self.near(rank),
                )
                manager.save(self.steps[token])
                manager.wait()
                manager.close()
            except (Exception, TrainkitError) as error:
                errors.append(error)

        on_threads(self.world, rank_main)
        if errors:
            raise errors[0]
        self.acknowledge(token)

    def violations(self):
        """What is wrong with the root as a restarted job finds it (I1, I2, I3)."""
        candidates = self._last_acknowledged(self.keep)
        steps = [self.steps[known] for known in candidates]
        first, *others = restore(self.root, self.world, self.size, steps, self.near)
        token, wrong = self._judged(first)
        floor = self.acknowledged[-1] if self.acknowledged else None
        if not wrong and floor is not None and (token is None or token < floor):
            wrong.append(f"I2: {floor} was acknowledged, and {token} is restored")
        if not wrong and token is not None and token not in self.acknowledged:
            self.acknowledge(token)  # once restored, it must not go back either
        required = self._last_acknowledged(self.keep)
        for known, result in zip(candidates, others, strict=True):
            found, problems = self._judged(result)
            if known in required and (problems or found is None or found < known):
                wrong.append(f"I3: step {self.steps[known]}, kept, is {problems or found}")
        self.restored = token
        return wrong

    def _last_acknowledged(self, count):
        """The newest ``count`` acknowledged tokens of different steps."""
        found = {}
        for known in reversed(self.acknowledged):
            found.setdefault(self.steps[known], known)
        return list(found.values())[:count]

    def survives(self):
        """What is wrong now, and once the next save has been there (I6 too)."""
        wrong = self.violations()
        token = max(self.steps, default=0) + 1
        try:
            self.save(token, step=max(self.steps.values(), default=0) + 1)
            return wrong + self.violations() + self.orphans()
        except (Exception, TrainkitError) as error:
            return [*wrong, f"no save is possible any more: {error!r}"]

    def orphans(self):
        """Files that no checkpoint, claim or mark accounts for, after a save (I6).

        Not counted are temporary names of single files (`.name.….tmp`) in folders that stay:
        a kill within the creation of one file leaves them, and only their age tells.
        """
        known = set(self._accounted())
        files = (path for path in self.root.rglob("*") if not path.is_dir())
        return [
            f"I6: nobody accounts for {path.relative_to(self.root)}"
            for path in files
            if path not in known and not path.name.endswith(".tmp")
        ]

    def _accounted(self) -> Iterator[Path]:
        yield from (self.root / ".generations").glob("[0-9]*")
        yield self.root / ".tier"
        for manifest in self.root.glob("step-*/MANIFEST.json"):
            yield manifest
            yield self.root / ".quarantine" / manifest.parent.name
            try:
                listed = json.loads(manifest.read_bytes())["files"]
            except ValueError:  # torn or damaged: all of it stays for a person to look at
                yield from manifest.parent.rglob("*")
                continue
            yield from (manifest.parent / path for path in listed)

    def _judged(self, results):
        """The token that all ranks restored, and what is wrong with what they restored."""
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            return None, [f"I1: restoring raises {errors[0]!r}"]
        steps, tokens = ({result[n] for result in results} for n in range(2))
        if steps == {None}:
            return None, []
        if len(steps) > 1 or len(tokens) > 1:
            return None, [f"I1: ranks restore steps {steps} of {tokens}"]
        token, found = tokens.pop(), steps.pop()
        if token not in self.steps or self.steps[token] != found:
            return None, [f"I1: step {found} of {token!r}, which nobody saved like this"]
        for rank, (_, _, content) in enumerate(results):
            if content != _expected(token, rank, self.size):
                return None, [f"I1: step {found} of rank {rank} is not what {token} was"]
        return token, []
