"""What a strategy cannot do is said by the context, before anything trains."""

import pytest

from trainkit.errors import StrategyError, UsageError
from trainkit.lifecycle import RankMonitor
from trainkit.runtime.context import Context
from trainkit.strategies import Strategy
from trainkit.strategies.plain import Plain
from trainkit.topology import Topology

ALONE = Topology(platform="local", rank=0, world_size=1, local_rank=0, local_world_size=1)


def context(strategy: Strategy) -> Context:
    strategy.connect(ALONE, 10.0)
    return Context(ALONE, strategy, RankMonitor(), checkpoint_dir=None, seed=0)


def test_options_of_setup_that_a_strategy_does_not_have_are_named():
    ctx = context(Plain())
    with pytest.raises(StrategyError, match=r"setup\(activation_checkpointing=…\).*'plain' has no"):
        ctx.setup(object(), activation_checkpointing=True)
    with pytest.raises(StrategyError, match=r"setup\(blocks=…\)"):
        ctx.setup(object(), blocks=["Block"])


def test_gradients_are_clipped_where_there_are_any():
    with pytest.raises(StrategyError, match=r"clip_grad_norm\(\) needs torch.*'plain' has none"):
        context(Plain()).clip_grad_norm(object(), 1.0)


@pytest.mark.parametrize("max_norm", [0, -1.0, float("nan")])
def test_a_limit_of_the_norm_is_above_0(max_norm):
    with pytest.raises(UsageError, match="above 0"):
        context(Plain()).clip_grad_norm(object(), max_norm)


def test_torchs_strategies_take_them_on_one_rank_too(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # or torch sets it, for good
    torch = pytest.importorskip("torch")
    from trainkit.strategies.torch.single import Single

    class Block(torch.nn.Sequential):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return super().forward(x)

    ctx = context(Single(device="cpu"))
    blocks = [Block(torch.nn.Linear(2, 2)) for _ in range(2)]
    model = ctx.setup(torch.nn.Sequential(*blocks), activation_checkpointing=True)
    model(torch.ones(1, 2)).sum().backward()
    assert Block.calls == 4
    norm = ctx.clip_grad_norm(model, 1e-3)
    left = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert float(norm) > 1e-3 >= float(left) > 0.9e-3
    with pytest.raises(StrategyError, match="Sequential has no such module"):
        ctx.setup(torch.nn.Sequential(), blocks=["Block"])
