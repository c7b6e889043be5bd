"""``trainkit checkpoint``: scripts rely on its streams, its JSON and its exit codes."""

import json
import os
import pty
import subprocess
import sys

import pytest

from tests.checkpoint.admin.checkpoints import Root, aside, f32, flip, zeros
from trainkit.cli import main
from trainkit.cli.checkpoint import COMMANDS
from trainkit.storage import LocalStorage, open_storage

TRAINKIT = [sys.executable, "-m", "trainkit", "checkpoint"]


@pytest.fixture
def root(tmp_path):
    return Root(tmp_path / "root")


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "root")


def path_of(root, folder, name):
    from pathlib import Path

    return Path(root.storage.url) / folder.name / name


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["checkpoint", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in printed
        assert text in printed


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_says_what_its_exit_codes_mean(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["checkpoint", command, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "Exit codes: 0" in printed
    assert max(map(len, printed.splitlines())) <= 90
    defaults = ("--step", "--older-than", "--threads", "--entry", "--format")
    if any(flag in printed for flag in defaults):
        assert "(default" in printed


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nothing"],
        ["ls"],
        ["ls", "x", "y"],
        ["inspect", "x", "--step", "-1"],
        ["inspect", "x", "--step", "1e3"],
        ["verify", "x", "--threads", "0"],
        ["prune", "x"],
        ["prune", "x", "--keep", "0"],
        ["gc", "x", "--older-than", "soon"],
        ["export", "x"],
        ["export", "x", "y", "--format", "pickle"],
    ],
)
def test_wrong_usage(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["checkpoint", *argv])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "usage: trainkit checkpoint" in printed.err


MINIMAL = [
    ["ls", "URL"],
    ["inspect", "URL"],
    ["verify", "URL"],
    ["diff", "URL", "--from", "1", "--to", "2"],
    ["prune", "URL", "--keep", "1"],
    ["pin", "URL", "--step", "1"],
    ["unpin", "URL", "--step", "1"],
    ["gc", "URL"],
    ["export", "URL", "OUT"],
]


@pytest.mark.parametrize("argv", MINIMAL, ids=lambda argv: argv[0])
@pytest.mark.parametrize("kind", ["missing", "empty", "foreign", "file"])
def test_where_there_is_no_checkpoint(argv, kind, tmp_path, call, url):
    if kind == "file":
        (tmp_path / "root").write_bytes(b"")
    elif kind != "missing":
        (tmp_path / "root").mkdir()
    if kind == "foreign":
        (tmp_path / "root" / "__0_0.distcp").write_bytes(b"")
    given = [{"URL": url, "OUT": str(tmp_path / "out")}.get(word, word) for word in argv]
    code, out, err = call(*given)
    # `gc` may be run on what only looks foreign: there is nothing of a checkpoint to remove.
    assert (code, out) == (66, "") or (argv[0], kind) == ("gc", "foreign")
    assert err.count("\n") <= 1
    if code == 66:
        assert err.startswith(f"trainkit: {url}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argv", MINIMAL, ids=lambda argv: argv[0])
def test_mistakes_in_urls(argv, call, tmp_path):
    for url, code in (("s3://", 2), ("nonsense://a/b", 2), ("s3://key:secret@bucket/x", 2)):
        given = [{"URL": url, "OUT": str(tmp_path / "out")}.get(word, word) for word in argv]
        found, out, err = call(*given)
        assert (found, out) == (code, "")
        assert err.count("\n") == 1
        assert "secret" not in err


def test_a_disk_or_network_that_fails_is_one_line(call, root, url, monkeypatch):
    root.save(1)

    def fail(self, folder=""):
        raise OSError(5, "Input/output error", folder)

    monkeypatch.setattr(LocalStorage, "tree", fail)
    code, out, err = call("ls", url)
    assert (code, out) == (138, "")
    assert err == "trainkit: [Errno 5] Input/output error: ''\n"


def test_ls(root, url, call):
    root.save(100, metrics={"loss": 0.51234567}, age=7200)
    bad = root.save(200)
    aside(root.storage, bad, "model.safetensors is missing")
    main(["checkpoint", "pin", url, "--step", "100"])
    call("pin", url, "--step", "100")
    root.save(300, commit=False)
    code, out, err = call("ls", url)
    assert (code, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split() == ["STEP", "STATE", "SIZE", "AGE", "RANKS", "METRICS", "FOLDER"]
    assert rows[0].split()[:2] == ["300", "uncommitted"]
    assert rows[1].split()[:2] == ["200", "quarantined"]
    assert rows[2].split()[:3] == ["100", "committed,", "pinned"]
    assert "2 h" in rows[2]
    assert "loss=0.51235" in rows[2]
    assert rows[3] == f"quarantined {bad.name}: model.safetensors is missing"


def test_ls_in_json(root, url, call):
    folder = root.save(100, metrics={"loss": float("nan")}, world_size=2)
    code, out, _ = call("ls", url, "--json")
    found = json.loads(out)
    assert (code, found["url"]) == (0, url)
    (checkpoint,) = found["checkpoints"]
    assert list(checkpoint) == [
        "step", "folder", "state", "reason", "pinned", "size", "written", "age", "world_size",
        "metrics",
    ]  # fmt: skip
    assert checkpoint["folder"] == folder.name
    assert checkpoint["state"] == "committed"
    assert checkpoint["metrics"] == {"loss": "nan"}
    assert checkpoint["world_size"] == 2


def test_inspect(root, url, call):
    root.save(1)
    root.save(2, model={"w": f32(1, 2, 3, 4, shape=(2, 2)), "s": f32(1, shape=())}, world_size=9)
    code, out, err = call("inspect", url)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line]
    assert ["step", "2"] in rows
    assert ["written", "by", "trainkit", "of", "a", "test"] in rows
    assert ["model/model:", "w", "F32", "2×2", "16", "B"] in rows
    assert ["model/model:", "s", "F32", "scalar", "4", "B"] in rows
    assert "… and 5 more ranks" in out
    code, out, _ = call("inspect", url, "--step", "1", "--json")
    found = json.loads(out)
    assert (code, found["step"], found["world_size"], len(found["ranks"])) == (0, 1, 1, 1)
    (document,) = found["entries"]["model"]["documents"]
    assert document["tensors"]["a"] == {
        "dtype": "F32", "shape": [2], "size": 8, "file": "model/model.safetensors",
    }  # fmt: skip


def test_inspect_one_that_is_damaged_or_in_quarantine(root, url, call):
    folder = root.save(1)
    path_of(root, folder, "state/progress.json").unlink()
    aside(root.storage, folder, "found so by a run")
    code, out, _ = call("inspect", f"{url}/{folder.name}")
    assert code == 65
    assert "quarantined: found so by a run" in out
    assert "state/progress.json is missing; the manifest lists" in out
    path_of(root, folder, "MANIFEST.json").write_bytes(b"{}")
    code, out, err = call("inspect", url, "--step", "1")
    assert (code, out) == (65, "")
    assert "cut off" in err


def test_verify(root, url, call):
    good, bad, marked, _ = (root.save(step, commit=step != 4) for step in (1, 2, 3, 4))
    path_of(root, good, "notes").write_bytes(b"")
    aside(root.storage, marked, "it was late")
    code, out, err = call("verify", url)
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:5]] == [
        ["4", "uncommitted"],
        ["3", "quarantined"],
        ["2", "whole"],
        ["1", "whole"],
    ]
    assert f"in quarantine {marked.name}: it was late" in out
    assert f"not listed in the manifest: {good.name}/notes" in out
    assert err.count("\n") == 1
    assert err.startswith("verified 2 checkpoints, ")
    flip(path_of(root, bad, "model/model.safetensors"))
    assert call("verify", url, "--quick")[0] == 0
    code, out, err = call("verify", url)
    assert code == 65
    assert err.startswith(f"trainkit: damaged: {url}/{bad.name}/model/model.safetensors: bytes 0 ")
    assert call("verify", url, "--step", "1")[0] == 0
    assert call("verify", url, "--step", "2")[0] == 65
    assert call("verify", f"{url}/{bad.name}")[0] == 65
    assert call("verify", f"{url}/{good.name}")[0] == 0
    code, out, err = call("verify", url, "--json", "--quick")
    found = json.loads(out)
    assert (code, found["exit_code"], found["quick"]) == (0, 0, True)
    assert [c["state"] for c in found["checkpoints"]] == [
        "uncommitted", "quarantined", "whole", "whole",
    ]  # fmt: skip
    assert "no data was read" in err


def test_verify_where_nothing_is_committed_or_all_is_in_quarantine(root, url, call):
    folder = root.save(1, commit=False)
    code, _, err = call("verify", url)
    assert code == 66
    assert "holds no committed checkpoint" in err
    path_of(root, folder, "MANIFEST.json").write_bytes(b"torn")
    code, _, err = call("verify", url)
    assert code == 65
    assert "the manifest is cut off" in err
    aside(root.storage, folder)
    code, _, err = call("verify", url)
    assert code == 65
    assert "every committed checkpoint is in quarantine" in err


def test_verify_shows_its_progress_on_a_terminal(root, url):
    root.save(1, model={"w": zeros(30_000_000)})
    ours, theirs = pty.openpty()
    try:
        ended = subprocess.run(
            [*TRAINKIT, "verify", url],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "100"},
            text=True,
        )
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the terminal's end
                break
            shown += part
    finally:
        os.close(ours)
    assert ended.returncode == 0
    assert b"verifying" in shown
    assert b"verified 1 checkpoint" in shown
    assert "verifying" not in ended.stdout


def test_diff(root, url, call):
    values = {"step": 1}
    first = root.save(1, model={"a": f32(1)}, values=values)
    root.save(2, model={"a": f32(1)}, values=values)
    root.save(3, model={"a": f32(2), "b": f32(1)}, values={"step": 3})
    code, out, err = call("diff", url, "--from", "1", "--to", "2")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "no difference"
    code, out, _ = call("diff", url, "--from", "2")  # to the newest
    assert code == 1
    rows = [line.split() for line in out.splitlines()]
    assert ["model", "added", "tensor", "b", "-", "→", "F32", "[1]"] in rows
    assert ["model", "values", "tensor", "a", "F32", "[1]"] in rows
    assert ["progress", "values", "value", "step", "1", "→", "3"] in rows
    assert out.splitlines()[-1] == "different: 2 tensors, 1 value"
    assert call("diff", url, "--from", "2", "--entry", "rank 0")[0] == 0
    code, out, _ = call("diff", f"{url}/{first.name}", url, "--to", "3", "--json")
    found = json.loads(out)
    assert (code, found["same"], len(found["changes"])) == (1, False, 3)
    assert found["from"] == f"{url}/{first.name}"
    assert found["changes"][0] == {
        "entry": "model", "document": "model/model", "name": "b", "what": "tensor",
        "how": "added", "from": None, "to": "F32 [1]",
    }  # fmt: skip


def test_diff_of_one_with_itself(root, url, call):
    root.save(1)
    code, out, err = call("diff", url, "--from", "1")
    assert (code, out) == (2, "")
    assert "give --from and --to" in err


def test_prune_and_pins(root, url, call):
    folders = [root.save(step) for step in range(1, 6)]
    assert call("pin", url, "--step", "1")[:2] == (0, f"pinned: {folders[0].name}\n")
    assert call("pin", url)[0] == 2
    assert call("pin", f"{url}/{folders[1].name}")[0] == 0
    code, out, _ = call("prune", url, "--keep", "2", "--dry-run")
    assert (code, out) == (
        0,
        f"would be removed: {folders[2].name}\n1 checkpoint would be removed\n",
    )
    assert len(root.storage.names()) == 6
    assert call("unpin", url, "--step", "2")[:2] == (0, f"unpinned: {folders[1].name}\n")
    assert call("unpin", url, "--step", "2")[:2] == (0, "step 2 was not pinned\n")
    code, out, _ = call("prune", url, "--keep", "2", "--json")
    found = json.loads(out)
    assert sorted(found["removed"]) == [folders[1].name, folders[2].name]
    assert (code, found["dry_run"]) == (0, False)
    left = [folders[0].name, folders[3].name, folders[4].name]
    assert [name for name in root.storage.names() if name.startswith("step")] == left
    assert call("prune", f"{url}/{left[0]}", "--keep", "1")[0] == 2


def test_gc(root, url, call):
    old = root.save(1, commit=False)
    new = root.save(2, generation=2)
    cut_off = root.save(3, generation=2, commit=False)
    code, out, _ = call("gc", url, "--dry-run")
    assert code == 0
    assert out.startswith(f"would be removed: {old.name} (uncommitted, ")
    assert out.splitlines()[-1].startswith("1 leftover, ")
    assert root.storage.names() == [old.name, new.name, cut_off.name]
    code, out, _ = call("gc", url, "--json", "--older-than", "1h")
    assert [item["path"] for item in json.loads(out)["removed"]] == [old.name]
    assert root.storage.names() == [new.name, cut_off.name]
    then = path_of(root, cut_off, "state/progress.json").stat().st_mtime - 7200
    for path in path_of(root, cut_off, "").rglob("*"):
        os.utime(path, (then, then))
    assert call("gc", url, "--older-than", "90m")[0] == 0
    assert root.storage.names() == [new.name]
    assert call("gc", url)[1] == "0 leftovers, 0 B removed\n"


def test_export(root, url, call, tmp_path):
    folder = root.save(1)
    target = tmp_path / "out"
    code, out, err = call("export", url, target)
    assert (code, err) == (0, "")
    assert out == f"exported 'model' of {folder.name} to {target}: model.safetensors\n"
    assert os.listdir(target) == ["model.safetensors"]
    code, out, err = call("export", url, target)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    code, out, _ = call("export", url, tmp_path / "json", "--entry", "progress", "--json")
    assert json.loads(out)["files"] == ["progress.json"]
    code, out, err = call("export", url, tmp_path / "none", "--entry", "none")
    assert (code, out) == (66, "")
    assert "entries to export are model, progress" in err
    flip(path_of(root, folder, "model/model.safetensors"))
    code, out, err = call("export", url, tmp_path / "damaged")
    assert (code, out) == (65, "")
    assert not (tmp_path / "damaged").exists()


def test_as_a_program_and_without_a_framework(root, url):
    root.save(1)
    script = (
        "import sys\nfrom trainkit.cli import main\n"
        f"url, commands = {url!r}, ('ls', 'inspect', 'verify')\n"
        "codes = [main(['checkpoint', command, url]) for command in commands]\n"
        "loaded = {'torch', 'numpy', 'tensorflow', 'rich', 'fsspec'} & set(sys.modules)\n"
        "print(codes, sorted(loaded))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == "[0, 0, 0] []", ended.stderr
    ended = subprocess.run([*TRAINKIT, "verify", url + "x"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (66, "")
    assert ended.stderr.count("\n") == 1


def test_an_interrupt_ends_verify_at_once_and_quietly(root, url, call, monkeypatch):
    root.save(1, model={"w": zeros(100_000_000)})
    reads = []

    def interrupted(self, *args):
        reads.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalStorage, "read_into", interrupted)
    code, out, err = call("verify", url)
    assert (code, out, err) == (130, "", "")
    assert len(reads) <= 16


def test_on_a_real_object_store(s3, tmp_path, call):
    """Every command; two in processes of their own. Planted credentials are never shown."""
    root = Root(open_storage(s3))
    root.save(1, generation=1, commit=False)
    folders = [root.save(step, generation=2, metrics={"loss": step}) for step in (2, 3, 4)]
    said = []

    def do(*argv):
        code, out, err = call(*argv)
        said.append(out + err)
        return code

    def run(*argv):
        ended = subprocess.run([*TRAINKIT, *map(str, argv)], capture_output=True, text=True)
        said.append(ended.stdout + ended.stderr)
        return ended.returncode, ended.stdout, ended.stderr

    steps = json.loads(run("ls", s3, "--json")[1])["checkpoints"]
    assert [(c["step"], c["state"]) for c in steps] == [
        (4, "committed"), (3, "committed"), (2, "committed"), (1, "uncommitted"),
    ]  # fmt: skip
    assert all(c["age"] is not None for c in steps)
    assert do("verify", s3) == 0
    assert do("inspect", f"{s3}/{folders[0].name}") == 0
    assert do("diff", s3, "--from", "2", "--to", "3") == 1
    assert do("pin", s3, "--step", "2") == 0
    assert do("prune", s3, "--keep", "1") == 0
    assert do("gc", s3) == 0
    left = {path.partition("/")[0] for path in root.storage.tree()}
    assert left == {".pins", folders[0].name, folders[2].name}
    assert do("export", s3, tmp_path / "out") == 0
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]
    root.storage.delete(f"{folders[2].name}/state/progress.json")
    code, _, err = run("verify", s3)
    assert code == 65
    assert err.startswith(f"trainkit: damaged: {s3}/{folders[2].name}/state/progress.json is miss")
    assert do("verify", s3 + "-not-there") == 66
    for secret in (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]):
        assert not any(secret in text for text in said)


def test_import_and_back(url, call, tmp_path):
    torch = pytest.importorskip("torch")
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    torch.save(weights, tmp_path / "model-70.pt")
    code, out, err = call("import", url, tmp_path / "model-70.pt")
    assert (code, err) == (0, "")
    assert out.startswith(f"imported {tmp_path / 'model-70.pt'} as {url}/step-0000000070.g")
    assert call("verify", url)[0] == 0
    assert call("export", url, tmp_path / "dcp", "--format", "dcp")[0] == 0
    code, out, _ = call("import", url, tmp_path / "dcp", "--step", "71", "--json")
    assert code == 0
    assert "/step-0000000071.g" in json.loads(out)["to"]
    assert call("diff", url, "--from", "70", "--to", "71")[0] == 0
    code, _, err = call("export", url, tmp_path / "x", "--format", "dcp", "--entry", "model")
    assert code == 2
    assert "--format dcp, which writes all entries" in err


def test_import_runs_nothing_and_finds_nothing(url, call, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": print}, tmp_path / "hostile.pt")
    code, out, err = call("import", url, tmp_path / "hostile.pt")
    assert (code, out) == (65, "")
    assert err.count("\n") == 1
    code, out, err = call("import", url, tmp_path / "nothing")
    assert (code, out) == (66, "")
    assert call("ls", url)[0] == 66
