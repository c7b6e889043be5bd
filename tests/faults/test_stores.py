"""T7: an object store that fails by scripts: behind a proxy, before a real server."""

import shutil
import subprocess
import sys
import time
from subprocess import PIPE

import numpy as np
import pytest
import s3fs

from tests.faults import broken, brokenstores, storefaults
from tests.faults.storeproxy import Fault, Proxy
from tests.faults.storescripts import OPENINGS, RESTORES, SAVES, TIDYINGS
from tests.faults.storetrials import play
from tests.faults.trials import Report, serve
from tests.object_store import BUCKET, serving
from trainkit.checkpoint import CheckpointManager
from trainkit.checkpoint.admin.cleaning import find_leftovers
from trainkit.cli import main
from trainkit.config import environ
from trainkit.storage import open_storage
from trainkit.waiting import Deadline, wait_until

NAME = "T7 an object store that fails"
TABLES = {"save": SAVES, "restore": RESTORES, "open": OPENINGS, "tidy": TIDYINGS}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of its own: these tests write some gigabytes."""
    folder = tmp_path_factory.mktemp("store")
    yield from serving(folder)
    shutil.rmtree(folder, ignore_errors=True)


def played(share, variables, how, names, modes, options):
    """`play`, in a server: scripts and broken parts go by their names, since functions do not."""
    scripts = [script for script in TABLES[how] if script.name in names]
    for name in {"broken", "remove"} & set(options):
        options[name] = getattr(brokenstores, options[name])
    with broken.unchecked() if options.pop("unchecked", False) else broken.nothing():
        return play(share, variables, BUCKET, how, scripts, modes, **options)


def run(server, how, names, modes=("foreground",), limit=280.0, **options):
    """Play scripts of ``how`` in two servers, for at most ``limit`` seconds."""
    return serve(played, dict(server.variables), how, names, modes, options, timeout=limit)


@pytest.mark.parametrize(
    ("how", "mode", "library"),
    [("save", "foreground", "fsspec"), ("save", "background", "auto"),
     *((how, "foreground", library) for how in ("restore", "open", "tidy")
       for library in ("fsspec", "auto"))],
)  # fmt: skip
def test_scripts(tally, scale, server, how, mode, library):
    """With the soak, faults at later requests of the same kind, too."""
    # obstore sends nothing in parts.
    names = [s.name for s in TABLES[how] if library == "fsspec" or not s.name.startswith("upload")]
    assert len(set(names)) == len(names)
    if scale == 1 and library == "auto":
        names = [name for name in names if "short" in name or name in names[::2]]
    for shift in range(scale):
        report = run(server, how, names, [mode], limit=280.0 * scale, shift=shift, library=library)
        tally(NAME, report)
        report.check()
        assert shift or report.count == len(names)


def caught(server, how, names, **broken):
    """Check that each script shows that what plays it is broken."""
    report = run(server, how, names, **broken)
    assert report.count == len(names)
    silent = [name for name in names if not any(f" {name}: " in v for v in report.violations)]
    assert not silent, f"not seen to be broken: {silent}"


def names_of(how, **wanted):
    """Names of scripts with these attributes."""
    return [s.name for s in TABLES[how] if all(getattr(s, k) == v for k, v in wanted.items())]


CHILD = """
import sys
import numpy as np
import s3fs
from trainkit.checkpoint import CheckpointManager, CheckpointOptions

pipe_file = s3fs.S3FileSystem._pipe_file
pipe_file.__defaults__ = (5 << 20, *pipe_file.__defaults__[1:])
state = {"weights": np.full(1_400_000, 1.0)}
manager = CheckpointManager(sys.argv[1], state, options=CheckpointOptions(background=False))
manager.save(1)
print(1, flush=True)
sys.stdin.readline()
state["weights"][:] = 2.0
manager.save(2)
"""

KILLS = [
    ("begin", storefaults.hang, 1), ("begin", storefaults.hang_though_done, 1),
    *(("part", storefaults.hang, number) for number in (1, 2, 3)),
    ("part", storefaults.hang_though_done, 3), ("complete", storefaults.hang, 1),
    ("complete", storefaults.hang_though_done, 1),
]  # fmt: skip


def test_kills_in_the_middle_of_an_upload(tally, server, monkeypatch):
    """What a kill leaves of an upload goes when it is old, by `gc`, and the step before counts."""
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRAINKIT_OBJECT_STORE", "fsspec")  # which sends in parts
    s3fs.S3FileSystem.clear_instance_cache()  # those of this process are of another server
    report, began = Report(), time.monotonic()
    for number, (operation, action, first) in enumerate(KILLS):
        wrong = killed(
            server, f"s3://{BUCKET}/kill-{number}", Fault(operation, "weights", action, first)
        )
        report.add("kill", wrong, f"{action.__name__} at {operation} {first}")
    s3fs.S3FileSystem.clear_instance_cache()
    report.seconds = time.monotonic() - began
    tally(NAME, report)
    report.check()


def killed(server, url, fault):
    """Kill a process as soon as the fault has met its request; what is wrong then."""
    storage = open_storage(url)
    with Proxy(server.variables["AWS_ENDPOINT_URL"]) as proxy:
        command = [sys.executable, "-c", CHILD, url]
        env = environ() | {"AWS_ENDPOINT_URL": proxy.url}
        with subprocess.Popen(command, env=env, stdin=PIPE, stdout=PIPE, text=True) as child:
            try:
                assert child.stdout.readline() == "1\n"
                with proxy.playing(url.rpartition("/")[2], [fault]) as script:
                    child.stdin.write("\n")
                    child.stdin.flush()
                    wait_until(
                        lambda: script.hits and (script.done or fault.action is storefaults.hang),
                        what="the fault", deadline=Deadline(60),
                    )  # fmt: skip
                    child.kill()
                    child.wait()
            finally:
                child.kill()
    left, wrong = storage.uploads(), []
    begun = (fault.operation, fault.action) != ("begin", storefaults.hang)
    done = (fault.operation, fault.action) == ("complete", storefaults.hang_though_done)
    if len(left) != (begun and not done):
        wrong.append(f"uploads are open: {left}")
    if any(leftover.kind == "upload" for leftover in find_leftovers(storage)):
        wrong.append("gc would abort an upload that may be under way")
    state = {"weights": np.zeros(1_400_000)}
    manager = CheckpointManager(url, state)
    if manager.restore_latest() != 1 or not (state["weights"] == 1.0).all():
        wrong.append("I2: step 1 is not restored")
    manager.close()
    if main(["checkpoint", "gc", url, "--older-than", "0"]) != 0 or storage.uploads():
        wrong.append(f"I6: gc leaves {storage.uploads()}")
    if manager.all_steps() != [1]:
        wrong.append("I3: step 1 has gone")
    return wrong


def test_control_of_saves_that_cannot_be_done(server):
    """A 500, 503, 409, 412, reset, hang or 200 with an error that nobody heeds."""
    names = [n for n in names_of("save", works=False, world=1) if not n.startswith("everything")]
    assert len(names) > 15
    caught(server, "save", names, broken="Swallowing", timeout=5.0)


def test_control_of_answers_that_are_lost(server):
    names = ["part: answer lost once", "manifest: answer lost once", "manifest: done, and 412"]
    caught(server, "save", names, broken="NeverLooking")


def test_control_of_conditions(server):
    names = ["tensors: not done, and 412 always", "upload: complete: not done, and 412"]
    caught(server, "save", names, broken="Believing")


def test_control_of_uploads(server):
    names = ["upload: part: 500, and no abort", "upload: complete: 500, and no abort"]
    caught(server, "save", names, remove="remove_nothing")


def test_control_of_hangs(server):
    """A client without a limit, as good as."""
    caught(server, "save", ["tensors: hang once"], read_timeout=8.0, deadline=4.0)


def test_control_of_restores(server):
    kinds = ("500 always", "503 SlowDown always", "cut off always", "short once", "short always",
             "a wrong bit once")  # fmt: skip
    names = [f"tensors: {kind}" for kind in kinds]
    caught(server, "restore", names, broken="Careless", unchecked=True)


def test_control_of_tidying(server):
    caught(server, "tidy", ["late listings"], remove="remove_by_listing")
