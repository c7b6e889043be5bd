"""What ranks of test_fsdp.py run: each function is a user's script in short."""

import gc
import math
import weakref

import torch

from tests.strategies.torch import models
from trainkit.strategies.torch.ddp import DDP
from trainkit.strategies.torch.fsdp import FSDP
from trainkit.strategies.torch.single import Single

KINDS = {"single": Single, "ddp": DDP, "fsdp": FSDP}


def trains(strategy, *, options=None, dropout=0.0, dtype="float32", **settings):
    """Train the same model on the same global batches, on any number of ranks."""
    dtype = getattr(torch, dtype)

    def main(ctx):
        net = models.Net(dropout)
        found = models.train(ctx, net, dtype=dtype, **settings)
        held = sum(
            (p.to_local() if hasattr(p, "to_local") else p).numel() for p in net.parameters()
        )
        found |= {
            "calls": [block.calls for block in net.blocks],
            "dtype": str(net.blocks[0].seen),
            "held": held,
            "sharded": [type(m).__name__ for m in net.modules() if type(m).__name__[:4] == "FSDP"],
        }
        return found

    return models.run(main, KINDS[strategy](**(options or {})))


def clips(options=None):
    """Norms over shards of every shape, beside what torch says of the whole gradients."""

    def main(ctx):
        net = models.Net()
        frozen = net.blocks[1].up.weight.requires_grad_(False)
        model = ctx.setup(net)
        x, y = models.batch(0, 0, torch.float32)
        (100 * (model(x) - y).square().mean()).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert frozen.grad is None
        whole = [grad.full_tensor().clone() for grad in grads]
        expected = torch.nn.utils.get_total_norm(whole)
        measured = ctx.clip_grad_norm(model, math.inf)
        assert all(torch.equal(g.full_tensor(), w) for g, w in zip(grads, whole, strict=True))
        returned = ctx.clip_grad_norm(model, 0.5)
        factor = 0.5 / (expected + 1e-6)
        off = max(
            float((g.full_tensor() - w * factor).abs().max())
            for g, w in zip(grads, whole, strict=True)
        )
        after = torch.nn.utils.get_total_norm([g.full_tensor() for g in grads])
        below = ctx.clip_grad_norm(model, 1e9)
        return {
            "expected": float(expected),
            "measured": float(measured),
            "returned": float(returned),
            "kind": type(returned).__name__,
            "off": off,
            "after": float(after),
            "below": float(below),
        }

    return models.run(main, FSDP(**(options or {})))


def mixed_gradients():
    """Sharded and plain parameters together, some ranks without a part."""
    from trainkit.strategies.torch.clipping import clip_sharded

    def main(ctx):
        model = ctx.setup(torch.nn.Linear(4, 1))  # one row: only rank 0 has it
        plain = torch.nn.Parameter(torch.ones(3))
        model(torch.ones(1, 4)).sum().backward()
        plain.grad = torch.full((3,), 2.0)
        norm = clip_sharded([*model.parameters(), plain], 1.0, ctx.native)
        return float(norm), plain.grad.tolist(), model.weight.grad.full_tensor().tolist()

    return models.run(main, "torch:fsdp")


def accumulates(num_micro, no_sync=True):
    """How often a rank sends gradients in a step of so many micro-batches."""
    from torch.distributed.tensor.debug import CommDebugMode

    def main(ctx):
        with CommDebugMode() as sent:
            models.train(ctx, models.Net(), steps=1, accumulate=num_micro, no_sync=no_sync)
        return sum(n for kind, n in sent.get_comm_counts().items() if "reduce_scatter" in str(kind))

    return models.run(main, "torch:fsdp")


def values_of_rank_0():
    """Each rank makes other weights and buffers; rank 0's are trained."""

    def main(ctx):
        torch.manual_seed(ctx.rank)
        net = models.Net()
        net.register_buffer("scale", torch.full((2,), float(ctx.rank)))
        # One row in memory, and a part of the columns: neither is contiguous.
        net.register_buffer("wide", torch.full((1, 3), float(ctx.rank)).expand(40, 3))
        net.register_buffer("part", torch.full((4, 4), float(ctx.rank))[:, :2])
        own = models.weights(net)
        ctx.setup(net)
        return own, models.weights(net)

    return models.run(main, "torch:fsdp")


def evaluates(options=None):
    """Losses and norms of a run, and of the same one with evaluations wherever it can have them."""

    def run(ctx, *, evaluations):
        torch.manual_seed(1)
        model = ctx.setup(models.Net())

        def evaluate():
            if evaluations:
                with torch.no_grad():
                    model(torch.ones(2, 5))

        evaluate()
        optimizer = models.OPTIMIZERS["adamw"](model.parameters())
        told = []
        for step in range(3):
            optimizer.zero_grad()
            x, y = models.batch(step, 0, torch.float32)
            loss = (model(x) - y).square().mean()
            evaluate()
            loss.backward()
            evaluate()
            norm = ctx.clip_grad_norm(model, 0.5)
            evaluate()
            optimizer.step()
            told.append((float(loss.detach()), float(norm)))
        return told

    def main(ctx):
        return [run(ctx, evaluations=evaluations) for evaluations in (False, True)]

    return models.run(main, FSDP(**(options or {})))


def lets_go():
    """How many of the whole parameters are still there after setup."""

    def main(ctx):
        net = models.Net()
        parameters = [weakref.ref(p) for p in net.parameters()]
        ctx.setup(net)
        gc.collect()
        return sum(p() is not None for p in parameters)

    return models.run(main, "torch:fsdp")


def different_models():
    def main(ctx):
        ctx.setup(torch.nn.Linear(3, 2 + ctx.rank))

    return models.run(main, "torch:fsdp")


def batch_norm():
    def main(ctx):
        ctx.barrier()  # or a rank that is still connecting would see rank 0 leave
        ctx.setup(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)))

    return models.run(main, "torch:fsdp")


def reduces_a_shard():
    def main(ctx):
        model = ctx.setup(models.Net())
        ctx.all_reduce(model.first.weight)

    return models.run(main, "torch:fsdp")


def replicas_that_do_not_divide():
    return models.run(lambda ctx: None, FSDP(replicas=2))


def saves(folder, *, options=None, steps=3, optimizer_first=False, evaluate=False, at=None):
    """Restore if there is something, train, save; returns bits before and after."""

    def main(ctx):
        torch.manual_seed(50 + ctx.world_size)  # other values than the saved ones
        net = models.Net()
        model = ctx.setup(net)
        opt = models.OPTIMIZERS["adamw"](model.parameters())
        names = {"model": model, "optimizer": opt}
        if optimizer_first:
            names = {"optimizer": opt, "model": model}
        checkpoints = ctx.checkpoints(folder, **names)
        step = checkpoints.restore_latest()
        if at is not None:
            assert step == at, step
        restored = bits(net, opt)
        for number in range(step or 0, (step or 0) + steps):
            opt.zero_grad()
            x, y = models.batch(number, 0, torch.float32)
            (model(x) - y).square().mean().backward()
            opt.step()
        if evaluate:
            with torch.no_grad():  # the root's weights stay whole after it
                model(x)
        checkpoints.save((step or 0) + steps, blocking=True)
        return restored, bits(net, opt)

    return models.run(main, Single() if options == "single" else FSDP(**(options or {})))


def bits(net, optimizer):
    """All parameters and moments, whole, by name, the same on all ranks."""
    state = net.state_dict()  # first: shards again what an evaluation has left whole
    found = {name: models.whole(value) for name, value in state.items()}
    names = {id(p): name for name, p in net.named_parameters()}
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            found[f"{names[id(parameter)]}.{key}"] = models.whole(value)
    return found
