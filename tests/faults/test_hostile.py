"""T15: checkpoints that somebody forged, with checksums that match: nothing is executed, nothing
outside the root is touched, and what is wrong is an error of trainkit."""

import codecs
import json
import os
import pickle
import shutil
import struct
import sys

import xxhash

from tests.faults import broken
from tests.faults.oracle import QUICK, Oracle, empty_state
from tests.faults.trials import Report, serve
from trainkit.checkpoint import CheckpointManager
from trainkit.errors import TrainkitError

ESCAPES = (
    "../../outside/secret.json", "/etc/passwd", "state/../../outside/secret.json", "a/b/c/d/e/f",
    "", ".", "..", "state//table.json", "state/table.json/", "state/\0.json", "~/x.json",
    "state\\..\\x.json", "x" * 5000, "state/.hidden", "\u202eevil", "%2e%2e/secret.json",
    "file:///etc/passwd", "s3://bucket/key", "state/table.json\n", " state/table.json",
)  # fmt: skip
"""Paths that no manifest may name."""

VALUES = (
    None, True, -1, 0, 2**63, 2**200, 1.5, 1e308, "12", "", "nan", "__import__('os')", [], {},
    [1], {"a": 1}, [[]], {"$kind": "tuple"}, "x" * 100_000, ["state/table"] * 1000,
)  # fmt: skip
"""What stands where something else is expected."""

KINDS = (
    {"$kind": "eval", "value": "1+1"}, {"$kind": "__import__", "items": ["os"]}, {"$kind": None},
    {"$kind": ["tuple"]}, {"$kind": {}}, {"$kind": "tuple"}, {"$kind": "tuple", "items": 7},
    {"$kind": "dict", "items": [[1]]}, {"$kind": "dict", "items": [[{}, 1]]},
    {"$kind": "dict", "items": [[[], 1]]}, {"$kind": "counter", "items": [["a", "b", "c"]]},
    {"$kind": "bytes", "base64": "%%%"}, {"$kind": "bytes", "base64": 5},
    {"$kind": "float", "value": "1; import os"}, {"$kind": "float", "value": []},
    {"$kind": "array", "key": "gone"}, {"$kind": "array"}, {"$kind": "tensor", "key": "../x"},
    {"$kind": "scalar", "key": "weights"}, {"$kind": "object", "class": "os.system"},
    {"$kind": "ordered_dict", "items": {"a": 1}},
)  # fmt: skip
"""Values as nobody encodes them."""

_EXECUTES = ("exec", "compile", "import", "pickle.find_class", "marshal.loads", "code.__new__",
             "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen",
             "ctypes.dlopen", "socket.connect", "socket.getaddrinfo", "os.putenv")  # fmt: skip
_TOUCHES = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.rmdir",
            "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree")  # fmt: skip


class Watch:
    """Python's audit events of this process: what is executed or touched that may not be."""

    def __init__(self, root):
        self.root, self.seen, self.on = str(root), [], False
        sys.addaudithook(self._hear)

    def _hear(self, event, args):
        if not self.on:
            return
        if event in _EXECUTES:
            self.seen.append(f"{event}{args!r}"[:200])
        elif event in _TOUCHES and args and isinstance(args[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(args[0]))
            # A lease tells by /proc whether its holder lives.
            if not path.startswith((self.root, "/proc/")):
                self.seen.append(f"{event} {path}")

    def look(self, root):
        """Restore the newest, then the forged step alone: what is wrong, and what they raise."""
        wrong, errors = [], []
        self.root, self.seen, self.on = os.path.realpath(root), [], True
        for step in (None, 2):
            state = empty_state(SIZE)
            manager = CheckpointManager(root, state, keep=1000, options=QUICK)
            try:
                _ = manager.restore_latest() if step is None else manager.restore(step)
            except TrainkitError as error:
                errors.append(type(error).__name__)
            except Exception as error:
                wrong.append(f"raises {error!r}"[:300])
            manager.close()  # or its lease would be given back while the next root is watched
        self.on = False
        return wrong + [f"it does {what}" for what in self.seen], errors


SIZE = 256


class Forger:
    """Changes a checkpoint and makes all its checksums match again."""

    def __init__(self, root):
        (self.folder,) = root.glob("step-0000000002.*")
        self.manifest = json.loads((self.folder / "MANIFEST.json").read_bytes())

    def write(self, path, data):
        """Write a file of the checkpoint, and list it."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        self.manifest["files"][path] = self.record(data)

    @staticmethod
    def record(data):
        return {"size": len(data), "xxh3_128": [xxhash.xxh3_128_hexdigest(data)] if data else []}

    def seal(self, text=None):
        """Write the manifest with its own checksum, as docs/checkpoints.md tells it."""
        self.manifest.pop("self_xxh3_128", None)
        document = self.manifest | {"self_xxh3_128": "0" * 32}
        data = json.dumps(document, indent=1).encode() + b"\n" if text is None else text
        digest = xxhash.xxh3_128_hexdigest(data)
        sealed = data.replace(
            b'"self_xxh3_128": "' + b"0" * 32, f'"self_xxh3_128": "{digest}'.encode()
        )
        (self.folder / "MANIFEST.json").write_bytes(sealed)


class Payload:
    """Pickles as a command, which leaves a trace if it is run."""

    def __reduce__(self):
        return (os.system, ("touch executed",))


def forgeries():
    """Pairs of a name, and what is done to a `Forger`."""
    for path in ESCAPES:
        yield (
            f"file {path[:40]!r}",
            lambda f, p=path: f.manifest["files"].__setitem__(p, f.record(b"{}")),
        )
        yield (
            f"document {path[:40]!r}",
            lambda f, p=path: f.manifest["entries"]["table"].update(documents=[p]),
        )
        yield f"both {path[:40]!r}", lambda f, p=path: _elsewhere(f, p.removesuffix(".json"))
    yield "the document of another entry", lambda f: _entry(f).update(documents=["state/weights"])
    for name in ("step", "generation", "attempt", "world_size", "files", "entries", "metrics",
                 "format", "created"):  # fmt: skip
        for value in VALUES:
            yield f"{name} {str(value)[:20]}", lambda f, n=name, v=value: f.manifest.update({n: v})
        yield f"no {name}", lambda f, n=name: f.manifest.pop(n)
    for value in VALUES:
        yield f"size {str(value)[:20]}", lambda f, v=value: _table(f).update(size=v)
        yield f"hashes {str(value)[:20]}", lambda f, v=value: _table(f).update(xxh3_128=v)
        yield f"kind {str(value)[:20]}", lambda f, v=value: _entry(f).update(kind=v)
        yield f"documents {str(value)[:20]}", lambda f, v=value: _entry(f).update(documents=v)
        yield f"table {str(value)[:20]}", lambda f, v=value: _json(f, "state/table.json", v)
        for name in ("python", "numpy"):
            yield f"{name} generator {str(value)[:20]}", lambda f, n=name, v=value: _random(f, n, v)
    for value in KINDS:
        yield f"value {value}", lambda f, v=value: _json(f, "state/table.json", {"token": v})
        yield f"weights {value}", lambda f, v=value: _json(f, "state/weights.json", v)
    yield from _raw_files()
    yield from _tensor_files()


def _table(forger):
    return forger.manifest["files"]["state/table.json"]


def _entry(forger):
    return forger.manifest["entries"]["table"]


def _json(forger, path, value):
    forger.write(path, json.dumps(value).encode())


def _elsewhere(forger, path):
    forger.manifest["files"][f"{path}.json"] = forger.record(b"{}")
    _entry(forger).update(documents=[path])


def _random(forger, name, value):
    path = "ranks/rank00000.state.json"
    document = json.loads((forger.folder / path).read_bytes())
    document["random"][name] = value
    _json(forger, path, document)


def _raw_files():
    """Files that are no JSON at all, pickles among them, under names that are read."""
    pickled = pickle.dumps(Payload())
    deep = b"[" * 200_000
    contents = (pickled, deep, b"", b"\xff\xfe\x00", b"nul", b"9" * 10_000, b'{"a":1,"a":2}')
    for data in contents:
        for path in ("state/table.json", "state/weights.safetensors", "ranks/rank00000.state.json",
                     "ranks/rank00000.state.safetensors"):  # fmt: skip
            yield f"{data[:12]!r} as {path}", lambda f, p=path, d=data: f.write(p, d)
        text = data + b'\n "self_xxh3_128": "' + b"0" * 32 + b'"\n}\n'
        yield f"manifest {data[:12]!r}", lambda f, t=text: setattr(f, "text", t)


def _tensor_files():
    """Tensor files whose header lies."""
    for header in (
        {"weights": {"dtype": "I64", "shape": [SIZE], "data_offsets": [0, 2**62]}},
        {"weights": {"dtype": "I64", "shape": [2**40, 2**40], "data_offsets": [0, 8]}},
        {"weights": {"dtype": "I64", "shape": [-1], "data_offsets": [0, -8]}},
        {"weights": {"dtype": "I64", "shape": [SIZE], "data_offsets": [-8, 8 * SIZE - 8]}},
        {"weights": {"dtype": "os.system", "shape": [SIZE], "data_offsets": [0, 8 * SIZE]}},
        {"weights": {"dtype": ["I64"], "shape": [SIZE], "data_offsets": [0, 8 * SIZE]}},
        {"weights": {"dtype": "I64", "shape": "12", "data_offsets": [0, 8]}},
        {"weights": {"dtype": "I64", "shape": [True], "data_offsets": [0, 8]}},
        {"weights": {"dtype": "BF16", "shape": [4 * SIZE], "data_offsets": [0, 8 * SIZE]}},
        {"weights": None}, {"weights": []}, [], None, "weights", {},
    ):  # fmt: skip
        text = json.dumps(header).encode()
        data = struct.pack("<Q", len(text)) + text + bytes(8 * SIZE)
        yield f"header {text[:60]}", lambda f, d=data: f.write("state/weights.safetensors", d)
    for length in (0, 7, 2**63, 2**64 - 1, 99_999_999):
        data = struct.pack("<Q", length) + bytes(100)
        yield f"header of {length}", lambda f, d=data: f.write("state/weights.safetensors", d)


def forged(share, breaking, kinds=""):
    """Each forgery whose name begins with ``kinds`` on a copy of a root with a step to forge."""
    report = Report()
    os.chdir(share.folder)  # where a pickle that is executed makes its file
    begin = Oracle(share.folder / "begin", keep=3, size=SIZE)
    for token in (1, 2):
        begin.save(token)
    (share.folder / "outside").mkdir()
    (share.folder / "outside" / "secret.json").write_text("{}")
    watch = Watch(begin.root)
    watch.look(begin.root)  # what is imported late is imported now
    for encoding in ("utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be",
                     "utf-32-le"):  # fmt: skip
        codecs.lookup(encoding)  # json guesses which it is
    with getattr(broken, breaking)():
        for name, forge in share.of(f for f in forgeries() if f[0].startswith(kinds)):
            with share.root(begin) as oracle:
                forger = Forger(oracle.root)
                forge(forger)
                forger.seal(getattr(forger, "text", None))
                wrong, errors = watch.look(oracle.root)
                if os.path.exists("executed"):
                    os.unlink("executed")
                    wrong.append("a pickle was executed")
                report.add("refused" if errors else "passed over or harmless", wrong, name)
    return report


def links(share):
    """Links in a checkpoint that lead elsewhere: removing it leaves alone what they lead to."""
    report = Report()
    for kind in share.of(("folder", "file")):
        outside = share.folder / "elsewhere"
        outside.mkdir()
        (outside / "precious").write_text("kept")
        with share.root() as root:
            oracle = Oracle(root, keep=1)
            oracle.save(1)
            (folder,) = root.glob("step-0000000001.*")
            target = outside if kind == "folder" else outside / "precious"
            (folder / "state" / "link").symlink_to(target)
            (root / "step-0000000000.g00-0000").symlink_to(outside)
            wrong = oracle.survives()
            if (outside / "precious").read_text() != "kept":
                wrong.append("what a link led to is gone")
            report.add(f"link to a {kind}", [text for text in wrong if "I6" not in text])
        shutil.rmtree(outside)
    return report


def test_forged_checkpoints(tally):
    report = serve(forged, "nothing")
    tally("T15 forged checkpoints", report)
    report.check()
    assert report.faults["refused"] > 300


def test_links_that_lead_elsewhere(tally):
    report = serve(links)
    tally("T15 forged checkpoints", report)
    report.check()


def test_control_of_paths():
    report = serve(forged, "any_path", "both")
    assert any("secret.json" in text for text in report.violations), "nobody saw the way out"


def test_control_of_pickles():
    report = serve(forged, "unpickling", repr(pickle.dumps(Payload())[:12]))
    assert any("find_class" in text for text in report.violations), "nobody saw the pickle"
