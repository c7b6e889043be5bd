"""Optimizer state follows the names of parameters, and training goes on exactly."""

import json

import pytest
import torch

from trainkit import Progress
from trainkit.checkpoint import CheckpointManager
from trainkit.errors import EnvironmentFaultError

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=2),
}
SCHEDULERS = {
    "none": lambda o: None,
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "milestones": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5]),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o),
    "sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
        [3],
    ),
}


class Run:
    """A small training run with dropout, so that random numbers matter."""

    def __init__(self, optimizer="adamw", scheduler="none"):
        self.model = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1)
        )
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        self.progress = Progress()

    def state(self):
        named = {"model": self.model, "optimizer": self.optimizer, "progress": self.progress}
        return named | ({"scheduler": self.scheduler} if self.scheduler else {})

    def train(self, num_steps):
        losses = []

        def closure():
            self.optimizer.zero_grad()
            loss = self.model(torch.randn(4, 3)).square().mean()
            loss.backward()
            return loss

        for _ in range(num_steps):
            loss = self.optimizer.step(closure)
            if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                self.scheduler.step(loss.item())
            elif self.scheduler:
                self.scheduler.step()
            self.progress.step += 1
            losses.append(loss.item())
        return losses


@pytest.mark.filterwarnings("ignore:.*epoch parameter.*:UserWarning")
@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [(name, "none") for name in OPTIMIZERS]
    + [("sgd", name) for name in SCHEDULERS if name not in ("none",)],
)
def test_training_goes_on_exactly(tmp_path, optimizer, scheduler):
    unbroken = Run(optimizer, scheduler)
    unbroken.train(3)
    CheckpointManager(tmp_path, unbroken.state()).save(3)
    expected = unbroken.train(4)

    torch.manual_seed(1234)
    resumed = Run(optimizer, scheduler)
    assert CheckpointManager(tmp_path, resumed.state()).restore_latest() == 3
    assert resumed.train(4) == expected
    assert resumed.progress.step == 7


def test_on_disk_the_state_is_keyed_by_names(tmp_path):
    run = Run()
    run.train(1)
    CheckpointManager(tmp_path, run.state()).save(1)
    (file,) = tmp_path.glob("step-*/optim/optimizer.json")
    document = json.loads(file.read_text())
    names = ["model.0.weight", "model.0.bias", "model.2.weight", "model.2.bias"]
    assert list(document["state"]) == names
    assert document["param_groups"][0]["params"] == names


def test_state_follows_its_parameter_when_the_order_changes(tmp_path):
    run = Run()
    run.train(2)
    CheckpointManager(tmp_path, run.state()).save(2)
    other = Run()
    backwards = list(other.model.parameters())[::-1]
    other.optimizer = OPTIMIZERS["adamw"](backwards)
    CheckpointManager(tmp_path, other.state()).restore_latest()
    for mine, theirs in zip(run.model.parameters(), other.model.parameters(), strict=True):
        expected, found = run.optimizer.state[mine], other.optimizer.state[theirs]
        assert torch.equal(expected["exp_avg"], found["exp_avg"])


def test_parameter_groups_keep_their_settings(tmp_path):
    def run():
        made = Run()
        layers = [{"params": made.model[0].parameters(), "lr": 0.5}]
        made.optimizer = torch.optim.AdamW([*layers, {"params": made.model[2].parameters()}])
        return made

    first, second = run(), run()
    first.train(1)
    CheckpointManager(tmp_path, first.state()).save(1)
    CheckpointManager(tmp_path, second.state()).restore_latest()
    assert [group["lr"] for group in second.optimizer.param_groups] == [0.5, 0.001]
    whole = Run()
    with pytest.raises(EnvironmentFaultError, match=r"1 parameter group\(s\), the checkpoint 2"):
        CheckpointManager(tmp_path, whole.state()).restore_latest()


def test_other_parameters_are_refused_by_name_and_nothing_changes(tmp_path):
    run = Run()
    run.train(1)
    CheckpointManager(tmp_path, run.state()).save(1)
    other = Run()
    other.optimizer = OPTIMIZERS["adamw"](other.model[0].parameters())
    before = other.model[0].weight.clone()
    with pytest.raises(EnvironmentFaultError, match=r"only one of them has is model\.2\.bias"):
        CheckpointManager(tmp_path, other.state()).restore_latest()
    assert torch.equal(other.model[0].weight, before)


def test_two_models_and_two_optimizers(tmp_path):
    def gan():
        nets = {"g": torch.nn.Linear(2, 2), "d": torch.nn.Linear(2, 2)}
        opts = {f"opt_{n}": torch.optim.Adam(net.parameters()) for n, net in nets.items()}
        return {**nets, **opts}

    first, second = gan(), gan()
    for name in "gd":
        first[name](torch.ones(1, 2)).sum().backward()
        first[f"opt_{name}"].step()
    CheckpointManager(tmp_path, first).save(1)
    CheckpointManager(tmp_path, second).restore_latest()
    for name in "gd":
        expected = first[f"opt_{name}"].state_dict()["state"]
        found = second[f"opt_{name}"].state_dict()["state"]
        assert all(torch.equal(expected[i]["exp_avg"], found[i]["exp_avg"]) for i in expected)


def test_parameters_of_no_module_keep_torchs_numbers(tmp_path):
    def run():
        parameter = torch.nn.Parameter(torch.ones(3))
        return {"p": parameter, "optimizer": torch.optim.Adam([parameter])}

    first, second = run(), run()
    first["p"].sum().backward()
    first["optimizer"].step()
    CheckpointManager(tmp_path, first).save(1)
    CheckpointManager(tmp_path, second).restore_latest()
    assert torch.equal(first["p"], second["p"])
    assert second["optimizer"].state[second["p"]]["step"] == 1


def test_a_frozen_parameter_has_no_state(tmp_path):
    def run():
        made = Run()
        made.model[0].requires_grad_(False)
        return made

    first, second = run(), run()
    first.train(2)
    CheckpointManager(tmp_path, first.state()).save(2)
    expected = first.train(2)
    CheckpointManager(tmp_path, second.state()).restore_latest()
    assert second.train(2) == expected
