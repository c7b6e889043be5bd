"""A manifest that is not exactly the one that was written is never believed."""

import json

import pytest

from trainkit.checkpoint.format.checksums import FileRecord, digest
from trainkit.checkpoint.format.manifest import Entry, Manifest, Part, TornManifestError
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError

MANIFEST = Manifest(
    step=100,
    generation=3,
    attempt=7,
    world_size=2,
    created="2026-11-25T00:00:00+00:00",
    written_by="trainkit 0",
    files={"model/model.safetensors": FileRecord(5, ("ab" * 16,))},
    entries={"model": Entry("module", ("model/model",))},
    metrics={"loss": 0.5},
)


def forged(**changes):
    """A manifest of a writer who knows how to hash."""
    document = json.loads(MANIFEST.to_bytes()) | changes | {"self_xxh3_128": "0" * 32}
    document["self_xxh3_128"] = document.pop("self_xxh3_128")
    data = json.dumps(document, indent=1).encode() + b"\n"
    return data.replace(b"0" * 32, digest(data).encode())


def test_it_reads_back_and_is_plain_json():
    data = MANIFEST.to_bytes()
    assert Manifest.from_bytes(data) == MANIFEST
    assert json.loads(data)["files"]["model/model.safetensors"]["size"] == 5


def test_every_bit_counts():
    data = MANIFEST.to_bytes()
    for place in range(len(data)):
        for bit in (1, 0x20):  # 0x20 turns a letter's case, which json would not mind
            damaged = bytearray(data)
            damaged[place] ^= bit
            with pytest.raises(CheckpointDamagedError):
                Manifest.from_bytes(bytes(damaged))


def test_every_length_but_the_whole_is_torn():
    data = MANIFEST.to_bytes()
    for length in range(len(data)):
        with pytest.raises(TornManifestError):
            Manifest.from_bytes(data[:length])
    with pytest.raises(CheckpointDamagedError):
        Manifest.from_bytes(data + b"\n")


def test_another_format_is_not_damage():
    with pytest.raises(EnvironmentFaultError, match=r"tkc/9.*'tkc/1'"):
        Manifest.from_bytes(forged(format="tkc/9"))


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"../../etc/passwd": {"size": 0, "xxh3_128": []}}},
        {"files": {"/etc/passwd": {"size": 0, "xxh3_128": []}}},
        {"entries": {"model": {"kind": "module", "documents": ["../up"]}}},
        {"files": []},
        {"entries": {"model": 3}},
        {"entries": {"model": {"kind": "module", "documents": "model"}}},
        {"step": "many"},
    ],
)
def test_a_hostile_manifest_is_refused_though_its_hash_is_right(changes):
    with pytest.raises(CheckpointDamagedError, match="makes no sense"):
        Manifest.from_bytes(forged(**changes))
    assert Manifest.from_bytes(forged()) == MANIFEST


def test_metrics_that_are_no_numbers_survive_as_strict_json():
    data = Manifest(
        **{**_fields(), "metrics": {"loss": float("nan"), "x": float("inf")}}
    ).to_bytes()

    def no_constants(name):
        raise AssertionError(f"{name} is not JSON")

    json.loads(data, parse_constant=no_constants)
    metrics = Manifest.from_bytes(data).metrics
    assert metrics["loss"] != metrics["loss"]
    assert metrics["x"] == float("inf")


def test_parts_read_back_and_refuse_nonsense():
    part = Part(1, MANIFEST.files, MANIFEST.entries)
    assert Part.from_bytes(part.to_bytes()) == part
    for data in (b"", b"[]", b"{}", part.to_bytes().replace(b"model/model", b"../x/model")):
        with pytest.raises(CheckpointDamagedError):
            Part.from_bytes(data)


def _fields():
    return {name: getattr(MANIFEST, name) for name in MANIFEST.__dataclass_fields__}
