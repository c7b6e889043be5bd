"""Real processes that race for one folder after another; run by ``test_races.py``.

    python tests/checkpoint/save/races.py FOLDER NUM_RACES

In each race three processes open the same folder at once. The one that gets it saves, and is then
killed or closes, and the next one follows. The processes are forked from this one, which has
imported all they need and has no thread; in one race of five each starts a writer, too.
"""

import os
import random
import select
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.errors import EnvironmentFaultError

NUM_RACERS = 3
DEADLINE = 120.0
# A silence that no busy machine reaches: whoever takes over knows that the holder is dead.
WAITS = CheckpointOptions(lease=600.0, renewal=0.05, patience=600.0)
LEAVES = CheckpointOptions(lease=600.0, renewal=0.05, patience=0.0)

running = []


@dataclass
class Racer:
    pid: int
    said: int
    told: int

    def hear(self):
        """One line of what it says, or "" at its end."""
        line = b""
        while not line.endswith(b"\n"):
            part = os.read(self.said, 1)
            if not part:
                break
            line += part
        return line.decode().strip()

    def tell(self, text):
        os.write(self.told, text.encode() + b"\n")

    def end(self):
        running.remove(self)
        os.close(self.said)
        os.close(self.told)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def start(folder, options):
    """Fork a racer, which opens the folder as soon as it is told to."""
    said_read, said_write = os.pipe()
    told_read, told_write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(said_write)
        os.close(told_read)
        racer = Racer(pid, said_read, told_write)
        running.append(racer)
        return racer
    status = 1
    try:
        race(folder, options, said_write, told_read)
        status = 0
    finally:
        os._exit(status)


def race(folder, options, said, told):
    def say(*words):
        os.write(said, " ".join(map(str, words)).encode() + b"\n")

    os.read(told, 100)
    state = {"table": (table := {"step": 0})}
    try:
        manager = CheckpointManager(folder, state, keep=9, options=options)
    except EnvironmentFaultError as error:
        say("refused", error)
        return
    since = time.monotonic()
    step = manager.restore_latest() or 0
    assert table["step"] == step
    table["step"] = step + 1
    manager.save(step + 1, blocking=True)
    say("held", since, step + 1)
    os.read(told, 100)
    before = time.monotonic()
    manager.close()
    say("closed", before)


def next_holder(racers):
    """The racer that says that it holds the folder, since when, and what it saved."""
    ready = select.select([racer.said for racer in racers], [], [], DEADLINE)[0]
    assert ready, "nobody took the folder"
    (racer,) = [racer for racer in racers if racer.said == ready[0]]
    word, since, step = racer.hear().split()
    assert word == "held", word
    return racer, float(since), int(step)


def run(folder, rng, *, refuse, background):
    racers = [start(folder, replace(WAITS, background=background)) for _ in range(NUM_RACERS)]
    for racer in racers:
        racer.tell("go")
    free_since = 0.0
    for turn in range(NUM_RACERS):
        holder, since, step = next_holder(racers)
        assert since > free_since, "it held the folder while another one did"
        assert step == turn + 1, "a save of the one before is not there"
        if refuse:
            newcomer = start(folder, LEAVES)
            newcomer.tell("go")
            said = newcomer.hear()
            assert said.startswith("refused"), said
            assert f"process {holder.pid} on host" in said, said
            assert newcomer.end() == 0
        if rng.random() < 0.5:
            free_since = time.monotonic()
            os.kill(holder.pid, signal.SIGKILL)
            status = -signal.SIGKILL
        else:
            holder.tell("close")
            word, before = holder.hear().split()
            assert word == "closed"
            free_since, status = float(before), 0
        racers.remove(holder)
        assert holder.end() == status


def main(root, num_races):
    rng = random.Random(5)
    for number in range(num_races):
        folder = Path(root, str(number))
        run(folder, rng, refuse=number % 10 == 0, background=number % 5 == 0)
        steps = sorted(int(path.name[5:15]) for path in folder.glob("step-*"))
        assert steps == list(range(1, NUM_RACERS + 1)), steps
    print(f"{num_races} races")


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]))
    finally:
        for left in running:
            os.kill(left.pid, signal.SIGKILL)
