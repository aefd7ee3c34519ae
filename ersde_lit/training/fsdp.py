"""Lightning strategy for sharded training, `--trainer.strategy fsdp2`."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ersde_lit.networks.magnitude import MPConv


class FSDP2(ModelParallelStrategy):
    """Shards the weights that are trained, their gradients and the optimiser's moments over all devices.

    The averaged weights stay whole on each, so that validation, FID and samples are those of DDP, whatever each device
    has to do; of the five copies of a model that training with Adam keeps, four are shared. Checkpoints are the same
    single files, and a run may go on with other devices or another strategy. Precision is 32, bf16-mixed, or a "true"
    one: Lightning's ModelParallelStrategy has no loss scaling.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


StrategyRegistry.register("fsdp2", FSDP2, description=FSDP2.__doc__ or "")


def is_sharded(module: nn.Module) -> bool:
    return any(isinstance(weight, DTensor) for weight in module.parameters())


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shards the weights of `module` in place: each block of a list of blocks by itself, the rest together.

    Scalars stay whole, as fully_shard takes none: see `average_whole_gradients`.
    """
    scalars = {weight for weight in module.parameters() if not weight.ndim}
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList | nn.ModuleDict)]
    for block in [block for part in reversed(lists) for block in part.children()]:
        fully_shard(block, mesh=mesh, ignored_params=scalars)
    fully_shard(module, mesh=mesh, ignored_params=scalars)
    module.register_forward_pre_hook(_normalise_shards, prepend=True)


def average_whole_gradients(module: nn.Module) -> None:
    """Averages the gradients of what `shard` left whole over all ranks; to be called by all ranks."""
    gradients = [w.grad for w in module.parameters() if w.grad is not None and not isinstance(w, DTensor)]
    if gradients:
        total = torch.stack(gradients)
        distributed.all_reduce(total)
        torch._foreach_copy_(gradients, [*(total / distributed.get_world_size())])


def _normalise_shards(module: nn.Module, _: tuple[Any, ...]) -> None:
    """Forced weight normalisation before the weights are gathered: what a layer writes to gathered ones is lost."""
    for layer in module.modules():
        if isinstance(layer, MPConv) and layer.training:
            layer.normalise_weight()


def whole_weights(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yields the whole weights of `module` by name, sharded ones one at a time; to be called by all ranks."""
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    if is_sharded(module):
        yield from ({name: whole(weight)} for name, weight in weights.items())
    else:
        yield weights


def whole(weights: Tensor) -> Tensor:
    """Gathers a tensor that may be sharded; to be called by all ranks."""
    return weights.full_tensor() if isinstance(weights, DTensor) else weights
