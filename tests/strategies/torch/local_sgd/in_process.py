"""Servers and workers over real sockets in one process, for tests of either side."""

import threading
from contextlib import contextmanager

import torch

from trainkit.strategies.torch.local_sgd.layout import FlatLayout
from trainkit.strategies.torch.local_sgd.server import ShardServer
from trainkit.strategies.torch.local_sgd.shard import OuterOptions
from trainkit.strategies.torch.local_sgd.sockets import listen
from trainkit.strategies.torch.local_sgd.worker import OuterWorker

AVERAGING = OuterOptions(lr=1.0, momentum=0.0)


@contextmanager
def serving(port, index=0, patience=60.0):
    """A server whose loop runs in a thread; stopped, as by a kill, at the end of the block."""
    server = ShardServer(listen(port), index, patience)
    stop = threading.Event()

    def loop():
        while not stop.is_set():
            server.turn(0.02)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join()
        server.close()


@contextmanager
def working(
    ports, rank=0, world_size=2, value=0.0, options=AVERAGING, size=5, timeout=20.0, connect=True
):
    """A worker with a model of one vector, all of it ``value``."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.full((size,), value))
    addresses = [("127.0.0.1", port) for port in ports]
    worker = OuterWorker(addresses, rank, world_size, options, sync_every=1, timeout=timeout)
    worker.module = module
    try:
        if connect:
            worker.connect(timeout)
        worker.attach(FlatLayout([module]))
        yield worker
    finally:
        worker.hang_up()


def together(*calls):
    """Call each in a thread of its own; returns what they returned, or raises the first error."""
    results = [None] * len(calls)

    def call(place):
        try:
            results[place] = (calls[place](), None)
        except BaseException as error:
            results[place] = (None, error)

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for _, error in results:
        if error is not None:
            raise error
    return [value for value, _ in results]


def begin(chief, *others, number=0):
    chief.bring(number, {}, None)
    together(*(worker.join for worker in (chief, *others)))


def learn(worker, amount):
    with torch.no_grad():
        worker.module.weight.add_(amount)
    worker.local_steps = 1


def weights(worker):
    return worker.module.weight.tolist()
