"""Checks that do what a check must never be able to do to the doctor."""

import os
import signal
import subprocess
import sys
import threading
import time

from trainkit.doctor import Finding, Status
from trainkit.errors import NoPermissionError


def works(question):
    yield Finding("works", Status.OK, f"asked for {question.checkpoint_dir}", values={"n": 1})


def prints(question):
    print("a library's banner")
    os.write(1, b"and one that is written in C\n")
    yield Finding("prints", Status.OK, "printed")


def hangs(question):
    yield Finding("hangs-first", Status.OK, "said before")
    time.sleep(600)


def hangs_with_children(question):
    sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", sleeper])
    yield Finding("pid", Status.OK, "child", values={"pid": child.pid})
    child.wait()


def ignores_signals(question):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)
    yield Finding("never", Status.OK, "")


def crashes(question):
    yield Finding("crashes-first", Status.OK, "said before")
    os.kill(os.getpid(), signal.SIGSEGV)


def exits(question):
    print("last words", file=sys.stderr)
    os._exit(3)
    yield


def raises(question):
    yield Finding("raises-first", Status.OK, "said before")
    raise KeyError("what")


def leaks(question):
    raise OSError(f"cannot reach s3://bucket with {os.environ['MY_API_TOKEN']}")
    yield


def refuses(question):
    raise NoPermissionError("not for you")
    yield


def says_nothing(question):
    return ()


def leaves_a_thread(question):
    threading.Thread(target=time.sleep, args=(600,)).start()
    yield Finding("thread", Status.OK, "left a thread")


def leaves_a_process(question):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield Finding("pid", Status.OK, "child", values={"pid": child.pid})


def meets(question):
    """Ends only if another one runs at the same time: each makes a file and awaits the other's."""
    mine, other = question.checkpoint_dir.split("|")
    yield from _meet(mine, other)


def meets_back(question):
    other, mine = question.checkpoint_dir.split("|")
    yield from _meet(mine, other)


def _meet(mine, other):
    with open(mine, "w"):
        pass
    while not os.path.exists(other):
        time.sleep(0.01)
    yield Finding("meets", Status.OK, "met")
