"""The transformer of the language model recipe, and its flags."""

import pytest

from trainkit.errors import UsageError

torch = pytest.importorskip("torch")

from trainkit.recipes.lm import Config, Transformer, _groups, _set_lr  # noqa: E402

SIZES = {"layers": 2, "width": 16, "heads": 2, "context": 8}


@pytest.fixture(autouse=True)
def _compile_cache(monkeypatch, tmp_path):
    """torch sets this for good when an optimizer first imports its compiler."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def test_a_score_does_not_see_later_bytes():
    net = Transformer(**SIZES)
    text = torch.randint(256, (3, 8))
    scores = net(text)
    assert scores.shape == (3, 8, 256)
    changed = text.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 256
    again = net(changed)
    assert torch.equal(again[:, :5], scores[:, :5])
    assert (again[:, 5:] != scores[:, 5:]).any(-1).all(), "and it sees all before"


def test_it_begins_with_nearly_equal_scores():
    torch.manual_seed(0)
    scores = Transformer(**SIZES)(torch.randint(256, (4, 8)))
    loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), torch.randint(256, (32,)))
    assert loss.item() == pytest.approx(8 * 0.6931, rel=0.1)  # 8 bits a byte, or a little more


def test_matrices_decay_and_nothing_else_does():
    net = Transformer(**SIZES)
    decaying, others = _groups(net, Config(**SIZES))
    assert len(decaying["params"]) + len(others["params"]) == len([*net.parameters()])
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in others["params"]} == {1}


def test_the_learning_rate_rises_and_falls():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    rates = []
    for done in (0.0, 0.05, 0.1, 0.5, 1.0):
        _set_lr(optimizer, 2.0, done)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.04)
    assert rates[0] < rates[1] < rates[2] == pytest.approx(2.0)
    assert rates[2] > rates[3] > rates[4] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"width": 10, "heads": 3}, "--width 10 does not divide by --heads 3"),
        ({"layers": 0}, "--layers 0"),
        ({"test_windows": 0}, "--test-windows 0"),
        ({"clip": -1.0}, "--clip -1.0"),
        ({"weight_decay": -0.1}, "--weight-decay -0.1"),
    ],
)
def test_flags_that_cannot_be(flags, words):
    with pytest.raises(UsageError, match=words):
        Config(**flags)
