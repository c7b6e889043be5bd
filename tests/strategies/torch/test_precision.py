import copy
from collections import namedtuple

import pytest

from trainkit.errors import UsageError

torch = pytest.importorskip("torch")

from trainkit.strategies.torch.precision import apply_precision  # noqa: E402

Pair = namedtuple("Pair", "a b")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.seen = None

    def forward(self, x, wrap=lambda y: y):
        y = self.layer(x)
        self.seen = y.dtype
        return wrap(y)


def test_bf16_computes_in_bf16_and_returns_fp32():
    model = Model()
    apply_precision(model, "bf16", "cpu")
    output = model(torch.ones(2, 8))
    assert model.seen is torch.bfloat16
    assert output.dtype is torch.float32
    assert model.layer.weight.dtype is torch.float32
    output.sum().backward()
    assert model.layer.weight.grad.dtype is torch.float32


@pytest.mark.parametrize(
    ("wrap", "pick"),
    [
        (lambda y: {"y": y, "n": 3}, lambda out: out["y"]),
        (lambda y: [y, None], lambda out: out[0]),
        (lambda y: Pair(1, y), lambda out: out.b),
    ],
)
def test_outputs_in_containers_are_fp32_too(wrap, pick):
    model = Model()
    apply_precision(model, "bf16", "cpu")
    output = model(torch.ones(2, 8), wrap)
    assert type(output) is type(wrap(torch.ones(1)))
    assert pick(output).dtype is torch.float32


@pytest.mark.parametrize("name", [None, "fp32"])
def test_fp32_leaves_the_model_alone(name):
    model = Model()
    apply_precision(model, name, "cpu")
    assert "forward" not in vars(model)


def test_a_deep_copy_computes_with_its_own_weights():
    model = Model()
    apply_precision(model, "bf16", "cpu")
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.layer.weight.fill_(100)
    assert copied(torch.ones(1, 8)).max() > 500
    assert copied.seen is torch.bfloat16
    assert model.seen is None


def test_an_unknown_precision_is_an_error_that_lists_the_known():
    with pytest.raises(UsageError, match=r"'fp8'.*fp32, bf16"):
        apply_precision(Model(), "fp8", "cpu")


def test_bf16_works_on_a_compiled_model(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # or torch sets it, for good
    model = torch.compile(Model(), backend="eager")
    apply_precision(model, "bf16", "cpu")
    output = model(torch.ones(2, 8))
    assert model.seen is torch.bfloat16
    assert output.dtype is torch.float32
    assert set(model.state_dict()) == {"_orig_mod.layer.weight", "_orig_mod.layer.bias"}
