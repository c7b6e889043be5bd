"""FSDP2 over a model: what it cannot take is refused first, then the weights are divided."""

import gc
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from trainkit.coordination import Communicator
from trainkit.errors import StrategyError, TrainkitError

__all__ = ["refuse_what_cannot_be_sharded", "shard"]

_TO_READ = 10.0
"""Seconds for the other ranks to learn that models differ."""

Blocks = list[tuple[str, torch.nn.Module]]


def refuse_what_cannot_be_sharded(
    model: torch.nn.Module, blocks: Blocks, communicator: Communicator
) -> None:
    """Look at ``model`` before anything of it is changed.

    Args:
        model: on all ranks the same.
        blocks: of it, as ``find_blocks`` returns them.
        communicator: of all ranks; each has to call.

    Raises:
        StrategyError: it cannot train sharded, and would fail in a later step or, worse, train
            something else. The message names the module or the parameter, and what to do.
    """
    _refuse_wrappers(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        _refuse_without_values(name, tensor)
    for name, parameter in model.named_parameters():
        _refuse_parameter(name, parameter)
    _refuse_modules(model, communicator.world_size)
    _refuse_tied_over_units(model, blocks)
    for name, parameters in _units(model, blocks):
        dtypes = {str(p.dtype) for p in parameters if p.requires_grad}
        if len(dtypes) > 1:
            raise StrategyError(
                f"fsdp sends the parameters of a block as one, and those of "
                f"{name or type(model).__name__} are of {' and '.join(sorted(dtypes))}. Make them "
                f"one type; precision='bf16' computes in bf16 with parameters in fp32."
            )
    _refuse_earlier_optimizers(model)
    _refuse_different_models(model, communicator)


def shard(
    model: torch.nn.Module,
    blocks: Blocks,
    *,
    mesh: Any,
    device: torch.device,
    policy: MixedPrecisionPolicy,
    reshard_after_forward: bool,
) -> None:
    """Give all ranks the weights of rank 0, moved and divided block by block.

    At no time does the device hold more than its parts and one whole block. (What belongs to no
    block is divided last, as one.)

    Args:
        model: changed in place: its parameters become DTensors.
        blocks: of it, inner ones first.
        mesh: 1D to shard over, or 2D to replicate over the first dimension.
        device: of this rank.
        policy: types of arithmetic and of what is sent.
        reshard_after_forward: whether a block's whole weights are let go between the forward
            and the backward pass.

    Raises:
        StrategyError: torch refuses the model.
    """
    units = [*blocks, ("", model)]
    for name, module in units:
        is_root = module is model
        _take_from_rank_0(module, device)
        try:
            fully_shard(
                module,
                mesh=mesh,
                # None: torch keeps the root's, which the backward pass needs at once.
                reshard_after_forward=None
                if is_root and reshard_after_forward
                else reshard_after_forward,
                mp_policy=policy if is_root else _within(policy),
            )
        except (ValueError, NotImplementedError, AssertionError) as error:
            raise StrategyError(
                f"torch cannot shard {name or type(model).__name__}: {error}"
            ) from error
        if is_root or not reshard_after_forward:
            # After fully_shard, so that torch's own hook has run before this one.
            module.register_forward_hook(_let_go_without_backward)


def _let_go_without_backward(module: torch.nn.Module, args: Any, output: Any) -> None:
    """Divide again what torch leaves whole for a backward pass, where none will come.

    Else ``parameters()`` gives the whole weights until the next backward pass: an optimizer that
    is made from them after an evaluation trains what nobody reads, ``clip_grad_norm`` overlooks
    their gradients, and an optimizer's step in between does not reach the next forward pass.
    """
    if not torch.is_grad_enabled() and isinstance(module, FSDPModule):
        module.reshard()


def _within(policy: MixedPrecisionPolicy) -> MixedPrecisionPolicy:
    """For blocks: only what the whole model returns is cast back."""
    return MixedPrecisionPolicy(
        param_dtype=policy.param_dtype, reduce_dtype=policy.reduce_dtype, output_dtype=None
    )


def _take_from_rank_0(module: torch.nn.Module, device: torch.device) -> None:
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    waiting = []
    for tensor in tensors.values():
        if isinstance(tensor, DTensor):
            continue
        # Contiguous: gloo sends as many bytes as there are elements, from the first on, and so
        # would write beyond the memory of an expanded buffer.
        tensor.data = tensor.data.to(device).contiguous()
        waiting.append(dist.broadcast(tensor.data, 0, async_op=True))
    for work in waiting:
        if work is not None:
            work.wait()


def _units(model: torch.nn.Module, blocks: Blocks) -> list[tuple[str, list[torch.nn.Parameter]]]:
    """The parameters that each block holds, those of inner blocks aside; the model's rest last."""
    taken: set[int] = set()
    units = []
    for name, module in [*blocks, ("", model)]:
        own = [p for p in module.parameters() if id(p) not in taken]
        taken |= {id(parameter) for parameter in own}
        units.append((name, own))
    return units


def _refuse_wrappers(model: torch.nn.Module) -> None:
    parallel = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, parallel):
            raise StrategyError(
                f"{name or 'the model'} is wrapped in {kind} already. Give ctx.setup() the model "
                f"itself: fsdp takes the wrapper's place."
            )
        if kind == "OptimizedModule":
            raise StrategyError(
                f"{name or 'the model'} was compiled with torch.compile(model), whose wrapper "
                f"hides its blocks. Call model.compile() instead, which compiles in place."
            )


def _refuse_without_values(name: str, tensor: torch.Tensor) -> None:
    if torch.nn.parameter.is_lazy(tensor):
        raise StrategyError(
            f"{name} belongs to a lazy module, which has no weights before it has seen a batch. "
            f"Call the model once, under torch.no_grad(), before ctx.setup(); or give its sizes."
        )
    if tensor.is_meta:
        raise StrategyError(
            f"{name} is on the meta device and has no values. Make the model on the CPU: "
            f"ctx.setup() moves it to the device block by block."
        )


def _refuse_parameter(name: str, parameter: torch.nn.Parameter) -> None:
    if isinstance(parameter, DTensor):
        raise StrategyError(
            f"{name} is sharded already: ctx.setup() shards a model once, and fully_shard is not "
            f"to be called before it."
        )
    if parameter.ndim == 0:
        raise StrategyError(
            f"{name} is a scalar, which has no rows to divide. Make it a tensor of shape (1,)."
        )
    if not parameter.is_contiguous():
        raise StrategyError(
            f"{name} is not contiguous (channels_last is not), and fsdp divides contiguous rows. "
            f"Leave the model in the default memory format."
        )


def _refuse_modules(model: torch.nn.Module, world_size: int) -> None:
    norms = torch.nn.modules.batchnorm._NormBase  # of BatchNorm and InstanceNorm
    for name, module in model.named_modules():
        if getattr(module, "sparse", False) and isinstance(
            module, torch.nn.Embedding | torch.nn.EmbeddingBag
        ):
            raise StrategyError(
                f"{name} has sparse gradients, which fsdp cannot send: sparse=False."
            )
        if (
            world_size > 1
            and isinstance(module, norms)
            and not isinstance(module, torch.nn.SyncBatchNorm)
            and module.track_running_stats
        ):
            raise StrategyError(
                f"{name} is a {type(module).__name__} whose running statistics would differ over "
                f"ranks: fsdp does not send buffers. Use SyncBatchNorm (on GPUs), GroupNorm, "
                f"LayerNorm or track_running_stats=False, or strategy='ddp'."
            )


def _refuse_tied_over_units(model: torch.nn.Module, blocks: Blocks) -> None:
    units = [
        (name, module, {id(inside) for inside in module.modules()})
        for name, module in [*blocks, ("", model)]
    ]

    def homes(owner: torch.nn.Module) -> set[str]:
        """The innermost unit that holds ``owner``, and others that do not hold that one."""
        holding = [unit for unit in units if id(owner) in unit[2]]
        innermost = holding[0]
        apart = {name for name, _, inside in holding if id(innermost[1]) not in inside}
        return {innermost[0], *apart}

    found: dict[int, set[str]] = {}
    for owner in model.modules():
        for parameter in owner._parameters.values():
            if parameter is not None:
                found.setdefault(id(parameter), set()).update(homes(owner))
    for name, parameter in model.named_parameters():
        if len(found[id(parameter)]) > 1:
            every = model.named_parameters(remove_duplicate=False)
            names = sorted(other for other, same in every if same is parameter)
            raise StrategyError(
                f"{' and '.join(names or [name])} are one parameter (tied weights) in different "
                f"blocks, and fsdp sends blocks one at a time. Keep tied weights outside of "
                f"blocks, or in one: ctx.setup(model, blocks=[…])."
            )


def _refuse_earlier_optimizers(model: torch.nn.Module) -> None:
    """An optimizer of the parameters before would go on changing those, and train nothing."""
    own = {id(parameter) for parameter in model.parameters()}
    if any(_optimizers_of(own)):
        gc.collect()  # one that nobody can reach any more does no harm
    for optimizer in _optimizers_of(own):
        raise StrategyError(
            f"an optimizer ({type(optimizer).__name__}) was made before ctx.setup(model). Under "
            f"fsdp setup replaces the model's parameters by sharded ones, so it would change "
            f"nothing: make it after `model = ctx.setup(model)`, from model.parameters()."
        )


def _optimizers_of(parameters: set[int]) -> Iterator[Any]:
    kinds: set[type] = {torch.optim.Optimizer}
    waiting = [torch.optim.Optimizer]
    while waiting:
        found = [kind for kind in waiting.pop().__subclasses__() if kind not in kinds]
        kinds.update(found)
        waiting += found
    # type() and not isinstance, which is slow and would wake lazy objects of other packages
    for candidate in [one for one in gc.get_objects() if type(one) in kinds]:
        groups = getattr(candidate, "param_groups", ())
        if any(id(p) in parameters for group in groups for p in group["params"]):
            yield candidate


def _refuse_different_models(model: torch.nn.Module, communicator: Communicator) -> None:
    if communicator.world_size == 1:
        return
    shapes = [
        f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.requires_grad}"
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    ]
    digest = hashlib.sha256("\n".join(shapes).encode()).hexdigest()
    found = communicator.all_gather_object((digest, len(shapes)))
    other = next((rank for rank, theirs in enumerate(found) if theirs != found[0]), None)
    if other is not None:
        # Whoever serves the store waits until all have read it: each is to say what is wrong.
        with suppress(TrainkitError):
            communicator.barrier("different models", timeout=_TO_READ)
        raise StrategyError(
            f"the model of rank {other} is not that of rank 0 ({found[other][1]} and {found[0][1]} "
            f"tensors; names, shapes, types or which are trained differ). Every rank has to make "
            f"the same model; its values may differ, those of rank 0 are taken."
        )
