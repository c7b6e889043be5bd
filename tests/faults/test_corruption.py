"""T6: any damage to any file is found, or provably of no use; the step before is restored."""

import os
import random
import shutil

import pytest

from tests.faults import broken
from tests.faults.oracle import Oracle
from tests.faults.trials import QUICK, WITH_TORCH, Report, serve
from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.checkpoint.format.checksums import CHUNK_BYTES

FLIPS, CUTS, PAGES, SWAPS = 700, 100, 60, 60
LARGE_FLIPS = 100
WORLD, PAGE = 2, 4096

UNUSED = ("ranks/rank00000.json", "ranks/rank00001.json")
"""Files that no restore reads: each is in the manifest by its size and checksum, for `verify`."""


class Patient:
    """A root with three checkpoints, the newest of which is damaged and healed again."""

    def __init__(self, oracle, rng):
        self.oracle, self.rng = oracle, rng
        self.newest, self.before = self._folder(3), self._folder(2)
        self.files = sorted(p for p in self.newest.rglob("*") if p.is_file())

    def _folder(self, step):
        (folder,) = self.oracle.root.glob(f"step-{step:010d}.*")
        return folder

    def name(self, path):
        return path.relative_to(self.newest).as_posix()

    def judge(self, report, kind, path, data):
        """Replace a file's bytes, look, and put them back; None removes it."""
        healthy = path.read_bytes()
        if data == healthy:
            return
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        wrong, unused = self.look()
        same_size = data is not None and len(data) == len(healthy)
        if unused and not (same_size and self.name(path) in UNUSED):
            wrong.append("I4: nobody noticed")
        self.heal(path, healthy)
        report.add(f"{kind}{', of no use' if unused else ''}", wrong, self.name(path))

    def look(self):
        """What is wrong, and whether the newest was restored, which its bits then must be."""
        oracle = self.oracle.copy(self.oracle.root)
        oracle.acknowledged.remove(3)  # its loss is no fault of the software
        wrong = oracle.violations()
        if oracle.restored not in (2, 3):
            wrong.append(f"I4: {oracle.restored} is restored, not the one before")
        return wrong, oracle.restored == 3

    def heal(self, path, healthy):
        path.write_bytes(healthy)
        shutil.rmtree(self.oracle.root / ".quarantine", ignore_errors=True)


def flipped(data, rng):
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def cut(data, rng):
    if rng.random() < 0.2:
        return data + rng.randbytes(rng.choice([1, 512, PAGE]))
    return data[: rng.choice([0, len(data) - 1, rng.randrange(len(data))])]


def page_zeroed(data, rng):
    begin = rng.randrange(0, len(data), PAGE)
    return data[:begin] + bytes(len(data[begin : begin + PAGE])) + data[begin + PAGE :]


def damage(share, scale, unchecked):
    """Every kind of damage, on files in turn."""
    report, rng = Report(), random.Random(share.number)
    oracle = Oracle(share.folder / "patient", keep=3, world=WORLD)
    for token in (1, 2, 3):
        oracle.save(token)
    patient = Patient(oracle, rng)
    kinds = [("bit flip", flipped, FLIPS), ("cut off or longer", cut, CUTS)]
    kinds.append(("page of zeros", page_zeroed, PAGES))
    with broken.unchecked() if unchecked else broken.nothing():
        for kind, change, count in kinds:
            for number in share.of(range(int(count * scale))):
                path = patient.files[number // share.shards % len(patient.files)]
                patient.judge(report, kind, path, change(path.read_bytes(), rng))
        for number in share.of(range(int(SWAPS * scale))):
            exchange(patient, report, rng, number)
        for path in share.of(patient.files):
            patient.judge(report, "missing", path, None)
            # Nothing in a file that is not missed when it is noise is of any use.
            patient.judge(report, "noise", path, rng.randbytes(path.stat().st_size))
    return report


def exchange(patient, report, rng, number):
    """A file that is whole in the place of another: of the step before, or of the same step."""
    path = rng.choice(patient.files)
    if number % 2:
        other = patient.before / patient.name(path)
        patient.judge(report, "of another step", path, other.read_bytes())
    else:
        other = rng.choice([p for p in patient.files if p != path])
        patient.judge(report, "of another name", path, other.read_bytes())


def test_damage(tally, scale):
    report = serve(damage, scale, False, timeout=280 * scale)
    tally("T6 damage", report)
    report.check()
    assert report.count > 0.9 * FLIPS * scale


def misplaced(share):
    """Folders under other names, several damaged ones, all damaged ones, what is no checkpoint."""
    report = Report()
    for kind in share.of((_copied, _renamed, _two_damaged, _all_damaged, _stray_files)):
        with share.root() as root:
            oracle = Oracle(root, keep=3)
            for token in (1, 2, 3):
                oracle.save(token)
            report.add(kind.__name__.strip("_"), kind(oracle))
    return report


def _step(oracle, step):
    (folder,) = oracle.root.glob(f"step-{step:010d}.*")
    return folder


def _copied(oracle):
    """An old step copied over the name of a newer one must not pass for it."""
    shutil.copytree(_step(oracle, 1), oracle.root / "step-0000000009.g09-0000")
    return oracle.violations()


def _renamed(oracle):
    _step(oracle, 3).rename(oracle.root / "step-0000000004.g07-0000")
    oracle.acknowledged.remove(3)
    return oracle.violations() + ([] if oracle.restored == 2 else [f"{oracle.restored} restored"])


def _two_damaged(oracle):
    for step in (2, 3):
        (_step(oracle, step) / "state" / "table.json").write_bytes(b"{}")
        oracle.acknowledged.remove(step)
    return oracle.violations() + ([] if oracle.restored == 1 else [f"{oracle.restored} restored"])


def _all_damaged(oracle):
    for step in (1, 2, 3):
        (_step(oracle, step) / "state" / "table.json").write_bytes(b"{}")
    wrong = oracle.violations()
    loud = any("CheckpointDamagedError" in text and "no checkpoint that is whole" in text
               for text in wrong)  # fmt: skip
    return [] if loud else [f"all are damaged, and nobody says so: {wrong}"]


def _stray_files(oracle):
    for name in ("LATEST", "latest", "step-7", "step-0000000009", "notes.txt"):
        (oracle.root / name).write_text("step-0000000001.g01-0000")
    (oracle.root / "step-0000000008.g08-0000").mkdir()
    return oracle.violations() + ([] if oracle.restored == 3 else [f"{oracle.restored} restored"])


def test_misplaced_folders(tally):
    report = serve(misplaced)
    tally("T6 damage", report)
    report.check()
    assert report.count == 5


class LargePatient:
    """Two checkpoints of a module whose file goes straight into its tensors, in three chunks; the
    newer one is damaged and healed again."""

    def __init__(self, root):
        self.root = root
        for step in (1, 2):
            manager = CheckpointManager(root, {"model": self.model(step)}, keep=2, options=QUICK)
            manager.save(step, blocking=True)
            manager.close()
        self.before, self.path = sorted(root.glob("step-*/model/model.safetensors"))
        self.size = self.path.stat().st_size
        self.fresh = self.model(0)

    @staticmethod
    def model(step):
        import torch

        it = torch.nn.Module()
        for number, size in enumerate((5 << 20, 3, 1 << 20)):
            generator = torch.Generator().manual_seed(10 * step + number)
            value = torch.randn(size, generator=generator)
            it.register_parameter(f"p{number}", torch.nn.Parameter(value))
        return it

    def judge(self, report, kind, change):
        """Have a file changed, look, and put its bytes back."""
        healthy = self.path.read_bytes()
        place = change(self.path)
        wrong = self.look()
        self.path.write_bytes(healthy)
        report.add(kind, wrong, place)

    def look(self):
        """What is wrong with what is restored."""
        import torch

        # Read only, so that no mark is left.
        options = CheckpointOptions(read_only=True)
        step = CheckpointManager(self.root, {"model": self.fresh}, options=options).restore_latest()
        if step != 1:
            return [f"I4: {step} is restored, not the one before"]
        pairs = zip(self.fresh.parameters(), self.model(1).parameters(), strict=True)
        return [] if all(torch.equal(a, b) for a, b in pairs) else ["I1: other bits than step 1's"]


def damage_large(share, count, unchecked):
    """Damage that is met on the way into tensors."""
    from trainkit.checkpoint.load import reader

    reader.LARGE = 0
    report, rng = Report(), random.Random(share.number)
    with share.root() as root, broken.unchecked() if unchecked else broken.nothing():
        patient = LargePatient(root)

        def flip(path):
            place = rng.randrange(patient.size)
            with open(path, "r+b") as file:
                file.seek(place)
                (byte,) = file.read(1)
                file.seek(place)
                file.write(bytes([byte ^ 1 << rng.randrange(8)]))
            return place

        def cut_off(path):
            place = rng.choice([0, CHUNK_BYTES, patient.size - 1, rng.randrange(patient.size)])
            os.truncate(path, place)
            return place

        def exchange_chunks(path):
            data = path.read_bytes()
            first, second = data[:CHUNK_BYTES], data[CHUNK_BYTES : 2 * CHUNK_BYTES]
            path.write_bytes(second + first + data[2 * CHUNK_BYTES :])

        kinds = {
            "bit flip": (flip, count),
            "cut off": (cut_off, count // 4),
            "chunks exchanged": (exchange_chunks, 2),
            "of another step": (lambda path: path.write_bytes(patient.before.read_bytes()), 2),
        }
        for kind, (change, times) in kinds.items():
            for _ in share.of(range(times)):
                patient.judge(report, f"large file, {kind}", change)
    return report


def test_damage_of_large_files(tally, scale):
    pytest.importorskip("torch")
    report = serve(damage_large, LARGE_FLIPS * scale, False, preload=WITH_TORCH)
    tally("T6 damage", report)
    report.check()
    assert report.count > LARGE_FLIPS * scale


def test_control_of_large_files():
    pytest.importorskip("torch")
    report = serve(damage_large, LARGE_FLIPS // 2, True, preload=WITH_TORCH)
    assert len(report.violations) > report.count / 2, "damage is not found, and nobody sees it"


def test_control():
    report = serve(damage, 0.1, True)
    assert len(report.violations) > report.count / 10, "damage is not found, and nobody sees it"
