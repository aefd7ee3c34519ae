"""Options of the machine: devices, batch size, precision."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import PositiveInt

if TYPE_CHECKING:
    from ersde_lit.ranks import Ranks


@dataclass(frozen=True)
class MachineOptions:
    """Where and how fast.

    Args:
        batch_size: images sampled (tiles restored) at a time, and images saved; halved when memory does not suffice.
        accelerator: auto, cpu, gpu, cuda or mps.
        devices: how many of them, on each node.
        num_nodes: how many machines; the command is started on each, by torchrun or SLURM, on a shared file system.
        precision: of the network's arithmetic: fp32, tf32 (float32 in TF32 on a GPU), or bf16 or fp16 by autocast.
        compile: mode of torch.compile for the networks: default, or reduce-overhead for CUDA graphs.
    """

    batch_size: PositiveInt = 128
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: PositiveInt = 1
    num_nodes: PositiveInt = 1
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None

    def named(self) -> dict[str, Any]:
        """Values of the options that may change an image by rounding."""
        compiled = {} if self.compile is None else {"compile": self.compile}
        return {"batch_size": self.batch_size, "precision": self.precision, **compiled}

    @property
    def arithmetic(self) -> dict[str, Any]:
        """`dtype` and `allow_tf32` of a sampling."""
        import torch

        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision, torch.float32)
        return {"dtype": dtype, "allow_tf32": self.precision == "tf32"}

    def start(self, denoiser: Any = None) -> "Ranks":
        """Starts the ranks; moves a denoiser to each one's device and compiles its networks with `--compile`."""
        from ersde_lit.networks import Network
        from ersde_lit.ranks import Ranks

        ranks = Ranks.start(self.accelerator, self.devices, self.num_nodes)
        if denoiser is None:
            return ranks
        for module in denoiser.to(ranks.device).modules():
            if self.compile is not None and isinstance(module, Network):
                module.compile(mode=self.compile, dynamic=False)  # at first use, once more for each batch size
        return ranks
