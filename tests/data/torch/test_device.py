from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType

import torch

from trainkit.data.torch.device import mover

Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    name: str


class Movable:
    device = "cpu"

    def to(self, device):
        moved = Movable()
        moved.device = device
        return moved


def test_the_cpu_needs_no_mover():
    assert mover(torch.device("cpu"), non_blocking=False) is None


def test_every_kind_of_batch_is_moved_and_keeps_its_kind():
    move = mover(torch.device("meta"), non_blocking=True)
    one = torch.ones(2)
    by_name = defaultdict(list, a=one)
    batch = {
        "tensor": one,
        "list": [one, "text", 3, None],
        "tuple": (one, b"bytes"),
        "pair": Pair(one, 1.5),
        "ordered": OrderedDict(a=one),
        "default": by_name,
        "frozen": MappingProxyType({"a": one}),
        "record": Record(one, "name"),
        "movable": Movable(),
        "class": Record,
        "other": (other := object()),
    }
    moved = move(batch)
    assert list(moved) == list(batch)
    assert moved["list"][1:] == ["text", 3, None]
    assert moved["tuple"][1] == b"bytes"
    assert type(moved["tuple"]) is tuple
    assert type(moved["pair"]) is Pair
    assert moved["pair"].y == 1.5
    assert type(moved["ordered"]) is OrderedDict
    assert moved["default"].default_factory is list
    assert moved["record"].name == "name"
    assert moved["class"] is Record
    assert moved["other"] is other
    assert moved["movable"].device == torch.device("meta")
    tensors = [
        moved["tensor"],
        moved["list"][0],
        moved["tuple"][0],
        moved["pair"].x,
        moved["ordered"]["a"],
        moved["default"]["a"],
        moved["frozen"]["a"],
        moved["record"].x,
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert by_name["a"] is one  # what the dataset keeps is not changed
