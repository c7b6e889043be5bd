"""The scripts of T7: each a few faults, what a user is told, and whether the work must succeed."""

from dataclasses import dataclass

from tests.faults import storefaults as do
from tests.faults.storeproxy import Fault, always

SMALL, LARGE = 2048, 1_400_000
"""Numbers of 8-byte weights: in one request, and in three parts of an upload."""

TENSORS, PART, MANIFEST = r"weights\.safetensors$", r"ranks/rank\d+\.json$", r"MANIFEST\.json$"

_SERVER = r"[Ii]nternal ?([Ss]erver )?[Ee]rror"
_SLOW = r"reduce your request rate|Service Unavailable"
_NETWORK = r"[Cc]onnect|[Tt]ime-?d? ?out|reset|disconnected|closed|payload|EndpointURL"
_GARBLED = r"the store sent \d+ of \d+ bytes|checksum"
_CONDITION = r"pre-conditions|[Cc]onflict|object exists"


@dataclass(frozen=True)
class ScriptOf:
    """A script, and what must come of it."""

    name: str
    faults: tuple
    says: str = ""
    """Regular expression for the error's message, where one may come."""
    works: bool | None = None
    """Whether the work must succeed; None where either is right."""
    size: int = SMALL
    world: int = 1
    older: bool = False
    """Whether a restore may take the checkpoint before the newest."""

    @property
    def waits(self):
        """Whether it costs seconds, in which the client waits for an answer."""
        return any(f.action in (do.hang, do.hang_though_done) for f in self.faults)


def _one(name, operation, target, action, says, works, count=1, **more):
    return ScriptOf(name, (Fault(operation, target, action, count=count),), says, works, **more)


def _puts():
    for what, target in (("tensors", TENSORS), ("part", PART), ("manifest", MANIFEST)):
        rows = [
            ("500 once", do.error(500), _SERVER, True, 1),
            ("500 always", do.error(500), _SERVER, False, always),
            ("503 SlowDown once", do.error(503), _SLOW, True, 1),
            ("503 SlowDown always", do.error(503), _SLOW, False, always),
            ("reset in the body once", do.reset, _NETWORK, True, 1),
            ("reset in the body always", do.reset, _NETWORK, False, always),
            ("hang once", do.hang, _NETWORK, True, 1),
            ("answer lost once", do.lost, _NETWORK, True, 1),
            ("answer lost always", do.lost, _NETWORK, True, always),
            ("done, and 500", do.error_though_done(500), _SERVER, True, 1),
            ("done, and 412", do.error_though_done(412), _CONDITION, True, 1),
            ("not done, and 412 once", do.error(412), _CONDITION, None, 1),
            ("not done, and 412 always", do.error(412), _CONDITION, False, always),
            ("not done, and 409 once", do.error(409), _CONDITION, None, 1),
        ]
        for name, action, says, works, count in rows:
            yield _one(f"{what}: {name}", "put", target, action, says, works, count)
    yield _one("tensors: hang always", "put", TENSORS, do.hang, _NETWORK, False, always)
    yield _one("manifest: hang always", "put", MANIFEST, do.hang, _NETWORK, False, always)
    yield _one("manifest: done, and no answer", "put", MANIFEST, do.hang_though_done, "", True, 1)
    yield _one("everything: 503 always", "any", "step-", do.error(503), _SLOW, False, always)
    yield _one("everything: 500, ten times", "any", "step-", do.error(500), _SERVER, None, 10)


def _uploads():
    def row(name, operation, action, says, works, count=1, first=1, then=()):
        fault = Fault(operation, TENSORS, action, first, count)
        return ScriptOf(f"upload: {name}", (fault, *then), says, works, LARGE)

    no_abort = Fault("abort", TENSORS, do.error(500), count=always)
    return [
        row("begin: 500 once", "begin", do.error(500), _SERVER, True),
        row("begin: 503 always", "begin", do.error(503), _SLOW, False, always),
        row("begin: answer lost", "begin", do.lost, _NETWORK, True),
        row("part: 500 once", "part", do.error(500), _SERVER, True),
        row("part: 503 always", "part", do.error(503), _SLOW, False, always),
        row("part: reset in the body once", "part", do.reset, _NETWORK, True, first=2),
        row("part: reset in the body always", "part", do.reset, _NETWORK, False, always),
        row("part: answer lost", "part", do.lost, _NETWORK, True),
        row("part: hang once", "part", do.hang, _NETWORK, True),
        row("complete: 500 once", "complete", do.error(500), _SERVER, True),
        row("complete: 500 always", "complete", do.error(500), _SERVER, False, always),
        row("complete: 200 with an error once", "complete", do.ok_with_error, _SERVER, True),
        row("complete: 200 with an error", "complete", do.ok_with_error, _SERVER, False, always),
        row("complete: done, and 200 with an error", "complete", do.ok_with_error_though_done,
            _SERVER, True),
        row("complete: answer lost", "complete", do.lost, _NETWORK, True),
        row("complete: not done, and 412", "complete", do.error(412), _CONDITION, None),
        row("complete: not done, and 409", "complete", do.error(409), _CONDITION, None),
        row("part: 500, and no abort", "part", do.error(500), _SERVER, False, always,
            then=(no_abort,)),
        row("complete: 500, and no abort", "complete", do.error(500), _SERVER, False, always,
            then=(no_abort,)),
    ]  # fmt: skip


def _ranks():
    def of_rank_1(name, action, says, works, count=1):
        target = r"ranks/rank00001\.json$"
        return _one(f"rank 1's part: {name}", "put", target, action, says, works, count, world=2)

    return [
        of_rank_1("500 always", do.error(500), _SERVER, False, always),
        of_rank_1("answer lost", do.lost, _NETWORK, True),
        of_rank_1("reset in the body", do.reset, _NETWORK, True),
        _one("rank 0 reads parts: cut off", "get", PART, do.cut_off, _NETWORK, True, world=2),
        _one("rank 0 reads parts: short", "get", PART, do.short, "", True, world=2),
        _one("late listings", "list", "", do.late(0.5), "", True, always, world=2),
    ]


SAVES = [*_puts(), *_uploads(), *_ranks()]
"""While a step is saved."""


def _gets():
    reads = (("tensors", "get", TENSORS), ("values", "get", r"table\.json$"),
             ("manifest", "get", MANIFEST))  # fmt: skip
    for what, operation, target in reads:
        rows = [
            ("500 once", do.error(500), _SERVER, True, 1),
            ("500 always", do.error(500), _SERVER, False, always),
            ("503 SlowDown always", do.error(503), _SLOW, False, always),
            ("reset once", do.reset, _NETWORK, True, 1),
            ("cut off once", do.cut_off, _NETWORK, True, 1),
            ("cut off always", do.cut_off, _NETWORK, False, always),
            ("short once", do.short, _GARBLED, True, 1),
            ("short always", do.short, _GARBLED, False, always),
            ("a wrong bit once", do.flipped, "", True, 1),
            ("hang once", do.hang, _NETWORK, True, 1),
        ]
        for name, action, says, works, count in rows:
            yield _one(f"{what}: {name}", operation, target, action, says, works, count)
    yield _one("tensors: hang always", "get", TENSORS, do.hang, _NETWORK, False, always)
    yield _one("listing: 500 once", "list", "", do.error(500), _SERVER, True)
    yield _one("listing: 503 always", "list", "", do.error(503), _SLOW, False, always)
    yield _one("listing: cut off once", "list", "", do.cut_off, _NETWORK, True)
    yield _one("sizes: 500 once", "head", "", do.error(500), "", True)
    yield _one("sizes: 500 always", "head", "", do.error(500), "", False, always)
    yield _one("large: cut off once", "get", TENSORS, do.cut_off, _NETWORK, True, size=LARGE)
    yield _one("large: short once", "get", TENSORS, do.short, _GARBLED, True, size=LARGE)
    yield _one("two ranks, short once", "get", TENSORS, do.short, _GARBLED, True, world=2)
    yield _one("late listings", "list", "", do.late(60.0), "", None, always, older=True)


RESTORES = list(_gets())
"""While the newest checkpoint is restored."""

_CLAIM = r"\.generations/\d+$"

OPENINGS = [
    _one("claim: 500 once", "put", _CLAIM, do.error(500), _SERVER, True),
    _one("claim: 503 always", "put", _CLAIM, do.error(503), _SLOW, False, always),
    _one("claim: answer lost", "put", _CLAIM, do.lost, _NETWORK, True),
    _one("claim: reset in the body", "put", _CLAIM, do.reset, _NETWORK, True),
    _one("claim: done, and 412", "put", _CLAIM, do.error_though_done(412), _CONDITION, True),
    _one("claims listed late", "list", r"\.generations", do.late(0.3), "", True, always),
]
"""While a root that has checkpoints is opened by the next run."""

_ANY = "step-"

TIDYINGS = [
    _one("late listings", "list", "", do.late(60.0), "", True, always),
    _one("removal: 500 once", "delete", _ANY, do.error(500), _SERVER, True),
    _one("removal: 503 always", "delete", _ANY, do.error(503), _SLOW, False, always),
    _one("removal: answer lost", "delete", _ANY, do.lost, _NETWORK, True),
    _one("listing: 500 always", "list", "", do.error(500), _SERVER, False, always),
    _one("uploads: 503 always", "uploads", "", do.error(503), _SLOW, False, always),
]
"""While `gc` tidies a root."""
