"""What goes along with a round: a worker that comes in later trains as the others do."""

import threading

import torch

from tests.strategies.torch.local_sgd.in_process import learn, serving, working
from trainkit import Progress
from trainkit.strategies.torch.local_sgd.shared import SharedRun
from trainkit.testing import free_port


def run_of(worker):
    """A run with a schedule that changes the rate which the optimizer has, as most of torch's."""
    optimizer = torch.optim.Adam(worker.module.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
    progress = Progress()
    shared = SharedRun(worker, lambda: None)
    shared.carry({"optimizer": optimizer, "schedule": schedule, "progress": progress})

    def step():
        learn(worker, 1.0)
        worker.synchronize()
        shared.synchronized()
        optimizer.step()
        schedule.step()
        progress.step += 1
        shared.stepped(progress.step)

    return shared, optimizer, progress, step


def test_a_worker_that_comes_in_later_has_the_learning_rate_of_the_others():
    port = free_port()
    with serving(port), working([port], 0, 1) as chief:
        ours, optimizer, _, step = run_of(chief)
        ours.begin()
        for _ in range(3):
            step()
        assert optimizer.param_groups[0]["lr"] == 0.1
        chief.links[0].close()
        with working([port], 0, 1) as again:  # its pod was started again, and sees no folder
            theirs, late, progress, _ = run_of(again)
            thread = threading.Thread(target=theirs.begin)
            thread.start()
            thread.join(90)
            assert progress.step == 3
            assert late.param_groups[0]["lr"] == 0.1
            assert late.param_groups[0]["betas"] == (0.9, 0.999)
